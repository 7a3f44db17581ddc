//! OLMo 2 and 3: OLMo Team, "2 OLMo 2 Furious", 2024; "OLMo 3", 2025. Norms after each branch alone, q and k normalised over all
//! heads; in OLMo 3 three of four layers see a window and turn by an unscaled rope.

use super::parts::names::Names;
use super::parts::ropes::{self, Rope, RopeDefaults};
use super::parts::sizes::{Defaults, Sizes, with_biases};
use super::parts::{layer_ropes, windows};
use super::{Decoder, Family, Source};
use crate::bridge::spec::{LayerSpec, NormSpec, QkNorm};
use crate::checkpoint::fault::CheckpointError;
use crate::checkpoint::json_file::JsonFile;

pub(super) static OLMO2: Family =
    Family { name: "OLMo 2", architecture: "Olmo2ForCausalLM", model_type: "olmo2", read: read_2 };

pub(super) static OLMO3: Family =
    Family { name: "OLMo 3", architecture: "Olmo3ForCausalLM", model_type: "olmo3", read: read_3 };

fn sizes_and_layer(source: &Source<'_>) -> Result<(Sizes, LayerSpec), CheckpointError> {
    let sizes = Sizes::read(source, Defaults { rms_norm_eps: 1e-5, ..Defaults::default() })?;
    let mut layer = sizes.layer();
    (layer.pre_attention, layer.post_attention) = (NormSpec::NONE, sizes.norm);
    (layer.pre_mlp, layer.post_mlp) = (NormSpec::NONE, sizes.norm);
    layer.attention.qk_norm = QkNorm::PerRow;
    layer.attention = with_biases(source.config, layer.attention, false)?;
    Ok((sizes, layer))
}

fn read_2(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let (sizes, layer) = sizes_and_layer(source)?;
    let of_heads = sizes.rope();
    let rope = ropes::read(source.config, of_heads)?;
    sizes.finish(source.config, sizes.decoder(|_| layer), vec![rope], Names::LLAMA)
}

fn read_3(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let (sizes, layer) = sizes_and_layer(source)?;
    let windows = windows::windows(config, sizes.all.num_layers, Some(4096), |index| {
        !(index + 1).is_multiple_of(4)
    })?;
    let of_heads = sizes.rope();
    let ropes = two_ropes(config, RopeDefaults { theta: 500_000.0, ..of_heads })?;
    let spec = sizes.decoder(|index| {
        let mut layer = layer;
        layer.attention.window = windows[index as usize];
        layer.attention.rope = u32::from(layer.attention.window > 0);
        layer
    });
    sizes.finish(config, spec, ropes, Names::LLAMA)
}

/// Of layers that see all, and of those that see a window: the same theta, unscaled.
fn two_ropes(config: &JsonFile, defaults: RopeDefaults) -> Result<Vec<Rope>, CheckpointError> {
    let theta = config.positive("rope_theta")?.unwrap_or(defaults.theta);
    let defaults = RopeDefaults { theta, ..defaults };
    layer_ropes::read(config, defaults, defaults)
}
