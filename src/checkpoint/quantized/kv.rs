//! Scales that a checkpoint has for a KV cache in fp8: one number for a layer's keys, one for its values.
//!
//! | name, behind the layer's | who writes it |
//! | --- | --- |
//! | `self_attn.k_scale`, `.v_scale` | compressed-tensors with a `kv_cache_scheme` |
//! | `self_attn.k_proj.output_scale`, `.v_proj.output_scale` | AutoFP8, and compressed-tensors before that |
//! | `self_attn.k_proj.k_scale`, `.v_proj.v_scale` | others |
//! | `self_attn.attn.k_scale`, `.attn.v_scale` | what vLLM saves |
//! | `self_attn.kv_scale` | the first ones: one for both |

use std::collections::BTreeMap;

use half::{bf16, f16};

use crate::bridge::spec::{DecoderSpec, Dtype};

use super::super::families::Root;
use super::super::found::ByName;
use super::super::mmap::MappedFile;
use super::StoredTensor;

/// What a tensor of these names scales: keys, values.
const NAMES: [(&str, bool, bool); 9] = [
    ("k_scale", true, false),
    ("v_scale", false, true),
    ("attn.k_scale", true, false),
    ("attn.v_scale", false, true),
    ("k_proj.k_scale", true, false),
    ("v_proj.v_scale", false, true),
    ("k_proj.output_scale", true, false),
    ("v_proj.output_scale", false, true),
    ("kv_scale", true, true),
];

/// What keys and values are scaled by where nothing is said.
const NO_SCALE: f32 = 1.0;

/// One of them, in its file.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct KvScale {
    tensor: StoredTensor,
    layer: usize,
    keys: bool,
    values: bool,
}

/// Those of a file, which stay where they are, in the order of their names.
pub(in super::super) fn kv_scales(found: &ByName, root: &Root, num_layers: usize) -> Vec<KvScale> {
    let of_name = |name: &str| {
        let behind = name.strip_prefix(root.decoder)?.strip_prefix("layers.")?;
        let (layer, behind) = behind.split_once(".self_attn.")?;
        let layer = layer.parse().ok().filter(|layer| *layer < num_layers)?;
        NAMES.iter().find(|(known, ..)| *known == behind).map(|known| (layer, *known))
    };
    let mut scales: Vec<_> = found
        .iter()
        .filter_map(|(name, (file, entry))| {
            let (layer, (_, keys, values)) = of_name(name)?;
            let tensor = StoredTensor { file: *file, entry: entry.clone() };
            Some(KvScale { tensor, layer, keys, values })
        })
        .collect();
    scales.sort_by(|a, b| a.name().cmp(b.name()));
    scales
}

/// Gives the layers what the file says.
///
/// # Errors
/// Which is no scale, and why.
pub(in super::super) fn give_kv_scales<'a>(
    scales: &'a [KvScale],
    files: &[MappedFile],
    spec: &mut DecoderSpec,
) -> Result<(), (&'a str, String)> {
    let (mut keys, mut values) = (BTreeMap::new(), BTreeMap::new());
    for scale in scales {
        let wrong = |reason| (scale.name(), reason);
        let value = scale.value(files).map_err(wrong)?;
        for (_, said) in [(scale.keys, &mut keys), (scale.values, &mut values)]
            .into_iter()
            .filter(|(is_meant, _)| *is_meant)
        {
            let other = *said.entry(scale.layer).or_insert(value);
            if other != value {
                let reason = format!("{value}, but another scale of the same layer is {other}");
                return Err(wrong(reason));
            }
        }
    }
    for (layer, attention) in spec.layers.iter_mut().map(|layer| &mut layer.attention).enumerate() {
        attention.k_scale = keys.get(&layer).copied().unwrap_or(NO_SCALE);
        attention.v_scale = values.get(&layer).copied().unwrap_or(NO_SCALE);
    }
    Ok(())
}

impl KvScale {
    fn name(&self) -> &str {
        &self.tensor.entry.name
    }

    fn value(&self, files: &[MappedFile]) -> Result<f32, String> {
        let entry = &self.tensor.entry;
        let value = match (entry.dtype, self.tensor.data(files)) {
            (Some(Dtype::F32), Some(&[a, b, c, d])) => f32::from_le_bytes([a, b, c, d]),
            (Some(Dtype::F16), Some(&[a, b])) => f16::from_le_bytes([a, b]).to_f32(),
            (Some(Dtype::BF16), Some(&[a, b])) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => {
                return Err(format!(
                    "{} of shape {:?}; expected one number of F32, F16 or BF16 for the whole layer",
                    entry.dtype_name, entry.shape
                ));
            }
        };
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(format!("expected a number above 0, got {value}"))
    }
}
