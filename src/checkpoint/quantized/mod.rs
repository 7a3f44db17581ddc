//! Checkpoints whose matrices are codes: which tensors of a file make a matrix, and how they become rows as the engine takes them.
//!
//! | file | a matrix `M` of `[N, K]` |
//! | --- | --- |
//! | fp8, compressed-tensors of 8 bits | `M.weight` `[N, K]`; `M.weight_scale` (`_inv`): one, `[N, 1]`, or one for each block |
//! | its `pack-quantized` | `M.weight_packed` `[N, K / 8]` words; `M.weight_scale` `[N, groups]`; `M.weight_zero_point` |
//! | GPTQ | `M.qweight` `[K / 8, N]` words; `M.scales` `[groups, N]`; `M.qzeros` `[groups, N / 8]`; `M.g_idx` |
//! | AWQ | `M.qweight` `[K, N / 8]` words; `M.scales` `[groups, N]`; `M.qzeros` `[groups, N / 8]` |
//! | MXFP4 | `M_blocks` `[experts, N, K / 32, 16]`; `M_scales` `[experts, N, K / 32]` |
//!
//! What is there decides, tensor by tensor, so layers in 16 bits may stand between; `quantization_config` says what tensors cannot.

use std::borrow::Cow;
use std::path::Path;

use crate::bridge::spec::{WeightFormat, WeightKind};

use super::families::ExpectedTensor;
use super::fault::{CheckpointError, CheckpointFault};
use super::found::ByName;
use super::mmap::MappedFile;
use super::tensors::TensorEntry;

mod at_load;
mod config;
mod experts;
mod formats;
mod kv;
mod order;
mod unpack;
mod words;

pub use at_load::Quantization;
pub(super) use config::QuantizationConfig;
pub(super) use formats::{HeldCodes, assign, common_formats};
pub(super) use kv::{KvScale, give_kv_scales, kv_scales};
use order::ColumnOrder;

/// A tensor in its file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredTensor {
    pub file: usize,
    pub entry: TensorEntry,
}

impl StoredTensor {
    pub fn data<'a>(&self, files: &'a [MappedFile]) -> Option<&'a [u8]> {
        files.get(self.file)?.bytes().get(self.entry.begin..self.entry.end)
    }
}

/// How a file packs codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// A byte each, row by row.
    Bytes,
    /// compressed-tensors: words of a row's neighbours.
    Rows,
    /// GPTQ: words of a column's neighbours; of the first format zeros are kept one less.
    Gptq { one_less: bool },
    /// AWQ: words of eight outputs, in an order of its own.
    Awq,
    /// Two of four bits in a byte, experts with their outputs' gate and up in turns.
    Mxfp4 { interleaved: bool },
}

/// A matrix of codes in its file, or, of MXFP4, those of all experts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Coded {
    packing: Packing,
    bits: u32,
    codes: StoredTensor,
    scales: StoredTensor,
    zeros: Option<StoredTensor>,
    order: Option<ColumnOrder>,
    /// As the engine is handed it.
    format: WeightFormat,
    /// Rows and columns of one matrix.
    size: (usize, usize),
    /// Rows and columns that share a scale in the file.
    block: (usize, usize),
}

/// Rows of a matrix as the engine takes them.
pub(super) struct Rows<'a> {
    pub format: WeightFormat,
    pub data: Cow<'a, [u8]>,
    pub scales: Vec<f32>,
    pub offsets: Vec<f32>,
}

impl Coded {
    /// What the matrix is on a device, if everything beside it in one product is the same; `None`: elements.
    pub fn held(&self) -> Option<HeldCodes<'_>> {
        (!self.becomes_elements()).then(|| HeldCodes { format: self.format, order: self.order() })
    }

    /// Rows and columns of one matrix.
    pub fn shape(&self) -> [u64; 2] {
        [self.size.0 as u64, self.size.1 as u64]
    }

    pub fn codes(&self) -> &StoredTensor {
        &self.codes
    }

    pub fn bytes(&self) -> usize {
        let order = self.order.as_ref().map(ColumnOrder::tensor);
        let beside = [Some(&self.scales), self.zeros.as_ref(), order];
        let bytes = |place: &StoredTensor| place.entry.bytes();
        bytes(&self.codes) + beside.into_iter().flatten().map(bytes).sum::<usize>()
    }
}

/// The tensors of a matrix of codes, taken out of `found`; `None` where its tensor is of elements, or not there.
pub(super) fn take(
    found: &mut ByName,
    files: &[MappedFile],
    expected: &ExpectedTensor,
    config: Option<&QuantizationConfig>,
    directory: &Path,
) -> Result<Option<Coded>, CheckpointError> {
    let Some(config) = config else { return Ok(None) };
    if let Some(coded) = experts::take(found, expected, directory)? {
        return Ok(Some(coded));
    }
    let (Some(module), [rows, columns]) = (expected.module(), &expected.shape[..]) else {
        return Ok(None);
    };
    let size = (*rows as usize, *columns as usize);
    let mut tensors = Tensors { found, files, module, size, directory };
    let Some(mut coded) = tensors.take(config)? else { return Ok(None) };
    let order =
        ["g_idx", "weight_g_idx"].into_iter().find_map(|name| Some((name, tensors.remove(name)?)));
    if let Some((name, order)) = order {
        coded.keep_order(order, files).map_err(|reason| tensors.fault(name, reason))?;
    }
    // Of activations, and shapes that are known: not needed.
    for name in ["input_scale", "activation_scale", "input_zero_point", "weight_shape"] {
        tensors.remove(name);
    }
    Ok(Some(coded))
}

/// Scales of activations and of an fp8 KV cache, which stand beside codes. Results depend on them only where KV is held in fp8 (`kv.rs`).
pub(super) fn is_of_activations(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    matches!(last, "k_scale" | "v_scale" | "kv_scale" | "q_scale" | "prob_scale" | "output_scale")
}

/// Those of one module.
struct Tensors<'a> {
    found: &'a mut ByName,
    files: &'a [MappedFile],
    module: &'a str,
    size: (usize, usize),
    directory: &'a Path,
}

impl Tensors<'_> {
    fn remove(&mut self, name: &str) -> Option<StoredTensor> {
        let found = self.found.remove(&format!("{}.{name}", self.module));
        found.map(|(file, entry)| StoredTensor { file, entry })
    }

    fn needed(&mut self, name: &str) -> Result<StoredTensor, CheckpointError> {
        let full_name = format!("{}.{name}", self.module);
        self.remove(name).ok_or_else(|| CheckpointError::missing(self.directory, full_name))
    }

    fn fault(&self, name: &str, reason: String) -> CheckpointError {
        let error = CheckpointError::new(CheckpointFault::WrongShape, self.directory, reason);
        error.at(format!("{}.{name}", self.module))
    }

    fn unsupported(&self, tensor: &StoredTensor, reason: String) -> CheckpointError {
        let error = CheckpointError::new(CheckpointFault::Unsupported, self.directory, reason);
        error.at(&*tensor.entry.name)
    }

    fn has(&self, name: &str) -> bool {
        self.found.contains_key(&format!("{}.{name}", self.module))
    }

    fn element_of(&self, name: &str) -> &str {
        let found = self.found.get(&format!("{}.{name}", self.module));
        found.map_or("", |(_, entry)| &entry.dtype_name)
    }

    fn take(&mut self, config: &QuantizationConfig) -> Result<Option<Coded>, CheckpointError> {
        match self.element_of("weight") {
            "F8_E4M3" => return self.bytes(WeightKind::Fp8, config).map(Some),
            "I8" => return self.bytes(WeightKind::Int8, config).map(Some),
            _ => {}
        }
        if self.has("weight_packed") {
            return self.packed_rows(config).map(Some);
        }
        if self.has("qweight") {
            return self.words_of_columns(config).map(Some);
        }
        Ok(None)
    }

    /// `M.weight` of a byte each.
    fn bytes(
        &mut self,
        kind: WeightKind,
        config: &QuantizationConfig,
    ) -> Result<Coded, CheckpointError> {
        let codes = self.needed("weight")?;
        let dtype = if kind == WeightKind::Fp8 { "F8_E4M3" } else { "I8" };
        self.hold(&codes, dtype, [self.size.0, self.size.1])?;
        let scales = match self.remove("weight_scale_inv") {
            Some(scales) => scales,
            None => self.needed("weight_scale")?,
        };
        let block = self.block_of(&scales, config)?;
        let mut zeros = self.remove("weight_zero_point");
        if kind == WeightKind::Fp8
            && let Some(zeros) = zeros.take()
            && zeros.data(self.files).is_some_and(|data| data.iter().any(|byte| *byte != 0))
        {
            let reason = "a zero point beside fp8 that is not 0".to_owned();
            return Err(self.unsupported(&zeros, reason));
        }
        if let Some(zeros) = &zeros {
            let blocks = self.blocks(block);
            // One number may stand without dimensions.
            if zeros.entry.bytes() != 1 || blocks != [1, 1] {
                self.hold(zeros, "I8", blocks)?;
            }
        }
        self.coded(Packing::Bytes, 8, kind, (codes, scales, zeros), block)
    }

    fn packed_rows(&mut self, config: &QuantizationConfig) -> Result<Coded, CheckpointError> {
        let codes = self.needed("weight_packed")?;
        let bits = self.bits_of(&codes, 1)?;
        self.hold(&codes, "I32", [self.size.0, (self.size.1 * bits as usize).div_ceil(32)])?;
        let scales = self.needed("weight_scale")?;
        let block = self.block_of(&scales, config)?;
        let zeros = self.remove("weight_zero_point");
        if let Some(zeros) = &zeros {
            let [of_rows, of_columns] = self.blocks(block);
            self.hold(zeros, "I32", [of_rows.div_ceil(32 / bits as usize), of_columns])?;
        }
        let kind = if bits == 4 { WeightKind::Int4 } else { WeightKind::Int8 };
        self.coded(Packing::Rows, bits, kind, (codes, scales, zeros), block)
    }

    fn words_of_columns(&mut self, config: &QuantizationConfig) -> Result<Coded, CheckpointError> {
        let (rows, columns) = self.size;
        let codes = self.needed("qweight")?;
        let packing = config.packing().ok_or_else(|| {
            self.fault("qweight", "quantization_config names neither gptq nor awq".to_owned())
        })?;
        let bits = if packing == Packing::Awq { 4 } else { self.bits_of(&codes, 0)? };
        let in_word = 32 / bits as usize;
        match packing {
            Packing::Awq => self.hold(&codes, "I32", [columns, rows.div_ceil(in_word)])?,
            _ => self.hold(&codes, "I32", [columns.div_ceil(in_word), rows])?,
        }
        let scales = self.needed("scales")?;
        let groups = scales.entry.shape.first().copied().unwrap_or(0) as usize;
        let is_right = scales.entry.shape[..] == [groups as u64, rows as u64] && groups > 0;
        let group = config.group().unwrap_or(columns).min(columns);
        if !is_right || columns.div_ceil(group) != groups {
            return Err(self.wrong_scales("scales", &scales));
        }
        let zeros = self.needed("qzeros")?;
        self.hold(&zeros, "I32", [groups, rows.div_ceil(in_word)])?;
        let kind = if bits == 4 { WeightKind::Int4 } else { WeightKind::Int8 };
        let mut coded =
            self.coded(packing, bits, kind, (codes, scales, Some(zeros)), (1, group))?;
        // Zero points of what is symmetric are all the same; that is checked when they are read.
        coded.format.offsets = !config.is_symmetric();
        Ok(coded)
    }

    fn coded(
        &self,
        packing: Packing,
        bits: u32,
        kind: WeightKind,
        (codes, scales, zeros): (StoredTensor, StoredTensor, Option<StoredTensor>),
        block: (usize, usize),
    ) -> Result<Coded, CheckpointError> {
        if scales.entry.dtype.is_none() {
            let reason =
                format!("element type {}; expected F32, F16 or BF16", scales.entry.dtype_name);
            return Err(self.unsupported(&scales, reason));
        }
        let group = if block.1 == self.size.1 { 0 } else { block.1 as u32 };
        if ![0, 16, 32, 64, 128].contains(&group) {
            let reason =
                format!("groups of {group} columns; expected 16, 32, 64, 128 or whole rows");
            return Err(self.unsupported(&scales, reason));
        }
        let format = WeightFormat { kind, group, offsets: zeros.is_some() };
        let size = self.size;
        Ok(Coded { packing, bits, codes, scales, zeros, order: None, format, size, block })
    }

    /// Four or eight, by how many words hold the columns, which stand along `dimension`.
    fn bits_of(&self, codes: &StoredTensor, dimension: usize) -> Result<u32, CheckpointError> {
        let words = codes.entry.shape.get(dimension).copied().unwrap_or(0) as usize;
        let fits = |bits: &u32| words == (self.size.1 * *bits as usize).div_ceil(32);
        let bits = [4, 8].into_iter().find(fits);
        bits.filter(|_| codes.entry.dtype_name == "I32").ok_or_else(|| {
            let reason = format!(
                "{} of shape {:?}: neither 4 nor 8 bits for each of {} columns",
                codes.entry.dtype_name, codes.entry.shape, self.size.1
            );
            self.unsupported(codes, reason)
        })
    }

    /// Rows and columns that share a scale.
    fn block_of(
        &self,
        scales: &StoredTensor,
        config: &QuantizationConfig,
    ) -> Result<(usize, usize), CheckpointError> {
        let block = block_of(&scales.entry.shape, self.size)
            .ok_or_else(|| self.wrong_scales("weight_scale", scales))?;
        if config.allows(block, self.size) {
            return Ok(block);
        }
        let (rows, columns) = block;
        let reason = format!(
            "shape {:?}, by which {rows} x {columns} share a scale; quantization_config says otherwise",
            scales.entry.shape
        );
        Err(self.unsupported(scales, reason))
    }

    /// How many scales stand along rows and columns.
    fn blocks(&self, (rows, columns): (usize, usize)) -> [usize; 2] {
        [self.size.0.div_ceil(rows), self.size.1.div_ceil(columns)]
    }

    fn hold(
        &self,
        tensor: &StoredTensor,
        dtype: &str,
        shape: [usize; 2],
    ) -> Result<(), CheckpointError> {
        let TensorEntry { dtype_name, shape: found, .. } = &tensor.entry;
        if dtype_name == dtype && found[..] == shape.map(|size| size as u64) {
            return Ok(());
        }
        let reason =
            format!("{dtype_name} of shape {found:?}, but it must be {dtype} of {shape:?}");
        let error = CheckpointError::new(CheckpointFault::WrongShape, self.directory, reason);
        Err(error.at(&*tensor.entry.name))
    }

    fn wrong_scales(&self, name: &str, scales: &StoredTensor) -> CheckpointError {
        let (rows, columns) = self.size;
        let reason = format!(
            "shape {:?} does not divide a matrix of {rows} x {columns}",
            scales.entry.shape
        );
        self.fault(name, reason)
    }
}

/// Rows and columns that share a scale, by the shape of the scales: one, one for each row, groups of a row, or blocks.
fn block_of(scales: &[u64], (rows, columns): (usize, usize)) -> Option<(usize, usize)> {
    let blocks = match *scales {
        [] | [1] | [1, 1] => return Some((rows, columns)),
        [of_rows] => (of_rows as usize, 1),
        [of_rows, of_columns] => (of_rows as usize, of_columns as usize),
        _ => return None,
    };
    Some((length_of(rows, blocks.0)?, length_of(columns, blocks.1)?))
}

/// How long `count` equal parts of a whole are, the last one maybe shorter: the whole, one, or a power of two.
fn length_of(whole: usize, count: usize) -> Option<usize> {
    match count {
        0 => None,
        1 => Some(whole),
        _ if count == whole => Some(1),
        _ => (1..12).map(|power| 1 << power).find(|length| whole.div_ceil(*length) == count),
    }
}
