//! Weights by part of the decoder.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bridge::spec::{DecoderSpec, TensorPart};
use crate::checkpoint::families::{Decoder, ExpectedTensor, Transform};

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
    /// Query, key, value, gate and output projections of all layers.
    pub attention: Part,
    /// Gate, up and down projections of all layers, of all experts, and what chooses among them.
    pub mlp: Part,
    /// All of them.
    pub norms: Part,
    /// 0 where it is tied to the embedding.
    pub lm_head: Part,
}

/// On a device, before padding; what is no matrix counts as it is stored.
fn bytes_of(tensor: &ExpectedTensor, spec: &DecoderSpec) -> u64 {
    let parameters = tensor.shape.iter().product::<u64>();
    let slot = tensor.pieces[0].slot;
    let columns = match (tensor.transform, &tensor.shape[..]) {
        (Transform::Experts { .. }, [_, inputs, _]) => *inputs,
        (Transform::None, [_, columns]) => *columns,
        _ => return parameters * spec.activation.bytes(),
    };
    let format = spec.format(slot.part, slot.layer).unwrap_or(spec.activation.into());
    format.bytes(parameters / columns, columns)
}

impl Parts {
    /// Of a checkpoint of this decoder.
    pub fn of(decoder: &Decoder) -> Self {
        let mut parts = Self::default();
        for tensor in decoder.usual_tensors() {
            let parameters = tensor.shape.iter().product::<u64>();
            let part = parts.part_of(tensor.pieces[0].slot.part);
            part.parameters += parameters;
            part.bytes += bytes_of(&tensor, &decoder.spec);
        }
        parts
    }

    /// Numbers of weights by the format of their matrices, the most first.
    pub fn by_format(decoder: &Decoder) -> Vec<(String, u64)> {
        let mut formats: BTreeMap<String, u64> = BTreeMap::new();
        for tensor in decoder.usual_tensors() {
            let slot = tensor.pieces[0].slot;
            let Some(format) = decoder.spec.format(slot.part, slot.layer) else { continue };
            *formats.entry(format.to_string()).or_default() += tensor.shape.iter().product::<u64>();
        }
        let mut formats: Vec<_> = formats.into_iter().collect();
        formats.sort_by_key(|(_, parameters)| std::cmp::Reverse(*parameters));
        formats
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

    fn part_of(&mut self, part: TensorPart) -> &mut Part {
        match part {
            TensorPart::Embedding => &mut self.embedding,
            TensorPart::Head => &mut self.lm_head,
            TensorPart::Qkv
            | TensorPart::QkvBias
            | TensorPart::Sinks
            | TensorPart::OutputGate
            | TensorPart::O
            | TensorPart::OBias => &mut self.attention,
            TensorPart::Router
            | TensorPart::RouterBias
            | TensorPart::ScoreCorrection
            | TensorPart::GateUp
            | TensorPart::GateUpBias
            | TensorPart::Down
            | TensorPart::DownBias
            | TensorPart::SharedGateUp
            | TensorPart::SharedDown
            | TensorPart::SharedGate => &mut self.mlp,
            // Norms inside the attention (of queries and keys) too.
            _ => &mut self.norms,
        }
    }
}
