//! Quantizing at load: what becomes of a checkpoint in 16 bits that the configuration wants in fewer.

use crate::bridge::LAYER_MATRICES;
use crate::bridge::spec::{DecoderSpec, WeightFormat, WeightKind};

/// Bits and groups of `quantization` and `quantization_head`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// e4m3, a scale for each row.
    Fp8,
    /// 8 bits, a scale for each row.
    Int8,
    /// 4 bits, a scale for each 128 columns.
    Int4,
}

impl Quantization {
    fn format(self) -> WeightFormat {
        let (kind, group) = match self {
            Self::Fp8 => (WeightKind::Fp8, 0),
            Self::Int8 => (WeightKind::Int8, 0),
            Self::Int4 => (WeightKind::Int4, 128),
        };
        WeightFormat { kind, group, offsets: false }
    }

    /// All matrices of the layers.
    pub(in super::super) fn quantize_layers(self, spec: &mut DecoderSpec) {
        for layer in 0..spec.layers.len() as u32 {
            for part in LAYER_MATRICES {
                if let Some(format) = spec.format_mut(part, layer) {
                    *format = self.format();
                }
            }
        }
    }

    /// The head, and the embedding where it is the same matrix.
    pub(in super::super) fn quantize_head(self, spec: &mut DecoderSpec) {
        spec.head.format = self.format();
        if spec.tied_embeddings {
            spec.embedding = self.format();
        }
    }
}
