//! Sinks and streams for unit tests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Permit, PromptShown, SharedStream, Stream, StreamStart};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::ids::{RequestId, SequenceId};
use crate::request::{Event, Handle, SampleSoFar, Sink, SinkClosed, Token};
use crate::telemetry::Metrics;
use crate::tokenizer::{IncrementalDecoder, Tokenizer, testing};

/// What a sink was told, readable from outside.
#[derive(Clone, Default)]
pub(crate) struct Collected(Arc<Told>);

#[derive(Default)]
struct Told {
    words: Mutex<Vec<Word>>,
    closed: AtomicBool,
}

/// One call of a sink.
#[allow(clippy::large_enum_variant, reason = "a test has a handful of them")]
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Word {
    Accepted(RequestId),
    Refused(Error),
    Event(Event),
}

impl Collected {
    pub(crate) fn words(&self) -> Vec<Word> {
        self.0.words.lock().expect("no test panics in it").clone()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        let event = |word| if let Word::Event(event) = word { Some(event) } else { None };
        self.words().into_iter().filter_map(event).collect()
    }

    pub(crate) fn refusal(&self) -> Option<Error> {
        self.words().into_iter().find_map(|word| match word {
            Word::Refused(error) => Some(error),
            _ => None,
        })
    }

    pub(crate) fn last(&self) -> Option<Event> {
        self.events().pop()
    }

    pub(crate) fn text(&self) -> String {
        self.events().into_iter().map(|event| event.text).collect()
    }

    pub(crate) fn token_ids(&self) -> Vec<u32> {
        self.events().into_iter().flat_map(|event| event.token_ids).collect()
    }

    /// The client leaves.
    pub(crate) fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    fn add(&self, word: Word) {
        self.0.words.lock().expect("no test panics in it").push(word);
    }
}

impl Sink for Collected {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.add(Word::Accepted(handle.request_id().clone()));
    }

    fn refused(&mut self, error: &Error) {
        self.add(Word::Refused(error.clone()));
    }

    fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
        self.add(Word::Event(event.take()));
        if self.is_closed() { Err(SinkClosed) } else { Ok(()) }
    }

    fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::SeqCst)
    }
}

/// How a test's stream is made; change a field, then start it.
pub(crate) struct Fixture {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) prompt: Vec<u32>,
    pub(crate) stop: Vec<String>,
    pub(crate) include_stop: bool,
    pub(crate) special_tokens: bool,
    pub(crate) logprobs: Option<u32>,
    pub(crate) shown: Option<PromptShown>,
    pub(crate) begun: SampleSoFar,
    pub(crate) attempt: u32,
    pub(crate) min_tokens: u32,
    pub(crate) stream: bool,
    pub(crate) accept: bool,
}

impl Default for Fixture {
    fn default() -> Self {
        Self {
            tokenizer: testing::bytes(),
            prompt: vec![256, 1, 2],
            stop: Vec::new(),
            include_stop: false,
            special_tokens: false,
            logprobs: None,
            shown: None,
            begun: SampleSoFar::default(),
            attempt: 1,
            min_tokens: 0,
            stream: true,
            accept: true,
        }
    }
}

/// A stream under test.
pub(crate) struct Started {
    pub(crate) stream: SharedStream,
    pub(crate) handle: Arc<Handle>,
    counts: Arc<Counts>,
}

/// What permits were told.
#[derive(Default)]
pub(crate) struct Counts {
    held: AtomicUsize,
    scheduled: AtomicUsize,
    returned: AtomicUsize,
    computed: AtomicUsize,
}

impl Counts {
    /// A permit that is counted here.
    pub(crate) fn permit(self: &Arc<Self>) -> Box<dyn Permit> {
        self.held.fetch_add(1, Ordering::SeqCst);
        Box::new(CountedPermit(Arc::clone(self)))
    }

    /// Permits not given back.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    pub(crate) fn scheduled(&self) -> usize {
        self.scheduled.load(Ordering::SeqCst)
    }

    pub(crate) fn returned(&self) -> usize {
        self.returned.load(Ordering::SeqCst)
    }

    pub(crate) fn computed(&self) -> usize {
        self.computed.load(Ordering::SeqCst)
    }
}

impl Started {
    /// Permits not given back.
    pub(crate) fn permits(&self) -> usize {
        self.counts.held()
    }

    /// What its permit was told.
    pub(crate) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Drops the stream and gives the permits that are left.
    pub(crate) fn finish(self) -> usize {
        drop(self.stream);
        self.counts.held()
    }

    pub(crate) fn scheduled(&self) -> usize {
        self.counts.scheduled()
    }

    pub(crate) fn computed(&self) -> usize {
        self.counts.computed()
    }
}

struct CountedPermit(Arc<Counts>);

impl Permit for CountedPermit {
    fn scheduled(&mut self) {
        self.0.scheduled.fetch_add(1, Ordering::SeqCst);
    }

    fn returned(&mut self) {
        self.0.returned.fetch_add(1, Ordering::SeqCst);
    }

    fn computed(&mut self, tokens: u32) {
        self.0.computed.fetch_add(tokens as usize, Ordering::SeqCst);
    }
}

impl Drop for CountedPermit {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fixture {
    pub(crate) fn start(self, sink: &Collected) -> Started {
        self.start_with(Box::new(sink.clone()))
    }

    pub(crate) fn start_with(self, sink: Box<dyn Sink>) -> Started {
        let counts = Arc::new(Counts::default());
        let handle = Handle::new(RequestId::generate(), SequenceId(1));
        let stream = Stream::new(StreamStart {
            handle: Arc::clone(&handle),
            sink,
            decoder: IncrementalDecoder::new(self.tokenizer, &self.prompt)
                .with_special_tokens(self.special_tokens),
            stop: self.stop,
            include_stop: self.include_stop,
            num_logprobs: self.logprobs,
            prompt: self.shown,
            begun: self.begun,
            attempt: self.attempt,
            min_tokens: self.min_tokens,
            stream: self.stream,
            num_prompt_tokens: self.prompt.len() as u32,
            accepted_at: Timestamp::from_micros(1_000),
            node_id: "node-1".into(),
            metrics: Arc::new(Metrics::new("test")),
            permit: counts.permit(),
        });
        if self.accept {
            stream.lock().expect("new").accept();
        }
        Started { stream, handle, counts }
    }
}

pub(crate) fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(micros)
}

pub(crate) fn ids(text: &str) -> Vec<u32> {
    testing::bytes().encode(text, false).expect("plain text")
}

pub(crate) fn tokens(text: &str) -> Vec<Token> {
    ids(text).into_iter().map(Token::from).collect()
}

pub(crate) fn lock(started: &Started) -> MutexGuard<'_, Stream> {
    started.stream.lock().expect("no test panics in it")
}

pub(crate) fn with_stop(stop: &[&str]) -> Fixture {
    Fixture { stop: stop.iter().map(|&s| s.to_owned()).collect(), ..Fixture::default() }
}
