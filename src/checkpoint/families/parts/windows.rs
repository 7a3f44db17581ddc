//! Which layers see a window: `layer_types`, or the family's rule where a `config.json` does not list them.

use crate::checkpoint::fault::{CheckpointError, CheckpointFault};
use crate::checkpoint::json_file::JsonFile;

/// Of a window, in positions.
const MAX_WINDOW: u32 = 1 << 28;

/// For each layer whether it sees a window; `None` where the file has no `layer_types`.
///
/// # Errors
/// For another number of layers, or a kind of layer that is not built.
pub fn layer_types(
    config: &JsonFile,
    num_layers: u32,
) -> Result<Option<Vec<bool>>, CheckpointError> {
    let key = "layer_types";
    let Some(value) = config.get(key) else { return Ok(None) };
    let kinds = value.as_array().filter(|kinds| kinds.len() == num_layers as usize);
    let what = format!("a list of num_hidden_layers {num_layers} kinds of layers");
    let kinds = kinds.ok_or_else(|| config.expected(key, &what))?;
    let sliding = |kind: &serde_json::Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => {
            let reason = format!("expected full_attention or sliding_attention, got {kind}");
            Err(config.fault(CheckpointFault::Unsupported, key, reason))
        }
    };
    kinds.iter().map(sliding).collect::<Result<_, _>>().map(Some)
}

/// `sliding_window`, or the class's where the file does not have the key; null means none.
pub fn window(config: &JsonFile, default: Option<u32>) -> Result<Option<u32>, CheckpointError> {
    match config.has("sliding_window") {
        true => config.size("sliding_window", MAX_WINDOW),
        false => Ok(default),
    }
}

/// The window of each layer, 0 where it sees all: `sliding_window` (or the family's), on the layers that `layer_types` (or the family's
/// rule) name.
pub fn windows(
    config: &JsonFile,
    num_layers: u32,
    default_window: Option<u32>,
    rule: impl Fn(u32) -> bool,
) -> Result<Vec<u32>, CheckpointError> {
    let window = window(config, default_window)?;
    let sliding = match layer_types(config, num_layers)? {
        Some(sliding) => sliding,
        None => (0..num_layers).map(rule).collect(),
    };
    if window.is_none() && sliding.contains(&true) {
        return Err(config.expected("sliding_window", "the positions of a window"));
    }
    let window = window.unwrap_or(0);
    Ok(sliding.into_iter().map(|sliding| if sliding { window } else { 0 }).collect())
}

/// Qwen's three keys: no window unless `use_sliding_window`, and none where `sliding_window` is null and no layer asks for one.
pub fn if_used(
    config: &JsonFile,
    num_layers: u32,
    default_window: Option<u32>,
    rule: impl Fn(u32) -> bool,
) -> Result<Vec<u32>, CheckpointError> {
    if config.boolean("use_sliding_window")?.unwrap_or(false) {
        let slides = window(config, default_window)?.is_some();
        return windows(config, num_layers, default_window, |index| slides && rule(index));
    }
    // Without the window nothing slides.
    window(config, None)?;
    let sliding = layer_types(config, num_layers)?.unwrap_or_default();
    if sliding.contains(&true) {
        let reason = "expected full_attention alone where use_sliding_window is false";
        return Err(config.fault(CheckpointFault::Unsupported, "layer_types", reason));
    }
    Ok(vec![0; num_layers as usize])
}
