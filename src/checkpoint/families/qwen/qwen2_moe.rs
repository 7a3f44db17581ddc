//! Qwen 2 with experts (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): Qwen 2's attention; beside the experts one that all tokens share, under a
//! gate of its own.

use super::super::parts::bounds::MAX_INTERMEDIATE_SIZE;
use super::super::parts::names::Names;
use super::super::parts::ropes;
use super::super::parts::sizes::{Defaults, Sizes};
use super::super::parts::windows;
use super::super::{Decoder, Family, Source, experts_per_token, num_experts};
use super::sparse_layers;
use crate::bridge::spec::{MlpKind, MlpSpec};
use crate::checkpoint::fault::CheckpointError;
use crate::checkpoint::json_file::JsonFile;

pub static QWEN2_MOE: Family = Family {
    name: "Qwen 2 with experts",
    architecture: "Qwen2MoeForCausalLM",
    model_type: "qwen2_moe",
    read,
};

const NAMES: Names = Names { shared_expert: "mlp.shared_expert", ..Names::LLAMA };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults { num_kv_heads: Some(16), rms_norm_eps: 1e-6, ..Defaults::default() };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sizes.layer();
    layer.attention.qkv.bias = config.boolean("qkv_bias")?.unwrap_or(true);
    let experts = experts(config, &sizes)?;
    let has_experts = sparse_layers(config)?;
    let first = config.count("max_window_layers", u32::MAX)?.unwrap_or(28);
    let windows = windows::if_used(config, sizes.all.num_layers, Some(4096), |index| {
        index < first && index.is_multiple_of(2)
    })?;
    let rope = ropes::read(config, sizes.rope())?;
    let spec = sizes.decoder(|index| {
        let mut layer = layer;
        layer.attention.window = windows[index as usize];
        if has_experts(index) {
            layer.mlp = experts;
        }
        layer
    });
    sizes.finish(config, spec, vec![rope], NAMES)
}

fn experts(config: &JsonFile, sizes: &Sizes) -> Result<MlpSpec, CheckpointError> {
    let size = |key: &str, default| Ok(config.size(key, MAX_INTERMEDIATE_SIZE)?.unwrap_or(default));
    let num_experts = num_experts(config, 60)?;
    Ok(MlpSpec {
        kind: MlpKind::Experts,
        intermediate_size: size("moe_intermediate_size", 1408)?,
        num_experts,
        experts_per_token: experts_per_token(config, 4, num_experts)?,
        renormalise: config.boolean("norm_topk_prob")?.unwrap_or(false),
        shared: sizes.shared_expert(size("shared_expert_intermediate_size", 5632)?, true),
        ..sizes.mlp()
    })
}
