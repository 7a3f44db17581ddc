//! Granite (dense): Llama's decoder with multipliers of embeddings, scores, branches and logits ("Power scheduler", Shen et al., 2024).

use super::names::{Names, Root};
use super::ropes::{self, RopeDefaults};
use super::sizes::{Defaults, Sizes, refuse_unread};
use super::{Decoder, Family, Source};
use crate::models::fault::CheckpointError;

pub(super) static GRANITE: Family =
    Family { name: "Granite", architecture: "GraniteForCausalLM", model_type: "granite", read };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let sizes = Sizes::read(source, Defaults { rms_norm_eps: 1e-6, ..Defaults::default() })?;
    let multiplier =
        |key: &str| -> Result<f32, CheckpointError> { Ok(config.positive(key)?.unwrap_or(1.0)) };
    let mut layer = sizes.layer();
    layer.attention.scale = multiplier("attention_multiplier")?;
    layer.residual_scale = multiplier("residual_multiplier")?;
    let attention_bias = config.boolean("attention_bias")?.unwrap_or(false);
    layer.attention.qkv.bias = attention_bias;
    layer.attention.o.bias = attention_bias;
    let mlp_bias = config.boolean("mlp_bias")?.unwrap_or(false);
    layer.mlp.gate_up.bias = mlp_bias;
    layer.mlp.down.bias = mlp_bias;
    let max_position_embeddings = sizes.all.max_position_embeddings;
    let rope =
        ropes::read(config, RopeDefaults::of_heads(sizes.head_dim, max_position_embeddings))?;
    let mut spec = sizes.decoder(|_| layer);
    spec.embedding_scale = multiplier("embedding_multiplier")?;
    spec.logit_scale = 1.0 / multiplier("logits_scaling")?;
    refuse_unread(config)?;
    Ok(Decoder {
        spec,
        ropes: vec![rope],
        max_position_embeddings,
        names: Names::LLAMA,
        roots: Root::PLAIN,
    })
}
