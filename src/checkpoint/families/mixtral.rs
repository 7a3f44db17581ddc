//! Mixtral: Jiang et al., "Mixtral of Experts", 2024. Mistral's attention, and experts in every layer.

use super::parts::names::{ExpertNames, Names};
use super::parts::ropes::{self, RopeDefaults};
use super::parts::sizes::{Defaults, Sizes, refuse_unless};
use super::parts::windows;
use super::{Decoder, Family, Source};
use crate::bridge::spec::MlpKind;
use crate::checkpoint::fault::CheckpointError;

pub(super) static MIXTRAL: Family =
    Family { name: "Mixtral", architecture: "MixtralForCausalLM", model_type: "mixtral", read };

const NAMES: Names = Names {
    router: "block_sparse_moe.gate",
    experts: ExpertNames::Each { at: "block_sparse_moe.experts", names: ["w1", "w3", "w2"] },
    ..Names::LLAMA
};

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults { num_kv_heads: Some(8), rms_norm_eps: 1e-5, ..Defaults::default() };
    let sizes = Sizes::read(source, defaults)?;
    refuse_unless(config, "attention_bias", &false.into())?;
    let mut layer = sizes.layer();
    layer.attention.window = windows::window(config, None)?.unwrap_or(0);
    layer.mlp.kind = MlpKind::Experts;
    layer.mlp.num_experts = super::num_experts(config, 8)?;
    layer.mlp.experts_per_token = super::experts_per_token(config, 2, layer.mlp.num_experts)?;
    layer.mlp.renormalise = true;
    let of_heads = sizes.rope();
    let rope = ropes::read(config, RopeDefaults { theta: 1e6, ..of_heads })?;
    sizes.finish(config, sizes.decoder(|_| layer), vec![rope], NAMES)
}
