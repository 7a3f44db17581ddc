//! Gemma 2: Gemma Team, "Gemma 2", 2024. Norms before and after each branch, kept as their difference from one; soft-caps; every other
//! layer sees a window; embeddings scaled by the root of their size.

use super::parts::names::Names;
use super::parts::ropes;
use super::parts::sizes::{Defaults, Sizes, refuse_unless, rounded_to, with_biases};
use super::parts::windows;
use super::{Decoder, Family, Source};
use crate::bridge::spec::LayerSpec;
use crate::checkpoint::fault::CheckpointError;
use crate::checkpoint::json_file::JsonFile;

pub(super) static GEMMA2: Family =
    Family { name: "Gemma 2", architecture: "Gemma2ForCausalLM", model_type: "gemma2", read };

pub(super) const NAMES: Names = Names {
    pre_mlp: "pre_feedforward_layernorm",
    post_mlp: "post_feedforward_layernorm",
    plus_one: true,
    ..Names::LLAMA
};

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults {
        num_kv_heads: Some(4),
        head_dim: Some(256),
        rms_norm_eps: 1e-6,
        tied: true,
        gelu: true,
        ..Defaults::default()
    };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sandwich(config, &sizes)?;
    layer.attention.softcap = softcap(config, "attn_logit_softcapping", Some(50.0))?;
    // The 9B's file says it beside `sliding_window`; the class does not read it.
    config.get("sliding_window_size");
    let windows =
        windows::windows(config, sizes.all.num_layers, Some(4096), |index| index % 2 == 0)?;
    let rope = ropes::read(config, sizes.rope())?;
    let logit_softcap = softcap(config, "final_logit_softcapping", Some(30.0))?;
    let mut spec = sizes.decoder(|index| {
        let mut layer = layer;
        layer.attention.window = windows[index as usize];
        layer
    });
    spec.embedding_scale = rounded_to(source.dtype, (spec.hidden_size as f32).sqrt());
    spec.logit_softcap = logit_softcap;
    sizes.finish(config, spec, vec![rope], NAMES)
}

/// What the layers of Gemma 2 and 3 have in common.
pub(super) fn sandwich(config: &JsonFile, sizes: &Sizes) -> Result<LayerSpec, CheckpointError> {
    refuse_unless(config, "use_bidirectional_attention", &false.into())?;
    let mut layer = sizes.layer();
    layer.post_attention = sizes.norm;
    layer.post_mlp = sizes.norm;
    let scalar = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    layer.attention.scale = scalar.powf(-0.5);
    layer.attention = with_biases(config, layer.attention, false)?;
    Ok(layer)
}

/// Null is none; silence is the family's.
pub(super) fn softcap(
    config: &JsonFile,
    key: &str,
    default: Option<f32>,
) -> Result<f32, CheckpointError> {
    let cap = if config.has(key) { config.positive(key)? } else { default };
    Ok(cap.unwrap_or(0.0))
}
