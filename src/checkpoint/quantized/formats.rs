//! Which format each matrix of a decoder has on the device, by what fills it.

use std::collections::BTreeMap;

use crate::bridge::spec::{DecoderSpec, TensorPart, WeightFormat};

use super::super::families::ExpectedTensor;

/// What fills one matrix, of experts the same one of all.
type MatrixKey = (TensorPart, u32);

/// How the codes of a tensor can be held.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldCodes<'a> {
    pub format: WeightFormat,
    /// Which input belongs to each column, where they stand in an order of their own.
    pub order: Option<&'a [u32]>,
}

impl From<WeightFormat> for HeldCodes<'_> {
    fn from(format: WeightFormat) -> Self {
        Self { format, order: None }
    }
}

/// Of tensors that fill a matrix together what they have in common; `None` where they differ, so that it must be of elements.
pub fn common_formats<'a, 'b>(
    tensors: impl Iterator<Item = (&'a ExpectedTensor, Option<HeldCodes<'b>>)>,
) -> BTreeMap<MatrixKey, Option<HeldCodes<'b>>> {
    let mut formats: BTreeMap<MatrixKey, Option<HeldCodes<'b>>> = BTreeMap::new();
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

/// Gives the spec's matrices these formats; those of none, and those whose order the engine has no place for, stay as they are.
pub fn assign(spec: &mut DecoderSpec, formats: &BTreeMap<MatrixKey, Option<HeldCodes<'_>>>) {
    for ((part, layer), held) in formats {
        let Some(held) = held else { continue };
        if held.order.is_some() {
            let Some(ordered) = spec.ordered_mut(*part, *layer) else { continue };
            *ordered = true;
        }
        if let Some(format) = spec.format_mut(*part, *layer) {
            *format = held.format;
        }
    }
}
