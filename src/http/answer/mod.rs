//! An answer on its way out: the choices' events are collected in a buffer, and written as one body or as server-sent events.

pub(super) mod bill;
pub(super) mod buffer;
pub(super) mod choices;
mod logprobs;
pub(super) mod sse;
pub(super) mod wire;
