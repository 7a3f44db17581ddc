//! What stands between a stranger's file and the crate that makes a tokenizer of it, which panics at some that are broken and reserves
//! memory by a number in them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::Value;

/// What `make` makes, or why it does not, also where it panics.
///
/// # Errors
/// `make`'s, or what it panicked with.
pub(crate) fn guarded<T>(make: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| Err(text_of(&*panic).to_owned()))
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it contradicts itself")
}

/// The part of a `tokenizer.json` that has character maps.
#[derive(Deserialize)]
struct Normalizing {
    normalizer: Option<Value>,
}

/// Holds the length of a character map's trie, its first four bytes, against the map.
///
/// # Errors
/// Where the trie would be longer. Whatever else is wrong is left to whoever reads the file.
pub(super) fn check_character_maps(tokenizer: &[u8]) -> Result<(), String> {
    let read = serde_json::from_slice::<Normalizing>(tokenizer).ok();
    match read.and_then(|read| read.normalizer) {
        Some(normalizer) => check_normalizer(&normalizer),
        None => Ok(()),
    }
}

/// As deep as JSON is read at all.
fn check_normalizer(normalizer: &Value) -> Result<(), String> {
    if let Some(map) = normalizer["precompiled_charsmap"].as_str() {
        let Some(Ok(start)) = map.get(..8).map(|start| BASE64_STANDARD.decode(start)) else {
            return Err("normalizer.precompiled_charsmap: expected base64 of a map".to_owned());
        };
        let trie = start.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        if trie > map.len() / 4 * 3 {
            return Err(format!(
                "normalizer.precompiled_charsmap: a trie of {trie} bytes in {} characters",
                map.len()
            ));
        }
    }
    normalizer["normalizers"].as_array().into_iter().flatten().try_for_each(check_normalizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_is_an_error_with_its_words() {
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        assert_eq!(guarded::<()>(|| panic!("at {}", 7)), Err("at 7".to_owned()));
        assert_eq!(guarded::<()>(|| panic!("so")), Err("so".to_owned()));
    }

    #[test]
    fn a_map_that_is_shorter_than_its_trie_is_refused_before_it_is_read() {
        let of = |map: &str| {
            let part = format!(r#"{{"type": "Precompiled", "precompiled_charsmap": "{map}"}}"#);
            let alone = check_character_maps(format!(r#"{{"normalizer": {part}}}"#).as_bytes());
            let list =
                format!(r#"{{"normalizer": {{"normalizers": [{{"normalizers": [{part}]}}]}}}}"#);
            assert_eq!(alone, check_character_maps(list.as_bytes()));
            alone
        };
        assert!(of("/////w==").is_err_and(|reason| reason.contains("4294967295 bytes")));
        assert!(of("AA==").is_err_and(|reason| reason.contains("expected base64")));
        assert_eq!(of("BAAAAAAAAAAA"), Ok(()));
        assert_eq!(check_character_maps(b"{\"normalizer\": null}"), Ok(()));
        assert_eq!(check_character_maps(b"no JSON"), Ok(()));
    }
}
