//! The other side of the bus: sends a request, reads its events, tells a loss from a repetition.
//!
//! For `inferno-node generate` and the benchmarks; a program of one's own needs no more than a NATS client and the subjects.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client as Nats, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;

use super::connect::Auth;
use super::discovery::NodeReader;
use super::wire::Subjects;

mod dead;
mod durable;

pub use super::wire::{CancelAnswer, RequestStatus};
use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::request::Event;
pub use dead::DeadLetter;
pub(crate) use durable::DurableJob;
pub use durable::DurableStream;

/// How long a node may take to accept, and to send the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Request to acceptance or refusal.
    pub accept: Duration,
    /// Between two events, and from the acceptance to the first.
    pub event: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { accept: Duration::from_secs(10), event: Duration::from_secs(120) }
    }
}

/// What can go wrong for a client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file of the authentication.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// No connection.
    #[error("cannot connect to NATS: {0}")]
    Connect(#[from] async_nats::ConnectError),
    /// Nobody subscribes to the subject: no node serves this model, or the request does not run.
    #[error("nobody listens on {0}")]
    NoResponders(String),
    /// No answer, or no next event, in time.
    #[error("no {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// The node said no.
    #[error("refused: {0}")]
    Refused(Error),
    /// Tokens between these two were lost.
    #[error("expected the token with index {expected}, got {got}: events were lost")]
    Lost {
        /// The index that had to come.
        expected: u32,
        /// The index that came.
        got: u32,
    },
    /// What came is not what the contract says.
    #[error("cannot read an answer: {0}")]
    Body(String),
    /// The connection is closed.
    #[error("the connection to NATS is closed")]
    Closed,
    /// Nothing is stored under the id, and no job with it waits.
    #[error("no durable request has the id {0}")]
    Unknown(RequestId),
    /// Durable requests have no room, or no place at all.
    #[error("{0}")]
    Log(Error),
}

/// What an event is, seen from those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The next one.
    Fresh,
    /// Seen before: to be dropped.
    Repeated,
    /// Tokens before it are missing.
    Gap {
        /// The index that had to come.
        expected: u32,
    },
}

/// Follows a stream by `seq`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Follower {
    expected: u32,
}

impl Follower {
    /// Judges an event with `tokens` tokens from index `seq`. One that repeats only in part counts as a gap: its text cannot be
    /// divided, and a node that sends again keeps the borders.
    pub fn judge(&mut self, seq: u32, tokens: usize) -> Verdict {
        let end = seq.saturating_add(tokens as u32);
        if seq == self.expected {
            self.expected = end;
            Verdict::Fresh
        } else if end <= self.expected {
            Verdict::Repeated
        } else {
            Verdict::Gap { expected: self.expected }
        }
    }
}

/// The id of a request; one that has none gets one.
///
/// # Errors
/// `Refused` for one that is none.
pub fn id_of(body: &mut Value) -> Result<RequestId, ClientError> {
    let id = match body.get("request_id").and_then(Value::as_str) {
        Some(id) => RequestId::parse(id).map_err(ClientError::Refused)?,
        None => RequestId::generate(),
    };
    body["request_id"] = id.as_str().into();
    Ok(id)
}

/// A client of the nodes behind one NATS connection.
#[derive(Clone)]
pub struct Client {
    nats: Nats,
    subjects: Subjects,
    timeouts: Timeouts,
}

impl Client {
    /// Connects; `urls` are joined by commas.
    ///
    /// # Errors
    /// See [`ClientError`]: no connection, no such file.
    pub async fn connect(urls: &str, auth: &Auth, prefix: &str) -> Result<Self, ClientError> {
        let addresses: Vec<async_nats::ServerAddr> =
            urls.split(',').map(|url| url.trim().parse()).collect::<Result<_, _>>()?;
        Ok(Self::over(auth.options().await?.connect(addresses).await?, prefix))
    }

    /// A client on a connection that there is.
    pub fn over(nats: Nats, prefix: &str) -> Self {
        Self { nats, subjects: Subjects::new(prefix), timeouts: Timeouts::default() }
    }

    /// Waits for other times.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Who is there on this NATS; nothing is known before it is asked.
    pub fn nodes(&self) -> NodeReader {
        NodeReader::new(self.nats.clone())
    }

    /// Whether a node on this NATS says that it serves a model.
    ///
    /// # Errors
    /// `Log`: it is not known who is there.
    pub async fn is_served(&self, model: &str) -> Result<bool, ClientError> {
        let unknown = |why: &str| {
            let text = format!("which nodes serve the model is not known: {why}");
            let error = Error::new(Kind::LogUnavailable, text);
            ClientError::Log(error.with_retry_after_ms(1_000))
        };
        let mut nodes = self.nodes();
        nodes.read().await.map_err(|fault| unknown(&fault.to_string()))?;
        if !nodes.is_open() {
            return Err(unknown("the bucket is not there"));
        }
        let mut nodes = nodes.table().nodes(Timestamp::now());
        Ok(nodes.any(|node| node.entry.models.iter().any(|served| served.name == model)))
    }

    /// Sends a request (the contract's object) and waits until a node accepts it. A `request_id` is added if there is none.
    ///
    /// # Errors
    /// See [`ClientError`]: refused, no node for this model, no answer in time.
    pub async fn generate(&self, model: &str, body: Value) -> Result<Generation, ClientError> {
        let mut body = body;
        let id = id_of(&mut body)?;
        // Before the request, so that no event is missed.
        let events = self
            .nats
            .subscribe(self.subjects.tokens(&id))
            .await
            .map_err(|_| ClientError::Closed)?;
        let answer =
            self.ask(self.subjects.generate(model), body.to_string(), "acceptance").await?;
        #[derive(Deserialize)]
        struct Acceptance {
            node_id: String,
        }
        let Acceptance { node_id } = read(&answer)?;
        Ok(Generation {
            id,
            node_id,
            events,
            followers: BTreeMap::new(),
            wait: self.timeouts.event,
            ended: false,
        })
    }

    /// Cancels a request wherever it runs and waits for its end.
    ///
    /// # Errors
    /// See [`ClientError`]: `NoResponders` if no node runs it.
    pub async fn cancel(&self, id: &RequestId) -> Result<CancelAnswer, ClientError> {
        read(&self.ask(self.subjects.cancel(id), String::new(), "answer to a cancel").await?)
    }

    /// Cancels a request wherever it runs or waits, durable or not, through whichever node answers; once more for one that has ended.
    ///
    /// # Errors
    /// See [`ClientError`]: `Refused` with `not_found` if nobody knows it, `NoResponders` if there is no node.
    pub async fn cancel_anywhere(&self, id: &RequestId) -> Result<CancelAnswer, ClientError> {
        let body = serde_json::json!({"request_id": id.as_str()}).to_string();
        read(&self.ask(self.subjects.requests("cancel"), body, "answer to a cancel").await?)
    }

    /// What is known of a request, durable or not, through whichever node answers.
    ///
    /// # Errors
    /// As [`cancel_anywhere`](Self::cancel_anywhere).
    pub async fn status(&self, id: &RequestId) -> Result<RequestStatus, ClientError> {
        let body = serde_json::json!({"request_id": id.as_str()}).to_string();
        read(&self.ask(self.subjects.requests("status"), body, "status").await?)
    }

    async fn ask(
        &self,
        subject: String,
        body: String,
        what: &'static str,
    ) -> Result<Message, ClientError> {
        let after = self.timeouts.accept;
        let request = async_nats::Request::new().payload(Bytes::from(body)).timeout(Some(after));
        self.nats.send_request(subject.clone(), request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => ClientError::NoResponders(subject),
            RequestErrorKind::TimedOut => ClientError::Timeout { what, after },
            RequestErrorKind::Other
            | RequestErrorKind::InvalidSubject
            | RequestErrorKind::MaxPayloadExceeded => ClientError::Body(error.to_string()),
        })
    }
}

/// Reads an answer, or the refusal that came instead.
fn read<T: for<'de> Deserialize<'de>>(message: &Message) -> Result<T, ClientError> {
    #[derive(Deserialize)]
    struct RefusedAnswer {
        error: Error,
    }
    if let Ok(RefusedAnswer { error }) = serde_json::from_slice(&message.payload) {
        return Err(ClientError::Refused(error));
    }
    serde_json::from_slice(&message.payload).map_err(|error| ClientError::Body(error.to_string()))
}

/// The events of an accepted request.
pub struct Generation {
    id: RequestId,
    node_id: String,
    events: Subscriber,
    /// One for each choice.
    followers: BTreeMap<u32, Follower>,
    wait: Duration,
    ended: bool,
}

impl Generation {
    /// Its id.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// The node that runs it.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// The next event; `None` after the last one. Repetitions are passed over.
    ///
    /// # Errors
    /// `Lost` where tokens are missing (final, as the contract has it), `Timeout` where nothing comes.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            let message = match tokio::time::timeout(self.wait, self.events.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(ClientError::Closed),
                Err(_) => return Err(ClientError::Timeout { what: "event", after: self.wait }),
            };
            let event: Event = serde_json::from_slice(&message.payload)
                .map_err(|error| ClientError::Body(error.to_string()))?;
            let follower = self.followers.entry(event.index).or_default();
            match follower.judge(event.seq, event.token_ids.len()) {
                Verdict::Fresh => {
                    self.ended = event.usage.is_some();
                    return Ok(Some(event));
                }
                Verdict::Repeated => {}
                Verdict::Gap { expected } => {
                    self.ended = true;
                    return Err(ClientError::Lost { expected, got: event.seq });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_tells_fresh_from_repeated_and_lost() {
        let mut follower = Follower::default();
        assert_eq!(follower.judge(0, 2), Verdict::Fresh);
        assert_eq!(follower.judge(2, 3), Verdict::Fresh);
        assert_eq!(follower.judge(0, 2), Verdict::Repeated);
        assert_eq!(follower.judge(2, 3), Verdict::Repeated);
        assert_eq!(follower.judge(5, 0), Verdict::Fresh, "a last event without tokens");
        assert_eq!(follower.judge(4, 3), Verdict::Gap { expected: 5 });
        assert_eq!(follower.judge(6, 1), Verdict::Gap { expected: 5 });
        assert_eq!(follower.judge(5, 1), Verdict::Fresh);
    }
}
