//! A client of NATS in the server's own words (no library between): one connection, one wildcard subscription for all tokens, one
//! for acceptances and refusals. Of every event it reads `seq`, `token_ids` and the end, and takes a gap for a failure.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::load::{
    ALIAS, Closed, Lengths, Open, Outcome, PromptMaker, Prompts, after, by_the_clock,
    decimal_after, leading_number,
};

/// A silence of so long is the end: what has not ended by then has failed.
const SILENCE: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 256 << 10;

/// Names the runs of this process, so that an id is used once.
static RUN: AtomicU64 = AtomicU64::new(0);

/// Keeps `at_once` requests under way.
pub fn closed(url: &str, load: &Closed) -> Outcome {
    let mut client = Client::connect(url, load.total, load.lengths);
    let mut writer = client.writer(load.prompts);
    let begin = Instant::now();
    let mut next = 0;
    let mut open = 0;
    while open > 0 || next < load.total {
        let now = Instant::now();
        while open < load.at_once && next < load.total {
            client.requests[next].begun = Some(now);
            writer.request(next);
            (next, open) = (next + 1, open + 1);
        }
        writer.flush();
        match client.take() {
            Some(ended) => open -= ended,
            None => break,
        }
    }
    client.outcome(begin, load.total)
}

/// Publishes each request when it is due.
pub fn open(url: &str, load: &Open) -> Outcome {
    let mut client = Client::connect(url, load.total, load.lengths);
    let mut writer = client.writer(Prompts::TokenIds);
    let begin = Instant::now() + Duration::from_millis(50);
    for (index, request) in client.requests.iter_mut().enumerate() {
        request.begun = Some(begin + load.due(index));
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            by_the_clock(load, begin, |index| {
                writer.request(index);
                writer.flush();
            });
        });
        let mut left = load.total;
        while left > 0 {
            match client.take() {
                Some(ended) => left -= ended,
                None => break,
            }
        }
    });
    client.outcome(begin, load.total)
}

#[derive(Default, Clone)]
struct Request {
    begun: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    next_seq: u64,
    ended: bool,
}

struct Client {
    stream: TcpStream,
    /// Written by two threads in an open loop: whole messages only.
    writing: std::sync::Arc<Mutex<TcpStream>>,
    run: u64,
    lengths: Lengths,
    requests: Vec<Request>,
    outcome: Outcome,
    buffer: Vec<u8>,
    /// Of `buffer`, not yet taken.
    filled: std::ops::Range<usize>,
}

impl Client {
    fn connect(url: &str, total: usize, lengths: Lengths) -> Self {
        let address = url.trim_start_matches("nats://");
        let stream = TcpStream::connect(address).expect("the node's nats-server");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(SILENCE)).expect("a TCP socket");
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let writing = std::sync::Arc::new(Mutex::new(stream.try_clone().expect("a descriptor")));
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true}}\r\n\
             SUB inferno.v1.tokens.* 1\r\nSUB _BENCH.{run}.* 2\r\nPING\r\n"
        );
        (&stream).write_all(hello.as_bytes()).expect("the connection lives");
        let mut client = Self {
            stream,
            writing,
            run,
            lengths,
            requests: vec![Request::default(); total],
            outcome: Outcome::default(),
            buffer: vec![0; READ_BYTES],
            filled: 0..0,
        };
        // The server has both subscriptions when it answers: its PONG is the first thing that is no INFO.
        while !client.buffer[client.filled.clone()].ends_with(b"PONG\r\n") {
            assert!(client.fill(), "nats-server says nothing");
        }
        client.filled = 0..0;
        client
    }

    fn writer(&self, prompts: Prompts) -> Writer {
        Writer {
            stream: self.writing.clone(),
            run: self.run,
            prompts: PromptMaker::new(prompts, self.lengths.prompt),
            max_tokens: self.lengths.completion,
            body: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Reads once; false after a silence.
    fn fill(&mut self) -> bool {
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        match self.stream.read(&mut self.buffer[self.filled.end..]) {
            Ok(0) => panic!("nats-server closed the connection"),
            Ok(count) => self.filled.end += count,
            Err(_) => return false,
        }
        true
    }

    /// Takes what has arrived; gives how many requests ended with it, or nothing after a silence.
    fn take(&mut self) -> Option<usize> {
        if !self.fill() {
            return None;
        }
        let now = Instant::now();
        let buffer = std::mem::take(&mut self.buffer);
        let (mut rest, mut ended) = (&buffer[self.filled.clone()], 0);
        while let Some((message, len)) = split_message(rest) {
            rest = &rest[len..];
            match message {
                Message::Ping => {
                    let mut stream = self.writing.lock().expect("no thread panics with it");
                    stream.write_all(b"PONG\r\n").expect("the connection lives");
                }
                Message::Other => {}
                Message::Body { subject, body } => {
                    ended += usize::from(self.body(subject, body, now))
                }
            }
        }
        self.filled.start = self.filled.end - rest.len();
        self.buffer = buffer;
        Some(ended)
    }

    /// True if it ends a request.
    fn body(&mut self, subject: &[u8], body: &[u8], now: Instant) -> bool {
        let word = subject.rsplit(|b| *b == b'.').next().unwrap_or_default();
        let is_event = !subject.starts_with(b"_BENCH.");
        let mut numbers = word.split(|b| *b == b'-');
        let run = if is_event { numbers.next().and_then(leading_number) } else { Some(self.run) };
        let index = numbers.next().and_then(leading_number).map(|index| index as usize);
        let Some(index) =
            index.filter(|index| run == Some(self.run) && *index < self.requests.len())
        else {
            return false;
        };
        if self.requests[index].ended {
            self.outcome.failed(format!("after the end: {}", String::from_utf8_lossy(body)));
            return false;
        }
        let taken = if is_event { self.event(index, body, now) } else { accepted(body) };
        taken.unwrap_or_else(|| {
            self.requests[index].ended = true;
            self.outcome.failed(String::from_utf8_lossy(body));
            true
        })
    }

    /// Whether the event is the last one; nothing for one that is wrong.
    fn event(&mut self, index: usize, body: &[u8], now: Instant) -> Option<bool> {
        let request = &mut self.requests[index];
        let mut rest = &body[after(body, b"\"seq\":")?..];
        if leading_number(rest)? != request.next_seq {
            return None;
        }
        rest = &rest[after(rest, b"\"token_ids\":[")?..];
        let ids = &rest[..rest.iter().position(|b| *b == b']')?];
        let count = match ids {
            [] => 0,
            _ => 1 + ids.iter().filter(|b| **b == b',').count() as u64,
        };
        request.next_seq += count;
        if count > 0 {
            request.first.get_or_insert(now);
        }
        // Before its first token a request that waits long has events without.
        if request.first.is_some()
            && let Some(last) = request.last.replace(now)
        {
            self.outcome.gap(now - last);
        }
        self.outcome.tokens += count;
        self.outcome.events += 1;
        rest = &rest[ids.len()..];
        let Some(at) = after(rest, b"\"finish_reason\":\"") else { return Some(false) };
        let asked = u64::from(self.lengths.completion);
        let whole = rest[at..].starts_with(b"length\"") && request.next_seq == asked;
        let begun = request.begun.filter(|_| whole)?;
        request.ended = true;
        let first = request.first.unwrap_or(now);
        rest = &rest[after(rest, b"\"prompt_tokens\":")?..];
        self.outcome.prompt_tokens += leading_number(rest)?;
        let [queue_ms, prefill_ms] =
            [b"\"queue_ms\":".as_slice(), b"\"prefill_ms\":"].map(|key| decimal_after(rest, key));
        self.outcome.receipt(queue_ms?, prefill_ms?);
        self.outcome.finished(first - begun, now.saturating_duration_since(begun));
        Some(true)
    }

    fn outcome(mut self, begin: Instant, total: usize) -> Outcome {
        self.outcome.wall = begin.elapsed();
        let silent = self.requests.iter().filter(|request| !request.ended).count();
        if silent > 0 {
            self.outcome.failed(format!("{silent} of {total} did not end"));
            self.outcome.failed += silent - 1;
        }
        self.outcome
    }
}

/// An acceptance ends nothing; anything else is a refusal.
fn accepted(body: &[u8]) -> Option<bool> {
    after(body, b"\"status\":\"accepted\"").map(|_| false)
}

struct Writer {
    stream: std::sync::Arc<Mutex<TcpStream>>,
    run: u64,
    prompts: PromptMaker,
    max_tokens: u32,
    body: Vec<u8>,
    out: Vec<u8>,
}

impl Writer {
    fn request(&mut self, index: usize) {
        let Self { run, max_tokens, body, out, .. } = self;
        body.clear();
        let field = if self.prompts.is_text() { "prompt" } else { "prompt_token_ids" };
        let id = format_args!("{run}-{index}");
        write!(body, "{{\"request_id\":\"{id}\",\"{field}\":").expect("a vector takes all");
        self.prompts.write(body);
        write!(
            body,
            ",\"params\":{{\"max_tokens\":{max_tokens},\"temperature\":0,\"ignore_eos\":true}}}}"
        )
        .expect("a vector takes all");
        let len = body.len();
        write!(out, "PUB inferno.v1.generate.{ALIAS} _BENCH.{run}.r-{index} {len}\r\n")
            .expect("a vector takes all");
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }

    fn flush(&mut self) {
        if !self.out.is_empty() {
            let mut stream = self.stream.lock().expect("no thread panics with it");
            stream.write_all(&self.out).expect("the connection lives");
            self.out.clear();
        }
    }
}

enum Message<'a> {
    Ping,
    Other,
    Body { subject: &'a [u8], body: &'a [u8] },
}

/// The first message in `bytes` and its length, if it is whole.
fn split_message(bytes: &[u8]) -> Option<(Message<'_>, usize)> {
    let line_len = bytes.iter().position(|b| *b == b'\n')? + 1;
    let line = bytes[..line_len].trim_ascii_end();
    let with_headers = line.starts_with(b"HMSG ");
    if !with_headers && !line.starts_with(b"MSG ") {
        assert!(!line.starts_with(b"-ERR"), "{}", String::from_utf8_lossy(line));
        let message = if line == b"PING" { Message::Ping } else { Message::Other };
        return Some((message, line_len));
    }
    let mut words = line.split(|b| *b == b' ');
    let subject = words.nth(1)?;
    let len = leading_number(words.next_back()?)? as usize;
    let headers = if with_headers { leading_number(words.next_back()?)? as usize } else { 0 };
    let body = bytes.get(line_len..line_len + len + 2)?;
    Some((Message::Body { subject, body: &body[headers..len] }, line_len + len + 2))
}
