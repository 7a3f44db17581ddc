//! Qwen 2 and 2.5 and what was distilled into them: Yang et al., "Qwen2 Technical Report", 2024. Biases of q, k and v.

use super::super::parts::sizes::{Defaults, Sizes};
use super::super::{Decoder, Family, Source};
use super::windowed;
use crate::checkpoint::fault::CheckpointError;

pub static QWEN2: Family =
    Family { name: "Qwen 2, 2.5", architecture: "Qwen2ForCausalLM", model_type: "qwen2", read };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let defaults = Defaults { num_kv_heads: Some(32), rms_norm_eps: 1e-6, ..Defaults::default() };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sizes.layer();
    layer.attention.qkv.bias = true;
    windowed(source, &sizes, layer)
}
