//! Llama 1 to 3.3 and what shares their class: Touvron et al., "LLaMA", 2023; Grattafiori et al., "The Llama 3 Herd of Models", 2024.

use super::parts::names::Names;
use super::parts::ropes;
use super::parts::sizes::{Defaults, Sizes, refuse_unless, with_biases, with_mlp_biases};
use super::{Decoder, Family, Source};
use crate::checkpoint::fault::CheckpointError;

pub(super) static LLAMA: Family =
    Family { name: "Llama", architecture: "LlamaForCausalLM", model_type: "llama", read };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let sizes = Sizes::read(source, Defaults { rms_norm_eps: 1e-6, ..Defaults::default() })?;
    let mut layer = sizes.layer();
    layer.attention = with_biases(config, layer.attention, false)?;
    layer.mlp = with_mlp_biases(config, layer.mlp)?;
    refuse_unless(config, "rope_interleaved", &false.into())?;
    let rope = ropes::read(config, sizes.rope())?;
    sizes.finish(config, sizes.decoder(|_| layer), vec![rope], Names::LLAMA)
}
