//! The header of a safetensors file, checked against the file before any view is made.
//!
//! The format: 8 bytes little-endian length of the header, the header (JSON: name → dtype, shape, data_offsets, counted from the
//! header's end), the data. Read here and not by the `safetensors` crate, because its errors name no tensor; the tests hold the
//! two against each other.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::bridge::spec::Dtype;

use super::fault::{CheckpointError, CheckpointFault};

/// The format's own bound.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where one tensor's data is in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorEntry {
    pub name: String,
    /// `None` for an element type that the engine does not take; only an error for a tensor that is needed.
    pub dtype: Option<Dtype>,
    /// The element type's name in the file.
    pub dtype_name: String,
    pub shape: Vec<u64>,
    /// In bytes of the file.
    pub begin: usize,
    /// One past the last byte.
    pub end: usize,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl TensorEntry {
    pub fn bytes(&self) -> usize {
        self.end - self.begin
    }
}

/// The header's tensors in the file's order, keys given twice kept, so that they can be refused.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else {
                        let value: serde_json::Value = map.next_value()?;
                        let entry = RawEntry::deserialize(value).map_err(|error| {
                            serde::de::Error::custom(format_args!("tensor {name}: {error}"))
                        })?;
                        entries.push((name, entry));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads the header and holds every tensor against the file's bytes. The tensors come back in the order of their data.
///
/// # Errors
/// `Truncated`, `Malformed` or `Layout`, naming file, tensor and reason.
pub(super) fn read_header(path: &Path, bytes: &[u8]) -> Result<Vec<TensorEntry>, CheckpointError> {
    let (header, data_start) = split_header(path, bytes)?;
    let RawHeader(raw) = serde_json::from_slice(header).map_err(|error| {
        let reason = format!("the header is no valid JSON of tensors: {error}");
        CheckpointError::new(CheckpointFault::Malformed, path, reason)
    })?;
    let mut names = HashSet::new();
    let mut entries = Vec::with_capacity(raw.len());
    for (name, raw) in raw {
        if !names.insert(name.clone()) {
            let error = CheckpointError::new(CheckpointFault::Malformed, path, "stands twice");
            return Err(error.at(name));
        }
        entries.push(check_entry(path, name, raw, (data_start, bytes.len()))?);
    }
    entries.sort_by_key(|entry| (entry.begin, entry.end));
    check_coverage(path, &entries, (data_start, bytes.len()))?;
    Ok(entries)
}

/// The header's bytes and where the data starts.
fn split_header<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a [u8], usize), CheckpointError> {
    let truncated = |reason: String| CheckpointError::new(CheckpointFault::Truncated, path, reason);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(truncated(format!(
            "{} bytes, expected at least the 8 of the header's length",
            bytes.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        let reason = format!("a header of {length} bytes, expected at most {MAX_HEADER_BYTES}");
        return Err(CheckpointError::new(CheckpointFault::Malformed, path, reason));
    }
    let length = length as usize;
    match rest.get(..length) {
        Some(header) => Ok((header, 8 + length)),
        None => Err(truncated(format!(
            "{} bytes, but its header alone is said to have {length}",
            bytes.len()
        ))),
    }
}

/// One tensor against the file's length and itself. `data` is where the data starts and where the file ends.
fn check_entry(
    path: &Path,
    name: String,
    raw: RawEntry,
    data: (usize, usize),
) -> Result<TensorEntry, CheckpointError> {
    let (data_start, file_len) = data;
    let wrong = |fault, reason: String| Err(CheckpointError::new(fault, path, reason).at(&*name));
    let [begin, end] = raw.data_offsets;
    if begin > end {
        return wrong(
            CheckpointFault::Malformed,
            format!("its data ends ({end}) before it begins ({begin})"),
        );
    }
    let data_len = (file_len - data_start) as u64;
    if end > data_len {
        return wrong(
            CheckpointFault::Truncated,
            format!("its data ends at byte {end}, but the file holds only {data_len} of data"),
        );
    }
    let Some(bits) = element_bits(&raw.dtype) else {
        return wrong(CheckpointFault::Unsupported, format!("unknown element type {}", raw.dtype));
    };
    let elements = raw.shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size));
    let bytes = elements.and_then(|count| count.checked_mul(bits)).map(|bits| bits.div_ceil(8));
    if bytes != Some(end - begin) {
        return wrong(
            CheckpointFault::Malformed,
            format!(
                "{} of shape {:?} takes {} bytes, but it has {}",
                raw.dtype,
                raw.shape,
                bytes.map_or_else(|| "more than 2^64".to_owned(), |bytes| bytes.to_string()),
                end - begin
            ),
        );
    }
    Ok(TensorEntry {
        dtype: dtype(&raw.dtype),
        dtype_name: raw.dtype,
        shape: raw.shape,
        begin: data_start + begin as usize,
        end: data_start + end as usize,
        name,
    })
}

/// The data is covered without overlap, gap or rest, as the format demands.
fn check_coverage(
    path: &Path,
    entries: &[TensorEntry],
    data: (usize, usize),
) -> Result<(), CheckpointError> {
    let layout = |reason: String| CheckpointError::new(CheckpointFault::Layout, path, reason);
    let (mut covered, file_len) = data;
    let mut before = "the header";
    for entry in entries {
        if entry.begin < covered {
            let reason = format!("begins inside {before} (byte {})", entry.begin);
            return Err(layout(reason).at(&*entry.name));
        }
        if entry.begin > covered {
            let reason = format!("{} bytes belong to nothing before it", entry.begin - covered);
            return Err(layout(reason).at(&*entry.name));
        }
        covered = entry.end;
        before = &entry.name;
    }
    if covered == file_len {
        Ok(())
    } else {
        Err(layout(format!("{} bytes after {before} belong to nothing", file_len - covered)))
    }
}

fn dtype(name: &str) -> Option<Dtype> {
    match name {
        "F32" => Some(Dtype::F32),
        "F16" => Some(Dtype::F16),
        "BF16" => Some(Dtype::BF16),
        _ => None,
    }
}

/// Bits of one element, for the format's whole list of types.
fn element_bits(name: &str) -> Option<u64> {
    Some(match name {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}
