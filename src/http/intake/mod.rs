//! A request's way in: its body's bytes, what they ask for, and the ids under which its prompts run.

pub(super) mod body;
pub(super) mod children;
pub(super) mod id;
pub(super) mod ignored;
pub(super) mod parse;
pub(super) mod prompts;
