//! Weights by part of the decoder.

use serde::Serialize;

use crate::bridge::ffi::ModelShape;
use crate::models::shape::{dtype_bytes, expected_tensors};

/// How much one part is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Weights.
    pub parameters: u64,
    /// Their bytes in the model's element type.
    pub bytes: u64,
}

/// Every part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// The token embedding.
    pub embedding: Part,
    /// Query, key, value and output projections of all layers.
    pub attention: Part,
    /// Gate, up and down projections of all layers.
    pub mlp: Part,
    /// All of them.
    pub norms: Part,
    /// 0 where it is tied to the embedding.
    pub lm_head: Part,
}

impl Parts {
    /// Of a model of this shape.
    pub fn of(shape: &ModelShape) -> Self {
        let mut parts = Self::default();
        for tensor in expected_tensors(shape) {
            let parameters = tensor.shape.iter().product::<u64>();
            let part = parts.part_of(&tensor.name);
            part.parameters += parameters;
            part.bytes += parameters * dtype_bytes(shape.dtype);
        }
        parts
    }

    /// With their names, in the order of the forward pass.
    pub fn named(&self) -> [(&'static str, Part); 5] {
        [
            ("embedding", self.embedding),
            ("attention", self.attention),
            ("MLP", self.mlp),
            ("norms", self.norms),
            ("lm_head", self.lm_head),
        ]
    }

    /// All parts together.
    pub fn total(&self) -> Part {
        self.named().iter().fold(Part::default(), |sum, (_, part)| Part {
            parameters: sum.parameters + part.parameters,
            bytes: sum.bytes + part.bytes,
        })
    }

    fn part_of(&mut self, tensor: &str) -> &mut Part {
        if tensor.contains(".embed_tokens.") {
            &mut self.embedding
        } else if tensor.contains("norm.") {
            // Norms inside the attention (of queries and keys) too.
            &mut self.norms
        } else if tensor.contains(".self_attn.") {
            &mut self.attention
        } else if tensor.starts_with("lm_head.") {
            &mut self.lm_head
        } else {
            &mut self.mlp
        }
    }
}
