//! JSON for answers: `serde_json`'s compact form, with the line ends of Unicode escaped. Clients that read lines as Unicode has them
//! would cut an event where a text has one of these; escaped, the text is the same for everybody.

use std::io;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{CompactFormatter, Formatter};

/// Line ends that JSON itself leaves as they are.
const LINE_ENDS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

/// Appends a value.
pub(super) fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let mut serializer = Serializer::with_formatter(out, OneLine);
    value.serialize(&mut serializer).expect("plain fields serialise, and a vector takes all");
}

/// A value by itself.
pub(super) fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    write(&mut out, value);
    out
}

/// A value as the body of a response.
pub(super) fn response(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    HttpResponse::build(status).insert_header((CONTENT_TYPE, "application/json")).body(to_vec(body))
}

struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        // Most text is ASCII, which has none of them.
        while !rest.is_ascii()
            && let Some((at, end)) = rest.char_indices().find(|(_, c)| LINE_ENDS.contains(c))
        {
            CompactFormatter.write_string_fragment(writer, &rest[..at])?;
            write!(writer, "\\u{:04x}", u32::from(end))?;
            rest = &rest[at + end.len_utf8()..];
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_line_and_stays_what_it_is() {
        let text = "a\u{2028}b\u{2029}\u{2028}\u{85}c \"ä\" 你 \u{b}\u{c}\u{1c}\u{1d}\u{1e}\r\n\u{2027}\u{84}";
        let written = String::from_utf8(to_vec(text)).expect("UTF-8");
        let is_end = |c: char| c.is_control() || LINE_ENDS.contains(&c);
        assert_eq!(written.chars().filter(|&c| is_end(c)).collect::<String>(), "\u{84}");
        assert!(written.starts_with(r#""a\u2028b\u2029\u2028\u0085c "#), "{written}");
        assert_eq!(serde_json::from_str::<String>(&written).expect("JSON"), text);
        assert_eq!(to_vec(&[""]), br#"[""]"#);
    }
}
