//! `inferno-node generate`: a NATS client that streams one completion to the terminal.
//!
//! The text goes to standard output as it arrives; figures and errors go to standard error. Ctrl-C cancels the request.

use std::io::{IsTerminal as _, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::presence::{self, LocalNode};
use crate::bus::client::{Client, ClientError, Generation, Timeouts};
use crate::bus::{Auth, Tls};
use crate::error::Error;
use crate::ids::RequestId;
use crate::request::{Event, FinishReason};
use crate::secret::Secret;

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
    /// NATS servers, joined by commas; default: those of a node on this machine, else nats://127.0.0.1:4222
    #[arg(long, env = "INFERNO_BUS_URL")]
    pub url: Option<String>,
    /// First part of every subject; default: that of a node on this machine, else inferno.v1
    #[arg(long, env = "INFERNO_BUS_PREFIX")]
    pub prefix: Option<String>,
    /// NATS user
    #[arg(long, env = "INFERNO_BUS_USER", requires = "password")]
    pub user: Option<String>,
    /// NATS password
    #[arg(long, env = "INFERNO_BUS_PASSWORD", hide_env_values = true, requires = "user")]
    pub password: Option<String>,
    /// NATS token
    #[arg(long, env = "INFERNO_BUS_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// NATS credentials file
    #[arg(long, env = "INFERNO_BUS_CREDENTIALS_FILE")]
    pub credentials_file: Option<PathBuf>,
    /// PEM file of the authorities to trust
    #[arg(long, env = "INFERNO_BUS_TLS__CA")]
    pub tls_ca: Option<PathBuf>,
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
    /// No address is given, no node is found, and no NATS is at the usual place.
    #[error(
        "no node with a bus runs on this machine; start one (inferno-node serve MODEL) or give --url ({0})"
    )]
    NoNode(ClientError),
}

/// The longest prompt that is read from standard input, in bytes: no node takes more without being told to.
const MAX_PROMPT_BYTES: u64 = 4 << 20;

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BusTarget {
    url: String,
    prefix: String,
    model: String,
    /// Nobody said where.
    is_guess: bool,
}

impl BusTarget {
    /// From the arguments, and from what nodes of this machine say of themselves, the newest first. Of these, one that started with
    /// the model is asked.
    fn choose(args: &GenerateArgs, nodes: &[LocalNode]) -> Result<Self, GenerateError> {
        let with_bus = || nodes.iter().filter(|node| node.nats.is_some());
        let has_model = |node: &&LocalNode| {
            args.model.as_ref().is_none_or(|model| node.models.iter().any(|of| of == model))
        };
        let found = match &args.url {
            Some(url) => nodes.iter().find(|node| node.nats.as_ref() == Some(url)),
            None => with_bus().find(has_model).or_else(|| with_bus().next()),
        };
        let model = match (&args.model, found.map_or(&[][..], |node| &node.models)) {
            (Some(model), _) => model.clone(),
            (None, [only]) => only.clone(),
            (None, []) => return Err(GenerateError::Model("expected a model's alias".to_owned())),
            (None, several) => {
                let text = format!("expected one of {}", several.join(", "));
                return Err(GenerateError::Model(text));
            }
        };
        let url = args.url.clone().or_else(|| found?.nats.clone());
        let prefix = args.prefix.clone().or_else(|| Some(found?.prefix.clone()));
        Ok(Self {
            is_guess: url.is_none(),
            url: url.unwrap_or_else(|| "nats://127.0.0.1:4222".to_owned()),
            prefix: prefix.unwrap_or_else(|| "inferno.v1".to_owned()),
            model,
        })
    }
}

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
    let target = BusTarget::choose(&args, &presence::find())?;
    if args.prompt.is_none() && std::io::stdin().is_terminal() {
        eprintln!("The prompt, and then Ctrl-D:");
    }
    let prompt = prompt(args.prompt.as_deref(), std::io::stdin())?;
    let connected = Client::connect(&target.url, &auth(&args), &target.prefix).await;
    let client = connected
        .map_err(|error| if target.is_guess { GenerateError::NoNode(error) } else { error.into() })?
        .with_timeouts(Timeouts { accept: wait, event: wait });
    let asked_at = Instant::now();
    let mut generation = client.generate(&target.model, body(&args, prompt)).await?;
    let mut figures = Figures::new(asked_at, generation.node_id());
    let last = stream(&client, &mut generation, &mut figures, &mut std::io::stdout()).await?;
    if !args.quiet {
        eprintln!("{}", figures.line(&last));
    }
    match (last.error, last.finish_reason) {
        (Some(error), _) => Err(GenerateError::Failed(*error)),
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

fn auth(args: &GenerateArgs) -> Auth {
    Auth {
        user: args.user.clone().zip(args.password.as_deref().map(Secret::new)),
        token: args.token.as_deref().map(Secret::new),
        credentials_file: args.credentials_file.clone(),
        tls: Tls { ca: args.tls_ca.clone(), ..Tls::default() },
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
struct Figures {
    node_id: String,
    asked_at: Instant,
    first_at: Option<Instant>,
    first_tokens: u32,
    last_at: Instant,
    tokens: u32,
}

impl Figures {
    fn new(asked_at: Instant, node_id: &str) -> Self {
        Self {
            node_id: node_id.to_owned(),
            asked_at,
            first_at: None,
            first_tokens: 0,
            last_at: asked_at,
            tokens: 0,
        }
    }

    fn count(&mut self, event: &Event) {
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
        assert!(auth(&args).user.is_none());
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
        assert_eq!(auth(&args).user.map(|(user, _)| user).as_deref(), Some("me"));
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

    fn local(nats: &str, models: &[&str]) -> LocalNode {
        LocalNode {
            node: "n".to_owned(),
            nats: (!nats.is_empty()).then(|| nats.to_owned()),
            prefix: "own.v1".to_owned(),
            http: None,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
        }
    }

    #[test]
    fn a_node_of_this_machine_says_where_and_what_and_an_argument_goes_first() {
        let nodes =
            [local("", &["c"]), local("nats://new:1", &["a"]), local("nats://old:1", &["b"])];
        let choose =
            |line: &[&str]| BusTarget::choose(&parse(line), &nodes).map_err(|e| e.to_string());
        let target = |url: &str, prefix: &str, model: &str| {
            let [url, prefix, model] = [url, prefix, model].map(str::to_owned);
            Ok(BusTarget { url, prefix, model, is_guess: false })
        };
        assert_eq!(choose(&["Hi"]), target("nats://new:1", "own.v1", "a"));
        assert_eq!(choose(&["--model", "b", "Hi"]), target("nats://old:1", "own.v1", "b"));
        assert_eq!(choose(&["--model", "x", "Hi"]), target("nats://new:1", "own.v1", "x"));
        let given = ["--url", "nats://far:1", "--model", "b", "Hi"];
        assert_eq!(choose(&given), target("nats://far:1", "inferno.v1", "b"));
        let none =
            BusTarget::choose(&parse(&["--model", "a", "Hi"]), &[]).expect("the usual place");
        assert!(none.is_guess && none.url == "nats://127.0.0.1:4222");
        let which = BusTarget::choose(&parse(&["Hi"]), &[local("nats://a:1", &["a", "b"])]);
        assert!(which.is_err_and(|error| error.to_string() == "--model: expected one of a, b"));
        assert!(BusTarget::choose(&parse(&["Hi"]), &[]).is_err());
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
