//! A sampled token: its id from the device to the reply stage, and what a client reads of how likely it was.

use serde::{Deserialize, Serialize};

/// A sampled token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// How likely it was; only where the request wants to know, so that others pay nothing.
    pub scores: Option<Box<Scores>>,
}

impl From<u32> for Token {
    fn from(id: u32) -> Self {
        Self { id, scores: None }
    }
}

/// How likely a token was, and what else was.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The token's own log probability.
    pub logprob: f32,
    /// Ids and log probabilities of the likeliest tokens, likeliest first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Which log probabilities a client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogprobsMode {
    /// The model's own: temperature 1, before penalties, bias and filters.
    Raw,
    /// Of what the token was drawn from.
    Processed,
}

/// How likely a token of prompt or completion was, and what else was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its id.
    pub token_id: u32,
    /// Its text by itself; U+FFFD stands for bytes that are no whole character.
    pub token: String,
    /// Its bytes, where `token` does not have them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
    /// Its log probability, at least -9999; none for the first token of a prompt, which nothing precedes.
    pub logprob: Option<f32>,
    /// Where its text begins, in characters, in the prompt's or the answer's text.
    pub text_offset: u32,
    /// The likeliest tokens, likeliest first; as many as the request wants.
    pub top: Vec<TopLogprob>,
}

/// One of the likeliest tokens at some place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// Its id.
    pub token_id: u32,
    /// As in [`TokenLogprob`].
    pub token: String,
    /// As in [`TokenLogprob`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
    /// Its log probability, at least -9999.
    pub logprob: f32,
}
