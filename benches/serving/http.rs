//! A client of HTTP on bare sockets: one connection for each request under way, kept alive; reads chunks and server-sent events.
//! Events hold text, so tokens are counted by the `usage` at the end, which has to be what was asked for.

use std::cell::RefCell;
use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use super::load::{
    ALIAS, Closed, Open, Outcome, PromptMaker, Prompts, after, by_the_clock, leading_number,
};

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Keeps `at_once` requests under way.
pub fn closed(url: &str, load: &Closed) -> Outcome {
    run(async {
        let lengths = load.lengths;
        let prompts = PromptMaker::new(load.prompts, lengths.prompt);
        let shared = Rc::new(RefCell::new((Outcome::default(), prompts, 0)));
        let mut tasks = JoinSet::new();
        let begin = Instant::now();
        for _ in 0..load.at_once {
            let (address, shared, total) = (address(url), shared.clone(), load.total);
            tasks.spawn_local(async move {
                let mut connection = Connection::open(&address).await;
                loop {
                    {
                        let (_, prompts, next) = &mut *shared.borrow_mut();
                        if *next == total {
                            return;
                        }
                        *next += 1;
                        connection.write_request(prompts, lengths.completion);
                    }
                    let answer = connection.ask(Instant::now()).await;
                    record(&mut shared.borrow_mut().0, answer);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        let mut outcome = std::mem::take(&mut shared.borrow_mut().0);
        outcome.wall = begin.elapsed();
        outcome
    })
}

/// Sends each request when it is due, on a connection that is free or a new one.
pub fn open(url: &str, load: &Open) -> Outcome {
    let (due, mut is_due) = tokio::sync::mpsc::unbounded_channel();
    let begin = Instant::now() + Duration::from_millis(50);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            by_the_clock(load, begin, |index| due.send(index).expect("the receiver waits for all"));
        });
        run(async {
            let shared = Rc::new(RefCell::new((Outcome::default(), Vec::<Connection>::new())));
            let mut prompts = PromptMaker::new(Prompts::TokenIds, load.lengths.prompt);
            let mut tasks = JoinSet::new();
            while let Some(index) = is_due.recv().await {
                let begun = begin + load.due(index);
                let free = shared.borrow_mut().1.pop();
                let mut connection = match free {
                    Some(connection) => connection,
                    None => Connection::open(&address(url)).await,
                };
                connection.write_request(&mut prompts, load.lengths.completion);
                let shared = shared.clone();
                tasks.spawn_local(async move {
                    let answer = connection.ask(begun).await;
                    let (outcome, free) = &mut *shared.borrow_mut();
                    if answer.is_ok() {
                        free.push(connection);
                    }
                    record(outcome, answer);
                });
            }
            while tasks.join_next().await.is_some() {}
            let mut outcome = std::mem::take(&mut shared.borrow_mut().0);
            outcome.wall = begin.elapsed();
            outcome
        })
    })
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), future)
}

fn address(url: &str) -> String {
    url.trim_start_matches("http://").to_owned()
}

fn record(outcome: &mut Outcome, answer: Result<Answer, String>) {
    match answer {
        Ok(answer) => {
            outcome.tokens += answer.tokens;
            outcome.events += answer.events;
            outcome.prompt_tokens += answer.prompt_tokens;
            outcome.finished(answer.first, answer.whole);
        }
        Err(fault) => outcome.failed(fault),
    }
}

struct Answer {
    first: Duration,
    whole: Duration,
    events: u64,
    prompt_tokens: u64,
    tokens: u64,
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    /// What the request asks for.
    max_tokens: u32,
    body: Vec<u8>,
    /// Read and not yet looked at.
    buffer: Vec<u8>,
    /// Of the answer under way: what has come out of its chunks, less the events that were taken.
    events: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("the node listens");
        stream.set_nodelay(true).expect("a TCP socket");
        let (request, body) = (Vec::new(), Vec::new());
        let buffer = Vec::with_capacity(16 << 10);
        Self { stream, request, max_tokens: 0, body, buffer, events: Vec::new() }
    }

    fn write_request(&mut self, prompts: &mut PromptMaker, max_tokens: u32) {
        self.max_tokens = max_tokens;
        let Self { request, body, .. } = self;
        body.clear();
        write!(body, "{{\"model\":\"{ALIAS}\",\"prompt\":").expect("a vector takes all");
        prompts.write(body);
        write!(
            body,
            ",\"max_tokens\":{max_tokens},\"temperature\":0,\"ignore_eos\":true,\"stream\":true,\
             \"stream_options\":{{\"include_usage\":true}}}}"
        )
        .expect("a vector takes all");
        request.clear();
        write!(
            request,
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .expect("a vector takes all");
        request.extend_from_slice(body);
    }

    /// Sends the request that was written and reads its answer; times count from `begun`.
    async fn ask(&mut self, begun: Instant) -> Result<Answer, String> {
        match timeout(PATIENCE, self.answer(begun)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no end within {PATIENCE:?}")),
        }
    }

    async fn answer(&mut self, begun: Instant) -> Result<Answer, String> {
        self.stream.write_all(&self.request).await.map_err(|error| error.to_string())?;
        self.events.clear();
        while !self.take_head()? {
            self.read().await?;
        }
        let (mut first, mut count, mut usage) = (None, 0, None);
        loop {
            let end = self.take_chunks()?;
            let mut rest = &self.events[..];
            while let Some(len) = after(rest, b"\n\n") {
                let event = &rest[..len];
                rest = &rest[len..];
                first.get_or_insert_with(Instant::now);
                if after(event, b"\"text\":").is_some() {
                    count += 1;
                } else if after(event, b"\"usage\":{").is_some() {
                    usage = Some(self::usage(event)?);
                }
            }
            let taken = self.events.len() - rest.len();
            self.events.drain(..taken);
            if end {
                break;
            }
            self.read().await?;
        }
        let (prompt_tokens, tokens) = usage.ok_or("no usage")?;
        if tokens != u64::from(self.max_tokens) {
            return Err(format!("{tokens} tokens"));
        }
        let first = first.ok_or("no events")?.saturating_duration_since(begun);
        Ok(Answer { first, whole: begun.elapsed(), events: count, prompt_tokens, tokens })
    }

    async fn read(&mut self) -> Result<(), String> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err("the node closed the connection".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes the answer's head off, if it is there.
    fn take_head(&mut self) -> Result<bool, String> {
        let Some(len) = after(&self.buffer, b"\r\n\r\n") else { return Ok(false) };
        let head = String::from_utf8_lossy(&self.buffer[..len]).to_ascii_lowercase();
        if !head.starts_with("http/1.1 200") || !head.contains("transfer-encoding: chunked") {
            return Err(String::from_utf8_lossy(&self.buffer).into_owned());
        }
        self.buffer.drain(..len);
        Ok(true)
    }

    /// Takes whole chunks off; true after the last one.
    fn take_chunks(&mut self) -> Result<bool, String> {
        let (mut at, mut end) = (0, false);
        while let Some(line) = after(&self.buffer[at..], b"\r\n") {
            let size = std::str::from_utf8(&self.buffer[at..at + line - 2]).unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(|_| format!("chunk {size:?}"))?;
            let Some(chunk) = self.buffer.get(at + line..at + line + size + 2) else { break };
            self.events.extend_from_slice(&chunk[..size]);
            at += line + size + 2;
            if size == 0 {
                end = true;
                break;
            }
        }
        self.buffer.drain(..at);
        Ok(end)
    }
}

/// Tokens of prompt and completion.
fn usage(event: &[u8]) -> Result<(u64, u64), String> {
    let number = |name: &[u8]| after(event, name).and_then(|at| leading_number(&event[at..]));
    match (number(b"\"prompt_tokens\":"), number(b"\"completion_tokens\":")) {
        (Some(prompt), Some(completion)) => Ok((prompt, completion)),
        _ => Err(String::from_utf8_lossy(event).into_owned()),
    }
}
