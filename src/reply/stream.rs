//! One request's stream: sampled ids in, events out.

/// What a stream is made with.
pub struct StreamStart;

/// See the module.
pub struct Stream;
