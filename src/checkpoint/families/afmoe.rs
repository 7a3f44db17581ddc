//! AFMoE (Trinity): Arcee AI, "Arcee Trinity Large Technical Report", 2026. Attention under an output gate, without rotation where it sees
//! all; norms on both sides of a branch; experts that sigmoids choose, beside one that all tokens share.

use super::parts::bounds::MAX_INTERMEDIATE_SIZE;
use super::parts::names::Names;
use super::parts::ropes;
use super::parts::sizes::{Defaults, Sizes, refuse_unless, with_biases};
use super::parts::windows;
use super::{Decoder, Family, Source, experts_per_token, num_experts};
use crate::bridge::spec::{MlpKind, MlpSpec, NO_ROPE, QkNorm, RouterKind};
use crate::checkpoint::fault::CheckpointError;
use crate::checkpoint::json_file::JsonFile;

pub(super) static AFMOE: Family =
    Family { name: "AFMoE", architecture: "AfmoeForCausalLM", model_type: "afmoe", read };

/// Times [`MAX_INTERMEDIATE_SIZE`] it fits.
const MAX_SHARED: u32 = 64;

const NAMES: Names = Names {
    post_attention: "post_attention_layernorm",
    pre_mlp: "pre_mlp_layernorm",
    post_mlp: "post_mlp_layernorm",
    router: "mlp.router.gate",
    score_correction: "mlp.expert_bias",
    ..Names::LLAMA
};

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults { head_dim: Some(128), rms_norm_eps: 1e-5, ..Defaults::default() };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sizes.layer();
    (layer.post_attention, layer.post_mlp) = (sizes.norm, sizes.norm);
    layer.attention.qk_norm = QkNorm::PerHead;
    layer.attention.output_gate = true;
    layer.attention = with_biases(config, layer.attention, false)?;
    let experts = experts(config, &sizes)?;
    let num_dense = config.count("num_dense_layers", u32::MAX)?.unwrap_or(1);
    let every = config.size("global_attn_every_n_layers", u32::MAX)?.unwrap_or(4);
    let windows = windows::windows(config, sizes.all.num_layers, Some(1024), |index| {
        !u64::from(index + 1).is_multiple_of(every.into())
    })?;
    let rope = ropes::read(config, sizes.rope())?;
    let mut spec = sizes.decoder(|index| {
        let mut layer = layer;
        layer.attention.window = windows[index as usize];
        layer.attention.rope = if layer.attention.window > 0 { 0 } else { NO_ROPE };
        if index >= num_dense {
            layer.mlp = experts;
        }
        layer
    });
    if config.boolean("mup_enabled")?.unwrap_or(false) {
        spec.embedding_scale = (spec.hidden_size as f32).sqrt();
    }
    sizes.finish(config, spec, vec![rope], NAMES)
}

fn experts(config: &JsonFile, sizes: &Sizes) -> Result<MlpSpec, CheckpointError> {
    // What the published files say beside; the class does not read it.
    refuse_unless(config, "score_func", &"sigmoid".into())?;
    refuse_unless(config, "route_norm", &true.into())?;
    for groups in ["n_group", "topk_group", "num_expert_groups", "num_limited_groups"] {
        refuse_unless(config, groups, &1.into())?;
    }
    config.get("load_balance_coeff");
    config.get("use_grouped_mm");
    let size = config.size("moe_intermediate_size", MAX_INTERMEDIATE_SIZE)?.unwrap_or(1408);
    let num_shared = config.count("num_shared_experts", MAX_SHARED)?.unwrap_or(2);
    let num_experts = num_experts(config, 64)?;
    Ok(MlpSpec {
        kind: MlpKind::Experts,
        intermediate_size: size,
        num_experts,
        experts_per_token: experts_per_token(config, 6, num_experts)?,
        router_kind: RouterKind::Sigmoid,
        score_correction: true,
        renormalise: true,
        routed_scale: config.positive("route_scale")?.unwrap_or(1.0),
        shared: sizes.shared_expert(num_shared * size, false),
        ..sizes.mlp()
    })
}
