//! Qwen: a file each, and what they have in common.

use super::parts::names::Names;
use super::parts::ropes;
use super::parts::sizes::{Sizes, refuse_unless};
use super::parts::windows;
use super::{Decoder, Source};
use crate::bridge::spec::LayerSpec;
use crate::checkpoint::fault::CheckpointError;
use crate::checkpoint::json_file::JsonFile;

pub(super) mod qwen2;
pub(super) mod qwen2_moe;
pub(super) mod qwen3;
pub(super) mod qwen3_moe;

/// The rest of what Qwen 2 and 3 have in common: the upper layers may see a window.
fn windowed(
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

/// Each `decoder_sparse_step`-th layer, but those of `mlp_only_layers`.
fn sparse_layers(config: &JsonFile) -> Result<impl Fn(u32) -> bool, CheckpointError> {
    let step = config.size("decoder_sparse_step", u32::MAX)?.unwrap_or(1);
    let dense = config.numbers("mlp_only_layers")?.unwrap_or_default();
    Ok(move |index: u32| {
        !dense.contains(&f64::from(index)) && u64::from(index + 1).is_multiple_of(step.into())
    })
}
