//! A response body of server-sent events, written as the reader takes them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;

use super::super::api::Api;
use super::super::intake::parse::StreamUsage;
use super::super::refusal;
use super::bill::Bill;
use super::buffer::Reader;
use super::choices::{End, Taken, TokensSoFar};
use super::logprobs::LogprobsObject;
use super::wire::{Chunks, Title, error_event};

/// Bytes after which a piece of the body is handed to the connection, though more may lie in the outbox.
const MAX_PIECE_BYTES: usize = 16 << 10;

/// See the module. Dropping it is the client leaving.
pub struct EventStream {
    reader: Reader,
    api: Api,
    chunks: Chunks,
    /// Taken already, to know that the stream begins well.
    first: Option<Taken>,
    /// The text that was written last: its room is the outbox's for the next one.
    spare: String,
    /// Choices whose first chunk is written.
    begun: Vec<bool>,
    /// Choices that have not ended.
    left: usize,
    bill: Bill,
}

impl EventStream {
    /// The stream of what `reader` gives, beginning with `first`.
    /// `ids`: lines of the first so many choices say how far their reader has come.
    pub fn new(
        reader: Reader,
        (title, ids): (&Title, Option<usize>),
        usage: StreamUsage,
        first: Taken,
    ) -> Self {
        let choices = reader.num_choices();
        Self {
            reader,
            api: title.api,
            chunks: Chunks::new(title, usage).with_ids(ids),
            first: Some(first),
            spare: String::new(),
            begun: vec![false; choices],
            left: choices,
            bill: Bill::default(),
        }
    }

    fn write(&mut self, out: &mut Vec<u8>, taken: Taken) {
        let Taken { index, text, logprobs, prompt_logprobs, so_far, end } = taken;
        if !std::mem::replace(&mut self.begun[index], true) {
            self.chunks.role(out, index, TokensSoFar { completion_tokens: 0, ..so_far });
        }
        self.chunks.reach(index, so_far);
        // Without an echo there are none of the prompt: a stream has no place for them.
        let prompt = prompt_logprobs.unwrap_or_default();
        let logprobs = logprobs.filter(|entries| !entries.is_empty() || !prompt.is_empty());
        let logprobs =
            logprobs.as_deref().map(|entries| LogprobsObject::of(self.api, &prompt, entries));
        if !text.is_empty() || logprobs.is_some() {
            self.chunks.text(out, (index, so_far), &text, logprobs);
        }
        match end {
            None => {}
            Some(End::Finished(mut finished)) => {
                self.bill.add(&mut finished);
                self.left -= 1;
                let bill = Some(&self.bill).filter(|_| self.left == 0);
                self.chunks.finish(out, (index, so_far), finished.reason, bill);
                if self.left == 0 {
                    self.chunks.done(out, &self.bill);
                }
            }
            Some(End::Failed(error)) => {
                // One failed choice ends the answer; dropping the body cancels the others.
                self.left = 0;
                error_event(out, &refusal::body(&error));
            }
        }
        self.spare = text;
    }
}

impl MessageBody for EventStream {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let this = self.get_mut();
        let mut out = Vec::new();
        while this.left > 0 && out.len() < MAX_PIECE_BYTES {
            let taken = match this.first.take() {
                Some(taken) => taken,
                None => match this.reader.poll_take(cx, &mut this.spare) {
                    Poll::Ready(taken) => taken,
                    Poll::Pending if out.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                },
            };
            out.reserve(this.chunks.event_len() + taken.text.len());
            this.write(&mut out, taken);
        }
        if out.is_empty() { Poll::Ready(None) } else { Poll::Ready(Some(Ok(out.into()))) }
    }
}
