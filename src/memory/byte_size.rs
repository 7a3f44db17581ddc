//! A number of bytes in the configuration: `1073741824`, `"1GiB"`, `"512 MiB"`, `"2GB"`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Bytes; written with the largest binary unit that gives a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected bytes such as 1073741824 or \"1GiB\", got \"{text}\"");
        let lower = text.trim().to_ascii_lowercase();
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, bytes)| lower.strip_suffix(name).map(|digits| (digits, *bytes)))
            .unwrap_or((&lower, 1));
        let number: u64 = digits.trim().parse().map_err(|_| expected())?;
        number.checked_mul(unit).map(Self).ok_or_else(expected)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, unit) in
            [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Bytes for people: `1.5 GiB`, `200.0 MiB`, `17 bytes`.
pub fn rounded(bytes: u64) -> String {
    let unit = |name: &str, unit: u64| format!("{:.1} {name}", bytes as f64 / unit as f64);
    match bytes {
        0..0x10_0000 => format!("{bytes} bytes"),
        0x10_0000..0x4000_0000 => unit("MiB", 1 << 20),
        _ => unit("GiB", 1 << 30),
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-type": "bytes, such as `1073741824` or `\"1GiB\"`" })
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "bytes such as 1073741824 or \"1GiB\"";
        deserializer.deserialize_any(NumberOrText { expected, of_bytes: ByteSize })
    }
}

/// Reads a size that is a number of bytes or a text.
pub(super) struct NumberOrText<T> {
    pub expected: &'static str,
    pub of_bytes: fn(u64) -> T,
}

impl<T: FromStr<Err = String>> Visitor<'_> for NumberOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<T, E> {
        Ok((self.of_bytes)(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<T, E> {
        let unexpected = de::Unexpected::Signed(bytes);
        let bytes = u64::try_from(bytes).map_err(|_| E::invalid_value(unexpected, &self))?;
        self.visit_u64(bytes)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17b", 17),
            ("2GiB", 2 << 30),
            (" 512 mib ", 512 << 20),
            ("3KB", 3_000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5GiB", "1XiB", "99999999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn people_read_one_place_behind_the_point() {
        assert_eq!([17, 200 << 20, 3 << 29].map(rounded), ["17 bytes", "200.0 MiB", "1.5 GiB"]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 3 << 30, (1 << 40) + 1] {
            let size = ByteSize(bytes);
            assert_eq!(size.to_string().parse(), Ok(size));
            let json = serde_json::to_string(&size).expect("a string");
            assert_eq!(serde_json::from_str::<ByteSize>(&json).expect("reads"), size);
        }
        assert_eq!(serde_json::from_str::<ByteSize>("12").expect("a number"), ByteSize(12));
        for bad in ["-1", "true", "\"x\""] {
            assert!(serde_json::from_str::<ByteSize>(bad).is_err(), "{bad}");
        }
    }
}
