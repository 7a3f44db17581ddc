//! Python's values: what they are, how they print, and what operators make of them.

pub(super) mod clock;
mod compare;
pub(super) mod dict;
pub(super) mod display;
pub(super) mod format;
pub(super) mod numbers;
pub(super) mod operators;
pub(super) mod strings;
pub(super) mod value;
