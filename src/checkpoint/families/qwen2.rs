//! Qwen 2 and 2.5 and what was distilled into them: Yang et al., "Qwen2 Technical Report", 2024. Biases of q, k and v.

use super::parts::names::Names;
use super::parts::ropes;
use super::parts::sizes::{Defaults, Sizes, refuse_unless};
use super::parts::windows;
use super::{Decoder, Family, Source};
use crate::bridge::spec::LayerSpec;
use crate::checkpoint::fault::CheckpointError;

pub(super) static QWEN2: Family =
    Family { name: "Qwen 2, 2.5", architecture: "Qwen2ForCausalLM", model_type: "qwen2", read };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let defaults = Defaults { num_kv_heads: Some(32), rms_norm_eps: 1e-6, ..Defaults::default() };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sizes.layer();
    layer.attention.qkv.bias = true;
    windowed(source, &sizes, layer)
}

/// The rest of what Qwen 2 and 3 have in common: the upper layers may see a window.
pub(super) fn windowed(
    source: &Source<'_>,
    sizes: &Sizes,
    layer: LayerSpec,
) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    refuse_unless(config, "use_mrope", &false.into())?;
    let first = config.count("max_window_layers", u32::MAX)?.unwrap_or(28);
    let windows =
        windows::if_used(config, sizes.all.num_layers, Some(4096), |index| index >= first)?;
    let rope = ropes::read(config, sizes.rope())?;
    let spec = sizes.decoder(|index| {
        let mut layer = layer;
        layer.attention.window = windows[index as usize];
        layer
    });
    sizes.finish(config, spec, vec![rope], Names::LLAMA)
}
