//! A request's sink: what stages call, from any thread and without blocking.

use std::sync::Arc;
use std::time::Instant;

use async_nats::Subject;
use async_nats::message::OutboundMessage;

use super::outbox::OutgoingRefusal;
use super::stream::SubjectStream;
use crate::bus::intake::{BusDoor, Endpoint};
use crate::bus::wire::accepted;
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::request::{Event, FinishReason, Handle, Sink, SinkClosed, Usage};

/// What the sink has told its client so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SinkState {
    Nothing,
    Accepted,
    Ended,
}

/// The bus's side of a request. Dropped before the end, it tells the client so.
pub(in crate::bus) struct BusSink {
    door: Arc<BusDoor>,
    stream: Arc<SubjectStream>,
    endpoint: Arc<Endpoint>,
    id: RequestId,
    /// Where acceptance or refusal goes; `None`: nowhere.
    reply: Option<Subject>,
    /// The id is the client's.
    own_id: bool,
    told: SinkState,
    received: Instant,
}

/// What a sink is made with.
pub(in crate::bus) struct SinkStart {
    /// The door that it queues its answer at.
    pub door: Arc<BusDoor>,
    /// Its events.
    pub stream: Arc<SubjectStream>,
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
            told: SinkState::Nothing,
            received: Instant::now(),
        }
    }
}

impl Sink for BusSink {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.told = SinkState::Accepted;
        self.stream.accepted(handle, Instant::now());
        // The reply subject of a request-many gets nothing but events.
        if let (true, Some(reply)) = (self.own_id, &self.reply) {
            let encoding = self.stream.target.encoding;
            self.door.outbox.send(OutboundMessage {
                subject: reply.clone(),
                reply: None,
                payload: accepted(encoding, &self.id, &self.door.node_id),
                headers: encoding.headers(),
            });
        }
    }

    fn refused(&mut self, error: &Error) {
        self.told = SinkState::Ended;
        self.endpoint.failed(error);
        self.door.owners.take_claim(&self.id);
        let id = self.own_id.then_some(&self.id);
        let encoding = self.stream.target.encoding;
        if let Some(reply) = &self.reply {
            let refused = OutgoingRefusal { encoding, id, error, ends: !self.own_id };
            self.door.outbox.send_refusal(reply.clone(), refused);
        }
    }

    #[inline]
    fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
        if event.is_last() {
            self.told = SinkState::Ended;
            match &event.error {
                Some(error) => self.endpoint.failed(error),
                None => self.endpoint.finished(self.received.elapsed()),
            }
        }
        // The last event is published even so: somebody may have come in the meantime.
        if self.stream.is_gone() && self.told != SinkState::Ended {
            return Err(SinkClosed);
        }
        if self.stream.push(event) {
            self.door.outbox.ready(self.stream.clone());
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.stream.is_gone()
    }
}

impl Drop for BusSink {
    fn drop(&mut self) {
        self.door.forget(self.stream.number);
        match self.told {
            SinkState::Ended => {}
            SinkState::Nothing => {
                let error = Error::new(Kind::Unavailable, "the node dropped the request")
                    .with_retry_after_ms(1_000);
                self.refused(&error);
            }
            SinkState::Accepted => {
                let event = Event {
                    finish_reason: Some(FinishReason::Failed),
                    usage: Some(Usage::default()),
                    error: Some(Box::new(Error::internal("the node dropped the request"))),
                    ..self.stream.next_event(self.id.clone())
                };
                // The stream is no one else's any more, so nobody needs to hear that it is closed.
                let _ = self.event(event);
            }
        }
    }
}
