//! Phi-3, 3.5, 4 and 4-mini: Abdin et al., "Phi-3 Technical Report", 2024. Fused matrices, LongRoPE, in the mini a part of each head
//! that does not turn.

use super::parts::bounds::MAX_POSITIONS;
use super::parts::names::Names;
use super::parts::ropes::{self, RopeDefaults};
use super::parts::sizes::{Defaults, Sizes, refuse_unless};
use super::parts::windows;
use super::{Decoder, Family, Source};
use crate::checkpoint::fault::CheckpointError;

pub(super) static PHI3: Family =
    Family { name: "Phi-3, Phi-4", architecture: "Phi3ForCausalLM", model_type: "phi3", read };

const NAMES: Names = Names { fused_qkv: true, fused_gate_up: true, ..Names::LLAMA };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let sizes = Sizes::read(source, Defaults { rms_norm_eps: 1e-5, ..Defaults::default() })?;
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        refuse_unless(config, key, &false.into())?;
    }
    for key in ["full_attn_mod", "interpolate_factor"] {
        refuse_unless(config, key, &1.into())?;
    }
    let mut layer = sizes.layer();
    layer.attention.window = windows::window(config, None)?.unwrap_or(0);
    let original = config.size("original_max_position_embeddings", MAX_POSITIONS)?;
    let defaults = RopeDefaults {
        partial: Some(1.0),
        original: Some(original.unwrap_or(4096)),
        longrope_alone: true,
        ..sizes.rope()
    };
    let rope = ropes::read(config, defaults)?;
    sizes.finish(config, sizes.decoder(|_| layer), vec![rope], NAMES)
}
