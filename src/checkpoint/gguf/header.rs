//! The header of a GGUF file, checked against the file before any view is made.
//!
//! The format, little-endian throughout: `GGUF`, a version, the numbers of tensors and of metadata entries; the entries (key, type,
//! value); the tensors' names, dimensions (columns first), types and offsets; then, at the next multiple of `general.alignment`, the data.
//! A text is its length and its bytes, a list the type of its items, their number, and the items.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::fault::{CheckpointError, CheckpointFault};
use super::cursor::FileCursor;
use super::kinds::TensorKind;

const MAGIC: &[u8; 4] = b"GGUF";
/// Version 1 counted in 32 bits; nobody writes it any more.
const VERSIONS: [u32; 2] = [2, 3];
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;

/// A value of the metadata; texts stand in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue<'a> {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
    Texts(Vec<&'a str>),
    /// Integers, floats or booleans.
    Numbers(Vec<f64>),
}

/// A tensor and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    pub kind: TensorKind,
    /// Row-major, columns last.
    pub shape: Vec<u64>,
    /// In bytes of the file.
    pub begin: usize,
    /// One past the last byte.
    pub end: usize,
}

/// All that stands before the data.
#[derive(Debug, PartialEq)]
pub struct GgufHeader<'a> {
    pub metadata: BTreeMap<&'a str, MetadataValue<'a>>,
    pub tensors: BTreeMap<&'a str, GgufTensor>,
}

impl<'a> GgufHeader<'a> {
    /// Reads the header and holds every tensor against the file's bytes.
    ///
    /// # Errors
    /// `Truncated`, `Malformed`, `Layout` or `Unsupported`, naming file, key or tensor, and reason.
    pub fn read(path: &'a Path, bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let mut cursor = FileCursor::new(path, bytes);
        check_version(&mut cursor)?;
        let num_tensors = cursor.u64("the number of tensors")?;
        let num_entries = cursor.u64("the number of metadata entries")?;
        // Nothing is reserved for what a file merely says that it has: each turn reads some of it.
        let mut metadata = BTreeMap::new();
        for _ in 0..num_entries {
            let key = cursor.text("a metadata key")?;
            let value = cursor.value(key)?;
            if metadata.insert(key, value).is_some() {
                return Err(cursor.fault(CheckpointFault::Malformed, "stands twice").at(key));
            }
        }
        let mut placed = Vec::new();
        for _ in 0..num_tensors {
            placed.push(PlacedTensor::read(&mut cursor)?);
        }
        let alignment = alignment(&cursor, &metadata)?;
        let data = DataPart { begin: cursor.at().next_multiple_of(alignment), alignment };
        let mut tensors = BTreeMap::new();
        for tensor in placed {
            let name = tensor.name;
            let checked = data.hold(&cursor, tensor).map_err(|error| error.at(name))?;
            if tensors.insert(name, checked).is_some() {
                return Err(cursor.fault(CheckpointFault::Malformed, "stands twice").at(name));
            }
        }
        refuse_overlaps(&cursor, &tensors)?;
        Ok(Self { metadata, tensors })
    }
}

fn check_version(cursor: &mut FileCursor<'_>) -> Result<(), CheckpointError> {
    if cursor.array::<4>("the magic")? != *MAGIC {
        let reason = "no GGUF file: expected that it begins with \"GGUF\"";
        return Err(cursor.fault(CheckpointFault::Malformed, reason));
    }
    let version = cursor.u32("the version")?;
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    let reason = match version.swap_bytes() {
        swapped if VERSIONS.contains(&swapped) => {
            "big-endian; expected a little-endian file".to_owned()
        }
        _ => format!("GGUF version {version}; expected 2 or 3"),
    };
    Err(cursor.fault(CheckpointFault::Unsupported, reason))
}

fn alignment(
    cursor: &FileCursor<'_>,
    metadata: &BTreeMap<&str, MetadataValue<'_>>,
) -> Result<u64, CheckpointError> {
    match metadata.get(ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(MetadataValue::Unsigned(alignment))
            if (1..=MAX_ALIGNMENT).contains(alignment) && alignment.is_multiple_of(8) =>
        {
            Ok(*alignment)
        }
        Some(other) => {
            let reason = format!("expected a multiple of 8 up to {MAX_ALIGNMENT}, got {other:?}");
            Err(cursor.fault(CheckpointFault::Malformed, reason).at(ALIGNMENT))
        }
    }
}

/// What the header says of a tensor.
struct PlacedTensor<'a> {
    name: &'a str,
    /// Columns first.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl<'a> PlacedTensor<'a> {
    fn read(cursor: &mut FileCursor<'a>) -> Result<Self, CheckpointError> {
        let name = cursor.text("a tensor's name")?;
        let count = cursor.u32("a tensor's number of dimensions")?;
        if !(1..=MAX_DIMENSIONS).contains(&count) {
            let reason = format!("expected 1 to {MAX_DIMENSIONS} dimensions, got {count}");
            return Err(cursor.fault(CheckpointFault::Malformed, reason).at(name));
        }
        let mut dimensions = Vec::new();
        for _ in 0..count {
            dimensions.push(cursor.u64("a tensor's dimensions")?);
        }
        let kind = cursor.u32("a tensor's type")?;
        let offset = cursor.u64("a tensor's offset")?;
        Ok(Self { name, dimensions, kind, offset })
    }
}

/// Where the tensors' data stands.
struct DataPart {
    begin: u64,
    alignment: u64,
}

impl DataPart {
    /// The tensor's place, if it lies inside the file.
    fn hold(
        &self,
        cursor: &FileCursor<'_>,
        tensor: PlacedTensor<'_>,
    ) -> Result<GgufTensor, CheckpointError> {
        let PlacedTensor { dimensions, kind, offset, .. } = tensor;
        let kind = TensorKind::of(kind)
            .map_err(|reason| cursor.fault(CheckpointFault::Unsupported, reason))?;
        let (columns, bytes) = kind.block();
        let elements =
            dimensions.iter().try_fold(1_u64, |product, size| product.checked_mul(*size));
        let elements = elements.filter(|count| *count > 0 && dimensions[0].is_multiple_of(columns));
        let Some(bytes) = elements.and_then(|count| (count / columns).checked_mul(bytes)) else {
            let reason = format!(
                "{kind} of dimensions {dimensions:?}: expected whole blocks of {columns} columns"
            );
            return Err(cursor.fault(CheckpointFault::Malformed, reason));
        };
        if !offset.is_multiple_of(self.alignment) {
            let alignment = self.alignment;
            let reason = format!("its offset is {offset}, expected a multiple of {alignment}");
            return Err(cursor.fault(CheckpointFault::Layout, reason));
        }
        let begin = self.begin.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= cursor.len() => {
                let shape = dimensions.into_iter().rev().collect();
                // Both fit: they lie inside what is in memory.
                Ok(GgufTensor { kind, shape, begin: begin as usize, end: end as usize })
            }
            _ => {
                let reason = format!(
                    "{bytes} bytes at offset {offset} of the data, but the file has only {}",
                    cursor.len().saturating_sub(self.begin)
                );
                Err(cursor.fault(CheckpointFault::Truncated, reason))
            }
        }
    }
}

fn refuse_overlaps(
    cursor: &FileCursor<'_>,
    tensors: &BTreeMap<&str, GgufTensor>,
) -> Result<(), CheckpointError> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|(_, tensor)| tensor.begin);
    for pair in in_order.windows(2) {
        let [(before, one), (name, other)] = [pair[0], pair[1]];
        if other.begin < one.end {
            let reason = format!("begins inside {before}");
            return Err(cursor.fault(CheckpointFault::Layout, reason).at(*name));
        }
    }
    Ok(())
}
