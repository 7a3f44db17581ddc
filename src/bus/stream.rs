//! A request's way back: what waits to be published for it, and the sink that stages call.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Subject;
use async_nats::message::OutboundMessage;

use super::door::Door;
use super::encode::{Encoding, accepted};
use super::merge::merge;
use super::outbox::Refused;
use super::service::Endpoint;
use crate::error::{Error, Kind};
use crate::request::{Event, FinishReason, Handle, Params, RequestId, Sink, SinkClosed};

/// How often an event asks NATS whether anybody listens.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Where one request's events go, and those that wait.
pub(super) struct Stream {
    /// Names it in the subject of its probes.
    pub number: u64,
    /// Where the events go.
    pub subject: Subject,
    /// How they are written.
    pub encoding: Encoding,
    /// An empty message follows the last event (request-many).
    pub ends_empty: bool,
    /// Goes on when nobody listens.
    pub detached: bool,
    /// On which connection the request came, counted from 1.
    pub connection: u64,
    gone: AtomicBool,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    /// Joined where possible: one event, and one more for every new attempt.
    pending: VecDeque<Event>,
    /// The outbox or the writer has this stream.
    queued: bool,
    probed_at: Option<Instant>,
    handle: Option<Arc<Handle>>,
}

/// What a stream is made with.
pub(super) struct StreamTarget {
    /// Where the events go.
    pub subject: Subject,
    /// How they are written.
    pub encoding: Encoding,
    /// An empty message follows the last event.
    pub ends_empty: bool,
    /// Goes on when nobody listens.
    pub detached: bool,
    /// On which connection the request came.
    pub connection: u64,
}

impl Stream {
    /// A stream with nothing in it.
    pub fn new(number: u64, target: StreamTarget) -> Self {
        Self {
            number,
            subject: target.subject,
            encoding: target.encoding,
            ends_empty: target.ends_empty,
            detached: target.detached,
            connection: target.connection,
            gone: AtomicBool::new(false),
            slot: Mutex::default(),
        }
    }

    /// Adds an event; true if the stream has to be queued for the writer.
    fn push(&self, event: Event) -> bool {
        let mut slot = self.lock();
        let left = match slot.pending.back_mut() {
            Some(last) => merge(last, event).err().map(|event| *event),
            None => Some(event),
        };
        slot.pending.extend(left);
        !std::mem::replace(&mut slot.queued, true)
    }

    /// Takes what waits, and whether the first of it is to be a probe. From here on the stream can be queued again.
    pub fn take(&self, now: Instant) -> (VecDeque<Event>, bool) {
        let mut slot = self.lock();
        slot.queued = false;
        let due = slot.probed_at.is_none_or(|at| now.duration_since(at) >= PROBE_EVERY);
        if due {
            slot.probed_at = Some(now);
        }
        (std::mem::take(&mut slot.pending), due)
    }

    /// Nobody listens: cancels the request, unless it is detached.
    pub fn nobody_listens(&self) {
        if self.detached || self.gone.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(handle) = &self.lock().handle {
            tracing::info!(request_id = %handle.request_id(), "cancelled: nobody listens");
            handle.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        // Only whole values are written under the lock.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the request has been told so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Accepted,
    Ended,
}

/// The bus's side of a request. Dropped before the end, it tells the client so.
pub(super) struct BusSink {
    door: Arc<Door>,
    stream: Arc<Stream>,
    endpoint: Arc<Endpoint>,
    id: RequestId,
    /// Where acceptance or refusal goes; `None`: nowhere.
    reply: Option<Subject>,
    /// The id is the client's.
    own_id: bool,
    told: Told,
    /// Where the completion stands, for an end of our own.
    attempt: u32,
    next_seq: u32,
    received: Instant,
}

/// What a sink is made with.
pub(super) struct SinkStart {
    /// Where it queues.
    pub door: Arc<Door>,
    /// Its events.
    pub stream: Arc<Stream>,
    /// Whose counters it moves.
    pub endpoint: Arc<Endpoint>,
    /// The request.
    pub id: RequestId,
    /// Where acceptance or refusal goes.
    pub reply: Option<Subject>,
    /// The id is the client's.
    pub own_id: bool,
}

impl BusSink {
    /// The sink of a request that was just received.
    pub fn new(start: SinkStart) -> Self {
        Self {
            door: start.door,
            stream: start.stream,
            endpoint: start.endpoint,
            id: start.id,
            reply: start.reply,
            own_id: start.own_id,
            told: Told::Nothing,
            attempt: 1,
            next_seq: 0,
            received: Instant::now(),
        }
    }
}

impl Sink for BusSink {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.told = Told::Accepted;
        self.stream.lock().handle = Some(handle.clone());
        // The reply subject of a request-many gets nothing but events.
        if let (true, Some(reply)) = (self.own_id, &self.reply) {
            let encoding = self.stream.encoding;
            self.door.outbox.send(OutboundMessage {
                subject: reply.clone(),
                reply: None,
                payload: accepted(encoding, &self.id, &self.door.node_id),
                headers: encoding.headers(),
            });
        }
    }

    fn refused(&mut self, error: &Error) {
        self.told = Told::Ended;
        let error = &in_params(error);
        self.endpoint.failed(error);
        let id = self.own_id.then_some(&self.id);
        let encoding = self.stream.encoding;
        match &self.reply {
            Some(reply) => {
                let refused = Refused { encoding, id, error, ends: !self.own_id };
                self.door.outbox.send_refusal(reply.clone(), refused);
            }
            None => tracing::info!(request_id = %self.id, %error, "refused, with no reply subject"),
        }
    }

    fn event(&mut self, event: Event) -> Result<(), SinkClosed> {
        let gone = self.stream.gone.load(Ordering::Acquire);
        self.attempt = event.attempt;
        self.next_seq = event.seq + event.token_ids.len() as u32;
        if event.finish_reason.is_some() {
            self.told = Told::Ended;
            match &event.error {
                Some(error) => self.endpoint.failed(error),
                None => self.endpoint.finished(self.received.elapsed()),
            }
        }
        // The last event is published even so: somebody may have come in the meantime.
        if gone && self.told != Told::Ended {
            return Err(SinkClosed);
        }
        if self.stream.push(event) {
            self.door.outbox.ready(self.stream.clone());
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.stream.gone.load(Ordering::Acquire)
    }
}

/// A refusal of admission names a parameter bare; on the bus it stands in `params`.
fn in_params(error: &Error) -> Error {
    match error.param.as_deref() {
        Some(name) if Params::FIELDS.contains(&name) => {
            error.clone().with_param(format!("params.{name}"))
        }
        _ => error.clone(),
    }
}

impl Drop for BusSink {
    fn drop(&mut self) {
        self.door.forget(self.stream.number);
        match self.told {
            Told::Ended => {}
            Told::Nothing => {
                let error = Error::new(Kind::Unavailable, "the node dropped the request")
                    .with_retry_after_ms(1_000);
                self.refused(&error);
            }
            Told::Accepted => {
                let event = Event {
                    request_id: self.id.clone(),
                    attempt: self.attempt,
                    seq: self.next_seq,
                    token_ids: Vec::new(),
                    text: String::new(),
                    logprobs: None,
                    prompt_logprobs: None,
                    finish_reason: Some(FinishReason::Failed),
                    usage: None,
                    receipt: None,
                    error: Some(Error::internal("the node dropped the request")),
                };
                // The stream is no one else's any more, so nobody needs to hear that it is closed.
                let _ = self.event(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_field_as_the_client_wrote_it() {
        let named = |param: &str| in_params(&Error::invalid(param, "no")).param;
        assert_eq!(named("top_p").as_deref(), Some("params.top_p"));
        assert_eq!(named("prompt").as_deref(), Some("prompt"));
        assert_eq!(named("params.stop").as_deref(), Some("params.stop"));
        assert_eq!(in_params(&Error::internal("no")).param, None);
    }
}
