//! Dead letters: durable requests that were tried too often, or that no node can read.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use async_nats::jetstream::{self, message::StreamMessage};
use serde_json::Value;

use super::{Client, ClientError};
use crate::bus::durable::{CLASS, DEAD, REASON, default_length_in, headers_of};
use crate::bus::wire::Encoding;
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::reader;

/// How long the server may take.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A durable request that is not tried any more.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DeadLetter {
    /// Its number.
    pub number: u64,
    /// The model that it is for.
    pub model: String,
    /// Its id, where it has one.
    pub request_id: Option<String>,
    /// Why it is not tried any more.
    pub reason: String,
    /// The request, as far as it can be read.
    pub request: Option<Value>,
    #[serde(skip)]
    headers: HeaderMap,
}

impl DeadLetter {
    fn of(message: &StreamMessage) -> Self {
        let body = match Encoding::of(Some(&message.headers)) {
            Ok(Encoding::Msgpack) => reader::msgpack(&message.payload),
            _ => reader::json(&message.payload),
        };
        let request = body.ok().and_then(|body| serde_json::to_value(body).ok());
        let text = |name: &str| request.as_ref()?.get(name)?.as_str().map(str::to_owned);
        Self {
            number: message.sequence,
            model: message.subject.rsplit('.').next().unwrap_or_default().to_owned(),
            request_id: text("request_id"),
            reason: message.headers.get(REASON).map(ToString::to_string).unwrap_or_default(),
            request,
            headers: message.headers.clone(),
        }
    }
}

fn unavailable(error: impl std::fmt::Display) -> ClientError {
    let text = format!("dead letters cannot be read: {error}");
    ClientError::Log(Error::new(Kind::LogUnavailable, text))
}

impl Client {
    /// All dead letters, oldest first.
    ///
    /// # Errors
    /// `Log` where they cannot be read.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, ClientError> {
        let stream = self.dead().await?;
        let state = &stream.cached_info().state;
        let mut letters = Vec::new();
        for number in state.first_sequence..=state.last_sequence {
            letters.extend(letter(&stream, number).await?);
        }
        Ok(letters)
    }

    /// One of them.
    ///
    /// # Errors
    /// `Log`: there is none of this number, or it cannot be read.
    pub async fn dead_letter(&self, number: u64) -> Result<DeadLetter, ClientError> {
        letter(&self.dead().await?, number).await?.ok_or_else(|| no_such(number))
    }

    /// Publishes a dead letter's request afresh, under a new id, and lets go of the letter; gives the id.
    ///
    /// # Errors
    /// As [`dead_letter`](Self::dead_letter) and [`publish_durable`](Self::publish_durable), and for a request that cannot be read.
    pub async fn requeue(&self, number: u64) -> Result<RequestId, ClientError> {
        let letter = self.dead_letter(number).await?;
        let Some(mut body) = letter.request.filter(Value::is_object) else {
            let text = format!("dead letter {number} is no request: {}", letter.reason);
            return Err(ClientError::Log(Error::new(Kind::Invalid, text)));
        };
        let id = RequestId::generate();
        body["request_id"] = id.as_str().into();
        let subject = match letter.headers.get(CLASS).map(|class| class.as_str()) {
            Some("bulk") => self.subjects.bulk_jobs(&letter.model),
            _ => self.subjects.jobs(&letter.model),
        };
        let headers = headers_of(default_length_in(Some(&letter.headers)));
        self.publish_job(subject, &body, headers).await?;
        self.drop_dead_letter(number).await?;
        Ok(id)
    }

    /// Lets go of a dead letter.
    ///
    /// # Errors
    /// As [`dead_letter`](Self::dead_letter).
    pub async fn drop_dead_letter(&self, number: u64) -> Result<(), ClientError> {
        let stream = self.dead().await?;
        letter(&stream, number).await?.ok_or_else(|| no_such(number))?;
        stream.delete_message(number).await.map(drop).map_err(unavailable)
    }

    async fn dead(&self) -> Result<Stream, ClientError> {
        let jetstream = jetstream::new(self.nats.clone());
        let stream = tokio::time::timeout(MAX_WAIT, jetstream.get_stream(DEAD)).await;
        stream.map_err(unavailable)?.map_err(unavailable)
    }
}

async fn letter(stream: &Stream, number: u64) -> Result<Option<DeadLetter>, ClientError> {
    match stream.direct_get(number).await {
        Ok(message) => Ok(Some(DeadLetter::of(&message))),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}

fn no_such(number: u64) -> ClientError {
    ClientError::Log(Error::new(Kind::NotFound, format!("there is no dead letter {number}")))
}
