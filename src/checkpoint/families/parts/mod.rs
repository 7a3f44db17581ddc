//! What families are made of: sizes and ropes by a `config.json`'s keys, the names of tensors and what becomes of them.

pub mod bounds;
pub mod layer_ropes;
pub mod names;
pub mod ropes;
pub mod sizes;
pub mod transform;
pub mod windows;
