//! Gemma 3: Gemma Team, "Gemma 3 Technical Report", 2025. Gemma 2's layers with q and k normalised head by head instead of soft-caps;
//! five of six layers see a window and have a rope of their own. Of multimodal files the decoder.

use super::gemma2::{NAMES, sandwich, softcap};
use super::parts::ropes::{Rope, RopeDefaults};
use super::parts::sizes::{Defaults, RequiredSizes, Sizes, refuse_unless, rounded_to};
use super::parts::{layer_ropes, windows};
use super::{Decoder, Family, Source, of_multimodal, text_part};
use crate::bridge::spec::QkNorm;
use crate::checkpoint::fault::CheckpointError;
use crate::checkpoint::json_file::JsonFile;

pub(super) static GEMMA3: Family =
    Family { name: "Gemma 3", architecture: "Gemma3ForCausalLM", model_type: "gemma3_text", read };

pub(super) static GEMMA3_MULTIMODAL: Family = Family {
    name: "Gemma 3 (text)",
    architecture: "Gemma3ForConditionalGeneration",
    model_type: "gemma3",
    read: read_multimodal,
};

/// The published `text_config`s leave out what is the class's default.
const DEFAULTS: Defaults = Defaults {
    num_kv_heads: Some(4),
    head_dim: Some(256),
    rms_norm_eps: 1e-6,
    tied: true,
    gelu: true,
    sizes: Some(RequiredSizes {
        vocab_size: 262_208,
        hidden_size: 2304,
        intermediate_size: 9216,
        num_layers: 26,
        num_heads: 8,
        max_position_embeddings: 131_072,
    }),
};

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let sizes = Sizes::read(source, DEFAULTS)?;
    let mut layer = sandwich(config, &sizes)?;
    layer.attention.qk_norm = QkNorm::PerHead;
    refuse_unless(config, "attn_logit_softcapping", &serde_json::Value::Null)?;
    let pattern = config.size("sliding_window_pattern", u32::MAX)?.unwrap_or(6);
    let windows = windows::windows(config, sizes.all.num_layers, Some(4096), |index| {
        !u64::from(index + 1).is_multiple_of(pattern.into())
    })?;
    let of_heads = sizes.rope();
    let ropes = two_ropes(config, of_heads)?;
    let logit_softcap = softcap(config, "final_logit_softcapping", None)?;
    let mut spec = sizes.decoder(|index| {
        let mut layer = layer;
        layer.attention.window = windows[index as usize];
        layer.attention.rope = u32::from(layer.attention.window > 0);
        layer
    });
    spec.embedding_scale = rounded_to(source.dtype, (spec.hidden_size as f32).sqrt());
    spec.logit_softcap = logit_softcap;
    sizes.finish(config, spec, ropes, NAMES)
}

/// Of layers that see all, and of those that see a window. A file of both styles may have its thetas beside `rope_parameters`.
fn two_ropes(config: &JsonFile, defaults: RopeDefaults) -> Result<Vec<Rope>, CheckpointError> {
    let theta = config.positive("rope_theta")?.unwrap_or(1e6);
    let local_theta = config.positive("rope_local_base_freq")?.unwrap_or(defaults.theta);
    let full = RopeDefaults { theta, ..defaults };
    let local = RopeDefaults { theta: local_theta, ..defaults };
    layer_ropes::read(config, full, local)
}

fn read_multimodal(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = text_part(source.config)?;
    refuse_unless(&config, "model_type", &GEMMA3.model_type.into())?;
    // Its class leaves the cap out.
    refuse_unless(&config, "final_logit_softcapping", &serde_json::Value::Null)?;
    let decoder = read(&Source { config: &config, dtype: source.dtype })?;
    of_multimodal(source.config, decoder)
}
