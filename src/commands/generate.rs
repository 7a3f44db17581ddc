//! `inferno-node generate`: a NATS client that streams one completion to the terminal.
//!
//! The text goes to standard output as it arrives; figures and errors go to standard error. Ctrl-C cancels the request.

use std::io::{IsTerminal as _, Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::bus_target::{BusArgs, BusTarget, NoConnection};
use super::{durable, presence};
use crate::bus::client::{Client, ClientError, Generation};
use crate::error::Error;
use crate::ids::RequestId;
use crate::request::{Event, FinishReason};

/// What the command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct GenerateArgs {
    /// What is to be continued; none, or `-`: what standard input says
    pub prompt: Option<String>,
    /// Model to ask, by its alias; default: the only one of a node on this machine
    #[arg(long, short)]
    pub model: Option<String>,
    /// Send the prompt as a user's message, through the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// System message before it, with --chat
    #[arg(long, requires = "chat")]
    pub system: Option<String>,
    /// Most tokens of the completion
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// 0 (greedy) to 2
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Above 0 to 1
    #[arg(long)]
    pub top_p: Option<f32>,
    /// The same seed gives the same text
    #[arg(long)]
    pub seed: Option<u64>,
    /// Ends the completion before this text; can be given several times
    #[arg(long)]
    pub stop: Vec<String>,
    /// A further parameter, such as min_p=0.1 or bad_words=["dog"]; can be given several times
    #[arg(long = "param", short = 'p', value_name = "NAME=VALUE", value_parser = named_value)]
    pub params: Vec<(String, Value)>,
    /// 0 to 255, 255 first
    #[arg(long)]
    pub priority: Option<u8>,
    /// The request's id; one is made if absent
    #[arg(long)]
    pub request_id: Option<String>,
    /// Finish it whatever node dies; Ctrl-C leaves it running (see `resume` and `cancel`)
    #[arg(long)]
    pub durable: bool,
    /// Where NATS is
    #[command(flatten)]
    pub bus: BusArgs,
    /// Longest wait for acceptance, and for the next event, in seconds
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
    /// No figures at the end
    #[arg(long, short)]
    pub quiet: bool,
}

/// What is no JSON is a string.
fn named_value(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((name.to_owned(), value))
}

/// Why there is no whole completion.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The way to the node and back.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The request failed after it was accepted.
    #[error("failed: {0}")]
    Failed(Error),
    /// It was cancelled, by Ctrl-C or by somebody else.
    #[error("cancelled after {0} tokens")]
    Cancelled(u32),
    /// Standard output is gone.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
    /// Standard input gives no prompt.
    #[error("prompt: {0}")]
    Prompt(String),
    /// No model is named, and the nodes here leave it open.
    #[error("--model: {0}")]
    Model(String),
    /// No connection.
    #[error(transparent)]
    Target(#[from] NoConnection),
}

/// The longest prompt that is read from standard input, in bytes: no node takes more without being told to.
const MAX_PROMPT_BYTES: u64 = 4 << 20;

/// The prompt of the command line, or what `input` says but for the end of its last line.
fn prompt(given: Option<&str>, input: impl Read) -> Result<String, GenerateError> {
    if let Some(prompt) = given.filter(|prompt| *prompt != "-") {
        return Ok(prompt.to_owned());
    }
    let mut text = String::new();
    let read = input.take(MAX_PROMPT_BYTES + 1).read_to_string(&mut text);
    let length = read.map_err(|error| GenerateError::Prompt(format!("standard input: {error}")))?;
    if length as u64 > MAX_PROMPT_BYTES {
        let text = format!("expected at most {MAX_PROMPT_BYTES} bytes on standard input, got more");
        return Err(GenerateError::Prompt(text));
    }
    if text.ends_with('\n') {
        text.pop();
    }
    if text.is_empty() {
        return Err(GenerateError::Prompt("expected one, got nothing".to_owned()));
    }
    Ok(text)
}

/// Runs the command. Needs a tokio runtime with I/O and time.
///
/// # Errors
/// See [`GenerateError`]; what had arrived until then is on standard output.
pub async fn run(args: GenerateArgs) -> Result<(), GenerateError> {
    let wait = Duration::from_secs(args.timeout);
    let nodes = presence::find();
    let target = BusTarget::choose(&args.bus, args.model.as_deref(), &nodes);
    let model = target.model(args.model.as_deref()).map_err(GenerateError::Model)?;
    if args.prompt.is_none() && std::io::stdin().is_terminal() {
        eprintln!("The prompt, and then Ctrl-D:");
    }
    let prompt = prompt(args.prompt.as_deref(), std::io::stdin())?;
    let client = target.connect(&args.bus, wait).await?;
    let asked_at = Instant::now();
    let body = body(&args, prompt);
    if args.durable {
        return durable::generate(&client, &model, body, args.quiet).await;
    }
    let mut generation = client.generate(&model, body).await?;
    let mut figures = Figures::new(asked_at, generation.node_id());
    let last = stream(&client, &mut generation, &mut figures, &mut std::io::stdout()).await?;
    finish(&last, &figures, args.quiet)
}

/// Says how it went.
pub(super) fn finish(last: &Event, figures: &Figures, is_quiet: bool) -> Result<(), GenerateError> {
    if !is_quiet {
        eprintln!("{}", figures.line(last));
    }
    match (&last.error, last.finish_reason) {
        (Some(error), _) => Err(GenerateError::Failed((**error).clone())),
        (None, Some(FinishReason::Cancelled)) => Err(GenerateError::Cancelled(figures.tokens)),
        (None, _) => Ok(()),
    }
}

/// Writes the text as it comes; gives the last event.
async fn stream(
    client: &Client,
    generation: &mut Generation,
    figures: &mut Figures,
    out: &mut impl Write,
) -> Result<Event, GenerateError> {
    let mut interrupted = false;
    let id: RequestId = generation.id().clone();
    loop {
        let event = tokio::select! {
            event = generation.next() => event?,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                // Who asks twice does not want to wait for the last event.
                if std::mem::replace(&mut interrupted, true) {
                    return Err(GenerateError::Cancelled(figures.tokens));
                }
                let (client, id) = (client.clone(), id.clone());
                // The last event tells the outcome; the answer adds nothing here.
                drop(tokio::spawn(async move { client.cancel(&id).await }));
                continue;
            }
        };
        let Some(event) = event else { return Err(ClientError::Closed.into()) };
        figures.count(&event);
        out.write_all(event.text.as_bytes())?;
        if event.finish_reason.is_some() {
            out.write_all(b"\n")?;
            out.flush()?;
            return Ok(event);
        }
        out.flush()?;
    }
}

/// The request's object; what was not given stays absent, so that the node's defaults hold.
fn body(args: &GenerateArgs, prompt: String) -> Value {
    let mut params = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            params.insert(name.to_owned(), value);
        }
    };
    set("max_tokens", args.max_tokens.map(Value::from));
    set("temperature", args.temperature.map(Value::from));
    set("top_p", args.top_p.map(Value::from));
    set("seed", args.seed.map(Value::from));
    set("stop", (!args.stop.is_empty()).then(|| args.stop.clone().into()));
    for (name, value) in &args.params {
        set(name, Some(value.clone()));
    }
    let mut body = json!({"params": params});
    if args.chat {
        let system =
            args.system.iter().map(|content| json!({"role": "system", "content": content}));
        let user = json!({"role": "user", "content": prompt});
        body["messages"] = system.chain([user]).collect();
    } else {
        body["prompt"] = prompt.into();
    }
    if let Some(id) = &args.request_id {
        body["request_id"] = id.clone().into();
    }
    if let Some(priority) = args.priority {
        body["priority"] = priority.into();
    }
    body
}

/// What the run was like, seen from here.
pub(super) struct Figures {
    node_id: String,
    asked_at: Instant,
    first_at: Option<Instant>,
    first_tokens: u32,
    last_at: Instant,
    pub(super) tokens: u32,
}

impl Figures {
    pub(super) fn new(asked_at: Instant, node_id: &str) -> Self {
        Self {
            node_id: node_id.to_owned(),
            asked_at,
            first_at: None,
            first_tokens: 0,
            last_at: asked_at,
            tokens: 0,
        }
    }

    pub(super) fn count(&mut self, event: &Event) {
        let count = event.token_ids.len() as u32;
        if count == 0 {
            return;
        }
        self.last_at = Instant::now();
        if self.first_at.is_none() {
            self.first_at = Some(self.last_at);
            self.first_tokens = count;
        }
        self.tokens += count;
    }

    /// Tokens, time to the first, and the rate after it (the first event's tokens took the time to the first).
    fn line(&self, last: &Event) -> String {
        let reason = last.finish_reason.map_or("no end", FinishReason::as_str);
        let Some(first_at) = self.first_at else {
            return format!("[{}: no tokens, {reason}]", self.node_id);
        };
        let first_ms = first_at.duration_since(self.asked_at).as_secs_f64() * 1e3;
        let rest = self.last_at.duration_since(first_at).as_secs_f64();
        let after = self.tokens - self.first_tokens;
        let rate = match after {
            0 => "one event".to_owned(),
            _ => format!("{:.1} tokens/s", f64::from(after) / rest.max(1e-9)),
        };
        format!(
            "[{}: {} tokens, TTFT {first_ms:.1} ms, {rate}, {reason}]",
            self.node_id, self.tokens
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: GenerateArgs,
    }

    fn parse(line: &[&str]) -> GenerateArgs {
        Command::try_parse_from([&["generate"], line].concat()).expect("parses").args
    }

    #[test]
    fn what_was_not_given_stays_absent() {
        let args = parse(&["--model", "demo", "Hi"]);
        assert_eq!(body(&args, "Hi".to_owned()), json!({"prompt": "Hi", "params": {}}));
    }

    #[test]
    fn what_was_given_is_sent() {
        let args = parse(&[
            "--model",
            "demo",
            "--chat",
            "--system",
            "Be brief",
            "--max-tokens",
            "5",
            "--seed",
            "7",
            "--top-p",
            "0.5",
            "--temperature",
            "0",
            "--stop",
            "x",
            "--stop",
            "y",
            "--param",
            "min_p=0.5",
            "-p",
            "bad_words=[\"dog\"]",
            "-p",
            "logprobs_mode=raw",
            "--priority",
            "9",
            "--request-id",
            "r1",
            "--user",
            "me",
            "--password",
            "hush",
            "Hi",
        ]);
        let expected = json!({
            "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
            "params": {"max_tokens": 5, "seed": 7, "top_p": 0.5, "temperature": 0.0, "stop": ["x", "y"],
                "min_p": 0.5, "bad_words": ["dog"], "logprobs_mode": "raw"},
            "request_id": "r1", "priority": 9,
        });
        assert_eq!(body(&args, "Hi".to_owned()), expected);
        assert_eq!(args.bus.user.as_deref(), Some("me"));
        assert!(crate::bus::decode(Default::default(), expected.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn the_prompt_is_given_or_read_without_its_last_line_end() {
        let read = |given, input: &str| prompt(given, input.as_bytes()).map_err(|e| e.to_string());
        assert_eq!(read(Some("Hi"), "unread").as_deref(), Ok("Hi"));
        assert_eq!(read(None, "Once\n\n").as_deref(), Ok("Once\n"));
        assert_eq!(read(Some("-"), "Once").as_deref(), Ok("Once"));
        assert_eq!(read(None, "\n"), Err("prompt: expected one, got nothing".to_owned()));
        let long = "x".repeat(MAX_PROMPT_BYTES as usize + 1);
        assert!(read(None, &long).is_err_and(|text| text.contains("at most 4194304 bytes")));
        assert!(prompt(None, &b"\xff"[..]).is_err_and(|e| e.to_string().contains("UTF-8")));
    }

    #[test]
    fn figures_name_the_time_to_the_first_token_and_the_rate() {
        let now = Instant::now();
        let mut figures = Figures::new(now, "n1");
        let event = |tokens: u32, finish_reason| Event {
            token_ids: (0..tokens).collect(),
            finish_reason,
            ..Event::new(RequestId::generate())
        };
        assert_eq!(figures.line(&event(0, None)), "[n1: no tokens, no end]");
        figures.count(&event(1, None));
        figures.count(&event(3, None));
        figures.count(&event(0, Some(FinishReason::Stop)));
        figures.first_at = Some(now + Duration::from_millis(20));
        figures.last_at = now + Duration::from_millis(1_020);
        let line = figures.line(&event(0, Some(FinishReason::Stop)));
        assert_eq!(line, "[n1: 4 tokens, TTFT 20.0 ms, 3.0 tokens/s, stop]");
    }
}
