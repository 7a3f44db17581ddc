//! gpt-oss in 16 bits: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025. Sinks, a window in every other layer, YaRN, biases
//! everywhere, experts whose gate is clamped.

use super::parts::names::{ExpertNames, Names};
use super::parts::ropes::{self, Rope, RopeDefaults, RopeScaling};
use super::parts::sizes::{Defaults, Sizes, refuse_unless, with_biases};
use super::parts::windows;
use super::{Decoder, Family, Source, experts_per_token, num_experts};
use crate::bridge::spec::{Activation, ActivationKind, MlpKind, RouterKind};
use crate::checkpoint::fault::CheckpointError;

pub(super) static GPT_OSS: Family =
    Family { name: "gpt-oss", architecture: "GptOssForCausalLM", model_type: "gpt_oss", read };

const NAMES: Names = Names { router: "mlp.router", experts: ExpertNames::Together, ..Names::LLAMA };

/// Constants of the class.
const ACTIVATION: Activation =
    Activation { kind: ActivationKind::ClampedSilu, alpha: 1.702, limit: 7.0 };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults = Defaults {
        num_kv_heads: Some(8),
        head_dim: Some(64),
        rms_norm_eps: 1e-5,
        ..Defaults::default()
    };
    let sizes = Sizes::read(source, defaults)?;
    refuse_unless(config, "swiglu_limit", &7.0.into())?;
    // Said beside what it was made from; no effect.
    config.get("initial_context_length");
    config.get("experts_per_token");
    let mut layer = sizes.layer();
    layer.attention = with_biases(config, layer.attention, true)?;
    layer.attention.sinks = true;
    layer.mlp.kind = MlpKind::Experts;
    layer.mlp.num_experts = num_experts(config, 128)?;
    layer.mlp.experts_per_token = experts_per_token(config, 4, layer.mlp.num_experts)?;
    layer.mlp.activation = ACTIVATION;
    for linear in [&mut layer.mlp.router, &mut layer.mlp.gate_up, &mut layer.mlp.down] {
        linear.bias = true;
    }
    layer.mlp.router_kind = RouterKind::TopKSoftmax;
    let windows =
        windows::windows(config, sizes.all.num_layers, Some(128), |index| index % 2 == 0)?;
    let of_heads = sizes.rope();
    let rope = match config.get("rope_parameters").is_some() || config.get("rope_scaling").is_some()
    {
        true => ropes::read(config, RopeDefaults { theta: 150_000.0, ..of_heads })?,
        false => class_rope(sizes.head_dim),
    };
    let spec = sizes.decoder(|index| {
        let mut layer = layer;
        layer.attention.window = windows[index as usize];
        layer
    });
    sizes.finish(config, spec, vec![rope], NAMES)
}

/// What the class takes where a file has no rope.
fn class_rope(head_dim: u32) -> Rope {
    Rope {
        theta: 150_000.0,
        rotary_dim: head_dim,
        interleaved: false,
        scaling: RopeScaling::Yarn {
            factor: 32.0,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            attention_factor: 0.1 * 32.0_f32.ln() + 1.0,
        },
        query_scale: None,
    }
}
