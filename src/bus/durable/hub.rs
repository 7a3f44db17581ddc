//! Holds what the node has claimed: one task, to which everything that happens is said as a [`Word`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::Recipient;
use async_nats::jetstream;
use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, select_all};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::context::{DurableContext, RoomCount};
use super::examine::Examined;
use super::held::{HeldRequest, PATIENCE, REFUSED_DELAY_MS};
use super::puller::pull;
use super::requests::{RequestQuestion, answer};
use super::store::answer_of;
use crate::bus::QUEUE_GROUP;
use crate::bus::wire::Subjects;
use crate::door::Admit;
use crate::error::Error;
use crate::health::Vitals;
use crate::ids::RequestId;
use crate::lifeline::Lifeline;
use crate::log::{Config, LogCommand, StoreAnswer, StoredRecord, Suspects};
use crate::request::Handle;
use crate::telemetry::Metrics;

/// How often requests are looked at whose answers may be late.
const LOOK: Duration = Duration::from_millis(100);

/// What happens.
pub(super) enum Word {
    Examined(Box<Examined>),
    LastRead(u64, Option<StoredRecord>),
    Accepted(u64, Arc<Handle>),
    Refused(u64, Box<Error>),
    Said(u64),
    /// A model, and the digest of all that its tokens depend on.
    Serve(String, String),
    /// All models where none is named.
    Leave(Option<String>),
    HandBack,
}

/// What the bus has of it.
pub(in crate::bus) struct Durable {
    shared: Option<Arc<DurableContext>>,
    held: Arc<AtomicUsize>,
}

/// What it is started with.
pub(in crate::bus) struct DurableStart {
    pub client: Client,
    /// Answers of JetStream's come under it.
    pub inbox: String,
    pub subjects: Subjects,
    pub config: Config,
    pub vitals: Arc<Vitals>,
    pub max_request_bytes: usize,
    pub admit: Recipient<Admit>,
    /// How many further requests the node may take.
    pub room: Arc<dyn Fn() -> usize + Send + Sync>,
    pub metrics: Arc<Metrics>,
    pub alive: Lifeline,
}

impl Durable {
    /// Starts the hub, if it is wanted.
    ///
    /// # Errors
    /// A connection that has ended for good.
    pub async fn start(start: DurableStart) -> Result<Self, async_nats::client::SubscribeError> {
        let held = Arc::new(AtomicUsize::new(0));
        if !start.config.enabled {
            start.alive.dismiss();
            return Ok(Self { shared: None, held });
        }
        let inbox = format!("{}.log", start.inbox);
        let answers = start.client.subscribe(format!("{inbox}.*")).await?;
        let mut questions = Vec::new();
        for (question, verb) in RequestQuestion::ALL {
            let (subject, group) = (start.subjects.requests(verb), QUEUE_GROUP.to_owned());
            let asked = start.client.queue_subscribe(subject, group).await?;
            questions.push(asked.map(move |message| (question, message)).boxed());
        }
        let (words, heard) = unbounded_channel();
        let shared = Arc::new(DurableContext {
            jetstream: jetstream::new(start.client.clone()),
            client: start.client,
            subjects: start.subjects,
            config: start.config,
            max_request_bytes: start.max_request_bytes,
            room: start.room,
            words: words.clone(),
            taken: RoomCount::default(),
            vitals: start.vitals,
            has_log: AtomicBool::new(false),
            state: Mutex::new(None),
        });
        let hub = Hub {
            shared: shared.clone(),
            words,
            inbox,
            digests: HashMap::new(),
            admit: start.admit,
            metrics: start.metrics,
            held: HashMap::new(),
            numbers: HashMap::new(),
            num_held: held.clone(),
            last_number: 0,
            last_asked: 0,
            pullers: HashMap::new(),
            is_leaving: false,
            suspects: Suspects::default(),
            suspects_told_at: Instant::now(),
            alive: start.alive,
        };
        let alive = hub.alive.beside("bus's answers about requests");
        tokio::spawn(answer_questions(shared.clone(), select_all(questions), alive));
        tokio::spawn(hub.run(heard, answers));
        Ok(Self { shared: Some(shared), held })
    }

    /// Takes durable requests for a model from here on.
    pub fn serve(&self, model: &str, digest: String) {
        self.say(Word::Serve(model.to_owned(), digest));
    }

    /// Takes no more for a model, or for any; those that it has go on.
    pub fn leave(&self, model: Option<&str>) {
        self.say(Word::Leave(model.map(str::to_owned)));
    }

    /// Gives all that the node has back to others.
    pub fn hand_back(&self) {
        self.say(Word::HandBack);
    }

    /// Whether the node has none.
    pub fn is_idle(&self) -> bool {
        self.held.load(Ordering::Relaxed) == 0
    }

    fn say(&self, word: Word) {
        if let Some(shared) = &self.shared {
            shared.say(word);
        }
    }
}

/// Each in a task of its own: one answer does not wait for another's.
async fn answer_questions(
    context: Arc<DurableContext>,
    mut questions: SelectAll<BoxStream<'static, (RequestQuestion, Message)>>,
    alive: Lifeline,
) {
    while let Some((question, message)) = questions.next().await {
        let line = alive.beside("bus's answer about a request");
        tokio::spawn(answer(context.clone(), question, message, line));
    }
    alive.dismiss();
}

/// See the module.
pub(super) struct Hub {
    pub(super) shared: Arc<DurableContext>,
    pub(super) words: UnboundedSender<Word>,
    pub(super) inbox: String,
    /// Of all that the tokens of each model depend on.
    pub(super) digests: HashMap<String, String>,
    pub(super) admit: Recipient<Admit>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) held: HashMap<u64, HeldRequest>,
    pub(super) numbers: HashMap<RequestId, u64>,
    num_held: Arc<AtomicUsize>,
    pub(super) last_number: u64,
    /// Of records that were published: an answer names its own.
    pub(super) last_asked: u64,
    /// Dropped to end the task of a model.
    pullers: HashMap<String, oneshot::Sender<()>>,
    /// What comes from the queue goes back to it.
    pub(super) is_leaving: bool,
    pub(super) suspects: Suspects<Examined>,
    suspects_told_at: Instant,
    pub(super) alive: Lifeline,
}

impl Hub {
    async fn run(mut self, mut heard: UnboundedReceiver<Word>, mut answers: Subscriber) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let holds = !self.held.is_empty();
            tokio::select! {
                answer = answers.next() => match answer {
                    Some(answer) => self.answered(&answer).await,
                    None => break,
                },
                word = heard.recv() => match word {
                    Some(word) => self.hear(word).await,
                    None => break,
                },
                _ = look.tick(), if holds => self.look().await,
            }
            self.alive.look();
            self.num_held.store(self.held.len(), Ordering::Relaxed);
        }
        self.alive.dismiss();
    }

    async fn hear(&mut self, word: Word) {
        match word {
            Word::Examined(examined) => self.take(*examined).await,
            Word::LastRead(number, last) => {
                let last = last.map(|stored| (stored.sequence, stored.record));
                self.tell(number, |held| held.holding.read(last)).await;
            }
            Word::Accepted(number, handle) => {
                let Some(held) = self.held.get_mut(&number) else {
                    handle.settle(false);
                    return handle.cancel();
                };
                if held.is_stopped {
                    handle.cancel();
                }
                held.handle = Some(handle);
                // From here on admission counts it.
                held.job.room = None;
            }
            Word::Refused(number, error) => {
                self.tell(number, |held| {
                    held.delay_ms = REFUSED_DELAY_MS;
                    held.holding.refused(&error)
                })
                .await;
            }
            Word::Said(number) => self.said(number).await,
            Word::Serve(model, digest) => self.serve(model, digest),
            Word::Leave(Some(model)) => drop(self.pullers.remove(&model)),
            Word::Leave(None) => self.pullers.clear(),
            Word::HandBack => {
                self.is_leaving = true;
                self.pullers.clear();
                for waiting in self.suspects.drain() {
                    waiting.job.give_back(&self.shared.client, 0).await;
                }
                for number in self.held.keys().copied().collect::<Vec<_>>() {
                    self.tell(number, |held| held.holding.hand_back()).await;
                }
            }
        }
    }

    fn serve(&mut self, model: String, digest: String) {
        self.digests.insert(model.clone(), digest);
        let (leave, leaving) = oneshot::channel();
        let alive = self.alive.beside("bus's puller of jobs");
        tokio::spawn(pull(Arc::clone(&self.shared), model.clone(), leaving, alive));
        self.pullers.insert(model, leave);
    }

    /// Takes what a request has said.
    async fn said(&mut self, number: u64) {
        let Some(held) = self.held.get_mut(&number) else { return };
        let mut commands = Vec::new();
        while let Some(event) = held.sayings.take() {
            commands.extend(held.holding.generated(*event));
        }
        self.carry_out(number, commands).await;
    }

    /// JetStream answers a record.
    async fn answered(&mut self, answer: &Message) {
        let word = answer.subject.rsplit('.').next().unwrap_or_default();
        let numbers = word.split_once('-');
        let parse = |number: &str| number.parse::<u64>().ok();
        let Some((number, asked)) = numbers.and_then(|(a, b)| parse(a).zip(parse(b))) else {
            return;
        };
        let answer = answer_of(answer);
        self.tell(number, |held| {
            match held.asked.take_if(|(waits, _)| *waits == asked) {
                Some(_) => held.holding.answered(answer),
                None => Vec::new(), // one that was given up
            }
        })
        .await;
    }

    /// Looks after everything that time has to do with.
    async fn look(&mut self) {
        let now = Instant::now();
        let progress_every = Duration::from_millis(self.shared.config.ack_wait_ms / 3);
        if now.duration_since(self.suspects_told_at) >= progress_every {
            self.suspects_told_at = now;
            for waiting in self.suspects.waiting() {
                waiting.job.in_progress(&self.shared.client).await;
            }
        }
        for number in self.held.keys().copied().collect::<Vec<_>>() {
            let Some(held) = self.held.get_mut(&number) else { continue };
            if now.duration_since(held.progress_at) >= progress_every {
                held.progress_at = now;
                held.job.in_progress(&self.shared.client).await;
            }
            let mut commands = match held.is_silent(now) {
                true => held.holding.answered(StoreAnswer::Silent),
                false => Vec::new(),
            };
            if now.duration_since(held.ticked_at) >= PATIENCE {
                held.ticked_at = now;
                commands.extend(held.holding.tick());
            }
            self.carry_out(number, commands).await;
        }
    }

    /// Says something to a holding, if it is still there, and does what it wants.
    pub(super) async fn tell(
        &mut self,
        number: u64,
        word: impl FnOnce(&mut HeldRequest) -> Vec<LogCommand>,
    ) {
        let Some(held) = self.held.get_mut(&number) else { return };
        let commands = word(held);
        self.carry_out(number, commands).await;
    }
}
