//! GLM-4 (dense, 9B and 32B of April 2025): norms before and after each branch, neighbours of half a head turn together, biases of q, k
//! and v: GLM Team, "ChatGLM", 2024.

use super::parts::names::Names;
use super::parts::ropes::{self, RopeDefaults};
use super::parts::sizes::{Defaults, Sizes};
use super::{Decoder, Family, Source};
use crate::checkpoint::fault::CheckpointError;

pub(super) static GLM4: Family =
    Family { name: "GLM-4", architecture: "Glm4ForCausalLM", model_type: "glm4", read };

const NAMES: Names = Names {
    post_attention: "post_self_attn_layernorm",
    post_mlp: "post_mlp_layernorm",
    fused_gate_up: true,
    ..Names::LLAMA
};

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults {
        num_kv_heads: Some(2),
        head_dim: Some(128),
        rms_norm_eps: 1.562_5e-7,
        ..Defaults::default()
    };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sizes.layer();
    layer.post_attention = sizes.norm;
    layer.post_mlp = sizes.norm;
    layer.attention.qkv.bias = config.boolean("attention_bias")?.unwrap_or(true);
    let defaults = RopeDefaults { partial: Some(0.5), interleaved: true, ..sizes.rope() };
    let rope = ropes::read(config, defaults)?;
    sizes.finish(config, sizes.decoder(|_| layer), vec![rope], NAMES)
}
