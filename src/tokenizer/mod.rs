//! Text to token ids and back, and chat templates: what the checkpoint's tokenizer files say.
//!
//! [`Tokenizer`] is `tokenizer.json` by its authors' crate; [`IncrementalDecoder`] gives a completion's text token by token
//! and never splits a character; [`ChatTemplate`] renders a conversation as Hugging Face's templates want it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

mod decoder;
mod functions;
mod longest;
mod pieces;
mod template;

pub use decoder::IncrementalDecoder;
pub use template::{ChatTemplate, MAX_ADDED_BYTES, MAX_INSTRUCTIONS};

use pieces::Pieces;

/// Why a tokenizer file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct TokenizerError {
    /// The file at fault.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl TokenizerError {
    pub(crate) fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into() }
    }
}

/// The checkpoint's `tokenizer.json`. Shared by all threads: nothing in it changes.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: u32,
    special_ids: BTreeSet<u32>,
    longest_token: Option<usize>,
    /// What each id adds to the text, where the decoder is of a kind whose tokens stand for themselves.
    pieces: Option<Pieces>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`.
    ///
    /// # Errors
    /// Names the file and the reason when it is missing or not a tokenizer.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let file = dir.join("tokenizer.json");
        let bytes = std::fs::read(&file).map_err(|e| TokenizerError::new(&file, e.to_string()))?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| TokenizerError::new(&file, format!("not a tokenizer: {e}")))?;
        Self::new(inner).map_err(|reason| TokenizerError::new(&file, reason))
    }

    /// Wraps a tokenizer made in memory. Truncation and padding are taken off: a prompt is never cut silently.
    ///
    /// # Errors
    /// The reason, if it has no vocabulary.
    pub fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, String> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        // The highest id counts, not the number of entries: vocabularies have holes.
        let highest = inner.get_vocab(true).into_values().max().ok_or("it has no tokens")?;
        let special_ids = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        let longest_token = longest::longest_token(&inner);
        let vocab_size = highest + 1;
        let mut tokenizer = Self { inner, vocab_size, special_ids, longest_token, pieces: None };
        tokenizer.pieces = Pieces::of(&tokenizer);
        Ok(tokenizer)
    }

    /// Text to ids; `add_special_tokens` adds what the tokenizer puts around every text (a begin token, mostly).
    /// A rendered chat template has them already.
    ///
    /// # Errors
    /// The tokenizer's reason; with a sane `tokenizer.json` there is none.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let encoding =
            self.inner.encode_fast(text, add_special_tokens).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids to text in one go; ids that do not exist add nothing.
    ///
    /// # Errors
    /// The tokenizer's reason; with a sane `tokenizer.json` there is none.
    pub fn decode(&self, token_ids: &[u32], skip_special_tokens: bool) -> Result<String, String> {
        self.inner.decode(token_ids, skip_special_tokens).map_err(|e| e.to_string())
    }

    /// Bytes of text that one token stands for at most: a text of more than `n` times as many has more than `n` tokens. None
    /// for a tokenizer of which that cannot be said.
    pub fn longest_token(&self) -> Option<usize> {
        self.longest_token
    }

    /// Ids below this may exist (added tokens included).
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Tokens that are marks, not text: begin, end, turn headers.
    pub fn special_ids(&self) -> &BTreeSet<u32> {
        &self.special_ids
    }

    /// Whether the id is a mark, not text.
    pub fn is_special(&self, token_id: u32) -> bool {
        self.special_ids.contains(&token_id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The vocabulary's spelling of an id.
    pub fn id_to_token(&self, token_id: u32) -> Option<String> {
        self.inner.id_to_token(token_id)
    }

    /// What an id adds to the middle of a text, as bytes; for a mark its spelling.
    pub fn token_bytes(&self, token_id: u32) -> Cow<'_, [u8]> {
        match &self.pieces {
            _ if self.is_special(token_id) => {
                Cow::Owned(self.id_to_token(token_id).unwrap_or_default().into_bytes())
            }
            Some(pieces) => Cow::Borrowed(pieces.get(token_id)),
            None => Cow::Owned(self.decode(&[token_id], false).unwrap_or_default().into_bytes()),
        }
    }

    fn pieces(&self) -> Option<&Pieces> {
        self.pieces.as_ref()
    }

    /// The decoder part of `tokenizer.json`.
    fn decoder_config(&self) -> Option<serde_json::Value> {
        self.inner.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("special_ids", &self.special_ids.len())
            .field("has_pieces", &self.pieces.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing;
