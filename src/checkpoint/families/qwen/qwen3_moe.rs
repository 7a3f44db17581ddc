//! Qwen 3 with experts (30B-A3B, Coder): Qwen 3's attention, experts in the layers that the file says.

use super::super::parts::bounds::MAX_INTERMEDIATE_SIZE;
use super::super::parts::names::Names;
use super::super::parts::ropes;
use super::super::parts::sizes::{Defaults, Sizes, with_biases};
use super::super::parts::windows;
use super::super::{Decoder, Family, Source, experts_per_token, num_experts};
use super::sparse_layers;
use crate::bridge::spec::{MlpKind, QkNorm};
use crate::checkpoint::fault::CheckpointError;

pub static QWEN3_MOE: Family = Family {
    name: "Qwen 3 with experts",
    architecture: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    read,
};

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults { num_kv_heads: Some(4), rms_norm_eps: 1e-6, ..Defaults::default() };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sizes.layer();
    layer.attention.qk_norm = QkNorm::PerHead;
    layer.attention = with_biases(config, layer.attention, false)?;
    let window = windows::window(config, None)?;
    if config.boolean("use_sliding_window")?.unwrap_or(false) {
        layer.attention.window = window.unwrap_or(4096);
    }
    // Every layer has the same window, whatever this says.
    config.get("max_window_layers");
    let mut experts = layer;
    experts.mlp.kind = MlpKind::Experts;
    experts.mlp.intermediate_size =
        config.size("moe_intermediate_size", MAX_INTERMEDIATE_SIZE)?.unwrap_or(768);
    experts.mlp.num_experts = num_experts(config, 128)?;
    experts.mlp.experts_per_token = experts_per_token(config, 8, experts.mlp.num_experts)?;
    experts.mlp.renormalise = config.boolean("norm_topk_prob")?.unwrap_or(false);
    let has_experts = sparse_layers(config)?;
    let rope = ropes::read(config, sizes.rope())?;
    sizes.finish(
        config,
        sizes.decoder(|index| if has_experts(index) { experts } else { layer }),
        vec![rope],
        Names::LLAMA,
    )
}
