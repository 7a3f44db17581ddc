//! SmolLM3: Llama's decoder in which every fourth layer has no rotation: Yang et al., "Rope to Nope and Back Again", 2025.

use super::parts::names::Names;
use super::parts::ropes::{self, RopeDefaults};
use super::parts::sizes::{Defaults, Sizes, with_biases, with_mlp_biases};
use super::parts::windows;
use super::{Decoder, Family, Source};
use crate::bridge::spec::NO_ROPE;
use crate::checkpoint::fault::CheckpointError;
use crate::checkpoint::json_file::JsonFile;

pub(super) static SMOLLM3: Family =
    Family { name: "SmolLM3", architecture: "SmolLM3ForCausalLM", model_type: "smollm3", read };

fn read(source: &Source<'_>) -> Result<Decoder, CheckpointError> {
    let config = source.config;
    let defaults =
        Defaults { num_kv_heads: Some(4), rms_norm_eps: 1e-6, tied: true, ..Defaults::default() };
    let sizes = Sizes::read(source, defaults)?;
    let mut layer = sizes.layer();
    layer.attention = with_biases(config, layer.attention, false)?;
    layer.mlp = with_mlp_biases(config, layer.mlp)?;
    // Its files say it; the class does not read it.
    config.get("max_window_layers");
    let turns = turning_layers(config, sizes.all.num_layers)?;
    let windows =
        windows::if_used(config, sizes.all.num_layers, None, |index| !turns[index as usize])?;
    let of_heads = sizes.rope();
    let rope = ropes::read(config, RopeDefaults { theta: 2e6, ..of_heads })?;
    let spec = sizes.decoder(|index| {
        let mut layer = layer;
        layer.attention.window = windows[index as usize];
        layer.attention.rope = if turns[index as usize] { 0 } else { NO_ROPE };
        layer
    });
    sizes.finish(config, spec, vec![rope], Names::LLAMA)
}

/// `no_rope_layers` says 1 where a layer turns.
fn turning_layers(config: &JsonFile, num_layers: u32) -> Result<Vec<bool>, CheckpointError> {
    let interval = config.size("no_rope_layer_interval", u32::MAX)?.unwrap_or(4);
    let Some(flags) = config.numbers("no_rope_layers")? else {
        let turns = |index: u32| !u64::from(index + 1).is_multiple_of(interval.into());
        return Ok((0..num_layers).map(turns).collect());
    };
    if flags.len() != num_layers as usize || flags.iter().any(|flag| *flag != 0.0 && *flag != 1.0) {
        let what = format!("a list of num_hidden_layers {num_layers} of 0 or 1");
        return Err(config.expected("no_rope_layers", &what));
    }
    Ok(flags.iter().map(|flag| *flag == 1.0).collect())
}
