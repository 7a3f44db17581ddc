//! Llama 1 to 3.3 and what shares their class: Touvron et al., "LLaMA", 2023; Grattafiori et al., "The Llama 3 Herd of Models", 2024.

use super::names::{Names, Root};
use super::ropes::{self, RopeDefaults};
use super::sizes::{Defaults, Sizes, refuse_unless, refuse_unread};
use super::{Decoder, Family, Source};
use crate::models::fault::CheckpointError;

pub(super) static LLAMA: Family =
    Family { name: "Llama", architecture: "LlamaForCausalLM", model_type: "llama", read };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let sizes = Sizes::read(source, Defaults { rms_norm_eps: 1e-6, ..Defaults::default() })?;
    let mut layer = sizes.layer();
    let attention_bias = config.boolean("attention_bias")?.unwrap_or(false);
    layer.attention.qkv.bias = attention_bias;
    layer.attention.o.bias = attention_bias;
    let mlp_bias = config.boolean("mlp_bias")?.unwrap_or(false);
    layer.mlp.gate_up.bias = mlp_bias;
    layer.mlp.down.bias = mlp_bias;
    refuse_unless(config, "rope_interleaved", &false.into())?;
    let max_position_embeddings = sizes.all.max_position_embeddings;
    let rope =
        ropes::read(config, RopeDefaults::of_heads(sizes.head_dim, max_position_embeddings))?;
    refuse_unread(config)?;
    Ok(Decoder {
        spec: sizes.decoder(|_| layer),
        ropes: vec![rope],
        max_position_embeddings,
        names: Names::LLAMA,
        roots: Root::PLAIN,
    })
}
