//! Ministral 3: Mistral's decoder with YaRN and queries that grow with their position (Llama 4's temperature). Its files, and those of
//! Mistral Small 3.1 and 3.2, hold a vision tower beside the decoder, which is left out.

use super::parts::names::Names;
use super::parts::ropes::{self, Rope, RopeDefaults, RopeScaling};
use super::parts::sizes::{Defaults, Sizes, refuse_unless};
use super::parts::windows;
use super::{Decoder, Family, Source, mistral, of_multimodal, text_part};
use crate::checkpoint::fault::{CheckpointError, CheckpointFault};

pub(super) static MINISTRAL3: Family = Family {
    name: "Ministral 3",
    architecture: "Ministral3ForCausalLM",
    model_type: "ministral3",
    read,
};

pub(super) static MISTRAL3: Family = Family {
    name: "Mistral 3 (text)",
    architecture: "Mistral3ForConditionalGeneration",
    model_type: "mistral3",
    read: read_multimodal,
};

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults {
        num_kv_heads: Some(8),
        head_dim: Some(128),
        rms_norm_eps: 1e-5,
        ..Defaults::default()
    };
    let sizes = Sizes::read(source, defaults)?;
    refuse_unless(config, "attention_bias", &false.into())?;
    let mut layer = sizes.layer();
    layer.attention.window = windows::window(config, None)?.unwrap_or(0);
    let of_heads = RopeDefaults { queries_grow: true, ..sizes.rope() };
    let rope = match config.get("rope_parameters").is_some() || config.get("rope_scaling").is_some()
    {
        true => ropes::read(config, of_heads)?,
        false => class_rope(sizes.head_dim),
    };
    sizes.finish(config, sizes.decoder(|_| layer), vec![rope], Names::LLAMA)
}

/// What the class takes where a file has no rope.
fn class_rope(head_dim: u32) -> Rope {
    Rope {
        theta: 1e6,
        rotary_dim: head_dim,
        interleaved: false,
        scaling: RopeScaling::Yarn {
            factor: 16.0,
            original: 16_384,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.0,
        },
        query_scale: Some((0.1, 16_384)),
    }
}

fn read_multimodal(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = text_part(source.config)?;
    let text = Source { config: &config, dtype: source.dtype };
    let decoder = match config.text("model_type")?.unwrap_or("mistral") {
        "mistral" => mistral::read(&text)?,
        "ministral3" => read(&text)?,
        other => {
            let reason = format!("expected mistral or ministral3, got \"{other}\"");
            return Err(config.fault(CheckpointFault::Unsupported, "model_type", reason));
        }
    };
    of_multimodal(source.config, decoder)
}
