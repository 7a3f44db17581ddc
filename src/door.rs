//! The contract of a door (bus, HTTP, library) with what stands behind it: it hands requests in, cancels them, is told which of
//! them run, and asks which models are served.

use actix::Message;
use actix::prelude::SendError;
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};
use crate::ids::{DeviceId, RequestId};
use crate::request::{Ended, Request, Value};

/// A request from a door. If the mailbox is full, the door refuses with `queue_full` itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Admit(pub Request);

/// A request with several prompts: each is one of `requests`, with an id of its own, and `id` is what the client knows. As long as
/// any of them is in the node, `id` runs: it is taken, and a cancel of it cancels them all.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AdmitAll {
    /// The client's id, or one the door gave.
    pub id: RequestId,
    /// One for each prompt.
    pub requests: Vec<Request>,
}

/// Cancels by the request's id; works from the moment that admission has taken the request up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Cancel {
    /// The request to cancel.
    pub id: RequestId,
    /// Answered when the request has ended, with the tokens of all its prompts; `not_found` if none of that id runs here.
    pub done: oneshot::Sender<Result<Ended>>,
}

/// Told of every request that starts and ends running on this node; the bus opens and closes `P.cancel.<id>` so. Never blocks.
pub trait RunningObserver: Send + Sync {
    /// Before the request is accepted.
    fn started(&self, id: &RequestId);
    /// After its last event.
    fn ended(&self, id: &RequestId);
}

/// What is loaded.
#[derive(Message)]
#[rtype(result = "Vec<ModelInfo>")]
pub struct List;

/// A loaded model, for lists and health.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelInfo {
    /// The alias.
    pub name: String,
    /// Its kind, as the checkpoint's `config.json` names it: `llama`, `qwen3_moe`.
    pub model_type: &'static str,
    /// When it was loaded, in Unix seconds.
    pub created: u64,
    /// Longest prompt and completion together.
    pub max_seq_len: u32,
    /// Where it is.
    pub devices: Vec<DeviceId>,
    /// Bytes of weights on each device.
    pub weight_bytes: u64,
    /// Bytes of KV blocks on each device.
    pub kv_bytes: u64,
    /// Of all that its tokens depend on: nodes on which it is equal say the same.
    pub digest: String,
}

/// What a client is told to wait when admission's mailbox is full, in milliseconds: it is emptied in less, and nobody is to come back
/// sooner.
pub const MAILBOX_RETRY_MS: u64 = 1_000;

/// Why admission's mailbox takes no message, as the client is told.
pub fn not_admitted<M>(refusal: &SendError<M>) -> Error {
    match refusal {
        SendError::Full(_) => too_busy(),
        SendError::Closed(_) => stopping(),
    }
}

/// The error that admission's mailbox is full.
pub fn too_busy() -> Error {
    Error::new(Kind::QueueFull, "the node is too busy to take this request now")
        .with_retry_after_ms(MAILBOX_RETRY_MS)
}

/// The error that admission is there no more.
pub fn stopping() -> Error {
    Error::new(Kind::Unavailable, "the node is stopping").with_retry_after_ms(MAILBOX_RETRY_MS)
}

/// The error that a body has more than `limit` bytes; `got` is its length, where that is known.
pub fn body_too_large(limit: usize, got: Option<usize>) -> Error {
    let got = got.map_or_else(|| "a longer one".to_owned(), |len| len.to_string());
    Error::new(Kind::TooLarge, format!("expected a body of at most {limit} bytes, got {got}"))
}

/// So many names of models an error tells.
const MAX_NAMES_TOLD: usize = 16;

/// The error that a model is not here, with the names of those that are.
pub fn not_loaded<'a>(name: &str, loaded: impl IntoIterator<Item = &'a str>) -> Error {
    let mut names: Vec<&str> = loaded.into_iter().collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(MAX_NAMES_TOLD);
    names.truncate(MAX_NAMES_TOLD);
    let known = match (names.as_slice(), more) {
        ([], _) => "no model is loaded here".to_owned(),
        (names, 0) => format!("expected {}", names.join(", ")),
        (names, more) => format!("expected {} or one of {more} others", names.join(", ")),
    };
    let name = Value::Text(name.to_owned());
    Error::new(Kind::NotFound, format!("{known}, got {name}")).with_param("model")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_model_is_told_the_right_ones() {
        let text = |loaded: &[&str]| not_loaded("x", loaded.iter().copied()).text();
        assert_eq!(text(&["b", "a"]), "model: expected a, b, got \"x\"");
        assert_eq!(text(&[]), "model: no model is loaded here, got \"x\"");
        let many: Vec<String> = (10..40).map(|i| i.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(text(&many).ends_with("25 or one of 14 others, got \"x\""), "{}", text(&many));
    }
}
