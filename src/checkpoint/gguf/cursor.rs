//! Reads a file front to back and never beyond its end.

use std::path::Path;

use super::super::fault::{CheckpointError, CheckpointFault};
use super::header::MetadataValue;

/// Items of one list: the merges of the largest vocabularies are some half a million.
const MAX_ITEMS: u64 = 1 << 24;

const UINT8: u32 = 0;
const INT8: u32 = 1;
const UINT16: u32 = 2;
const INT16: u32 = 3;
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT64: u32 = 10;
const INT64: u32 = 11;
const FLOAT64: u32 = 12;

/// A place in a file.
pub struct FileCursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> FileCursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    pub fn at(&self) -> u64 {
        self.at as u64
    }

    /// Of the whole file.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub fn fault(&self, fault: CheckpointFault, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::new(fault, self.path, reason)
    }

    /// The next bytes; `what` they are, for the error's text.
    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], CheckpointError> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let Some(taken) = taken else {
            let reason = format!("ends inside {what}: {count} bytes from byte {} on", self.at);
            return Err(self.fault(CheckpointFault::Truncated, reason));
        };
        self.at += taken.len();
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], CheckpointError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub fn text(&mut self, what: &str) -> Result<&'a str, CheckpointError> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|error| {
            self.fault(CheckpointFault::Malformed, format!("{what} is no UTF-8: {error}"))
        })
    }

    /// A value of the type that stands before it.
    pub fn value(&mut self, key: &str) -> Result<MetadataValue<'a>, CheckpointError> {
        match self.u32(key)? {
            STRING => self.text(key).map(MetadataValue::Text),
            ARRAY => self.list(key),
            kind => self.scalar(kind, key),
        }
    }

    fn list(&mut self, key: &str) -> Result<MetadataValue<'a>, CheckpointError> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        if count > MAX_ITEMS {
            let reason = format!("a list of {count} items, expected at most {MAX_ITEMS}");
            return Err(self.fault(CheckpointFault::Malformed, reason).at(key));
        }
        match kind {
            STRING => {
                let mut texts = Vec::new();
                for _ in 0..count {
                    texts.push(self.text(key)?);
                }
                Ok(MetadataValue::Texts(texts))
            }
            ARRAY => Err(self.fault(CheckpointFault::Unsupported, "a list of lists").at(key)),
            _ => {
                let mut numbers = Vec::new();
                for _ in 0..count {
                    numbers.push(match self.scalar(kind, key)? {
                        MetadataValue::Bool(value) => f64::from(u8::from(value)),
                        MetadataValue::Unsigned(value) => value as f64,
                        MetadataValue::Signed(value) => value as f64,
                        MetadataValue::Float(value) => value,
                        _ => f64::NAN,
                    });
                }
                Ok(MetadataValue::Numbers(numbers))
            }
        }
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<MetadataValue<'a>, CheckpointError> {
        use MetadataValue::{Bool, Float, Signed, Unsigned};
        Ok(match kind {
            UINT8 => Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            UINT16 => Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            UINT32 => Unsigned(self.u32(key)?.into()),
            UINT64 => Unsigned(self.u64(key)?),
            INT8 => Signed(i8::from_le_bytes(self.array(key)?).into()),
            INT16 => Signed(i16::from_le_bytes(self.array(key)?).into()),
            INT32 => Signed(i32::from_le_bytes(self.array(key)?).into()),
            INT64 => Signed(i64::from_le_bytes(self.array(key)?)),
            FLOAT32 => Float(f32::from_le_bytes(self.array(key)?).into()),
            FLOAT64 => Float(f64::from_le_bytes(self.array(key)?)),
            BOOL => Bool(self.array::<1>(key)? != [0]),
            other => {
                let reason = format!("a value of type {other}; expected 0 to {FLOAT64}");
                return Err(self.fault(CheckpointFault::Malformed, reason).at(key));
            }
        })
    }
}
