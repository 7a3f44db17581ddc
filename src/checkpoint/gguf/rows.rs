//! A matrix of blocks as rows for the engine.

use std::thread;

use super::super::families::{ExpectedTensor, LoadedPart};
use super::super::quantized::StoredTensor;
use super::kinds::{BlockKind, Levels};
use crate::bridge::spec::{WeightFormat, WeightKind};

/// A matrix of blocks in its file.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockMatrix {
    pub tensor: StoredTensor,
    pub kind: BlockKind,
    /// As the engine is handed it: the kind's own, or a wider one.
    pub format: WeightFormat,
}

/// Neighbouring rows on their way to the engine.
struct RowsOut<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    offsets: &'a mut [f32],
}

impl BlockMatrix {
    /// The rows of the tensor's slot; `data` has the bytes of its shape. All cores decode.
    pub fn part<'a>(&self, expected: &ExpectedTensor, data: &[u8]) -> Option<LoadedPart<'a>> {
        let slot = expected.pieces.first()?.slot;
        let (rows, columns) = match expected.shape[..] {
            [rows, columns] => (rows as usize, columns as usize),
            _ => return None,
        };
        let (code_bytes, groups) = self.row_sizes(columns);
        let mut codes = vec![0; rows * code_bytes];
        let (mut scales, mut offsets) = (vec![0.0; rows * groups], vec![0.0; rows * groups]);
        let num_threads = thread::available_parallelism().map_or(1, usize::from);
        let share = rows.div_ceil(num_threads);
        thread::scope(|scope| {
            let groups_of =
                scales.chunks_mut(share * groups).zip(offsets.chunks_mut(share * groups));
            let shares = codes.chunks_mut(share * code_bytes).zip(groups_of);
            for (index, (codes, (scales, offsets))) in shares.enumerate() {
                let out = RowsOut { codes, scales, offsets };
                scope.spawn(move || self.rows(expected, data, index * share, out));
            }
        });
        if !self.format.offsets {
            offsets.clear();
        }
        let (format, shape) = (self.format, expected.shape.clone());
        Some(LoadedPart { slot, format, shape, data: codes.into(), scales, offsets })
    }

    /// Bytes of a row's codes, and how many groups it has.
    fn row_sizes(&self, columns: usize) -> (usize, usize) {
        let in_byte = if self.format.kind == WeightKind::Int4 { 2 } else { 1 };
        (columns / in_byte, columns / self.format.group as usize)
    }

    /// Rows from `first` on, as many as `out` has.
    fn rows(&self, expected: &ExpectedTensor, data: &[u8], first: usize, out: RowsOut<'_>) {
        let columns = expected.shape[1] as usize;
        let (code_bytes, groups) = self.row_sizes(columns);
        let (block_columns, block_bytes) = self.kind.size();
        let row_bytes = columns / block_columns * block_bytes;
        let mut levels = Levels::default();
        let groups_of =
            out.scales.chunks_exact_mut(groups).zip(out.offsets.chunks_exact_mut(groups));
        let rows = out.codes.chunks_exact_mut(code_bytes).zip(groups_of);
        for (row, (codes, (scales, offsets))) in rows.enumerate() {
            let stored = expected.transform.stored_row(first + row);
            self.kind.decode(&data[stored * row_bytes..][..row_bytes], &mut levels);
            self.write(&levels, RowsOut { codes, scales, offsets });
        }
    }

    fn write(&self, row: &Levels, out: RowsOut<'_>) {
        if self.format.kind == WeightKind::Int4 {
            // Two codes in a byte, the first in its lower half; of codes the middle is 8.
            let code = |level: i8| (level + 8) as u8;
            for (byte, [first, second]) in out.codes.iter_mut().zip(row.levels.as_chunks().0) {
                *byte = code(*first) | code(*second) << 4;
            }
        } else {
            for (byte, level) in out.codes.iter_mut().zip(&row.levels) {
                *byte = *level as u8;
            }
        }
        // A smaller group than the kind's has a share of its own.
        let share = out.scales.len() / row.scales.len().max(1);
        let groups = out.scales.iter_mut().zip(out.offsets);
        for (group, (scale, offset)) in groups.enumerate() {
            *scale = row.scales[group / share];
            *offset = row.offsets.get(group / share).copied().unwrap_or(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::families::{Piece, Transform};
    use super::*;
    use crate::bridge::spec::{TensorPart, TensorSlot};
    use crate::checkpoint::tensors::TensorEntry;

    /// A matrix of two rows of one block.
    fn part(kind: BlockKind, data: &[u8], format: WeightFormat) -> LoadedPart<'static> {
        let shape = vec![2, kind.size().0 as u64];
        let slot = TensorSlot { part: TensorPart::Qkv, layer: 0, expert: 0, first_row: 0 };
        let name = "blk.0.attn_q.weight".to_owned();
        let entry = TensorEntry {
            name: name.clone(),
            dtype: None,
            dtype_name: String::new(),
            shape: shape.clone(),
            begin: 0,
            end: data.len(),
        };
        let expected = ExpectedTensor {
            name,
            shape,
            pieces: vec![Piece { slot, rows: 2 }],
            transform: Transform::HeadsInPairs { head_dim: 2 },
        };
        let matrix = BlockMatrix { tensor: StoredTensor { file: 0, entry }, kind, format };
        matrix.part(&expected, data).expect("a matrix")
    }

    #[test]
    fn neighbours_of_a_row_share_a_byte() {
        // Scale 1, column i has code i % 16.
        let codes = (0..16).map(|code| code | code << 4);
        let row: Vec<u8> = [0x00, 0x3c].into_iter().chain(codes).collect();
        let part = part(BlockKind::Q4_0, &[&row[..], &row].concat(), BlockKind::Q4_0.format());
        let pairs: Vec<u8> = (0..8).map(|pair| (pair * 2) | ((pair * 2 + 1) << 4)).collect();
        assert_eq!(*part.data, pairs.repeat(4));
        assert_eq!((part.scales, part.offsets), (vec![1.0, 1.0], vec![]));
    }

    #[test]
    fn a_wider_format_holds_the_same() {
        let row = [&[0x00, 0x3c][..], &[0x9f; 16]].concat();
        let format = WeightFormat { kind: WeightKind::Int8, group: 16, offsets: true };
        let part = part(BlockKind::Q4_0, &row.repeat(2), format);
        // 15 - 8, and 9 - 8.
        assert_eq!(*part.data, [[7; 16], [1; 16]].concat().repeat(2));
        assert_eq!((part.scales, part.offsets), (vec![1.0; 4], vec![0.0; 4]));
    }
}
