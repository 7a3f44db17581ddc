//! A body's bytes to the one [`Value`] that they are, in either encoding: nothing may follow it.

use serde::Deserialize as _;

use crate::error::{Error, Kind, Result};
use crate::request::Value;

/// Nesting that msgpack may have, as `serde_json` has it: deep enough for anything of ours, and far from the stack's end.
const MAX_DEPTH: usize = 128;

/// What some editors and clients put before UTF-8 text; RFC 8259, 8.1 lets a reader pass over it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads JSON. `serde_json` refuses NaN, infinities, numbers out of range, bad UTF-8, trailing text and nesting beyond 128 levels.
///
/// # Errors
/// `invalid`: no JSON.
pub fn json(body: &[u8]) -> Result<Value> {
    let text = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    serde_json::from_slice(text).map_err(|error| malformed("JSON", &error.to_string()))
}

/// Reads msgpack.
///
/// # Errors
/// `invalid`: no msgpack, or bytes after the end.
pub fn msgpack(body: &[u8]) -> Result<Value> {
    let mut rest = body;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    reader.set_max_depth(MAX_DEPTH);
    let value = Value::deserialize(&mut reader);
    drop(reader);
    let value = value.map_err(|error| malformed("msgpack", &error.to_string()))?;
    match rest.len() {
        0 => Ok(value),
        more => Err(malformed("msgpack", &format!("{more} bytes after its end"))),
    }
}

fn malformed(encoding: &str, why: &str) -> Error {
    Error::new(Kind::Invalid, format!("expected {encoding}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_value() {
        let body =
            br#" {"a":null,"b":[true,-2,18446744073709551615,1.5,"x\n\u00e4"],"k\u0065y":{}} "#;
        let list = [
            Value::Bool(true),
            Value::Int(-2),
            Value::Int(u64::MAX.into()),
            Value::Float(1.5),
            Value::Text("x\nä".to_owned()),
        ];
        let members = [
            ("a", Value::Null),
            ("b", Value::List(list.to_vec())),
            ("key", Value::Map(Vec::new())),
        ];
        let expected = Value::Map(members.map(|(key, value)| (key.to_owned(), value)).to_vec());
        assert_eq!(json(body), Ok(expected.clone()));
        assert_eq!(json(&[BYTE_ORDER_MARK, body].concat()), Ok(expected.clone()));
        let same: serde_json::Value = serde_json::from_slice(body).expect("JSON");
        assert_eq!(msgpack(&rmp_serde::to_vec_named(&same).expect("packs")), Ok(expected));
    }

    #[test]
    fn what_is_no_json_is_refused_without_harm() {
        let deep = "[".repeat(100_000);
        let bodies: [&[u8]; 15] = [
            b"",
            b"{",
            b"{}x",
            b"\0",
            b"{'a':1}",
            b"{\"a\":NaN}",
            b"{\"a\":Infinity}",
            b"{\"a\":-Infinity}",
            b"{\"a\":1e999}",
            b"{\"a\":01}",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"\\ud800\"}",
            b"{1:2}",
            b"\xef\xbb\xbf\xef\xbb\xbf{}",
            deep.as_bytes(),
        ];
        for body in bodies {
            let error = json(body).expect_err("no JSON");
            assert_eq!((error.kind, error.param), (Kind::Invalid, None));
        }
    }

    #[test]
    fn what_is_no_msgpack_is_refused_without_harm() {
        let nested = vec![0x91_u8; 100_000];
        let bodies: [&[u8]; 10] = [
            b"",
            b"\xc1",
            b"\x81\xa6prompt",
            b"\x81\xa6prompt\xa1\xff",
            b"\x81\x01\x02",
            b"\x81\xa6prompt\xc4\x01a",
            b"\x81\xa6prompt\xd4\x01a",
            b"\xdf\xff\xff\xff\xff",
            b"\x81\xa6prompt\xa1a\x00",
            &nested,
        ];
        for body in bodies {
            let error = msgpack(body).expect_err("no msgpack");
            assert_eq!(error.kind, Kind::Invalid, "{:?}", &body[..body.len().min(20)]);
        }
    }
}
