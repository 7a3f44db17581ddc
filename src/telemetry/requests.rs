//! One log line for each request that ended or was refused: figures and reasons, nothing of prompt or answer.
//!
//! Its target is `inferno_node::request`, so that a filter can leave it out. Refusals are bounded: a client makes them as fast as it
//! can write. What is left out is counted, and said once a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::request::{Event, FinishReason, Handle, Sink, SinkClosed};

/// Lines for refusals between two [`tick`](RequestLog::tick)s.
const MAX_REFUSALS: u32 = 20;
/// The most that is logged of a model's name: a client may ask for any.
const MAX_NAME_LEN: usize = 64;

/// The log of one node's requests.
#[derive(Debug, Default)]
pub struct RequestLog {
    said: AtomicU32,
    left_out: AtomicU64,
}

/// What a door knows of a request that is not taken.
#[derive(Debug, Clone, Copy, Default)]
pub struct RefusedRequest<'a> {
    /// `http` or `bus`.
    pub door: &'static str,
    /// As far as it is known.
    pub id: Option<&'a RequestId>,
    /// As the client named it.
    pub model: Option<&'a str>,
}

impl RequestLog {
    /// A request that is not taken.
    pub fn refused(&self, request: RefusedRequest<'_>, error: &Error) {
        if self.said.fetch_add(1, Ordering::Relaxed) >= MAX_REFUSALS {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        tracing::info!(
            target: "inferno_node::request",
            door = request.door,
            request_id = request.id.map(tracing::field::display),
            model = request.model.map(shortened),
            kind = error.kind.as_str(),
            param = error.param,
            cause = own_words(error),
            retry_after_ms = error.retry_after_ms,
            "refused"
        );
    }

    /// To be called once a second.
    pub fn tick(&self) {
        self.said.store(0, Ordering::Relaxed);
        let count = self.left_out.swap(0, Ordering::Relaxed);
        if count > 0 {
            tracing::info!(target: "inferno_node::request", count, "refused and left out of this log");
        }
    }
}

/// The message where no part of it can be the client's.
fn own_words(error: &Error) -> Option<&str> {
    match error.kind {
        Kind::Internal | Kind::Unavailable | Kind::Draining | Kind::QueueFull => {
            Some(error.message.as_str())
        }
        _ => None,
    }
}

fn shortened(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME_LEN)]
}

/// A sink that logs how its request ended, and passes everything on.
pub struct LoggedSink<S> {
    /// Where the answer goes.
    pub sink: S,
    /// The node's.
    pub log: Arc<RequestLog>,
    /// `http` or `bus`.
    pub door: &'static str,
    /// The request's.
    pub id: RequestId,
    /// As the client named it.
    pub model: Arc<str>,
    /// When the door had the whole of it.
    pub received_at: Timestamp,
}

impl<S: Sink> LoggedSink<S> {
    #[cold] // once in a request, beside the path of every event
    fn ended(&self, event: &Event) {
        if !tracing::enabled!(target: "inferno_node::request", tracing::Level::INFO) {
            return;
        }
        let usage = event.usage.unwrap_or_default();
        let receipt = event.receipt.clone().unwrap_or_default();
        let error = event.error.as_deref();
        let total = event.at.since(self.received_at);
        tracing::info!(
            target: "inferno_node::request",
            door = self.door,
            request_id = %self.id,
            model = shortened(&self.model),
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            cached_tokens = usage.cached_tokens,
            queue_ms = receipt.queue_ms,
            ttft_ms = whole_us(receipt.queue_ms + receipt.prefill_ms),
            total_ms = whole_us(total.as_secs_f64() * 1e3),
            device = receipt.device,
            kind = error.map(|error| error.kind.as_str()),
            cause = error.and_then(own_words),
            reason = event.finish_reason.map(FinishReason::as_str),
            "ended"
        );
    }
}

fn whole_us(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

impl<S: Sink> Sink for LoggedSink<S> {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.sink.accepted(handle);
    }

    fn refused(&mut self, error: &Error) {
        let asked =
            RefusedRequest { door: self.door, id: Some(&self.id), model: Some(&self.model) };
        self.log.refused(asked, error);
        self.sink.refused(error);
    }

    #[inline]
    fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
        if event.is_last() {
            self.ended(event);
        }
        self.sink.lend(event)
    }

    fn is_closed(&self) -> bool {
        self.sink.is_closed()
    }
}
