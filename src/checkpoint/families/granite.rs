//! Granite (dense): Llama's decoder with multipliers of embeddings, scores, branches and logits ("Power scheduler", Shen et al., 2024).

use super::parts::names::Names;
use super::parts::ropes;
use super::parts::sizes::{Defaults, Sizes, with_biases, with_mlp_biases};
use super::{Decoder, Family, Source};
use crate::checkpoint::fault::CheckpointError;

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
    layer.attention = with_biases(config, layer.attention, false)?;
    layer.mlp = with_mlp_biases(config, layer.mlp)?;
    let rope = ropes::read(config, sizes.rope())?;
    let mut spec = sizes.decoder(|_| layer);
    spec.embedding_scale = multiplier("embedding_multiplier")?;
    spec.logit_scale = 1.0 / multiplier("logits_scaling")?;
    sizes.finish(config, spec, vec![rope], Names::LLAMA)
}
