//! Mistral 7B, Nemo and Small: Jiang et al., "Mistral 7B", 2023. Llama's decoder without biases; the first versions see a window.

use super::parts::names::Names;
use super::parts::ropes;
use super::parts::sizes::{Defaults, Sizes, refuse_unless};
use super::parts::windows;
use super::{Decoder, Family, Source};
use crate::checkpoint::fault::CheckpointError;

pub(super) static MISTRAL: Family =
    Family { name: "Mistral", architecture: "MistralForCausalLM", model_type: "mistral", read };

pub(super) fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults { num_kv_heads: Some(8), rms_norm_eps: 1e-6, ..Defaults::default() };
    let sizes = Sizes::read(source, defaults)?;
    refuse_unless(config, "attention_bias", &false.into())?;
    let mut layer = sizes.layer();
    // Silence means the first version's window; later ones say null.
    layer.attention.window = windows::window(config, Some(4096))?.unwrap_or(0);
    let rope = ropes::read(config, sizes.rope())?;
    sizes.finish(config, sizes.decoder(|_| layer), vec![rope], Names::LLAMA)
}
