//! What each token id adds to the text, as bytes: one table per tokenizer, made at load.
//!
//! The two decoders that language models use, byte-level and SentencePiece's with byte fallback, give every token fixed
//! bytes; only the very start of a text differs (a leading space is taken off). With the table, decoding a token is a copy.

use serde_json::Value;

use super::Tokenizer;

/// What a decoder does to the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstPiece {
    /// Nothing.
    Keep,
    /// Takes off up to so many spaces (`Strip`).
    Strip(u32),
    /// Drops the word marks of the first token (`Metaspace`).
    DropMarks,
}

/// How a vocabulary's spelling becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Each character stands for one byte (GPT-2, Llama 3, Qwen).
    ByteLevel,
    /// A mark stands for a space; `<0x0A>` is a byte if `byte_fallback` (Llama 2, Mistral, Gemma).
    Marked { mark: char, byte_fallback: bool },
}

/// The table: `bytes[ends[id - 1]..ends[id]]` is what `id` adds. Special and absent ids add nothing.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    start: FirstPiece,
}

impl Pieces {
    /// The table of a tokenizer, or none if its decoder is of another kind.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let (spelling, start) = recognise(&tokenizer.decoder_config()?)?;
        let mut pieces = Self { bytes: Vec::new(), ends: Vec::new(), start };
        for id in 0..tokenizer.vocab_size() {
            if let Some(token) = tokenizer.id_to_token(id).filter(|_| !tokenizer.is_special(id)) {
                spelling.append(&token, &mut pieces.bytes);
            }
            pieces.ends.push(u32::try_from(pieces.bytes.len()).ok()?);
        }
        Some(pieces)
    }

    /// The bytes of one id in the middle of a text.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let begin = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[begin as usize..end as usize]
    }

    /// What is done to the start of a text.
    pub(super) fn start(&self) -> FirstPiece {
        self.start
    }
}

impl Spelling {
    fn append(self, token: &str, bytes: &mut Vec<u8>) {
        match self {
            Spelling::ByteLevel => {
                let before = bytes.len();
                for c in token.chars() {
                    let Some(byte) = byte_of(c) else {
                        // An added token with a character outside the alphabet stands for itself.
                        bytes.truncate(before);
                        bytes.extend_from_slice(token.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
            }
            Spelling::Marked { mark, byte_fallback } => {
                if let Some(byte) = fallback_byte(token).filter(|_| byte_fallback) {
                    bytes.push(byte);
                    return;
                }
                let mut utf8 = [0; 4];
                for c in token.chars() {
                    let shown = if c == mark { ' ' } else { c };
                    bytes.extend_from_slice(shown.encode_utf8(&mut utf8).as_bytes());
                }
            }
        }
    }
}

/// Reads the decoder's configuration; none for kinds whose tokens do not stand for themselves.
fn recognise(decoder: &Value) -> Option<(Spelling, FirstPiece)> {
    let kind = |part: &Value| part["type"].as_str().map(str::to_owned);
    match kind(decoder)?.as_str() {
        "ByteLevel" => Some((Spelling::ByteLevel, FirstPiece::Keep)),
        "Metaspace" => {
            let mark = decoder["replacement"].as_str()?.chars().next()?;
            let start = match decoder["prepend_scheme"].as_str() {
                Some("never") => FirstPiece::Keep,
                _ => FirstPiece::DropMarks,
            };
            Some((Spelling::Marked { mark, byte_fallback: false }, start))
        }
        "Sequence" => {
            let parts = decoder["decoders"].as_array()?;
            if let [only] = parts.as_slice() {
                return recognise(only);
            }
            recognise_marked(parts)
        }
        _ => None,
    }
}

/// `Replace(mark → space)`, `ByteFallback`, `Fuse`, and perhaps `Strip` of leading spaces: SentencePiece's decoder in parts.
fn recognise_marked(parts: &[Value]) -> Option<(Spelling, FirstPiece)> {
    let kinds: Vec<&str> = parts.iter().filter_map(|part| part["type"].as_str()).collect();
    let strip = match kinds.as_slice() {
        ["Replace", "ByteFallback", "Fuse"] => None,
        ["Replace", "ByteFallback", "Fuse", "Strip"] => parts.last(),
        _ => return None,
    };
    let mut mark = parts[0]["pattern"]["String"].as_str()?.chars();
    let (Some(mark), None, Some(" ")) = (mark.next(), mark.next(), parts[0]["content"].as_str())
    else {
        return None;
    };
    let start = match strip {
        None => FirstPiece::Keep,
        Some(strip) => {
            if strip["content"].as_str() != Some(" ") || strip["stop"].as_u64() != Some(0) {
                return None;
            }
            FirstPiece::Strip(u32::try_from(strip["start"].as_u64()?).ok()?)
        }
    };
    Some((Spelling::Marked { mark, byte_fallback: true }, start))
}

/// `<0xE4>` as SentencePiece spells a byte.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 { None } else { u8::from_str_radix(hex, 16).ok() }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for their own byte, and the 68 other bytes, in order, for the
/// characters from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => OTHER_BYTES.get(code as usize - 0x100).copied(),
    }
}

const OTHER_BYTES: [u8; 68] = {
    let mut others = [0; 68];
    let (mut byte, mut count) = (0u8, 0);
    while count < others.len() {
        if !is_printable(byte) {
            others[count] = byte;
            count += 1;
        }
        byte = byte.wrapping_add(1);
    }
    others
};

const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let mut seen = [false; 256];
        for c in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(c) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "{byte} twice");
            }
        }
        assert!(seen.iter().all(|&s| s));
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('你'), None);
    }

    #[test]
    fn decoders_of_other_kinds_are_left_to_the_window() {
        for other in [
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}),
            json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": "_"},
                {"type": "ByteFallback"}, {"type": "Fuse"}]}),
            json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
            json!({}),
        ] {
            assert_eq!(recognise(&other), None, "{other}");
        }
        let only = json!({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]});
        assert_eq!(recognise(&only), Some((Spelling::ByteLevel, FirstPiece::Keep)));
    }

    #[test]
    fn bytes_are_read_only_in_their_exact_spelling() {
        assert_eq!(fallback_byte("<0xE4>"), Some(0xE4));
        for text in ["<0xE>", "<0xE44>", "0xE4", "<0xZZ>", "<0x+4>é"] {
            assert_eq!(fallback_byte(text), None, "{text}");
        }
    }
}
