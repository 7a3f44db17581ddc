//! What is asked for, and what came of it.

use std::time::{Duration, Instant};

use super::node::Node;
use super::{http, nats};

/// The alias of the model under load.
pub const ALIAS: &str = "bench";
/// Ids that are no special tokens in any of the vocabularies.
const TOKEN_IDS: std::ops::Range<u32> = 300..3_000;
/// Words of which the demo model's tokenizer makes about one token each.
const WORDS: [&str; 16] = [
    "the", "cat", "and", "little", "dog", "was", "happy", "tree", "said", "with", "home", "very",
    "water", "to", "her", "big",
];

/// Where requests go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// One connection, one subscription of all tokens.
    Nats,
    /// SSE, a connection for each request under way.
    Http,
}

impl Door {
    pub fn name(self) -> &'static str {
        match self {
            Door::Nats => "NATS",
            Door::Http => "HTTP",
        }
    }
}

/// What a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompts {
    /// Token ids: nothing to tokenize.
    TokenIds,
    /// Words.
    Text,
}

impl Prompts {
    pub fn name(self) -> &'static str {
        match self {
            Prompts::TokenIds => "ids",
            Prompts::Text => "text",
        }
    }
}

/// How many tokens a request has.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    /// Of a text: about as many; the table says how many.
    pub prompt: usize,
    pub completion: u32,
}

/// As soon as one request ends, the next begins.
pub struct Closed {
    pub door: Door,
    pub prompts: Prompts,
    pub lengths: Lengths,
    pub total: usize,
    pub at_once: usize,
}

/// Requests begin by the clock, whatever became of those before.
pub struct Open {
    pub door: Door,
    pub lengths: Lengths,
    pub total: usize,
    /// Requests a second.
    pub rate: f64,
}

impl Open {
    /// When a request is due, after the beginning.
    pub fn due(&self, index: usize) -> Duration {
        Duration::from_secs_f64(index as f64 / self.rate)
    }
}

pub fn closed(node: &Node, load: &Closed) -> Outcome {
    match load.door {
        Door::Nats => nats::closed(node.nats(), load),
        Door::Http => http::closed(node.http(), load),
    }
}

pub fn open(node: &Node, load: &Open) -> Outcome {
    match load.door {
        Door::Nats => nats::open(node.nats(), load),
        Door::Http => http::open(node.http(), load),
    }
}

/// What came of a load; times in milliseconds.
#[derive(Default)]
pub struct Outcome {
    pub failed: usize,
    /// Of the first failure.
    pub fault: Option<String>,
    pub tokens: u64,
    pub events: u64,
    pub prompt_tokens: u64,
    /// From the first request to the last event.
    pub wall: Duration,
    firsts: Vec<f64>,
    wholes: Vec<f64>,
    /// By the receipts: accepted to scheduled, and scheduled to the first token.
    queues: Vec<f64>,
    prefills: Vec<f64>,
    /// Between two events of one request.
    gaps: Vec<f64>,
}

impl Outcome {
    /// A request that ended well: times from its beginning to the first token and to the end.
    pub fn finished(&mut self, first: Duration, whole: Duration) {
        self.firsts.push(first.as_secs_f64() * 1e3);
        self.wholes.push(whole.as_secs_f64() * 1e3);
    }

    /// What the receipt of a request that ended well says of its first token, in milliseconds.
    pub fn receipt(&mut self, queue_ms: f64, prefill_ms: f64) {
        self.queues.push(queue_ms);
        self.prefills.push(prefill_ms);
    }

    /// The time from one event of a request to its next.
    pub fn gap(&mut self, gap: Duration) {
        self.gaps.push(gap.as_secs_f64() * 1e3);
    }

    pub fn failed(&mut self, fault: impl Into<String>) {
        self.failed += 1;
        self.fault.get_or_insert_with(|| fault.into());
    }

    /// Requests that ended well.
    pub fn done(&self) -> usize {
        self.wholes.len()
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.done() as f64 / self.wall.as_secs_f64()
    }

    pub fn sort(&mut self) {
        let Self { firsts, wholes, queues, prefills, gaps, .. } = self;
        for times in [firsts, wholes, queues, prefills, gaps] {
            times.sort_by(f64::total_cmp);
        }
    }

    /// A quantile (nearest rank) of the time to the first token; sort first.
    pub fn first(&self, quantile: f64) -> f64 {
        nearest(&self.firsts, quantile)
    }

    /// The same of the time to the end.
    pub fn whole(&self, quantile: f64) -> f64 {
        nearest(&self.wholes, quantile)
    }

    /// The same of the time from acceptance to the first step, and from there to the first token; only the client of NATS sees them.
    pub fn queue_and_prefill(&self, quantile: f64) -> (f64, f64) {
        (nearest(&self.queues, quantile), nearest(&self.prefills, quantile))
    }

    /// The same of the time between two events; only the client of NATS sees them.
    pub fn between(&self, quantile: f64) -> f64 {
        nearest(&self.gaps, quantile)
    }
}

pub fn nearest(sorted: &[f64], quantile: f64) -> f64 {
    let rank = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Makes prompts, no two alike (so that the prefix cache finds nothing), as JSON.
pub struct PromptMaker {
    prompts: Prompts,
    num_tokens: usize,
    state: u64,
}

impl PromptMaker {
    pub fn new(prompts: Prompts, num_tokens: usize) -> Self {
        let since = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        Self { prompts, num_tokens, state: since | 1 }
    }

    pub fn is_text(&self) -> bool {
        self.prompts == Prompts::Text
    }

    /// Appends an array of ids or a string.
    pub fn write(&mut self, out: &mut Vec<u8>) {
        use std::io::Write as _;
        let text = self.is_text();
        out.push(if text { b'"' } else { b'[' });
        for index in 0..self.num_tokens {
            let random = self.random();
            if text {
                let word = WORDS[random as usize % WORDS.len()];
                out.extend_from_slice(if index > 0 { b" " } else { b"" });
                out.extend_from_slice(word.as_bytes());
            } else {
                out.extend_from_slice(if index > 0 { b"," } else { b"" });
                let span = u64::from(TOKEN_IDS.end - TOKEN_IDS.start);
                let id = u64::from(TOKEN_IDS.start) + random % span;
                write!(out, "{id}").expect("a vector takes all");
            }
        }
        out.push(if text { b'"' } else { b']' });
    }

    /// xorshift64* (Vigna, 2016).
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }
}

/// Calls `send` for every request of an open loop when it is due; on a thread of the caller's.
pub fn by_the_clock(load: &Open, begin: Instant, mut send: impl FnMut(usize)) {
    for index in 0..load.total {
        let due = begin + load.due(index);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        send(index);
    }
}

/// Where `needle` ends in `hay`.
pub fn after(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle).map(|at| at + needle.len())
}

/// The decimal number behind the first `key` in `text`.
pub fn decimal_after(text: &[u8], key: &[u8]) -> Option<f64> {
    let text = &text[after(text, key)?..];
    let digits = text.iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count();
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

/// The number that `text` begins with.
pub fn leading_number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}
