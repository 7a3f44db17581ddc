//! Which format each matrix of a decoder has on the device, by what fills it.

use std::collections::BTreeMap;

use crate::bridge::spec::{DecoderSpec, TensorPart, WeightFormat};

use super::super::families::ExpectedTensor;

/// What fills one matrix, of experts the same one of all.
type MatrixKey = (TensorPart, u32);

/// Of tensors that fill a matrix together their common format; `None` where they differ, so that it must be of elements.
pub fn common_formats<'a>(
    tensors: impl Iterator<Item = (&'a ExpectedTensor, Option<WeightFormat>)>,
) -> BTreeMap<MatrixKey, Option<WeightFormat>> {
    let mut formats: BTreeMap<MatrixKey, Option<WeightFormat>> = BTreeMap::new();
    for (expected, format) in tensors {
        for piece in &expected.pieces {
            let target = (piece.slot.part, piece.slot.layer);
            let known = formats.entry(target).or_insert(format);
            if *known != format {
                *known = None;
            }
        }
    }
    formats
}

/// Gives the spec's matrices these formats; those of none stay as they are.
pub fn assign(spec: &mut DecoderSpec, formats: &BTreeMap<MatrixKey, Option<WeightFormat>>) {
    for ((part, layer), format) in formats {
        if let (Some(format), Some(of_spec)) = (format, spec.format_mut(*part, *layer)) {
            *of_spec = *format;
        }
    }
}
