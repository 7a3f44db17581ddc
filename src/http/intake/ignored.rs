//! How a client and the log learn of members that were ignored.

use std::fmt::Write as _;

use actix_web::http::header::{HeaderName, HeaderValue};

use crate::request::IgnoredMembers;

/// Names them in the answer.
pub(in crate::http) const IGNORED: HeaderName = HeaderName::from_static("x-inferno-ignored");

/// The longest list, in bytes; what is left out is counted.
const MAX_LIST_BYTES: usize = 1_024;

/// The list, and the same as a header; none where nothing was ignored. What is no visible ASCII in a name, or a comma, is `%`-encoded
/// as in an URL.
pub(in crate::http) fn list(members: IgnoredMembers) -> Option<(String, HeaderValue)> {
    let (paths, mut more) = members.into_paths();
    let mut text = String::new();
    for path in paths {
        let path = encoded(&path);
        if text.len() + path.len() > MAX_LIST_BYTES {
            more += 1;
            continue;
        }
        let comma = if text.is_empty() { "" } else { ", " };
        text.push_str(comma);
        text.push_str(&path);
    }
    if more > 0 {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}and {more} more");
    }
    if text.is_empty() {
        return None;
    }
    let header = HeaderValue::from_str(&text).ok()?;
    Some((text, header))
}

fn encoded(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b',' | b'%') {
            text.push(byte.into());
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Fields, Value};

    fn told(names: &[&str]) -> Option<String> {
        let noted = IgnoredMembers::default();
        let members = names.iter().map(|&name| (name.to_owned(), Value::Null)).collect();
        let fields = Fields::of_body(Value::Map(members), Some(&noted)).expect("an object");
        fields.finish().expect("nothing is refused");
        list(noted).map(|(text, _)| text)
    }

    #[test]
    fn names_of_every_kind_make_a_header_of_bounded_length() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["a", "b.c"]).as_deref(), Some("a, b.c"));
        assert_eq!(told(&["a,b\r\nx: y", "ä"]).as_deref(), Some("a%2Cb%0D%0Ax:%20y, %C3%A4"));
        let long = "x".repeat(5_000);
        assert_eq!(told(&["a", &long]).as_deref(), Some("a, and 1 more"));
        assert_eq!(told(&[&long]).as_deref(), Some("and 1 more"));
    }
}
