//! How large a device's memory pool is to be: so many bytes, or a share of the memory (`"80%"`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ByteSize;
use super::byte_size::NumberOrText;

/// `memory_pool_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolSize {
    /// So much.
    Bytes(ByteSize),
    /// Of a GPU's whole memory, or of what the machine can give; percent, 1 to 100.
    Share(u8),
}

impl PoolSize {
    /// In bytes, where there are `memory_bytes`.
    #[must_use]
    pub fn of(self, memory_bytes: u64) -> u64 {
        match self {
            PoolSize::Bytes(size) => size.0,
            PoolSize::Share(percent) => {
                let bytes = u128::from(memory_bytes) * u128::from(percent) / 100;
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
        }
    }
}

const EXPECTED: &str = "bytes such as 1073741824 or \"1GiB\", or a share from \"1%\" to \"100%\"";

impl FromStr for PoolSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = match text.trim().strip_suffix('%') {
            Some(percent) => percent.trim_end().parse().ok().map(PoolSize::Share),
            None => text.parse().ok().map(PoolSize::Bytes),
        };
        let in_range = |size: &PoolSize| !matches!(size, PoolSize::Share(0 | 101..));
        size.filter(in_range).ok_or_else(|| format!("expected {EXPECTED}, got \"{text}\""))
    }
}

impl fmt::Display for PoolSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolSize::Bytes(size) => size.fmt(f),
            PoolSize::Share(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for PoolSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for PoolSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PoolSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-type": "bytes, such as `\"8GiB\"`, or a share, such as `\"80%\"`" })
    }
}

impl<'de> Deserialize<'de> for PoolSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let of_bytes = |bytes| PoolSize::Bytes(ByteSize(bytes));
        deserializer.deserialize_any(NumberOrText { expected: EXPECTED, of_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_so_many_bytes_or_a_share() {
        for (text, size, of_1000) in [
            ("2KiB", PoolSize::Bytes(ByteSize(2048)), 2048),
            ("80%", PoolSize::Share(80), 800),
            (" 100 % ", PoolSize::Share(100), 1000),
        ] {
            assert_eq!(text.parse(), Ok(size), "{text}");
            assert_eq!(size.of(1000), of_1000, "{text}");
            let json = serde_json::to_string(&size).expect("a string");
            assert_eq!(serde_json::from_str::<PoolSize>(&json).expect("reads"), size);
        }
        assert_eq!(serde_json::from_str::<PoolSize>("12").expect("a number").of(0), 12);
        assert_eq!(PoolSize::Share(100).of(u64::MAX), u64::MAX);
    }

    #[test]
    fn other_shares_are_refused() {
        for bad in ["\"0%\"", "\"101%\"", "\"300%\"", "\"-5%\"", "\"1.5%\"", "\"%\"", "-1", "0.8"] {
            assert!(serde_json::from_str::<PoolSize>(bad).is_err(), "{bad}");
        }
    }
}
