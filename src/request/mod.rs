//! What a client asked and what it gets: the types every stage shares.
//!
//! A door (bus, HTTP, library) turns bytes into a [`Request`]; its [`Sink`] travels with it to the last stage.
//! While the request runs, a [`Handle`] is how others reach it: to cancel it, or to wait for its end.

use std::sync::Arc;

use serde::ser::{SerializeMap as _, Serializer};
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::Error;
use crate::ids::RequestId;

mod caller;
mod fields;
mod handle;
mod merge;
mod params;
mod rule;
mod so_far;
mod token;
mod value;

pub use caller::{Caller, Role, Tenant};
pub use fields::{Fields, IgnoredMembers};
pub use handle::{Ended, Handle};
pub use merge::{EventQueue, merge, split};
pub use params::{MAX_SAMPLES, Params};
pub use so_far::{SampleSoFar, SoFar};
pub use token::{LogprobsMode, Scores, Token, TokenLogprob, TopLogprob};
pub use value::Value;

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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant` (a template may know more).
    pub role: String,
    /// The text.
    pub content: String,
    /// Further members that the template may read, such as `name`, in the order in which they came.
    pub more: Vec<(String, Value)>,
}

impl ChatMessage {
    /// A message of these two members.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), more: Vec::new() }
    }

    /// Bytes of all that it says.
    pub fn size(&self) -> usize {
        let more = self.more.iter().map(|(name, value)| name.len() + value.size());
        self.role.len() + self.content.len() + more.sum::<usize>()
    }
}

/// The object that a template reads.
impl Serialize for ChatMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(Some(2 + self.more.len()))?;
        members.serialize_entry("role", &self.role)?;
        members.serialize_entry("content", &self.content)?;
        for (name, value) in &self.more {
            members.serialize_entry(name, value)?;
        }
        members.end()
    }
}

/// How many tokens a request gets that names no `max_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultLength {
    /// 16, as OpenAI's `/v1/completions`.
    Completions,
    /// The smaller of `default_max_tokens` and what the context leaves.
    Context,
}

/// One request at the door of admission. The sink gets exactly one of `refused` or (`accepted`, events, a last event); with several
/// choices their events come as they are made, each choice with a finish of its own.
pub struct Request {
    /// The client's id, or one the door gave.
    pub id: RequestId,
    /// Who asks.
    pub caller: Caller,
    /// The configured alias of the model.
    pub model: Arc<str>,
    /// What is to be continued.
    pub prompt: Prompt,
    /// What there is of the completion.
    pub so_far: SoFar,
    /// It is only judged: accepted means that it could be run, and nothing follows.
    pub is_question: bool,
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
    /// The next event; the last one [`is_last`](Event::is_last). Its stream fills its text and lists again for the one after: a sink
    /// that needs no more than to read them leaves them, so that a token costs no allocation; another takes the event.
    ///
    /// # Errors
    /// [`SinkClosed`] when nobody takes events any more; the request is then cancelled.
    fn lend(&mut self, event: &mut Event) -> std::result::Result<(), SinkClosed>;
    /// The same of an event that its owner has no more use for.
    ///
    /// # Errors
    /// As [`lend`](Self::lend).
    fn event(&mut self, mut event: Event) -> std::result::Result<(), SinkClosed> {
        self.lend(&mut event)
    }
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
    /// Prompt tokens whose KV was found in the prefix cache; of several samples, by the one that found least.
    pub cached_tokens: u32,
}

/// What the request cost: the receipt of the last event.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The node that ended the request.
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
    /// Prompt tokens whose KV was found in the prefix cache, by all samples together.
    pub cached_tokens: u32,
    /// Prompt tokens that were computed, for all samples together.
    #[serde(default)]
    pub prefill_tokens: u32,
    /// Of a durable request that moved: whether its tokens are those that it would have had without the move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
}

impl Receipt {
    /// Adds that of another sample or prompt of the same request to what is known of it.
    pub fn join(sum: &mut Option<Box<Receipt>>, other: Option<Box<Receipt>>) {
        match (sum, other) {
            (Some(sum), Some(other)) => sum.add(&other),
            (sum @ None, other) => *sum = other,
            (Some(_), None) => {}
        }
    }

    /// Tokens and times of the device add up, but they wait at the same time, so the longest wait counts.
    fn add(&mut self, other: &Receipt) {
        if !self.device.split(',').any(|device| device == other.device) {
            self.device = format!("{},{}", self.device, other.device);
        }
        self.attempt = self.attempt.max(other.attempt);
        self.queue_ms = self.queue_ms.max(other.queue_ms);
        self.prefill_ms = sum_ms(self.prefill_ms, other.prefill_ms);
        self.decode_ms = sum_ms(self.decode_ms, other.decode_ms);
        self.cached_tokens += other.cached_tokens;
        self.prefill_tokens += other.prefill_tokens;
    }
}

/// Milliseconds in whole microseconds; a sum of floats is none.
fn sum_ms(a: f64, b: f64) -> f64 {
    ((a + b) * 1e3).round() / 1e3
}

/// One event of a request's stream: what one step gave it. Read back, members that it does not know are passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The request that this event belongs to.
    pub request_id: RequestId,
    /// When the step ended that gave it: a sink's clock, so that none is asked for a token.
    #[serde(skip)]
    pub at: Timestamp,
    /// Which of the request's choices, where it wants several (`n`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub index: u32,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// One for each token of the prompt, where the request wants them: with the first event (where one message does not hold them,
    /// the rest in those that follow).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<TokenLogprob>>,
    /// In the last event of each choice. Where the request fails or is cancelled, in its last event alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// In the request's last event only, and always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// In the last event only; boxed, because the others are moved for every token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Box<Receipt>>,
    /// In the last event of a failed request; boxed like the receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<Error>>,
}

fn is_zero(index: &u32) -> bool {
    *index == 0
}

impl Event {
    /// An event that says nothing yet, of a request's first choice and start.
    pub fn new(request_id: RequestId) -> Self {
        Self {
            request_id,
            at: Timestamp::default(),
            index: 0,
            attempt: 1,
            seq: 0,
            token_ids: Vec::new(),
            text: String::new(),
            logprobs: None,
            prompt_logprobs: None,
            finish_reason: None,
            usage: None,
            receipt: None,
            error: None,
        }
    }

    /// Takes it and leaves one that says nothing.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.request_id.clone()))
    }

    /// Makes it say nothing, with room for the next one's text and tokens.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.text.clear();
        self.logprobs = None;
        self.prompt_logprobs = None;
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.token_ids.is_empty()
            && self.text.is_empty()
            && self.prompt_logprobs.is_none()
            && self.finish_reason.is_none()
            && !self.is_last()
    }

    /// Whether nothing of the request follows.
    pub fn is_last(&self) -> bool {
        self.usage.is_some()
    }

    /// Tokens of its choice up to its last one.
    pub fn end(&self) -> u32 {
        self.seq.saturating_add(self.token_ids.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_sum_of_receipts_has_no_more_places_than_they_have() {
        let receipt = |ms: f64| {
            let decode_ms = ms;
            Some(Box::new(Receipt { prefill_ms: ms, decode_ms, ..Receipt::default() }))
        };
        let mut sum = receipt(1.1);
        Receipt::join(&mut sum, receipt(1.002));
        Receipt::join(&mut sum, receipt(0.3));
        let json = serde_json::to_value(sum).expect("serialises");
        assert_eq!((&json["prefill_ms"], &json["decode_ms"]), (&2.402.into(), &2.402.into()));
    }

    #[test]
    fn request_ids_are_held_to_their_alphabet_and_length() {
        assert!(RequestId::parse("A-z_09").is_ok());
        assert!(RequestId::parse(&"x".repeat(64)).is_ok());
        for bad in ["", "a b", "a.b", "ä", &"x".repeat(65)] {
            assert_eq!(RequestId::parse(bad).map_err(|e| e.kind), Err(Kind::Invalid), "{bad:?}");
        }
        let own = RequestId::generate();
        assert!(RequestId::parse(own.as_str()).is_ok());
        assert!(own.age().is_some_and(|age| age.as_secs() < 60));
        let old = RequestId::parse("018f0000000070008000000000000000").expect("an id");
        assert!(old.age().is_some_and(|age| age.as_secs() > 86_400));
        assert_eq!(RequestId::parse("mine").expect("an id").age(), None);
    }
}
