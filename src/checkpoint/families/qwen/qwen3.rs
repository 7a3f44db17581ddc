//! Qwen 3: Yang et al., "Qwen3 Technical Report", 2025. q and k are normalised head by head.

use super::super::parts::sizes::{Defaults, Sizes, with_biases};
use super::super::{Decoder, Family, Source};
use super::windowed;
use crate::bridge::spec::QkNorm;
use crate::checkpoint::fault::CheckpointError;

pub static QWEN3: Family =
    Family { name: "Qwen 3", architecture: "Qwen3ForCausalLM", model_type: "qwen3", read };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let defaults = Defaults {
        num_kv_heads: Some(32),
        head_dim: Some(128),
        rms_norm_eps: 1e-6,
        ..Defaults::default()
    };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sizes.layer();
    layer.attention.qk_norm = QkNorm::PerHead;
    layer.attention = with_biases(source.config, layer.attention, false)?;
    windowed(source, &sizes, layer)
}
