//! What the command line offers, and how its flags become configuration.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Sources};
use crate::generate::GenerateArgs;
use crate::node::{Node, Phase};

/// A node of an LLM inference cluster.
#[derive(Debug, Parser)]
#[command(name = "inferno-node", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node until SIGTERM or SIGINT, then drain.
    Serve(ConfigOptions),
    /// Publish a request on NATS and stream the answer to the terminal.
    Generate(GenerateArgs),
    /// Look at a configuration.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// What can be done with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check it whole and print the effective one, secrets hidden; fails naming every key at fault.
    Check(ConfigOptions),
}

/// Flags over environment over file.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigOptions {
    /// The configuration file (TOML).
    #[arg(long, env = "INFERNO_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Checkpoint directory, or a hub id found in the local Hugging Face cache.
    #[arg(long, value_name = "PATH")]
    pub model_path: Option<String>,
    /// Alias that clients use; default: the last part of the path.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// `cpu:0`, `sim:0`; several with commas.
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub devices: Vec<String>,
    /// This node's id.
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// Where HTTP listens.
    #[arg(long, value_name = "HOST:PORT")]
    pub http_bind: Option<String>,
    /// NATS: external, managed (a child of this node) or off.
    #[arg(long, value_name = "MODE")]
    pub bus_mode: Option<String>,
    /// Where an external NATS is.
    #[arg(long, value_name = "URL")]
    pub bus_url: Option<String>,
    /// Any other key; may be given more than once.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigOptions {
    /// The layers, with the process's environment.
    pub fn sources(&self) -> Sources {
        let environment =
            std::env::vars().filter(|(name, _)| name.starts_with("INFERNO_")).collect();
        Sources { file: self.config.clone(), environment, flags: self.flags() }
    }

    fn flags(&self) -> Vec<String> {
        // Values that are names go in quotes, so that `1` stays a name.
        let text = |key: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("{key}={value:?}"))
        };
        let name = self.model_name.clone().or_else(|| {
            let path = self.model_path.as_ref()?;
            Some(
                path.trim_end_matches('/')
                    .rsplit('/')
                    .next()?
                    .to_lowercase()
                    .replace(['_', '.'], "-"),
            )
        });
        let devices =
            (!self.devices.is_empty()).then(|| format!("executor.devices={:?}", self.devices));
        [
            text("model.path", &self.model_path),
            text("model.name", &name),
            devices,
            text("node.id", &self.node_id),
            text("http.bind", &self.http_bind),
            text("bus.mode", &self.bus_mode),
            text("bus.url", &self.bus_url),
        ]
        .into_iter()
        .flatten()
        .chain(self.set.iter().cloned())
        .collect()
    }
}

/// Runs a node until it is told to end.
///
/// # Errors
/// What was wrong with the configuration, or why the node could not start.
pub fn serve(options: &ConfigOptions) -> Result<(), String> {
    let config = Config::load(&options.sources()).map_err(|error| error.to_string())?;
    crate::telemetry::init_tracing(&config.node.log);
    eprint!("{}", config.to_toml());
    let node = Node::start(config).map_err(|error| error.message)?;
    let runtime = runtime()?;
    runtime.block_on(run_until_signal(node))
}

async fn run_until_signal(node: Node) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| format!("signals: {error}"));
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut phase = node.phase();
    let mut failed = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = phase.changed() => match (changed, phase.borrow_and_update().clone()) {
                (Ok(()), Phase::Ready) => print_ready(&node),
                (Ok(()), Phase::Loading) => {}
                (Ok(()), Phase::Failed(error)) => {
                    failed = Some(error.message);
                    break;
                }
                (Err(_), _) => return Err("the node's thread ended".to_owned()),
            },
        }
    }
    tracing::info!("draining");
    let cut = node.shutdown().await;
    match failed {
        Some(message) => Err(message),
        None if cut > 0 => Err(format!("{cut} requests were cut at the end of the drain")),
        None => Ok(()),
    }
}

/// One line for scripts on standard output: where the node is, once it takes requests.
fn print_ready(node: &Node) {
    let mut line = format!("ready node={}", node.id());
    if let Some(address) = node.http() {
        line.push_str(&format!(" http=http://{address}"));
    }
    if let Some(url) = node.nats() {
        line.push_str(&format!(" nats={url}"));
    }
    println!("{line}");
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
}

/// Streams one completion from NATS to the terminal.
///
/// # Errors
/// Why there is no answer, or that it failed.
pub fn generate(args: GenerateArgs) -> Result<(), String> {
    runtime()?.block_on(crate::generate::run(args)).map_err(|error| error.to_string())
}

/// Prints the effective configuration.
///
/// # Errors
/// Every key at fault.
pub fn check(options: &ConfigOptions) -> Result<(), String> {
    let config = Config::load(&options.sources()).map_err(|error| error.to_string())?;
    print!("{}", config.to_toml());
    Ok(())
}
