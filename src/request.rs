//! What a client asked and what it gets: the types every stage shares.
//!
//! A door (bus, HTTP, library) turns bytes into a [`Request`]; its [`Sink`] travels with it to the last stage.
//! While the request runs, a [`Handle`] is how others reach it: to cancel it, or to wait for its end.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::clock::Timestamp;
use crate::error::{Error, Result};

mod params;
mod rule;
mod token;
mod value;

pub use params::{Members, Params};
pub use token::{LogprobsMode, Scores, Token, TokenLogprob, TopLogprob};
pub use value::Value;

/// The longest request id, in characters.
pub const MAX_REQUEST_ID_LEN: usize = 64;

/// The client's id of a request, or the one the node gave: `[A-Za-z0-9_-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Takes a client's id.
    ///
    /// # Errors
    /// `invalid` when it is empty, too long or has another character.
    pub fn parse(id: &str) -> Result<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if id.is_empty() || id.len() > MAX_REQUEST_ID_LEN || !id.bytes().all(allowed) {
            return Err(Error::invalid(
                "request_id",
                format!(
                    "expected 1 to {MAX_REQUEST_ID_LEN} of A-Z a-z 0-9 _ -, got {} bytes",
                    id.len()
                ),
            ));
        }
        Ok(Self(id.into()))
    }

    /// A fresh id: a UUIDv7 (RFC 9562) without dashes, so ids sort by time.
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string().into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Our own id of a sequence, unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What is to be continued.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text; admission tokenizes it with the tokenizer's special tokens.
    Text(String),
    /// A conversation; admission renders the model's chat template.
    Messages(Vec<ChatMessage>),
    /// Token ids as they are.
    TokenIds(Vec<u32>),
}

/// One message of a conversation, as the chat template sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant` (a template may know more).
    pub role: String,
    /// The text.
    pub content: String,
}

/// How many tokens a request gets that names no `max_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultLength {
    /// 16, as OpenAI's `/v1/completions`.
    Completions,
    /// The smaller of `default_max_tokens` and what the context leaves.
    Context,
}

/// One request at the door of admission. The sink gets exactly one of `refused` or (`accepted`, events, a last event).
pub struct Request {
    /// The client's id, or one the door gave.
    pub id: RequestId,
    /// The configured alias of the model.
    pub model: String,
    /// What is to be continued.
    pub prompt: Prompt,
    /// As given, unchecked.
    pub params: Params,
    /// False: one event with everything.
    pub stream: bool,
    /// 0 to 255, 255 first.
    pub priority: u8,
    /// What an absent `max_tokens` means.
    pub default_length: DefaultLength,
    /// When the door had the whole body.
    pub received_at: Timestamp,
    /// Where the answer goes.
    pub sink: Box<dyn Sink>,
}

/// The priority of a request that names none.
pub const DEFAULT_PRIORITY: u8 = 128;

/// The consumer is gone; what is left of the request is to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkClosed;

/// Where a request's answer goes; bus, HTTP and library each fill it in. Called on the reply actor's or admission's
/// thread: an implementation encodes and queues, and never blocks.
pub trait Sink: Send {
    /// The request is in; comes once, before any event. From here on `handle` cancels it.
    fn accepted(&mut self, handle: &Arc<Handle>);
    /// The request is not taken; nothing follows.
    fn refused(&mut self, error: &Error);
    /// The next event; the last one has a `finish_reason`.
    ///
    /// # Errors
    /// [`SinkClosed`] when nobody takes events any more; the request is then cancelled.
    fn event(&mut self, event: Event) -> std::result::Result<(), SinkClosed>;
    /// Whether nobody takes events any more, as far as is known without sending one: looked at before work is spent on a
    /// request that has had no event yet. A sink that learns it only by sending may leave this alone.
    fn is_closed(&self) -> bool {
        false
    }
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// The client gave up.
    Cancelled,
    /// See the event's error.
    Failed,
}

impl FinishReason {
    /// The name on the wire and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Failed => "failed",
        }
    }
}

/// Tokens counted, as OpenAI names them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens sampled, the end token included.
    pub completion_tokens: u32,
    /// Their sum.
    pub total_tokens: u32,
    /// Prompt tokens whose KV was found in the prefix cache.
    pub cached_tokens: u32,
}

/// What the request cost: the receipt of the last event.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Which node.
    pub node_id: String,
    /// Which device, such as `cpu:0`; empty if it never reached one.
    pub device: String,
    /// Starts counted from 1.
    pub attempt: u32,
    /// Accepted to first scheduled.
    pub queue_ms: f64,
    /// First scheduled to first token.
    pub prefill_ms: f64,
    /// First token to last token.
    pub decode_ms: f64,
    /// As in [`Usage`].
    pub cached_tokens: u32,
}

/// One event of a request's stream: what one step gave it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Whose.
    pub request_id: RequestId,
    /// Starts counted from 1.
    pub attempt: u32,
    /// Index of the first token of `token_ids` in the completion.
    pub seq: u32,
    /// Everything sampled, the end token and a matched stop string's tokens included.
    pub token_ids: Vec<u32>,
    /// What can be shown: whole characters, no part of a possible stop string. The first begins with the prompt where the request
    /// wants its echo.
    pub text: String,
    /// One for each of `token_ids`, where the request wants them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// One for each token of the prompt, where the request wants them: with the first event (where one message does not hold them,
    /// the rest in those that follow).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<TokenLogprob>>,
    /// In the last event only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// In the last event only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// In the last event only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
    /// In the last event of a failed request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub reason: FinishReason,
    /// The last event's `completion_tokens`.
    pub completion_tokens: u32,
}

impl Ended {
    /// How a request with several prompts ended: cancelled if any of them was, and the tokens of all.
    pub fn together(ends: Vec<Ended>) -> Ended {
        let cancelled = ends.iter().any(|end| end.reason == FinishReason::Cancelled);
        let first = ends.first().map_or(FinishReason::Failed, |end| end.reason);
        Ended {
            reason: if cancelled { FinishReason::Cancelled } else { first },
            completion_tokens: ends.iter().map(|end| end.completion_tokens).sum(),
        }
    }
}

const CANCEL: u8 = 1;
const STOPPED: u8 = 2;
const CUT: u8 = 4;

#[derive(Debug)]
enum Progress {
    Running(Vec<oneshot::Sender<Ended>>),
    Ended(Ended),
}

/// How others reach a running request. Stages look at its flags before they spend work on it.
#[derive(Debug)]
pub struct Handle {
    request_id: RequestId,
    sequence_id: SequenceId,
    flags: AtomicU8,
    progress: Mutex<Progress>,
}

impl Handle {
    /// A handle of a request that runs.
    pub fn new(request_id: RequestId, sequence_id: SequenceId) -> Arc<Self> {
        Arc::new(Self {
            request_id,
            sequence_id,
            flags: AtomicU8::new(0),
            progress: Mutex::new(Progress::Running(Vec::new())),
        })
    }

    /// The client's or the node's id.
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    /// Our own id.
    pub fn sequence_id(&self) -> SequenceId {
        self.sequence_id
    }

    /// Asks for the end; the stages see it before the next step.
    pub fn cancel(&self) {
        self.flags.fetch_or(CANCEL, Ordering::Release);
    }

    /// Whether somebody asked for the end.
    pub fn is_cancelled(&self) -> bool {
        self.flags.load(Ordering::Acquire) & CANCEL != 0
    }

    /// Ends it from inside the node, at the end of a drain: as a cancel, but the client is told `draining`.
    pub fn cut(&self) {
        self.flags.fetch_or(CANCEL | CUT, Ordering::Release);
    }

    /// Whether the node cut it.
    pub fn is_cut(&self) -> bool {
        self.flags.load(Ordering::Acquire) & CUT != 0
    }

    /// The reply stage has sent the last event (a stop string, say): nothing more is to be computed.
    pub fn set_stopped(&self) {
        self.flags.fetch_or(STOPPED, Ordering::Release);
    }

    /// Whether the sequence needs no further step, for either reason.
    pub fn wants_no_more(&self) -> bool {
        self.flags.load(Ordering::Acquire) != 0
    }

    /// Says how it ended; the first call counts. Wakes everyone who waits.
    pub fn end(&self, ended: Ended) {
        self.set_stopped();
        let mut progress = self.lock();
        if let Progress::Running(waiters) = &mut *progress {
            for waiter in waiters.drain(..) {
                // A waiter that left needs no answer.
                let _ = waiter.send(ended);
            }
            *progress = Progress::Ended(ended);
        }
    }

    /// Resolves when the request has ended (at once if it has).
    pub fn wait(&self) -> oneshot::Receiver<Ended> {
        let (sender, receiver) = oneshot::channel();
        match &mut *self.lock() {
            Progress::Running(waiters) => waiters.push(sender),
            Progress::Ended(ended) => {
                let _ = sender.send(*ended);
            }
        }
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // Nothing panics while it is held, so a poisoned lock still holds a whole value.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn request_ids_are_held_to_their_alphabet_and_length() {
        assert!(RequestId::parse("A-z_09").is_ok());
        assert!(RequestId::parse(&"x".repeat(64)).is_ok());
        for bad in ["", "a b", "a.b", "ä", &"x".repeat(65)] {
            assert_eq!(RequestId::parse(bad).map_err(|e| e.kind), Err(Kind::Invalid), "{bad:?}");
        }
        assert!(RequestId::parse(RequestId::generate().as_str()).is_ok());
    }

    #[test]
    fn the_first_end_counts_and_wakes_all_waiters() {
        let handle = Handle::new(RequestId::generate(), SequenceId(1));
        let mut early = handle.wait();
        assert!(!handle.wants_no_more());
        let first = Ended { reason: FinishReason::Stop, completion_tokens: 3 };
        handle.end(first);
        handle.end(Ended { reason: FinishReason::Failed, completion_tokens: 9 });
        assert_eq!(early.try_recv(), Ok(first));
        assert_eq!(handle.wait().try_recv(), Ok(first));
        assert!(handle.wants_no_more() && !handle.is_cancelled());
    }
}
