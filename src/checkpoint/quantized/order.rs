//! Columns whose groups are no neighbours: GPTQ's `desc_act`, compressed-tensors' `weight_g_idx`.

use crate::bridge::spec::{TensorPart, WeightKind};

use super::super::mmap::MappedFile;
use super::{Coded, StoredTensor};

/// Which columns share a scale, where these are not in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ColumnOrder {
    groups: StoredTensor,
    /// The columns group by group, as they are held; `None`: the matrix becomes elements.
    by_group: Option<Vec<u32>>,
}

impl ColumnOrder {
    /// Each column's group.
    pub fn groups(&self, files: &[MappedFile]) -> Vec<usize> {
        self.groups.data(files).map(group_of_columns).unwrap_or_default()
    }

    pub fn tensor(&self) -> &StoredTensor {
        &self.groups
    }
}

impl Coded {
    /// Keeps which group each column is of, if they are not in order. Where every group has its full number of columns, these can stand
    /// side by side, and the engine puts its inputs in the same order; else the matrix becomes elements.
    pub(super) fn keep_order(
        &mut self,
        groups: StoredTensor,
        files: &[MappedFile],
    ) -> Result<(), String> {
        let (_, columns) = self.size;
        let length = self.block.1;
        let num_groups = columns.div_ceil(length);
        let of_columns = groups.data(files).map(group_of_columns).unwrap_or_default();
        if groups.entry.dtype_name != "I32" || of_columns.len() != columns {
            return Err(format!("expected I32 of [{columns}], got {:?}", groups.entry.shape));
        }
        // What compressed-tensors begins with, and leaves where nothing was ordered.
        let is_unset = of_columns.iter().all(|group| *group as i32 == -1);
        let is_in_order = of_columns.iter().enumerate().all(|(k, group)| *group == k / length);
        if is_unset || is_in_order {
            return Ok(());
        }
        if let Some(group) = of_columns.iter().find(|group| **group >= num_groups) {
            // As it stands in the file, of 32 bits with a sign.
            return Err(format!("group {}, but there are {num_groups}", *group as i32));
        }
        if self.format.kind == WeightKind::Fp8 {
            return Err("columns out of order beside fp8; expected them in order".to_owned());
        }
        let mut by_group: Vec<u32> = (0..columns as u32).collect();
        by_group.sort_by_key(|column| of_columns[*column as usize]);
        let is_full = |(k, column): (usize, &u32)| of_columns[*column as usize] == k / length;
        let are_full = by_group.iter().enumerate().all(is_full);
        self.order = Some(ColumnOrder { groups, by_group: are_full.then_some(by_group) });
        Ok(())
    }

    /// Which column of the file stands at each place of the rows, where that is not its own.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_ref()?.by_group.as_deref()
    }

    /// Where the matrix that it is a part of has no order: the columns stay in theirs, as elements.
    pub fn give_up_order(&mut self) {
        if let Some(order) = &mut self.order {
            order.by_group = None;
        }
    }

    /// Whether the columns are out of order and stay so.
    pub(super) fn becomes_elements(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.by_group.is_none())
    }
}

/// Where the order of such a matrix goes.
pub(super) fn order_of(matrix: TensorPart) -> Option<TensorPart> {
    match matrix {
        TensorPart::Qkv => Some(TensorPart::QkvOrder),
        TensorPart::O => Some(TensorPart::OOrder),
        TensorPart::GateUp => Some(TensorPart::GateUpOrder),
        TensorPart::Down => Some(TensorPart::DownOrder),
        _ => None,
    }
}

fn group_of_columns(data: &[u8]) -> Vec<usize> {
    data.as_chunks().0.iter().map(|group| i32::from_le_bytes(*group) as usize).collect()
}
