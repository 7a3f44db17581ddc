//! MXFP4 experts of gpt-oss: those of a layer together, blocks and scales of all in one tensor each.

use std::path::Path;

use crate::bridge::spec::{WeightFormat, WeightKind};

use super::super::families::{ExpectedTensor, Transform};
use super::super::fault::{CheckpointError, CheckpointFault};
use super::super::found::ByName;
use super::{Coded, Packing, StoredTensor};

/// Columns of a block, which share a scale.
const BLOCK: u64 = 32;

/// The matrices of all experts, taken out of `found`; `None` for other tensors, and for experts of elements.
pub(super) fn take(
    found: &mut ByName,
    expected: &ExpectedTensor,
    directory: &Path,
) -> Result<Option<Coded>, CheckpointError> {
    let (Transform::Experts { interleaved }, [experts, inputs, outputs]) =
        (expected.transform, &expected.shape[..])
    else {
        return Ok(None);
    };
    let mut remove = |kind: &str| {
        let stored = found.remove(&format!("{}_{kind}", expected.name));
        stored.map(|(file, entry)| StoredTensor { file, entry })
    };
    let Some(codes) = remove("blocks") else { return Ok(None) };
    let scales = remove("scales")
        .ok_or_else(|| CheckpointError::missing(directory, format!("{}_scales", expected.name)))?;
    let groups = inputs.div_ceil(BLOCK);
    let hold = |tensor: &StoredTensor, shape: &[u64]| {
        let entry = &tensor.entry;
        if entry.shape == shape && entry.dtype_name == "U8" && inputs.is_multiple_of(BLOCK) {
            return Ok(());
        }
        let reason = format!(
            "{} of shape {:?}, but it must be U8 of {shape:?}",
            entry.dtype_name, entry.shape
        );
        let error = CheckpointError::new(CheckpointFault::WrongShape, directory, reason);
        Err(error.at(&*entry.name))
    };
    hold(&codes, &[*experts, *outputs, groups, BLOCK / 2])?;
    hold(&scales, &[*experts, *outputs, groups])?;
    Ok(Some(Coded {
        packing: Packing::Mxfp4 { interleaved },
        bits: 4,
        codes,
        scales,
        zeros: None,
        order: None,
        format: WeightFormat { kind: WeightKind::Mxfp4, group: BLOCK as u32, offsets: false },
        size: (*outputs as usize, *inputs as usize),
        block: (1, BLOCK as usize),
    }))
}
