//! A matrix of blocks as rows for the engine.

use std::iter::repeat_n;

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

impl BlockMatrix {
    /// The rows of the tensor's slot; `data` has the bytes of its shape.
    pub fn part<'a>(&self, expected: &ExpectedTensor, data: &[u8]) -> Option<LoadedPart<'a>> {
        let slot = expected.pieces.first()?.slot;
        let (rows, columns) = match expected.shape[..] {
            [rows, columns] => (rows as usize, columns as usize),
            _ => return None,
        };
        let (block_columns, block_bytes) = self.kind.size();
        let row_bytes = columns / block_columns * block_bytes;
        let mut part = LoadedPart {
            slot,
            format: self.format,
            shape: expected.shape.clone(),
            data: Vec::new().into(),
            scales: Vec::new(),
            offsets: Vec::new(),
        };
        for row in 0..rows {
            let stored = expected.transform.stored_row(row);
            let levels = self.kind.decode(&data[stored * row_bytes..][..row_bytes]);
            self.append(&levels, &mut part);
        }
        Some(part)
    }

    fn append(&self, row: &Levels, part: &mut LoadedPart<'_>) {
        let data = part.data.to_mut();
        if self.format.kind == WeightKind::Int4 {
            // Two codes in a byte, the first in its lower half; of codes the middle is 8.
            let code = |level: i8| (level + 8) as u8;
            let pairs = row.levels.as_chunks().0.iter();
            data.extend(pairs.map(|[first, second]| code(*first) | code(*second) << 4));
        } else {
            data.extend(row.levels.iter().map(|level| *level as u8));
        }
        // A smaller group has a share of its own.
        let share = (self.kind.format().group / self.format.group.max(1)).max(1) as usize;
        part.scales.extend(row.scales.iter().flat_map(|scale| repeat_n(*scale, share)));
        if !self.format.offsets {
            return;
        }
        match row.offsets[..] {
            [] => part.offsets.extend(repeat_n(0.0, row.scales.len() * share)),
            _ => {
                part.offsets.extend(row.offsets.iter().flat_map(|offset| repeat_n(*offset, share)))
            }
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
