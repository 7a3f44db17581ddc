//! The tokens of a GGUF file and what it says of them.

use super::super::fault::{CheckpointError, CheckpointFault};
use super::metadata::GgufMetadata;

pub const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";

/// Marks that end a turn. A file names one end token, and often it is not the one that its chat template ends turns with.
const TURN_ENDS: [&str; 5] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"];

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Normal,
    /// Stands for what no other does.
    Unknown,
    /// A mark, not text.
    Control,
    /// Text that is a token wherever it stands.
    UserDefined,
    Unused,
    Byte,
}

/// Tokens by their ids.
pub struct GgufVocabulary<'a> {
    pub tokens: &'a [&'a str],
    /// Empty where the file does not say: all are normal.
    kinds: Vec<TokenKind>,
}

impl<'a> GgufVocabulary<'a> {
    /// The file's; `None` if it has no tokens.
    pub fn read(metadata: &'a GgufMetadata<'_>) -> Result<Option<Self>, CheckpointError> {
        let Some(tokens) = metadata.texts(TOKENS)? else { return Ok(None) };
        let numbers = metadata.numbers(TOKEN_TYPES)?.unwrap_or_default();
        let kinds: Option<Vec<TokenKind>> = numbers.iter().map(|number| kind_of(*number)).collect();
        let what = "a type of 1 to 6 for each token";
        let kinds = kinds.ok_or_else(|| metadata.expected(TOKEN_TYPES, what))?;
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(metadata.expected(TOKEN_TYPES, what));
        }
        Ok(Some(Self { tokens, kinds }))
    }

    pub fn kind(&self, id: usize) -> TokenKind {
        self.kinds.get(id).copied().unwrap_or(TokenKind::Normal)
    }

    /// The token that a key names; `None` without the key.
    pub fn named(
        &self,
        metadata: &GgufMetadata<'_>,
        name: &str,
    ) -> Result<Option<&'a str>, CheckpointError> {
        let key = id_key(name);
        let Some(id) = metadata.count(&key)? else { return Ok(None) };
        self.tokens.get(id as usize).copied().map(Some).ok_or_else(|| {
            let reason = format!("expected an id below {}, got {id}", self.tokens.len());
            metadata.fault(CheckpointFault::Malformed, &key, reason)
        })
    }
}

fn id_key(name: &str) -> String {
    format!("tokenizer.ggml.{name}_token_id")
}

fn kind_of(number: f64) -> Option<TokenKind> {
    let kinds = [
        TokenKind::Normal,
        TokenKind::Unknown,
        TokenKind::Control,
        TokenKind::UserDefined,
        TokenKind::Unused,
        TokenKind::Byte,
    ];
    // No number below 1 is one: as usize it is 0.
    kinds.get((number as usize).checked_sub(1)?).copied()
}

/// The tokens that end a completion: those that the file names, and marks that end a turn.
pub fn end_token_ids(metadata: &GgufMetadata<'_>) -> Result<Vec<u32>, CheckpointError> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(metadata.count(&id_key(name))?);
    }
    if let Some(vocabulary) = GgufVocabulary::read(metadata)? {
        let is_end = |(id, token): &(u32, &&str)| {
            vocabulary.kind(*id as usize) == TokenKind::Control && TURN_ENDS.contains(*token)
        };
        ids.extend((0..).zip(vocabulary.tokens).filter(is_end).map(|(id, _)| id));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
