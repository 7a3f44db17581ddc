//! What an answer's choices hold until it is taken: the pure part of an outbox.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::request::{Event, FinishReason, Handle, Receipt, SinkClosed, TokenLogprob, Usage};

/// What the reader takes at once: everything of one choice since it took the last time.
#[derive(Debug, PartialEq)]
pub struct Taken {
    /// Index of the choice.
    pub index: usize,
    /// May be empty with log probabilities or an end.
    pub text: String,
    /// Of the tokens since the last time; none where nobody wants them.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Of the prompt's tokens, once; none where nobody wants them.
    pub prompt_logprobs: Option<Vec<TokenLogprob>>,
    /// The prompt's tokens and those of this choice until here.
    pub so_far: TokensSoFar,
    /// In the last one of the choice.
    pub end: Option<End>,
}

/// What a choice has cost until some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokensSoFar {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
}

/// How a choice ended.
#[derive(Debug, PartialEq)]
pub enum End {
    /// With `stop` or `length`.
    Finished(Finished),
    /// Refused, failed, or cancelled.
    Failed(Error),
}

/// What a finished choice comes with.
#[derive(Debug, PartialEq)]
pub struct Finished {
    pub reason: FinishReason,
    pub usage: Usage,
    pub receipt: Option<Box<Receipt>>,
}

/// The choices of one answer.
pub struct Choices {
    choices: Vec<ChoiceBuffer>,
    /// Choices neither accepted nor ended.
    undecided: usize,
    /// The choice that is looked at first, so that none is starved by another.
    next: usize,
    /// The reader is gone.
    closed: bool,
}

#[derive(Default)]
struct ChoiceBuffer {
    handle: Option<Arc<Handle>>,
    text: String,
    logprobs: Option<Vec<TokenLogprob>>,
    prompt_logprobs: Option<Vec<TokenLogprob>>,
    completion_tokens: u32,
    /// When the oldest part of `text` came.
    since: Option<Timestamp>,
    end: Option<End>,
    ended: bool,
}

impl ChoiceBuffer {
    /// There is nothing for the reader.
    fn is_empty(&self) -> bool {
        let logprobs = self.logprobs.as_ref().is_none_or(Vec::is_empty);
        let prompt = self.prompt_logprobs.is_none();
        self.text.is_empty() && logprobs && prompt && self.end.is_none()
    }
}

impl Choices {
    /// `count` choices of which nothing is known.
    pub fn new(count: usize) -> Self {
        let choices = (0..count).map(|_| ChoiceBuffer::default()).collect();
        Self { choices, undecided: count, next: 0, closed: false }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.choices.len()
    }

    /// The answer can begin: something of it lies here, and every choice is accepted or one has ended.
    pub fn can_begin(&self) -> bool {
        let decided = self.undecided == 0 || self.choices.iter().any(|choice| choice.ended);
        decided && !self.is_empty()
    }

    /// There is nothing for the reader.
    fn is_empty(&self) -> bool {
        self.choices.iter().all(ChoiceBuffer::is_empty)
    }

    /// The choice is in; says whether the reader has to know.
    pub fn accept(&mut self, index: usize, handle: &Arc<Handle>) -> bool {
        if self.closed {
            handle.cancel();
        }
        let choice = &mut self.choices[index];
        if choice.handle.is_none() && !choice.ended {
            self.undecided -= 1;
        }
        choice.handle = Some(Arc::clone(handle));
        self.undecided == 0 && !self.is_empty()
    }

    /// The choice has ended; says whether the reader has to know. Only the first end counts.
    pub fn end(&mut self, index: usize, end: End) -> bool {
        let choice = &mut self.choices[index];
        if choice.ended {
            return false;
        }
        if choice.handle.is_none() {
            self.undecided -= 1;
        }
        choice.ended = true;
        choice.end = Some(end);
        true
    }

    /// Adds an event; says whether the reader has to know. `slow_after` is how long text may lie.
    ///
    /// # Errors
    /// When the reader is gone, or is now given up.
    pub fn event(
        &mut self,
        index: usize,
        event: &mut Event,
        slow_after: Option<Duration>,
    ) -> Result<bool, SinkClosed> {
        if self.closed {
            return Err(SinkClosed);
        }
        let choice = &mut self.choices[index];
        if let (Some(limit), Some(since)) = (slow_after, choice.since)
            && event.at.since(since) > limit
        {
            self.give_up(limit);
            return Err(SinkClosed);
        }
        choice.completion_tokens += event.token_ids.len() as u32;
        let mut wake = !event.text.is_empty();
        if let Some(entries) = event.logprobs.take() {
            wake |= !entries.is_empty();
            choice.logprobs.get_or_insert_default().extend(entries);
        }
        if let Some(entries) = event.prompt_logprobs.take() {
            wake = true;
            choice.prompt_logprobs.get_or_insert_default().extend(entries);
        }
        if choice.text.is_empty() {
            choice.since = choice.since.or(wake.then_some(event.at));
        }
        choice.text.push_str(&event.text);
        if let Some(reason) = event.finish_reason {
            let end = match failure_of(event) {
                Some(error) => End::Failed(error),
                None => End::Finished(Finished {
                    reason,
                    usage: event.usage.unwrap_or_default(),
                    receipt: event.receipt.take(),
                }),
            };
            wake |= self.end(index, end);
        }
        Ok(wake)
    }

    /// The reader took nothing for too long: whatever is left of the request is cancelled, and what lies here is thrown away.
    fn give_up(&mut self, limit: Duration) {
        let message = format!("the reader took nothing for {} s", limit.as_secs());
        self.close();
        for index in 0..self.choices.len() {
            self.choices[index].text = String::new();
            self.choices[index].logprobs = None;
            self.choices[index].prompt_logprobs = None;
            self.end(index, End::Failed(Error::new(Kind::Cancelled, message.clone())));
        }
    }

    /// Whether a choice that is not taken yet was refused because another request of its id runs.
    pub fn has_conflict(&self) -> bool {
        let is_conflict = |end: &End| matches!(end, End::Failed(e) if e.kind == Kind::Conflict);
        self.choices.iter().any(|choice| choice.end.as_ref().is_some_and(is_conflict))
    }

    /// Whether the reader is gone.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The reader is gone: what still runs is cancelled.
    pub fn close(&mut self) {
        self.closed = true;
        let running = self.choices.iter().filter(|choice| !choice.ended);
        for handle in running.filter_map(|choice| choice.handle.as_ref()) {
            handle.cancel();
        }
    }

    /// What lies there of one choice; what comes next of it gets the room of `spare`, whose text has been read.
    pub fn take(&mut self, spare: &mut String) -> Option<Taken> {
        let count = self.choices.len();
        for step in 0..count {
            let index = (self.next + step) % count;
            let choice = &mut self.choices[index];
            if choice.is_empty() {
                continue;
            }
            choice.since = None;
            spare.clear();
            let text = std::mem::replace(&mut choice.text, std::mem::take(spare));
            let end = choice.end.take();
            let logprobs = choice.logprobs.as_mut().map(std::mem::take);
            let prompt_logprobs = choice.prompt_logprobs.take();
            let so_far = TokensSoFar {
                prompt_tokens: choice
                    .handle
                    .as_ref()
                    .map_or(0, |handle| handle.num_prompt_tokens()),
                completion_tokens: choice.completion_tokens,
            };
            self.next = (index + 1) % count;
            return Some(Taken { index, text, logprobs, prompt_logprobs, so_far, end });
        }
        None
    }
}

/// Why what ends so has failed; none for what has finished, or goes on.
pub fn failure_of(event: &Event) -> Option<Error> {
    match event.finish_reason? {
        FinishReason::Stop | FinishReason::Length => None,
        FinishReason::Cancelled => Some(Error::new(Kind::Cancelled, "the request was cancelled")),
        FinishReason::Failed => {
            let error = event.error.as_deref().cloned();
            Some(error.unwrap_or_else(|| Error::internal("the request failed")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{RequestId, SequenceId};

    fn text(text: &str) -> Event {
        Event { text: text.to_owned(), ..Event::new(RequestId::generate()) }
    }

    #[test]
    fn a_reader_that_takes_nothing_is_given_up() {
        let mut choices = Choices::new(2);
        let handles = [1, 2].map(|id| Handle::new(RequestId::generate(), SequenceId(id)));
        for (index, handle) in handles.iter().enumerate() {
            choices.accept(index, handle);
        }
        let send = |choices: &mut Choices, index, seconds: u64| {
            let at = Timestamp::from_micros(seconds * 1_000_000);
            choices.event(index, &mut Event { at, ..text("x") }, Some(Duration::from_secs(60)))
        };
        assert_eq!(send(&mut choices, 0, 10), Ok(true));
        assert_eq!(send(&mut choices, 0, 70), Ok(true));
        let taken = choices.take(&mut String::new());
        assert_eq!(taken.map(|taken| taken.text), Some("xx".to_owned()));
        assert_eq!(send(&mut choices, 0, 200), Ok(true), "what was taken does not count");
        assert_eq!(send(&mut choices, 0, 261), Err(SinkClosed));
        assert!(handles.iter().all(|handle| handle.is_cancelled()));
        assert_eq!(send(&mut choices, 1, 262), Err(SinkClosed));
        let taken = choices.take(&mut String::new()).expect("an end");
        assert_eq!(taken.text, "");
        assert!(matches!(taken.end, Some(End::Failed(e)) if e.kind == Kind::Cancelled));
    }

    #[test]
    fn only_the_first_end_counts() {
        let mut choices = Choices::new(1);
        assert!(choices.end(0, End::Failed(Error::internal("first"))));
        assert!(!choices.end(0, End::Failed(Error::internal("second"))));
        let end = choices.take(&mut String::new()).and_then(|taken| taken.end);
        assert!(matches!(end, Some(End::Failed(e)) if e.message == "first"));
        assert_eq!(choices.take(&mut String::new()), None);
    }
}
