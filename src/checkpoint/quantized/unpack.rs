//! A matrix of codes as rows for the engine.

use std::borrow::Cow;

use crate::bridge::spec::{Dtype, TensorSlot, WeightFormat, WeightKind};

use super::super::families::{ExpectedTensor, LoadedPart};
use super::super::mmap::MappedFile;
use super::order::order_of;
use super::words::{
    awq_index, awq_rows, code_at, lines_in_order, rows_in_order, transposed, words_plus_one,
};
use super::{Coded, Packing, Rows};

impl Coded {
    /// What the tensor fills: rows of a matrix, of experts one of each; with a matrix's first rows comes its order.
    pub fn parts<'a>(
        &'a self,
        expected: &'a ExpectedTensor,
        files: &'a [MappedFile],
    ) -> impl Iterator<Item = Result<LoadedPart<'a>, String>> + 'a {
        let orders = expected.pieces.iter().filter_map(|piece| {
            let (order, part) = (self.order()?, order_of(piece.slot.part)?);
            let slot = TensorSlot { part, ..piece.slot };
            (slot.first_row == 0).then(|| Ok(LoadedPart::of_order(slot, order)))
        });
        let rows = expected.pieces.iter().enumerate().map(|(index, piece)| {
            let Rows { format, data, scales, offsets } = self.rows(files, index)?;
            let shape = self.shape().to_vec();
            Ok(LoadedPart { slot: piece.slot, format, shape, data, scales, offsets })
        });
        orders.chain(rows)
    }

    /// The matrix, or of experts the one at `index`.
    ///
    /// # Errors
    /// What of the values contradicts the configuration.
    fn rows<'a>(&self, files: &'a [MappedFile], index: usize) -> Result<Rows<'a>, String> {
        let codes = self.codes.data(files).unwrap_or_default();
        let scales = self.scales.data(files).unwrap_or_default();
        let zeros = self.zeros.as_ref().and_then(|zeros| zeros.data(files));
        if let Packing::Mxfp4 { interleaved } = self.packing {
            let rows = self.mxfp4(codes, scales, (index, interleaved));
            return finite(&rows.scales).map(|()| rows);
        }
        let scales = self.spread(&self.scales_by_row(scales));
        finite(&scales)?;
        let offsets = match zeros {
            Some(zeros) => self.offsets(zeros, &scales)?,
            None => Vec::new(),
        };
        let data = self.code_rows(codes);
        if let Some(order) = self.order.as_ref().filter(|_| self.becomes_elements()) {
            let values = self.dequantized(&data, (&scales, &offsets), &order.groups(files));
            return Ok(Rows {
                format: Dtype::F32.into(),
                data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                scales: Vec::new(),
                offsets: Vec::new(),
            });
        }
        let offsets = if self.format.offsets { offsets } else { Vec::new() };
        Ok(Rows { format: self.format, data, scales, offsets })
    }

    /// Codes as the engine reads them.
    fn code_rows<'a>(&self, codes: &'a [u8]) -> Cow<'a, [u8]> {
        let (rows, columns) = self.size;
        let data: Cow<'_, [u8]> = match self.packing {
            Packing::Gptq { .. } => {
                let words = (columns * self.bits as usize).div_ceil(32);
                let ordered = self.order().map(|order| lines_in_order(codes, self.bits, order));
                transposed(ordered.as_deref().unwrap_or(codes), (rows, words)).into()
            }
            Packing::Awq => awq_rows(codes, self.size).into(),
            _ => codes.into(),
        };
        // Words hold bytes above a middle of 128; the engine's have a sign. A row's last word may be wider than the row.
        let data: Cow<'_, [u8]> = match (self.packing, self.bits) {
            (Packing::Gptq { .. } | Packing::Rows, 8) => data.iter().map(|b| b ^ 0x80).collect(),
            _ => data,
        };
        let row_bytes = (columns * self.bits as usize).div_ceil(8);
        let stored = data.len() / rows.max(1);
        let data = match stored == row_bytes {
            true => data,
            false => data.chunks(stored).flat_map(|row| &row[..row_bytes]).copied().collect(),
        };
        match (self.packing, self.order()) {
            (Packing::Gptq { .. }, _) | (_, None) => data,
            (_, Some(order)) => rows_in_order(&data, self.bits, order).into(),
        }
    }

    /// Scales as they are in the file, but those of a row side by side.
    fn scales_by_row(&self, data: &[u8]) -> Vec<f32> {
        let values = self.scales.entry.dtype.unwrap_or(Dtype::F32).floats(data).collect::<Vec<_>>();
        match self.packing {
            Packing::Gptq { .. } | Packing::Awq => {
                let (rows, groups) = (self.size.0, values.len() / self.size.0.max(1));
                let at = |i: usize| values[i % groups * rows + i / groups];
                (0..values.len()).map(at).collect()
            }
            _ => values,
        }
    }

    /// Those of blocks of rows for each of their rows.
    fn spread(&self, scales: &[f32]) -> Vec<f32> {
        let (rows, columns) = self.size;
        let (block_rows, block_columns) = self.block;
        let groups = columns.div_ceil(block_columns);
        if block_rows == 1 {
            return scales.to_vec();
        }
        (0..rows)
            .flat_map(|row| scales[row / block_rows * groups..][..groups].iter().copied())
            .collect()
    }

    /// `[rows, groups]` scale times the zero point's distance from the format's own.
    fn offsets(&self, zeros: &[u8], scales: &[f32]) -> Result<Vec<f32>, String> {
        let rows = self.size.0;
        let groups = scales.len() / rows.max(1);
        let middle = if self.bits == 4 { 8.0 } else { 128.0 };
        let zeros: Cow<'_, [u8]> = match self.packing {
            Packing::Gptq { one_less: true } => words_plus_one(zeros, self.bits).into(),
            _ => zeros.into(),
        };
        let zero_of = |row: usize, group: usize| match self.packing {
            Packing::Bytes => f32::from(zeros[row / self.block.0 * groups + group] as i8),
            // Packed along the rows: [N / n, groups] words.
            Packing::Rows => {
                let (row, in_word) = (row / self.block.0, 32 / self.bits as usize);
                let word = &zeros[(row / in_word * groups + group) * 4..][..4];
                f32::from(code_at(word, self.bits, row % in_word)) - middle
            }
            Packing::Awq | Packing::Gptq { .. } | Packing::Mxfp4 { .. } => {
                let line = zeros.len() / groups;
                let line = &zeros[group * line..][..line];
                let index = match self.packing {
                    Packing::Awq => awq_index(row),
                    _ => row,
                };
                f32::from(code_at(line, self.bits, index)) - middle
            }
        };
        let zero_points = (0..rows * groups).map(|i| zero_of(i / groups, i % groups));
        if self.format.offsets || self.becomes_elements() {
            return Ok(zero_points.zip(scales).map(|(zero, scale)| zero * scale).collect());
        }
        match zero_points.into_iter().find(|zero| *zero != 0.0) {
            None => Ok(Vec::new()),
            Some(zero) => Err(format!(
                "quantization_config says that it is symmetric, but a zero point is {}",
                zero + middle
            )),
        }
    }

    /// `[rows, columns]`, each column by the scale of its own group.
    fn dequantized(
        &self,
        codes: &[u8],
        (scales, offsets): (&[f32], &[f32]),
        group_of: &[usize],
    ) -> Vec<f32> {
        let (rows, columns) = self.size;
        let groups = scales.len() / rows.max(1);
        let row_bytes = codes.len() / rows.max(1);
        let value = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            let at = row * groups + group_of[column];
            let code = code_at(&codes[row * row_bytes..][..row_bytes], self.bits, column);
            let level = if self.bits == 4 { f32::from(code) - 8.0 } else { f32::from(code as i8) };
            scales[at] * level - offsets.get(at).copied().unwrap_or(0.0)
        };
        (0..rows * columns).map(value).collect()
    }

    /// One expert of all; gate and up that take turns become one after the other.
    fn mxfp4<'a>(
        &self,
        codes: &'a [u8],
        scales: &[u8],
        (index, interleaved): (usize, bool),
    ) -> Rows<'a> {
        let (rows, columns) = self.size;
        let (row_bytes, groups) = (columns / 2, columns / 32);
        let codes = &codes[index * rows * row_bytes..][..rows * row_bytes];
        let scales = &scales[index * rows * groups..][..rows * groups];
        let source = |row: usize| match interleaved {
            true if row < rows / 2 => 2 * row,
            true => 2 * (row - rows / 2) + 1,
            false => row,
        };
        // E8M0: the exponent alone, with a bias of 127.
        let scale = |exponent: &u8| 2.0_f32.powi(i32::from(*exponent) - 127);
        let data = match interleaved {
            false => Cow::Borrowed(codes),
            true => (0..rows)
                .flat_map(|row| &codes[source(row) * row_bytes..][..row_bytes])
                .copied()
                .collect(),
        };
        let scales = (0..rows)
            .flat_map(|row| &scales[source(row) * groups..][..groups])
            .map(scale)
            .collect();
        let format = WeightFormat { kind: WeightKind::Mxfp4, group: 32, offsets: false };
        Rows { format, data, scales, offsets: Vec::new() }
    }
}

fn finite(scales: &[f32]) -> Result<(), String> {
    match scales.iter().find(|scale| !scale.is_finite()) {
        None => Ok(()),
        Some(scale) => Err(format!("a scale is {scale}; expected finite numbers")),
    }
}
