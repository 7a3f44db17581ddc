//! `inferno-node serve`: runs a node until a signal, and says to people, scripts and logs where it is.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::presence::{self, Announcement, LocalNode};
use super::process;
use crate::clock::Timestamp;
use crate::config::{Config, ConfigError, Set, Sources};
use crate::health::BusState;
use crate::node::{Node, Phase};
use crate::telemetry::{self, HeldLog};

/// How long the ready line waits for the bus's first word: a second.
const SETTLE_TRIES: u32 = 50;
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// Flags over environment over file.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigOptions {
    /// The model: a checkpoint's folder, a GGUF file, or a hub id found in the local Hugging Face cache.
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// Alias that clients use; default: the last part of MODEL.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Longest prompt and completion together; default: what the model was made for.
    #[arg(long, value_name = "TOKENS")]
    pub max_seq_len: Option<u32>,
    /// Holds the weights of a checkpoint in 16 bits in fewer: `fp8`, `int8`, `int4`.
    #[arg(long, value_name = "FORMAT")]
    pub quantization: Option<String>,
    /// The same of the head.
    #[arg(long, value_name = "FORMAT")]
    pub quantization_head: Option<String>,
    /// Type of the KV cache: `auto` (the model's), `fp8`.
    #[arg(long, value_name = "TYPE")]
    pub kv_dtype: Option<String>,
    /// `cuda:0`, `cpu:0`, `sim:0`; several with commas. Default: every GPU, else the CPU.
    #[arg(long, value_name = "DEVICE", alias = "devices", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Where HTTP listens: an IP address. Beyond this machine it wants keys.
    #[arg(long, value_name = "IP")]
    pub host: Option<String>,
    /// HTTP's port; 0 takes a free one.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// A file with the keys of HTTP's clients, one on each line.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// This node's id.
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// NATS: external, managed (a child of this node), off, or auto.
    #[arg(long, value_name = "MODE")]
    pub bus_mode: Option<String>,
    /// Where an external NATS is.
    #[arg(long, value_name = "URL")]
    pub bus_url: Option<String>,
    /// The configuration file (TOML).
    #[arg(long, env = "INFERNO_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Any other key of docs/configuration.md; may be given more than once.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigOptions {
    /// The layers, with the process's environment.
    pub fn sources(&self) -> Sources {
        let is_ours = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"INFERNO_");
        let environment = std::env::vars_os().filter(|(name, _)| is_ours(name)).collect();
        Sources { file: self.config.clone(), environment, flags: self.flags() }
    }

    fn flags(&self) -> Vec<Set> {
        let key = |flag, key, text: Option<String>| text.map(|text| Set::Key { flag, key, text });
        let file = self.api_key_file.as_ref().map(|path| path.to_string_lossy().into_owned());
        let devices = (!self.device.is_empty()).then(|| self.device.join(","));
        let length = self.max_seq_len.map(|length| length.to_string());
        [
            key("MODEL", "models.model_path", self.model.clone()),
            key("--name", "models.name", self.name.clone()),
            key("--max-seq-len", "models.max_seq_len", length),
            key("--quantization", "models.quantization", self.quantization.clone()),
            key("--quantization-head", "models.quantization_head", self.quantization_head.clone()),
            key("--kv-dtype", "executor.kv_dtype", self.kv_dtype.clone()),
            key("--device", "executor.devices", devices),
            key("--node-id", "node.id", self.node_id.clone()),
            self.host.clone().map(Set::Host),
            self.port.map(Set::Port),
            key("--api-key-file", "http.api_key_file", file),
            key("--bus-mode", "bus.mode", self.bus_mode.clone()),
            key("--bus-url", "bus.url", self.bus_url.clone()),
        ]
        .into_iter()
        .flatten()
        .chain(self.set.iter().cloned().map(Set::Any))
        .collect()
    }
}

/// Why a node was not served, or not to its good end.
struct ServeError(String);

impl From<ConfigError> for ServeError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

impl From<crate::error::Error> for ServeError {
    fn from(error: crate::error::Error) -> Self {
        Self(error.message)
    }
}

/// Runs a node until it is told to end. What was wrong with the configuration, or why the node could not start, is said on standard
/// error: for people, or as lines of the log.
pub fn serve(options: &ConfigOptions) -> ExitCode {
    let Err(ServeError(text)) = start(options) else { return ExitCode::SUCCESS };
    if std::io::stderr().is_terminal() {
        eprintln!("inferno-node: {text}");
    } else {
        telemetry::init_tracing("error");
        text.lines().for_each(|line| tracing::error!("{line}"));
    }
    ExitCode::FAILURE
}

fn start(options: &ConfigOptions) -> Result<(), ServeError> {
    let config = Config::load(&options.sources())?;
    config.check_doors()?;
    let log = telemetry::init_tracing_of_start(&config.node.log);
    let changes = config.changes().join(", ");
    if !std::io::stderr().is_terminal() {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), changes, "starting");
    }
    process::raise_open_files();
    let prefix = config.bus.prefix.clone();
    let has_keys = !config.http.api_keys.is_empty();
    let node = Node::start(config)?;
    // For tests of the whole process; no release build knows it.
    #[cfg(debug_assertions)]
    if let Ok(name) = std::env::var("PANIC_FOR_TEST") {
        node.arm(&name);
    }
    let runtime = process::runtime().map_err(ServeError)?;
    runtime.block_on(run_until_signal(node, &Shown { prefix, has_keys, changes }, log))
}

async fn run_until_signal(node: Node, shown: &Shown, log: HeldLog) -> Result<(), ServeError> {
    let mut signals = process::EndSignals::listen().map_err(ServeError)?;
    let mut phase = node.phase();
    let (mut failed, mut announcement, mut log) = (None, None, Some(log));
    loop {
        tokio::select! {
            () = signals.next() => break,
            changed = phase.changed() => match (changed, phase.borrow_and_update().clone()) {
                (Ok(()), Phase::Ready) => {
                    bus_settles(&node).await;
                    announcement = shown.ready(&node);
                    log = None;
                }
                (Ok(()), Phase::Loading) => {}
                (Ok(()), Phase::Failed(error)) => {
                    failed = Some(error.message);
                    break;
                }
                (Err(_), _) => return Err(ServeError("the node's thread ended".to_owned())),
            },
        }
    }
    tracing::info!("draining");
    drop((announcement, log));
    let again = async {
        // A node that ends by itself has had no first signal yet.
        if failed.is_some() {
            signals.next().await;
        }
        signals.next().await;
    };
    let cut = tokio::select! {
        cut = node.shutdown() => cut?,
        // Who asks twice does not want to wait: not for the threads, either, which dropping the node would.
        () = again => {
            tracing::error!("a second signal: ended at once");
            std::process::exit(1);
        }
    };
    match failed {
        Some(message) => Err(ServeError(message)),
        None if cut > 0 => {
            Err(ServeError(format!("{cut} requests were cut at the end of the drain")))
        }
        None => Ok(()),
    }
}

/// Waits a moment until the bus is connected, or knows why not.
async fn bus_settles(node: &Node) {
    for _ in 0..SETTLE_TRIES {
        match node.vitals().bus() {
            BusState::Impaired(text) if text.starts_with("no connection to NATS") => {
                tokio::time::sleep(SETTLE_PAUSE).await;
            }
            _ => return,
        }
    }
}

/// What is shown of the configuration.
struct Shown {
    prefix: String,
    has_keys: bool,
    changes: String,
}

impl Shown {
    /// Says that the node takes requests, to everybody in their way: one line for scripts on standard output, a few for people or one
    /// for the log on standard error, a file for commands.
    fn ready(&self, node: &Node) -> Option<Announcement> {
        let message = node.vitals().message(Timestamp::now());
        let models: Vec<String> = message.models.iter().map(|model| model.name.clone()).collect();
        let http = node.http().map(|address| format!("http://{address}"));
        let (nats, missing) = match node.nats() {
            None => (None, None),
            Some(url) => match not_reached(url, &node.vitals().bus()) {
                None => (Some(url.to_owned()), None),
                Some(text) => (None, Some(text)),
            },
        };
        let said = LocalNode {
            node: node.id().to_owned(),
            nats: node.nats().map(str::to_owned),
            prefix: self.prefix.clone(),
            http,
            models,
        };
        if std::io::stderr().is_terminal() {
            eprint!("{}", self.for_people(&said, &message, missing.as_deref()));
        } else {
            let (http, nats) = (said.http.as_deref(), nats.as_deref());
            let models = said.models.join(",");
            tracing::info!(node = said.node, http, nats, models, "ready");
        }
        println!("{}", for_scripts(&said, nats.as_deref(), missing.as_deref()));
        let announced = presence::announce(&said);
        announced
            .inspect_err(|error| tracing::debug!(%error, "commands will not find this node"))
            .ok()
    }

    fn for_people(
        &self,
        said: &LocalNode,
        message: &crate::health::HealthMessage,
        missing: Option<&str>,
    ) -> String {
        let program = std::env::args().next().unwrap_or_else(|| "inferno-node".to_owned());
        let model = |model: &crate::door::ModelInfo| {
            format!("{}, context {} tokens", model.name, model.max_seq_len)
        };
        let models = message.models.iter().map(model).collect::<Vec<_>>().join("; ");
        let devices: Vec<&str> = message.devices.iter().map(|device| device.id.as_str()).collect();
        let version = env!("CARGO_PKG_VERSION");
        let mut lines = vec![
            format!("inferno-node {version}, node {}", said.node),
            format!("  model   {models}"),
            format!("  device  {}", devices.join(", ")),
        ];
        let first = said.models.first().map_or("MODEL", String::as_str);
        match &said.http {
            None => lines.push("  http    off (http.enabled = false)".to_owned()),
            Some(url) => {
                let key = if self.has_keys { " -H 'Authorization: Bearer KEY'" } else { "" };
                let body = format!(r#"{{"model": "{first}", "prompt": "Once upon a time"}}"#);
                lines.push(format!("  http    {url}"));
                lines.push(format!(
                    "          curl {url}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'"
                ));
            }
        }
        match (&said.nats, missing) {
            (None, _) => {
                lines.push("  nats    off (no nats-server here, or bus.mode = \"off\")".to_owned())
            }
            (Some(_), Some(missing)) => lines.push(format!("  nats    {missing}")),
            (Some(url), None) => {
                lines.push(format!("  nats    {url}"));
                lines.push(format!(
                    "          {program} generate --model {first} \"Once upon a time\""
                ));
            }
        }
        let changes = if self.changes.is_empty() { "all defaults" } else { &self.changes };
        lines.push(format!(
            "  config  {changes}; all of it: {program} config show, with the same flags"
        ));
        lines.join("\n") + "\n"
    }
}

fn for_scripts(said: &LocalNode, nats: Option<&str>, missing: Option<&str>) -> String {
    let mut line = format!("ready node={}", said.node);
    if let Some(url) = &said.http {
        line.push_str(&format!(" http={url}"));
    }
    if let Some(url) = nats {
        line.push_str(&format!(" nats={url}"));
    }
    if let Some(missing) = missing {
        line.push_str(&format!(" ({missing})"));
    }
    line
}

/// That there is no connection to the bus's NATS, and why; none where there is one.
fn not_reached(url: &str, bus: &BusState) -> Option<String> {
    let cause = match bus {
        BusState::Off | BusState::Up => return None,
        BusState::Impaired(text) | BusState::Refused(text) => text,
    };
    if cause.contains("denies the subscription") {
        return None;
    }
    // The bus's own words begin with where it was looked for.
    let inner = cause.split_once(" (").and_then(|(_, rest)| rest.strip_suffix(')'));
    let cause = inner.filter(|_| cause.starts_with("no NATS at")).unwrap_or(cause);
    Some(format!("NATS at {url} not reachable yet: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> LocalNode {
        LocalNode {
            node: "n1".to_owned(),
            nats: Some("nats://a:1".to_owned()),
            prefix: "inferno.v1".to_owned(),
            http: Some("http://127.0.0.1:8000".to_owned()),
            models: vec!["demo".to_owned()],
        }
    }

    #[test]
    fn a_nats_that_is_away_is_not_shown_as_if_it_were_there() {
        let away =
            BusState::Impaired("no NATS at a:1 (Connection refused (os error 111))".to_owned());
        let missing = not_reached("nats://a:1", &away).expect("it is away");
        let text = "NATS at nats://a:1 not reachable yet: Connection refused (os error 111)";
        assert_eq!(missing, text);
        let line = for_scripts(&said(), None, Some(&missing));
        assert_eq!(line, format!("ready node=n1 http=http://127.0.0.1:8000 ({text})"));
        assert_eq!(not_reached("nats://a:1", &BusState::Up), None);
        let refused = BusState::Refused("NATS at a:1 refuses the login (x)".to_owned());
        assert!(not_reached("nats://a:1", &refused).is_some_and(|text| text.contains("login")));
        let denied = BusState::Refused("NATS denies the subscription of x".to_owned());
        assert_eq!(not_reached("nats://a:1", &denied), None, "it is there");
    }

    #[test]
    fn scripts_read_where_the_node_is() {
        let line = for_scripts(&said(), Some("nats://a:1"), None);
        assert_eq!(line, "ready node=n1 http=http://127.0.0.1:8000 nats=nats://a:1");
    }
}
