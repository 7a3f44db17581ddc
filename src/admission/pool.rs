//! The threads that render chat templates and tokenize, so that no arbiter waits for a long prompt.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::mpsc::UnboundedSender;

use super::reserved::{Reserved, cancelled};
use super::validate::check_text;
use crate::error::{Error, Result};
use crate::lifeline::Lifeline;
use crate::models::ServedModel;
use crate::request::{Params, Prompt};

/// Bytes of prompts that may wait for a thread. Tokenizing goes at several MB/s a thread, so this is seconds of work: a
/// prompt behind it is better off on another node. (The number of waiting prompts is bounded by the permits.)
const MAX_QUEUED_BYTES: usize = 16 << 20;

/// A prompt to be tokenized, and whose it is.
pub(super) struct Job {
    pub(super) reserved: Reserved,
    pub(super) prompt: Prompt,
    /// The prompt's size.
    pub(super) bytes: usize,
}

/// What came of a job.
pub(super) struct Tokenized {
    pub(super) reserved: Reserved,
    pub(super) token_ids: Result<Vec<u32>>,
}

/// The threads and their queue. Dropping it ends the threads after the prompt they are at; what waits is refused.
pub(super) struct Pool {
    shared: Arc<PoolShared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct PoolShared {
    queue: Mutex<JobQueue>,
    changed: Condvar,
}

#[derive(Default)]
struct JobQueue {
    jobs: VecDeque<Job>,
    bytes: usize,
    closed: bool,
}

impl Pool {
    /// Starts the threads; results go to `results`, whose receiver is bounded by the permits in the results.
    ///
    /// # Errors
    /// The system's reason, if it gives no thread.
    pub(super) fn start(
        num_threads: usize,
        results: &UnboundedSender<Tokenized>,
        alive: &Lifeline,
    ) -> std::io::Result<Self> {
        let mut pool = Self { shared: Arc::default(), threads: Vec::new() };
        for index in 0..num_threads {
            let (shared, results) = (Arc::clone(&pool.shared), results.clone());
            let alive = alive.beside("tokenizer thread");
            let thread = std::thread::Builder::new().name(format!("tokenizer-{index}"));
            pool.threads.push(thread.spawn(move || work(&shared, &results, alive))?);
        }
        Ok(pool)
    }

    /// Queues a prompt, or gives it back if those that wait are too long together. Where none waits, any prompt fits.
    pub(super) fn submit(&self, job: Job) -> std::result::Result<(), Box<Job>> {
        let mut queue = self.shared.lock();
        if !queue.jobs.is_empty() && queue.bytes + job.bytes > MAX_QUEUED_BYTES {
            return Err(Box::new(job));
        }
        queue.bytes += job.bytes;
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        let left = std::mem::take(&mut queue.jobs);
        drop(queue);
        self.shared.changed.notify_all();
        drop(left);
        for thread in self.threads.drain(..) {
            // A thread catches its panics; there is nothing to learn from its end.
            let _ = thread.join();
        }
    }
}

impl PoolShared {
    fn lock(&self) -> MutexGuard<'_, JobQueue> {
        // Nothing panics while it is held, so a poisoned lock still holds a whole queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; none when the pool is dropped.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                queue.bytes -= job.bytes;
                return Some(job);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn work(shared: &PoolShared, results: &UnboundedSender<Tokenized>, alive: Lifeline) {
    while let Some(Job { mut reserved, prompt, .. }) = shared.next() {
        alive.look();
        let token_ids = if reserved.is_unwanted() {
            Err(cancelled())
        } else {
            catch_unwind(AssertUnwindSafe(|| {
                reserved.bad_words = bad_words(&reserved.params.bad_words, &reserved.model)?;
                tokenize(prompt, &reserved.params, &reserved.model)
            }))
            .unwrap_or_else(|_| Err(Error::internal("the tokenizer panicked on this prompt")))
        };
        // Without a receiver the node goes down; the request is refused by being dropped.
        let _ = results.send(Tokenized { reserved, token_ids });
    }
    alive.dismiss();
}

/// Longest word in tokens, and all of them together: what a seat holds on the device (`cpp/ops/process_logits`).
const MAX_WORD_TOKENS: usize = 16;
const MAX_WORDS_TOKENS: usize = 2_048;

/// The ids of words, as vLLM takes them: each as it is, and behind a space where that begins with another token and is as long.
fn bad_words(words: &[String], model: &ServedModel) -> Result<Vec<Vec<u32>>> {
    let invalid = |text: String| Error::invalid("bad_words", text);
    let encode = |text: &str| {
        let ids = model.tokenizer.encode(text, false);
        ids.map_err(|reason| Error::internal(format!("the tokenizer failed: {reason}")))
    };
    let mut all = Vec::new();
    for word in words {
        let word = word.trim_start();
        let plain = encode(word)?;
        let Some(first) = plain.first() else {
            return Err(invalid(format!("expected at least one token in a word, got {word:?}")));
        };
        let spaced = encode(&format!(" {word}"))?;
        let differs = spaced.first() != Some(first) && spaced.len() == plain.len();
        all.extend(differs.then_some(spaced));
        all.push(plain);
    }
    if let Some(id) = all.iter().flatten().find(|id| **id >= model.vocab_size) {
        return Err(invalid(format!("expected words of the model's tokens, got token {id}")));
    }
    let longest = all.iter().map(Vec::len).max().unwrap_or(0);
    let together: usize = all.iter().map(Vec::len).sum();
    if longest > MAX_WORD_TOKENS || together > MAX_WORDS_TOKENS {
        return Err(invalid(format!(
            "expected at most {MAX_WORD_TOKENS} tokens in a word and {MAX_WORDS_TOKENS} in all (each word counts with and without \
             a space before it), got {longest} and {together}"
        )));
    }
    Ok(all)
}

/// A prompt's ids.
fn tokenize(prompt: Prompt, params: &Params, model: &ServedModel) -> Result<Vec<u32>> {
    let encode = |text: &str, marks| {
        model
            .tokenizer
            .encode(text, params.add_special_tokens.unwrap_or(marks))
            .map_err(|reason| Error::internal(format!("the tokenizer failed: {reason}")))
    };
    match prompt {
        Prompt::TokenIds(ids) => Ok(ids),
        Prompt::Text(text) => encode(&text, true),
        Prompt::Messages(messages) => match &model.chat_template {
            // A template writes the special tokens itself.
            Some(template) => {
                let opens_turn = params.add_generation_prompt.unwrap_or(true);
                let variables = &params.chat_template_kwargs;
                let text = template.render_with(&messages, opens_turn, variables)?;
                check_text(&text, "messages", model)?;
                encode(&text, false)
            }
            None => Err(Error::unsupported(
                "messages",
                "this model has no chat template, so it takes a prompt, not messages",
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::super::actor::testing::{model, reserved};
    use super::*;
    use crate::error::Kind;
    use crate::reply::testing::Collected;
    use crate::request::ChatMessage;

    fn job(prompt: Prompt, sink: &Collected, bytes: usize) -> Job {
        Job { reserved: reserved(sink), prompt, bytes }
    }

    #[test]
    fn prompts_become_ids_as_their_kind_wants_it() {
        let model = model("m");
        let ids = |text: &str| model.tokenizer.encode(text, false).expect("encodes");
        let tokenize = |prompt: Prompt| tokenize(prompt, &Params::default(), &model);
        assert_eq!(tokenize(Prompt::TokenIds(vec![3, 1])), Ok(vec![3, 1]));
        let text = tokenize(Prompt::Text("hi".into()));
        assert_eq!(text, Ok([vec![256], ids("hi")].concat()));
        let message = |role: &str| ChatMessage::new(role, "hi");
        let chat = tokenize(Prompt::Messages(vec![message("user")]));
        assert_eq!(chat, Ok([vec![256], ids("user:hi\nassistant:")].concat()));
        let refused = tokenize(Prompt::Messages(vec![message("wizard")]));
        assert_eq!(refused.map_err(|e| e.kind), Err(Kind::Invalid));
    }

    #[test]
    fn a_request_says_otherwise_of_marks_and_of_the_assistants_turn() {
        let model = model("m");
        let ids = |text: &str| model.tokenizer.encode(text, false).expect("encodes");
        let params = Params {
            add_special_tokens: Some(false),
            add_generation_prompt: Some(false),
            ..Params::default()
        };
        assert_eq!(tokenize(Prompt::Text("hi".into()), &params, &model), Ok(ids("hi")));
        let chat = Prompt::Messages(vec![ChatMessage::new("user", "hi")]);
        assert_eq!(
            tokenize(chat.clone(), &params, &model),
            Ok([vec![256], ids("user:hi\n")].concat())
        );
        let params = Params { add_special_tokens: Some(true), ..params };
        let twice = tokenize(chat, &params, &model);
        assert_eq!(twice, Ok([vec![256, 256], ids("user:hi\n")].concat()));
    }

    #[test]
    fn a_full_queue_gives_the_prompt_back_and_the_end_refuses_what_waits() {
        let (results, _receiver) = unbounded_channel();
        // No thread: nothing is taken out.
        let pool = Pool::start(0, &results, &Lifeline::unwatched()).expect("nothing to start");
        let (first, second) = (Collected::default(), Collected::default());
        let text = || Prompt::Text("x".into());
        assert!(pool.submit(job(text(), &first, MAX_QUEUED_BYTES + 1)).is_ok());
        let refused = pool.submit(job(text(), &second, 1));
        assert!(refused.is_err_and(|job| job.bytes == 1));
        assert_eq!(second.refusal().map(|e| e.kind), Some(Kind::Unavailable));
        assert_eq!(first.refusal(), None);
        drop(pool);
        assert_eq!(first.refusal().map(|e| e.kind), Some(Kind::Unavailable));
    }

    #[test]
    fn words_are_banned_with_and_without_a_space_where_that_is_another_token() {
        let model = model("m");
        let ids = |text: &str| model.tokenizer.encode(text, false).expect("plain text");
        let banned = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            bad_words(&words, &model).map_err(|e| (e.kind, e.param.unwrap_or_default()))
        };
        // A space is a token of its own here, so the longer form is none of vLLM's.
        assert_eq!(banned(&["a", "  bc"]), Ok(vec![ids("a"), ids("bc")]));
        let refused = Err((Kind::Invalid, "bad_words".to_owned()));
        assert_eq!(banned(&["  "]), refused, "no token is left");
        assert_eq!(banned(&["x".repeat(17).as_str()]), refused);
        assert_eq!(banned(&["x".repeat(16).as_str(); 129]), refused);
        assert_eq!(banned(&[]), Ok(Vec::new()));
    }

    #[test]
    fn nobody_tokenizes_for_who_has_left() {
        let (results, mut receiver) = unbounded_channel();
        let pool = Pool::start(2, &results, &Lifeline::unwatched()).expect("threads");
        let (gone, here) = (Collected::default(), Collected::default());
        gone.close();
        assert!(pool.submit(job(Prompt::Text("x".into()), &gone, 1)).is_ok());
        let left = receiver.blocking_recv().expect("an answer");
        assert_eq!(left.token_ids.map_err(|e| e.kind), Err(Kind::Cancelled));
        assert!(pool.submit(job(Prompt::Text("x".into()), &here, 1)).is_ok());
        assert!(receiver.blocking_recv().expect("an answer").token_ids.is_ok());
        drop(pool);
    }
}
