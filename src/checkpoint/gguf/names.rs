//! What a GGUF file calls the tensors of a decoder.

use super::super::families::ExpectedTensor;
use crate::bridge::spec::{AttentionSpec, DecoderSpec, MlpKind, TensorPart};

pub const EMBEDDING: &str = "token_embd.weight";
pub const HEAD: &str = "output.weight";
const FINAL_NORM: &str = "output_norm.weight";

/// Where a tensor stands in a file.
#[derive(Debug, PartialEq, Eq)]
pub struct StoredName {
    pub name: String,
    /// Of a tensor that holds those of all experts.
    pub expert: Option<StoredExpert>,
}

/// An expert among those of its layer.
#[derive(Debug, PartialEq, Eq)]
pub struct StoredExpert {
    pub index: u32,
    pub count: u32,
}

/// The name of a tensor of this decoder; `None` where the format has none.
pub fn stored_name(expected: &ExpectedTensor, spec: &DecoderSpec) -> Option<StoredName> {
    let whole = |name: &str| Some(StoredName { name: name.to_owned(), expert: None });
    let piece = expected.pieces.first()?;
    let slot = piece.slot;
    match slot.part {
        TensorPart::Embedding => return whole(EMBEDDING),
        TensorPart::Head => return whole(HEAD),
        TensorPart::FinalNorm => return whole(FINAL_NORM),
        _ => {}
    }
    let layer = spec.layers.get(slot.layer as usize)?;
    let is_expert = layer.mlp.kind == MlpKind::Experts;
    let stem = match slot.part {
        TensorPart::PreAttentionNorm => "attn_norm",
        TensorPart::PostAttentionNorm => "post_attention_norm",
        TensorPart::PreMlpNorm => "ffn_norm",
        TensorPart::PostMlpNorm => "post_ffw_norm",
        TensorPart::QNorm => "attn_q_norm",
        TensorPart::KNorm => "attn_k_norm",
        TensorPart::Qkv | TensorPart::QkvBias => {
            of_attention(&layer.attention, slot.first_row, piece.rows)
        }
        TensorPart::O | TensorPart::OBias => "attn_output",
        TensorPart::Router => "ffn_gate_inp",
        TensorPart::GateUp | TensorPart::GateUpBias if slot.first_row > 0 => "ffn_up",
        // Phi's, gate and up in one.
        TensorPart::GateUp if piece.rows > u64::from(layer.mlp.intermediate_size) => "ffn_up",
        TensorPart::GateUp | TensorPart::GateUpBias => "ffn_gate",
        TensorPart::Down | TensorPart::DownBias => "ffn_down",
        _ => return None,
    };
    let of_expert = is_expert && matches!(slot.part, TensorPart::GateUp | TensorPart::Down);
    let experts = if of_expert { "_exps" } else { "" };
    let end = expected.name.rsplit('.').next()?;
    let name = format!("blk.{}.{stem}{experts}.{end}", slot.layer);
    let expert = StoredExpert { index: slot.expert, count: layer.mlp.num_experts };
    Some(StoredName { name, expert: of_expert.then_some(expert) })
}

/// By the first of its rows among those of q, k and v.
fn of_attention(attention: &AttentionSpec, first_row: u32, rows: u64) -> &'static str {
    match first_row {
        0 if rows > u64::from(attention.q_size()) => "attn_qkv",
        0 => "attn_q",
        row if row == attention.q_size() => "attn_k",
        _ => "attn_v",
    }
}
