//! A message from NATS becomes a request or a cancel at admission's door.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use actix::Recipient;
use actix::prelude::SendError;
use async_nats::message::OutboundMessage;
use async_nats::{Message, Subject};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::owners::{MAX_ASK, Owners};
use super::service::Endpoint;
use crate::bus::publish::{
    BusSink, Outbox, OutgoingRefusal, SinkStart, StreamTarget, SubjectStream,
};
use crate::bus::wire::{
    CancelAnswer, Decoded, Encoding, LAYOUT, OwnerAnswer, OwnerMessage, Subjects, Undecodable,
    decode,
};
use crate::bus::{BusDeps, Config};
use crate::clock::Timestamp;
use crate::door::{
    Admit, Cancel, MAILBOX_RETRY_MS, body_too_large, not_admitted, stopping, too_busy,
};
use crate::error::{Error, Kind, Result};
use crate::ids::RequestId;
use crate::lifeline::Lifeline;
use crate::reader::{RenamingSink, RequestOptions};
use crate::request::{Caller, DefaultLength, Ended, Request, SoFar};
use crate::telemetry::{LoggedSink, Metrics, RefusedRequest};

/// How long a cancel waits for room in admission's mailbox: 100 tries of 10 ms.
const CANCEL_TRIES: u32 = 100;
const CANCEL_RETRY: Duration = Duration::from_millis(10);

/// What turns messages into requests; shared by all tasks and sinks of the bus.
pub(in crate::bus) struct BusDoor {
    /// The node's name.
    pub node_id: String,
    /// Subjects.
    pub subjects: Subjects,
    /// Where answers are queued.
    pub outbox: Arc<Outbox>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Which node runs an id.
    pub owners: Owners,
    admit: Recipient<Admit>,
    cancel: Recipient<Cancel>,
    max_request_bytes: usize,
    last_number: AtomicU64,
    /// Streams by number, for probes that come back.
    streams: Mutex<HashMap<u64, Weak<SubjectStream>>>,
}

impl BusDoor {
    /// A door to admission; answers to the node's questions come to `inbox`.
    pub fn new(config: &Config, deps: &BusDeps, outbox: Arc<Outbox>, inbox: &str) -> Self {
        Self {
            node_id: deps.vitals.node_id().to_owned(),
            subjects: Subjects::new(&config.prefix),
            outbox,
            metrics: deps.metrics.clone(),
            owners: Owners::new(inbox),
            admit: deps.admit.clone(),
            cancel: deps.cancel.clone(),
            max_request_bytes: config.max_request_bytes,
            last_number: AtomicU64::new(0),
            streams: Mutex::default(),
        }
    }

    /// Takes a request that came for `endpoint`'s model on connection number `connection`; what waits for an answer holds a lifeline
    /// beside `alive`.
    pub fn request(
        self: &Arc<Self>,
        message: Message,
        (endpoint, connection): (&Arc<Endpoint>, u64),
        alive: &Lifeline,
    ) {
        let received_at = Timestamp::now();
        endpoint.received();
        let (encoding, decoded) = match encoding_of(&message) {
            Ok(encoding) => (encoding, self.decode(encoding, &message.payload)),
            Err(error) => (Encoding::default(), Err(Undecodable { id: None, error })),
        };
        let Decoded { prompt, options } = match decoded {
            Ok(Decoded { options, .. })
                if options.request_id.is_none() && message.reply.is_none() =>
            {
                return self.drop_request(endpoint);
            }
            Ok(decoded) => decoded,
            Err(wrong) => return self.refuse(&message, encoding, wrong, endpoint),
        };
        let own_id = options.request_id.is_some();
        let (id, sink) = self.sink(&options, message, (encoding, connection), endpoint);
        let sink = LoggedSink {
            sink,
            log: self.metrics.requests.clone(),
            door: "bus",
            id: id.clone(),
            model: endpoint.model.clone(),
            received_at,
        };
        let request = Request {
            id,
            // NATS has checked its credentials, and shows a subscriber nothing of them: what a header says of them is the client's word.
            caller: Caller::default(),
            model: endpoint.model.clone(),
            prompt,
            so_far: SoFar::default(),
            is_question: false,
            params: options.params,
            stream: options.stream,
            priority: options.priority,
            default_length: DefaultLength::Context,
            received_at,
            sink: Box::new(RenamingSink { layout: LAYOUT, sink }),
        };
        match own_id && self.owners.has_neighbours() {
            true => self.ask_owner(request, alive),
            false => self.admit(request),
        }
    }

    fn admit(&self, request: Request) {
        let Err(refusal) = self.admit.try_send(Admit(request)) else { return };
        let error = not_admitted(&refusal);
        let (SendError::Full(Admit(request)) | SendError::Closed(Admit(request))) = refusal;
        self.owners.take_claim(&request.id);
        self.turn_away(request, &error);
    }

    fn turn_away(&self, mut request: Request, error: &Error) {
        self.metrics.refused(error.kind);
        request.sink.refused(error);
    }

    /// Asks whether another node runs the request's id, and goes on with it when that is answered.
    fn ask_owner(self: &Arc<Self>, request: Request, alive: &Lifeline) {
        let subject = self.subjects.cancel(&request.id).into();
        let number = match self.owners.keep(request) {
            Ok(number) => number,
            Err(request) => {
                let text = "too many requests wait for the check that no other node runs their id";
                let error = Error::new(Kind::QueueFull, text);
                return self.turn_away(request, &error.with_retry_after_ms(MAILBOX_RETRY_MS));
            }
        };
        self.outbox.send(OutboundMessage {
            subject,
            reply: Some(self.owners.reply(number)),
            payload: Bytes::new(),
            headers: Some(OwnerMessage::Asked.headers()),
        });
        let (door, alive) = (self.clone(), alive.beside("bus's question of an id"));
        tokio::spawn(async move {
            tokio::time::sleep(MAX_ASK).await;
            alive.look();
            door.owner_known(number, None);
            alive.dismiss();
        });
    }

    /// An answer came: NATS says that nobody runs the id, or who does says so.
    pub fn owner_answered(&self, number: u64, message: &Message) {
        let owner = serde_json::from_slice::<OwnerAnswer>(&message.payload).ok();
        self.owner_known(number, owner.filter(|owner| owner.running));
    }

    fn owner_known(&self, number: u64, owner: Option<OwnerAnswer>) {
        let Some(request) = self.owners.take(number) else { return };
        let Some(owner) = owner else {
            self.owners.claim(&request.id);
            return self.admit(request);
        };
        let text = format!("a request with this id is already running on {}", owner.node_id);
        self.turn_away(request, &Error::new(Kind::Conflict, text).with_param("request_id"));
    }

    /// Answers who runs a request.
    pub fn tell_owner(&self, id: &RequestId, reply: Option<Subject>, running: bool) {
        let Some(subject) = reply else { return };
        let owner =
            OwnerAnswer { request_id: id.to_string(), node_id: self.node_id.clone(), running };
        let payload = Encoding::Json.write(&owner);
        self.outbox.answer(OutboundMessage { subject, reply: None, payload, headers: None });
    }

    /// A node claims an id that runs here: both were told that nobody runs it. The one with the smaller name keeps it.
    pub fn claimed(&self, id: &RequestId, node_id: &str) {
        match self.node_id.as_str().cmp(node_id) {
            std::cmp::Ordering::Equal => {}
            // It may not have heard of this one.
            std::cmp::Ordering::Less => self.outbox.send(OutboundMessage {
                subject: self.subjects.cancel(id).into(),
                reply: None,
                payload: Bytes::new(),
                headers: Some(OwnerMessage::Claimed(self.node_id.clone()).headers()),
            }),
            std::cmp::Ordering::Greater => {
                let subject = self.subjects.tokens(id);
                let streams = self.running();
                let one = streams.iter().find(|stream| stream.target.subject.as_str() == subject);
                one.iter().for_each(|stream| stream.withdraw());
            }
        }
    }

    fn decode(&self, encoding: Encoding, body: &[u8]) -> std::result::Result<Decoded, Undecodable> {
        if body.len() > self.max_request_bytes {
            let error = body_too_large(self.max_request_bytes, Some(body.len()));
            return Err(Undecodable { id: None, error });
        }
        decode(encoding, body)
    }

    fn sink(
        self: &Arc<Self>,
        options: &RequestOptions,
        message: Message,
        (encoding, connection): (Encoding, u64),
        endpoint: &Arc<Endpoint>,
    ) -> (RequestId, BusSink) {
        let own_id = options.request_id.is_some();
        let id = options.request_id.clone().unwrap_or_else(RequestId::generate);
        let subject = match (own_id, &message.reply) {
            (false, Some(reply)) => reply.clone(),
            _ => self.subjects.tokens(&id).into(),
        };
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let target = StreamTarget {
            subject,
            encoding,
            ends_empty: !own_id,
            detached: options.detached,
            one_answer: !own_id && !options.stream,
            connection,
        };
        let stream = Arc::new(SubjectStream::new(number, target));
        self.streams().insert(number, Arc::downgrade(&stream));
        let start = SinkStart {
            door: self.clone(),
            stream,
            endpoint: endpoint.clone(),
            id: id.clone(),
            reply: message.reply,
            own_id,
        };
        (id, BusSink::new(start))
    }

    /// Nowhere to answer: counted, not run.
    fn drop_request(&self, endpoint: &Endpoint) {
        self.metrics.requests_dropped.increment(1);
        let error = Error::new(Kind::Invalid, "neither request_id nor reply subject");
        endpoint.failed(&error);
        tracing::debug!(model = &*endpoint.model, "dropped: neither request_id nor reply subject");
    }

    fn refuse(
        &self,
        message: &Message,
        encoding: Encoding,
        wrong: Undecodable,
        endpoint: &Endpoint,
    ) {
        let Undecodable { id, error } = wrong;
        if id.is_none() && message.reply.is_none() {
            return self.drop_request(endpoint);
        }
        let asked = RefusedRequest { door: "bus", id: id.as_ref(), model: Some(&endpoint.model) };
        self.metrics.refused_at_door(asked, &error);
        endpoint.failed(&error);
        let Some(reply) = &message.reply else { return };
        let refused =
            OutgoingRefusal { encoding, id: id.as_ref(), error: &error, ends: id.is_none() };
        self.outbox.send_refusal(reply.clone(), refused);
    }

    /// Cancels a request and answers when it has ended.
    pub async fn cancel(self: Arc<Self>, id: RequestId, message: Message, alive: Lifeline) {
        alive.look();
        self.answer_cancel(id, message).await;
        alive.dismiss();
    }

    async fn answer_cancel(&self, id: RequestId, message: Message) {
        let encoding = encoding_of(&message);
        let answer = match &encoding {
            Ok(_) => self.ask_cancel(&id).await,
            Err(error) => Err(error.clone()),
        };
        let encoding = encoding.unwrap_or_default();
        let Some(reply) = message.reply else { return };
        match answer {
            Ok(ended) => self.outbox.answer(OutboundMessage {
                subject: reply,
                reply: None,
                payload: encoding.write(&CancelAnswer::of(&id, ended)),
                headers: encoding.headers(),
            }),
            Err(error) => {
                let refused =
                    OutgoingRefusal { encoding, id: Some(&id), error: &error, ends: false };
                self.outbox.send_refusal(reply, refused);
            }
        }
    }

    async fn ask_cancel(&self, id: &RequestId) -> Result<Ended> {
        let (done, ended) = oneshot::channel();
        let mut cancel = Cancel { id: id.clone(), done };
        for _ in 0..CANCEL_TRIES {
            cancel = match self.cancel.try_send(cancel) {
                Ok(()) => return ended.await.unwrap_or_else(|_| Err(stopping())),
                Err(SendError::Closed(_)) => return Err(stopping()),
                Err(SendError::Full(cancel)) => cancel,
            };
            tokio::time::sleep(CANCEL_RETRY).await;
        }
        Err(too_busy())
    }

    /// The stream of a number, while its request runs.
    pub fn stream(&self, number: u64) -> Option<Arc<SubjectStream>> {
        self.streams().get(&number).and_then(Weak::upgrade)
    }

    /// The streams of all requests that run.
    pub fn running(&self) -> Vec<Arc<SubjectStream>> {
        self.streams().values().filter_map(Weak::upgrade).collect()
    }

    /// Whether no request runs that the bus brought.
    pub fn is_idle(&self) -> bool {
        self.streams().is_empty()
    }

    /// The request of a stream has ended.
    pub fn forget(&self, number: u64) {
        self.streams().remove(&number);
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u64, Weak<SubjectStream>>> {
        // Only whole values are written under the lock.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a message is written in.
///
/// # Errors
/// `unsupported` for a content type that is not known, `invalid` for headers that the library could not read: those come as status
/// 400, with what is wrong as its description (`third_party/async-nats`).
fn encoding_of(message: &Message) -> Result<Encoding> {
    if message.status.is_some_and(|status| status.as_u16() == 400) {
        let wrong = message.description.as_deref().unwrap_or("400");
        return Err(Error::invalid("headers", format!("expected a header block of NATS: {wrong}")));
    }
    Encoding::of(message.headers.as_ref())
}
