//! A message of the queue: what it asks for, and how it is answered.

use async_nats::{Client, HeaderMap, Message, Subject};
use bytes::Bytes;

use super::context::TakenRoom;
use crate::bus::wire::{Decoded, Encoding, Undecodable, decode};
use crate::digest::digest_of;
use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::log::QueuedJob;
use crate::request::DefaultLength;

/// The header by which another door says that an absent `max_tokens` means what it does in OpenAI's `/v1/completions`.
const LENGTH_HEADER: &str = "Inferno-Default-Length";

/// What an absent `max_tokens` means, by a job's headers.
pub(in crate::bus) fn default_length_in(headers: Option<&HeaderMap>) -> DefaultLength {
    let said = headers.and_then(|headers| headers.get(LENGTH_HEADER));
    match said.map(|value| value.as_str()) {
        Some("completions") => DefaultLength::Completions,
        _ => DefaultLength::Context,
    }
}

/// The headers of a job that comes from such a door.
pub(in crate::bus) fn headers_of(default_length: DefaultLength) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if default_length == DefaultLength::Completions {
        headers.insert(LENGTH_HEADER, "completions");
    }
    headers
}

/// The header by which a door says that a job was asked for together with others: a digest of all of them.
pub(in crate::bus) const WHOLE_HEADER: &str = "Inferno-Whole";

/// The header of a job that was published again: the place in the queue by which it was known before.
const PLACE_HEADER: &str = "Inferno-Job";

/// The headers of a job that is to be published again, as the same.
pub(super) fn headers_again(headers: &HeaderMap, sequence: u64) -> HeaderMap {
    // What it asked of NATS it asked for its first time.
    let own = |name: &str| !name.to_ascii_lowercase().starts_with("nats-");
    let mut again: HeaderMap = HeaderMap::new();
    for (name, values) in headers.iter().filter(|(name, _)| own(name.as_ref())) {
        for value in values {
            again.append(name.clone(), value.clone());
        }
    }
    if again.get(PLACE_HEADER).is_none() {
        again.insert(PLACE_HEADER, sequence.to_string());
    }
    again
}

/// The id of the request that a job asks for, where its body shows one.
pub(super) fn id_in(headers: &HeaderMap, body: &[u8]) -> Option<RequestId> {
    let encoding = Encoding::of(Some(headers)).unwrap_or_default();
    decode(encoding, body).map_or_else(|wrong| wrong.id, |decoded| decoded.options.request_id)
}

/// Of what a job asks for, and of which model: with another one it is another request.
pub(in crate::bus) fn digest_of_job(
    model: &str,
    headers: Option<&HeaderMap>,
    body: &[u8],
) -> String {
    let whole = headers.and_then(|headers| headers.get(WHOLE_HEADER));
    let whole = whole.map(|whole| whole.as_str().as_bytes()).unwrap_or_default();
    // Neither of the first two has a zero byte.
    digest_of(&[model.as_bytes(), &[0], whole, &[0], body].concat())
}

/// A job as it came.
#[derive(Debug)]
pub(super) struct PulledJob {
    /// Its alias.
    pub model: String,
    /// For the dead letter.
    pub message: Message,
    /// Where its answers go: another with each delivery.
    pub reply: Subject,
    /// For [`crate::log::decide`].
    pub queued: QueuedJob,
    /// What it takes of the node's room.
    pub room: Option<TakenRoom>,
}

/// What a job asks for.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub id: RequestId,
    pub encoding: Encoding,
    pub decoded: Decoded,
}

/// A job that cannot be run.
#[derive(Debug)]
pub(super) struct UnreadableJob {
    /// Where its end can be told.
    pub id: Option<RequestId>,
    pub encoding: Encoding,
    pub error: Error,
}

impl PulledJob {
    /// None for a message that is none of a queue.
    pub fn of(message: Message, model: &str) -> Option<Self> {
        let reply = message.reply.clone()?;
        let before = message.headers.as_ref().and_then(|headers| headers.get(PLACE_HEADER));
        let before = before.and_then(|place| place.as_str().parse().ok());
        let sequence = before.or_else(|| sequence_in(&reply))?;
        let body = digest_of_job(model, message.headers.as_ref(), &message.payload);
        let queued = QueuedJob { sequence, body };
        Some(Self { model: model.to_owned(), message, reply, queued, room: None })
    }

    /// What an absent `max_tokens` means.
    pub fn default_length(&self) -> DefaultLength {
        default_length_in(self.message.headers.as_ref())
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`UnreadableJob`], with the id where the body shows one.
    pub fn read(&self, max_bytes: usize) -> std::result::Result<ReadJob, UnreadableJob> {
        let encoding = Encoding::of(self.message.headers.as_ref());
        let unreadable =
            |id, error| UnreadableJob { id, encoding: encoding.clone().unwrap_or_default(), error };
        let body = &self.message.payload;
        if body.len() > max_bytes {
            let error = crate::door::body_too_large(max_bytes, Some(body.len()));
            let id = id_in(&self.message.headers.clone().unwrap_or_default(), body);
            return Err(unreadable(id, error));
        }
        let known = match &encoding {
            Ok(encoding) => *encoding,
            Err(error) => return Err(unreadable(None, error.clone())),
        };
        let decoded =
            decode(known, body).map_err(|Undecodable { id, error }| unreadable(id, error))?;
        let Some(id) = decoded.options.request_id.clone() else {
            let text = "expected an id: a durable request is known by it";
            return Err(unreadable(None, Error::invalid("request_id", text)));
        };
        match check(&decoded) {
            Ok(()) => Ok(ReadJob { id, encoding: known, decoded }),
            Err(error) => Err(unreadable(Some(id), error)),
        }
    }

    /// The job is done.
    pub async fn acknowledge(&self, client: &Client) {
        self.answer(client, Bytes::from_static(b"+ACK")).await;
    }

    /// The job is being worked at.
    pub async fn in_progress(&self, client: &Client) {
        self.answer(client, Bytes::from_static(b"+WPI")).await;
    }

    /// The job is for another node, after so many milliseconds.
    pub async fn give_back(&self, client: &Client, delay_ms: u64) {
        let body = match delay_ms {
            0 => "-NAK".to_owned(),
            ms => format!("-NAK {{\"delay\": {}}}", ms * 1_000_000),
        };
        self.answer(client, body.into()).await;
    }

    async fn answer(&self, client: &Client, body: Bytes) {
        // A connection that takes nothing takes it when it is back, or the job is given out again.
        let _ = client.publish(self.reply.clone(), body).await;
    }
}

/// What a durable request cannot be.
fn check(decoded: &Decoded) -> Result<()> {
    if !decoded.options.stream {
        let text = "false is not supported for a durable request: what is stored is a stream";
        return Err(Error::unsupported("params.stream", text));
    }
    Ok(())
}

/// The place in the queue, from `$JS.ACK.<stream>.<consumer>.<delivered>.<place>.…`, or the same with a domain and an account before
/// the stream.
fn sequence_in(reply: &str) -> Option<u64> {
    let tokens: Vec<&str> = reply.split('.').collect();
    let place = if tokens.len() >= 11 { 7 } else { 5 };
    (tokens.len() >= 9).then(|| tokens.get(place)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_its_model_its_body_and_what_it_is_part_of() {
        let mut whole = HeaderMap::new();
        whole.insert(WHOLE_HEADER, "w");
        let digests = [
            digest_of_job("a", None, b"{}"),
            digest_of_job("b", None, b"{}"),
            digest_of_job("a", None, b"{ }"),
            digest_of_job("a", Some(&whole), b"{}"),
        ];
        let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
        assert_eq!(digests[0], digest_of_job("a", Some(&HeaderMap::new()), b"{}"));
    }

    #[test]
    fn the_place_in_the_queue_is_read_from_where_the_answer_goes() {
        assert_eq!(sequence_in("$JS.ACK.inferno_jobs.demo.1.42.7.1700000000.0"), Some(42));
        let with_domain = "$JS.ACK.hub.acc.inferno_jobs.demo.1.43.7.1700000000.0.random";
        assert_eq!(sequence_in(with_domain), Some(43));
        assert_eq!(sequence_in("_INBOX.a.b"), None);
    }
}
