//! What happens to a checkpoint's tensor on its way to the device, beside the conversion of its element type there.

use std::borrow::Cow;

use crate::bridge::ffi::TensorRows;
use crate::bridge::spec::{Dtype, TensorSlot, WeightFormat};

use super::names::ExpectedTensor;

/// How a tensor becomes rows of its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// As it is.
    None,
    /// A norm's weight that is kept as its difference from one (Gemma).
    PlusOne,
    /// A GGUF file's q and k of Llama: a head's rows that turn together are neighbours, and become its two halves.
    HeadsInPairs {
        /// Rows of a head.
        head_dim: u32,
    },
    /// gpt-oss: `[experts, inputs, outputs]`, or `[experts, outputs]` of a bias; a slot for each expert. With `interleaved` outputs
    /// gate and up take turns, and become all of gate before all of up.
    Experts {
        /// Whether gate and up take turns.
        interleaved: bool,
    },
}

impl Transform {
    /// The stored row that becomes row `row`, where these are rows of whole matrices.
    pub fn stored_row(self, row: usize) -> usize {
        let Self::HeadsInPairs { head_dim } = self else { return row };
        let (head_dim, half) = (head_dim as usize, head_dim as usize / 2);
        let in_head = row % head_dim;
        row - in_head + in_head % half * 2 + in_head / half
    }
}

/// Rows for one slot.
pub struct LoadedPart<'a> {
    /// Where they go.
    pub slot: TensorSlot,
    /// Of `data`.
    pub format: WeightFormat,
    /// Rows and columns, or elements.
    pub shape: Vec<u64>,
    /// Little-endian, row-major.
    pub data: Cow<'a, [u8]>,
    /// \[rows, groups\] of what is quantized.
    pub scales: Vec<f32>,
    /// The same, where the format has them.
    pub offsets: Vec<f32>,
}

impl<'a> LoadedPart<'a> {
    fn of_elements(slot: TensorSlot, dtype: Dtype, shape: Vec<u64>, data: Cow<'a, [u8]>) -> Self {
        let (scales, offsets) = (Vec::new(), Vec::new());
        Self { slot, format: dtype.into(), shape, data, scales, offsets }
    }

    /// Which input belongs to each column of a matrix: whole numbers.
    pub(in super::super::super) fn of_order(slot: TensorSlot, order: &[u32]) -> Self {
        let data: Vec<u8> =
            order.iter().flat_map(|column| (*column as f32).to_le_bytes()).collect();
        Self::of_elements(slot, Dtype::F32, vec![order.len() as u64], data.into())
    }

    /// As the engine takes it.
    pub fn rows(&self) -> TensorRows<'_> {
        TensorRows {
            format: self.format,
            shape: &self.shape,
            data: &self.data,
            scales: &self.scales,
            offsets: &self.offsets,
        }
    }
}

impl ExpectedTensor {
    /// The parts of a tensor whose data is at hand, each in its turn. `data` has the bytes of [`ExpectedTensor::shape`].
    pub fn parts<'a>(
        &'a self,
        dtype: Dtype,
        data: &'a [u8],
    ) -> impl Iterator<Item = LoadedPart<'a>> + 'a {
        let columns: u64 = self.shape.iter().skip(1).product();
        let row_bytes = columns * dtype.bytes();
        let mut first_row = 0;
        self.pieces.iter().map(move |piece| {
            let begin = first_row * row_bytes;
            first_row += piece.rows;
            let rows = &data[begin as usize..(first_row * row_bytes) as usize];
            match self.transform {
                Transform::None => {
                    let mut shape = self.shape.clone();
                    shape[0] = piece.rows;
                    LoadedPart::of_elements(piece.slot, dtype, shape, rows.into())
                }
                Transform::HeadsInPairs { .. } => {
                    let row = |row| &rows[self.transform.stored_row(row) * row_bytes as usize..];
                    let in_halves =
                        (0..piece.rows as usize).flat_map(|at| &row(at)[..row_bytes as usize]);
                    let data: Vec<u8> = in_halves.copied().collect();
                    let mut shape = self.shape.clone();
                    shape[0] = piece.rows;
                    LoadedPart::of_elements(piece.slot, dtype, shape, data.into())
                }
                Transform::PlusOne => {
                    let (shape, data) = (vec![piece.rows], plus_one(dtype, rows).into());
                    LoadedPart::of_elements(piece.slot, Dtype::F32, shape, data)
                }
                Transform::Experts { interleaved } => {
                    let (inputs, outputs) = match self.shape[1..] {
                        [inputs, outputs] => (inputs as usize, outputs as usize),
                        _ => (1, columns as usize),
                    };
                    let data = turned(rows, dtype.bytes() as usize, (inputs, outputs), interleaved);
                    let shape = match self.shape.len() {
                        3 => vec![outputs as u64, inputs as u64],
                        _ => vec![outputs as u64],
                    };
                    LoadedPart::of_elements(piece.slot, dtype, shape, data.into())
                }
            }
        })
    }
}

fn plus_one(dtype: Dtype, elements: &[u8]) -> Vec<u8> {
    dtype.floats(elements).flat_map(|element| (1.0 + element).to_le_bytes()).collect()
}

/// `[inputs, outputs]` as `[outputs, inputs]`, the even outputs before the odd ones if these are interleaved.
fn turned(
    elements: &[u8],
    element_bytes: usize,
    (inputs, outputs): (usize, usize),
    interleaved: bool,
) -> Vec<u8> {
    let mut turned = vec![0; elements.len()];
    let source = |row: usize| match interleaved {
        true if row < outputs / 2 => 2 * row,
        true => 2 * (row - outputs / 2) + 1,
        false => row,
    };
    // Blocks, so that neither side walks through all of memory for each of its rows.
    const BLOCK: usize = 64;
    for first_input in (0..inputs).step_by(BLOCK) {
        for row in 0..outputs {
            let column = source(row);
            for input in first_input..inputs.min(first_input + BLOCK) {
                let from = (input * outputs + column) * element_bytes;
                let to = (row * inputs + input) * element_bytes;
                turned[to..to + element_bytes]
                    .copy_from_slice(&elements[from..from + element_bytes]);
            }
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn one_is_added_in_single_precision() {
        let small = bf16::from_f32(0.001);
        let sum = plus_one(Dtype::BF16, &small.to_le_bytes());
        assert_eq!(sum, (1.0 + small.to_f32()).to_le_bytes());
    }

    #[test]
    fn neighbours_become_the_halves_of_each_head() {
        let transform = Transform::HeadsInPairs { head_dim: 6 };
        let stored: Vec<_> = (0..12).map(|row| transform.stored_row(row)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn gate_and_up_that_take_turns_become_one_after_the_other() {
        // Two inputs, outputs gate 0, up 0, gate 1, up 1.
        let elements = [10, 20, 11, 21, 30, 40, 31, 41];
        assert_eq!(turned(&elements, 1, (2, 4), true), [10, 30, 11, 31, 20, 40, 21, 41]);
        assert_eq!(turned(&elements, 1, (2, 4), false), [10, 30, 20, 40, 11, 31, 21, 41]);
        assert_eq!(turned(&[1, 2, 3, 4], 1, (1, 4), true), [1, 3, 2, 4]);
    }
}
