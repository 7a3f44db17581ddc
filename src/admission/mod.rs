//! Admission: one, on its own arbiter; the gate behind all doors, and the only place that says no.
//!
//! Accepts [`Admit`](crate::door::Admit), [`AdmitAll`](crate::door::AdmitAll) and [`Cancel`](crate::door::Cancel) from the doors,
//! [`ModelUp`](crate::models::ModelUp), [`ModelDown`](crate::models::ModelDown), [`DevicesUp`] and [`Drain`] from the node's
//! supervisor. A request is validated, templated and tokenized on a bounded pool, held against the limits, given a permit that
//! returns itself on `Drop`, and sent to the scheduler. A refusal goes to the request's sink.

use std::num::NonZeroUsize;

use actix::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::request::Params;
use crate::settings;

mod actor;
mod gate;
mod ledger;
mod pool;
mod reserved;
mod return_times;
mod shed;
mod turnover;
mod validate;

pub use actor::{Admission, AdmissionStart, MAILBOX_CAPACITY};
pub use ledger::{Ledger, RequestPermit};

/// How many devices can be given work, sent when it changes; with none, requests are refused as `unavailable`. Until the first
/// such message there is one for every model that is up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DevicesUp(pub usize);

/// From here on every request is refused as `draining`.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

/// The section `[admission]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Requests in the node at once, waiting and running together; one more is refused as `queue_full`. Each costs a few kB
    /// beside its prompt.
    #[schemars(range(min = 1))]
    pub max_requests: usize,
    /// Tokens (prompt and `max_tokens`) of the requests that wait for a device; what would go beyond is refused as
    /// `queue_full`. It bounds how long the last one waits: at 10,000 tokens/s the default is under a minute.
    #[schemars(range(min = 1))]
    pub max_waiting_tokens: u64,
    /// `max_tokens` of a request that names none, where the context leaves so many.
    #[schemars(range(min = 1))]
    pub default_max_tokens: u32,
    /// Bytes of a prompt's text (of all messages together); beyond it is `too_large`.
    #[schemars(range(min = 1))]
    pub max_prompt_bytes: usize,
    /// Threads that render chat templates and tokenize. Absent: half of the cores, 1 to 4.
    #[schemars(range(min = 1, max = 256))]
    pub tokenizer_threads: Option<NonZeroUsize>,
    /// Milliseconds after which a refused client may come back where nothing better is known: while the node drains or has
    /// no device; on `queue_full` before any token is done, how long a request is taken to be in the node.
    #[schemars(range(min = 1_000, max = 60_000))]
    pub retry_after_ms: u64,
    /// Temperature where neither request nor checkpoint names one; 0 is greedy.
    #[schemars(range(min = 0, max = 2))]
    pub temperature: f32,
    /// `top_p` where neither request nor checkpoint names one.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
    pub top_p: f32,
    /// `top_k` where neither request nor checkpoint names one; 0 is off.
    pub top_k: u32,
    /// `min_p` where neither request nor checkpoint names one; 0 is off.
    #[schemars(range(min = 0, max = 1))]
    pub min_p: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_requests: 1_024,
            max_waiting_tokens: 524_288,
            default_max_tokens: 512,
            max_prompt_bytes: 1 << 20,
            tokenizer_threads: None,
            retry_after_ms: 1_000,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
        }
    }
}

impl Config {
    /// What a request gets that does not say, in words: nodes on which they differ say different things.
    pub fn exactness(&self) -> String {
        let Self { default_max_tokens, temperature, top_p, top_k, min_p, .. } = self;
        format!("{default_max_tokens} {temperature} {top_p} {top_k} {min_p}")
    }

    /// Checks the values.
    ///
    /// # Errors
    /// One line for each key at fault: what was expected and what came.
    pub fn check(&self) -> std::result::Result<(), Vec<String>> {
        let mut faults = settings::out_of_range("admission", self);
        // A NaN is in no range, and JSON has none.
        let floats =
            [("temperature", self.temperature), ("top_p", self.top_p), ("min_p", self.min_p)];
        for (key, _) in floats.iter().filter(|(_, value)| value.is_nan()) {
            faults.push(format!("admission.{key}: expected a number, got NaN"));
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// What a request gets that neither names a parameter nor has a checkpoint that does.
    pub(super) fn defaults(&self) -> Params {
        Params {
            temperature: Some(self.temperature),
            top_p: Some(self.top_p),
            top_k: Some(self.top_k),
            min_p: Some(self.min_p),
            ..Params::default()
        }
    }

    /// How many threads tokenize.
    pub fn num_tokenizer_threads(&self) -> usize {
        let half = || std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
        self.tokenizer_threads.map_or_else(|| half().clamp(1, 4), NonZeroUsize::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_every_fault_is_named() {
        assert_eq!(Config::default().check(), Ok(()));
        assert!((1..=4).contains(&Config::default().num_tokenizer_threads()));
        let broken = Config {
            max_requests: 0,
            max_waiting_tokens: 0,
            default_max_tokens: 0,
            max_prompt_bytes: 0,
            tokenizer_threads: NonZeroUsize::new(1_000),
            retry_after_ms: 0,
            temperature: f32::NAN,
            top_p: 0.0,
            top_k: 0,
            min_p: 1.5,
        };
        let faults = broken.check().expect_err("everything is wrong");
        let keys = [
            "max_requests",
            "max_waiting_tokens",
            "default_max_tokens",
            "max_prompt_bytes",
            "tokenizer_threads",
            "retry_after_ms",
            "temperature",
            "top_p",
            "min_p",
        ];
        assert_eq!(faults.len(), keys.len(), "{faults:?}");
        for key in keys {
            let start = format!("admission.{key}: expected ");
            assert!(faults.iter().any(|fault| fault.starts_with(&start)), "{key} in {faults:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_and_an_absent_one_is_the_default() {
        assert!(toml::from_str::<Config>("max_request = 3").is_err());
        let config: Config =
            toml::from_str("max_requests = 3\ntokenizer_threads = 2").expect("valid");
        assert_eq!((config.max_requests, config.num_tokenizer_threads()), (3, 2));
        assert_eq!(config.top_p, 1.0);
    }
}
