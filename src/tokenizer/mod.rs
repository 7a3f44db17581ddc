//! Text to token ids and back, and chat templates: what the checkpoint's tokenizer files say.
//!
//! [`Tokenizer`] is `tokenizer.json` by its authors' crate; [`IncrementalDecoder`] gives a completion's text token by token
//! and never splits a character; [`ChatTemplate`] renders a conversation as Hugging Face's templates want it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

mod decoder;
mod folder;
mod guard;
mod longest;
mod pieces;
mod template;

pub use decoder::IncrementalDecoder;
pub use folder::TokenizerFolder;
pub(crate) use guard::guarded;
pub use template::{
    ChatTemplate, MAX_ADDED_BYTES, MAX_BUILT_BYTES, MAX_BUILT_TIMES, MAX_INSTRUCTIONS,
};

use pieces::Pieces;

/// Ids are below: 16 times the largest vocabulary known. Tables are made for all of them.
const MAX_VOCAB_SIZE: u32 = 1 << 22;

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
    /// Reads `tokenizer.json` in `dir`, with the tokens that `tokenizer_config.json`, `special_tokens_map.json` and
    /// `added_tokens.json` add to it.
    ///
    /// # Errors
    /// Names the file and the reason when one is missing, not a tokenizer, or has an id that no vocabulary has.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        Self::of_folder(&TokenizerFolder::open(dir)?, None)
    }

    /// The same of a folder that was opened, for a model of `vocab_size` ids: the vocabulary may have no others. (Added tokens may: they
    /// are common, and refused with the prompt that has them.)
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn of_folder(
        folder: &TokenizerFolder,
        vocab_size: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let file = folder.path_of("tokenizer.json");
        let wrong = |reason: String| TokenizerError::new(&file, reason);
        let mut inner = folder.tokenizer().map_err(wrong)?;
        let existing: Vec<_> = inner.get_added_tokens_decoder().into_values().collect();
        let more = folder.config.tokens_to_add(&existing);
        inner.add_tokens(more.iter().cloned()).map_err(|e| wrong(e.to_string()))?;
        let special = more.into_iter().filter(|token| token.special).map(|token| token.content);
        let vocab_size = vocab_size.unwrap_or(MAX_VOCAB_SIZE);
        Self::with_special(inner, &special.collect(), vocab_size).map_err(wrong)
    }

    /// Wraps a tokenizer made in memory. Truncation and padding are taken off: a prompt is never cut silently.
    ///
    /// # Errors
    /// The reason, if it has no vocabulary or one with ids that are too high.
    pub fn new(inner: tokenizers::Tokenizer) -> Result<Self, String> {
        Self::with_special(inner, &BTreeSet::new(), MAX_VOCAB_SIZE)
    }

    /// `special`: texts of tokens that are marks, whatever `tokenizer.json` says of them; `vocab_size`: the vocabulary's ids are below.
    fn with_special(
        mut inner: tokenizers::Tokenizer,
        special: &BTreeSet<String>,
        vocab_size: u32,
    ) -> Result<Self, String> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        let vocabulary = inner.get_vocab(false);
        let last = vocabulary.iter().max_by_key(|(_, id)| **id);
        if let Some((token, id)) = last.filter(|(_, id)| **id >= vocab_size) {
            return Err(format!(
                "model.vocab: expected ids below {vocab_size}, the model's vocab_size; got {id} for {token:?}"
            ));
        }
        let added = inner.get_added_tokens_decoder();
        // The highest id counts, not the number of entries: vocabularies have holes.
        let ids = vocabulary.values().chain(added.keys());
        let highest = *ids.max().ok_or("it has no tokens")?;
        if highest >= MAX_VOCAB_SIZE {
            return Err(format!("expected ids below {MAX_VOCAB_SIZE}, got {highest}"));
        }
        let longest_token = longest::longest_token(&inner, &vocabulary);
        let marks = added.into_iter().filter(|(_, t)| t.special || special.contains(&t.content));
        let special_ids = marks.map(|(id, _)| id).collect();
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
