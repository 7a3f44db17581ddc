//! The node as a library.

/// See the module.
pub struct Engine;
