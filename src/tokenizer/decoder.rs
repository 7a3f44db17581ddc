//! A completion's text, token by token.
//!
//! A token may end inside a character, so text is held back until its last character is whole. The prompt is the context:
//! the completion of `Hello` that begins with the token `▁world` begins with a space. Work per token is bounded by the
//! token's own length (or, for decoders without a table of pieces, by a short window), never by what came before.

use std::sync::Arc;

use super::Tokenizer;
use super::pieces::{FirstPiece, Pieces};

/// Text that decoders give for bytes that are no character, or not yet one.
const REPLACEMENT: char = '\u{FFFD}';

/// Tokens that a window may hold without a whole character at its end. A character has at most four bytes and a token at
/// least one, so a longer wait is for bytes that are no text.
const MAX_HELD_TOKENS: usize = 8;

/// How far a prompt is looked back at for a character begun in it.
const CONTEXT_TOKENS: usize = 8;

/// Turns the ids of one completion into text.
#[derive(Debug)]
pub struct IncrementalDecoder {
    tokenizer: Arc<Tokenizer>,
    state: DecoderState,
    /// Tokens that are marks, not text, are shown as they are spelt.
    shows_special: bool,
}

#[derive(Debug)]
enum DecoderState {
    Bytes(ByteState),
    Window(WindowState),
}

impl IncrementalDecoder {
    /// A decoder of what follows `prompt`.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Self {
        let state = match tokenizer.pieces() {
            Some(pieces) => DecoderState::Bytes(ByteState::new(pieces, prompt)),
            None => DecoderState::Window(WindowState::new(&tokenizer, prompt)),
        };
        Self { tokenizer, state, shows_special: false }
    }

    /// Shows tokens that are marks, not text, as they are spelt.
    #[must_use]
    pub fn with_special_tokens(self, shown: bool) -> Self {
        Self { shows_special: shown, ..self }
    }

    /// The tokens' spelling.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Appends to `text` what this token makes whole. Special tokens add nothing, unless they are shown.
    pub fn push(&mut self, token_id: u32, text: &mut String) {
        if self.shows_special && self.tokenizer.is_special(token_id) {
            self.state.end_character(&self.tokenizer, text);
            text.push_str(&String::from_utf8_lossy(&self.tokenizer.token_bytes(token_id)));
            return;
        }
        match (&mut self.state, self.tokenizer.pieces()) {
            (DecoderState::Bytes(state), Some(pieces)) => state.push(pieces, token_id, text),
            (DecoderState::Window(state), _) => state.push(&self.tokenizer, token_id, text),
            (DecoderState::Bytes(_), None) => {
                unreachable!("made from the table, which never goes away")
            }
        }
    }
}

impl DecoderState {
    /// Shows what is held back as it is: nothing more belongs to that character.
    fn end_character(&mut self, tokenizer: &Tokenizer, text: &mut String) {
        match self {
            DecoderState::Bytes(state) => {
                text.push_str(&String::from_utf8_lossy(&state.held));
                state.held.clear();
                state.begun = true;
            }
            DecoderState::Window(state) => {
                let held = &state.ids[state.read..];
                text.push_str(&tokenizer.decode(held, true).unwrap_or_default());
                state.ids.clear();
                state.read = 0;
                state.context.clear();
            }
        }
    }
}

/// Bytes that are not yet a whole character (at most three), and whether text has begun.
#[derive(Debug)]
struct ByteState {
    held: Vec<u8>,
    begun: bool,
    /// Leading spaces still to be taken off.
    strip: u32,
}

impl ByteState {
    fn new(pieces: &Pieces, prompt: &[u32]) -> Self {
        let strip = match pieces.start() {
            FirstPiece::Strip(count) => count,
            FirstPiece::Keep | FirstPiece::DropMarks => 0,
        };
        // Only marks before the completion: its start is the start of the text.
        let begun = prompt.iter().rev().any(|&id| !pieces.get(id).is_empty());
        let mut state = Self { held: Vec::new(), begun, strip };
        if begun {
            // A prompt of ids may end inside a character, which the completion then ends.
            let from = prompt.len().saturating_sub(CONTEXT_TOKENS);
            let mut context = String::new();
            for &id in &prompt[from..] {
                state.push(pieces, id, &mut context);
            }
        }
        state
    }

    fn push(&mut self, pieces: &Pieces, token_id: u32, text: &mut String) {
        let mut piece = pieces.get(token_id);
        if piece.is_empty() {
            return;
        }
        if !self.begun {
            if pieces.start() == FirstPiece::DropMarks {
                self.begun = true;
                self.held.extend(piece.iter().filter(|&&b| b != b' '));
                return self.show(text);
            }
            while self.strip > 0 && piece.first() == Some(&b' ') {
                piece = &piece[1..];
                self.strip -= 1;
            }
            // A text that is all spaces so far may still lose some.
            self.begun = !piece.is_empty() || self.strip == 0;
        }
        // The usual case, a token of whole characters, is one check and one copy.
        if self.held.is_empty()
            && let Ok(whole) = std::str::from_utf8(piece)
        {
            return text.push_str(whole);
        }
        self.held.extend_from_slice(piece);
        self.show(text);
    }

    /// Moves what is whole from `held` to `text`; bytes that can never be a character become U+FFFD.
    fn show(&mut self, text: &mut String) {
        let mut shown = 0;
        loop {
            match std::str::from_utf8(&self.held[shown..]) {
                Ok(whole) => {
                    text.push_str(whole);
                    shown = self.held.len();
                    break;
                }
                Err(error) => {
                    let valid = shown + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[shown..valid]));
                    shown = valid;
                    let Some(bad) = error.error_len() else { break };
                    text.push(REPLACEMENT);
                    shown += bad;
                }
            }
        }
        self.held.drain(..shown);
    }
}

/// For other decoders: ids whose text is known as context (`..read`), and ids whose text is still held back (`read..`).
/// Decoding both together and taking off the context's text gives the new text as the whole text has it.
#[derive(Debug)]
struct WindowState {
    ids: Vec<u32>,
    read: usize,
    context: String,
}

impl WindowState {
    fn new(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        let context = tokenizer.decode(&ids, true).unwrap_or_default();
        Self { read: ids.len(), ids, context }
    }

    fn push(&mut self, tokenizer: &Tokenizer, token_id: u32, text: &mut String) {
        if tokenizer.is_special(token_id) {
            return;
        }
        self.ids.push(token_id);
        // A decoder's failure shows nothing; the ids are in the event all the same.
        let whole = tokenizer.decode(&self.ids, true).unwrap_or_default();
        let held = self.ids.len() - self.read;
        if whole.ends_with(REPLACEMENT) && held < MAX_HELD_TOKENS {
            return;
        }
        if let Some(new) = whole.strip_prefix(self.context.as_str()) {
            text.push_str(new);
        } else {
            // The new tokens changed how the context reads, which is sent already: show them alone.
            text.push_str(&tokenizer.decode(&self.ids[self.read..], true).unwrap_or_default());
        }
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        self.context = tokenizer.decode(&self.ids, true).unwrap_or_default();
    }
}
