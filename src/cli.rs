//! What the command line offers, and how its flags become configuration.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser, Subcommand};

use crate::checkpoint::random::{Like, RandomOptions, Written};
use crate::checkpoint::{HubCache, random};
use crate::config::{Config, Sources};
use crate::generate::GenerateArgs;
use crate::gpu;
use crate::models::inspect::devices_here;
use crate::models::prompts::Prompts;
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
    /// Make or look at a checkpoint.
    Models {
        /// What to do with it.
        #[command(subcommand)]
        command: ModelsCommand,
    },
}

/// What can be done with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check it whole and print the effective one, secrets hidden; fails naming every key at fault.
    Check(ConfigOptions),
}

/// What can be done with checkpoints.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Write a whole checkpoint of a family's true shape with random weights, for benchmarks and trials.
    Random(RandomArgs),
    /// Print what a checkpoint is, what it needs, and on which device of this machine it fits.
    Inspect(InspectArgs),
    /// Answer JSON lines: the prompt that a checkpoint makes of `messages`, the tokens of a `text`, the text of `token_ids`.
    Prompt(PromptArgs),
}

/// `models random`.
#[derive(Debug, Clone, Args)]
pub struct RandomArgs {
    /// The model whose shape the checkpoint gets.
    #[arg(long, value_name = "MODEL")]
    pub like: Like,
    /// Fewer layers than the model has, for tests and small machines.
    #[arg(long, value_name = "N")]
    pub layers: Option<u32>,
    /// The same seed gives the same weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Write into a directory that is not empty: a checkpoint there is replaced, other files stay.
    #[arg(long)]
    pub force: bool,
    /// Where to; made if need be.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `models inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Checkpoint directory, or a hub id found in the local Hugging Face cache.
    #[arg(value_name = "DIR")]
    pub model_path: PathBuf,
    /// Reckon with sequences of this length; default: the model's context.
    #[arg(long, value_name = "TOKENS")]
    pub max_seq_len: Option<u32>,
    /// One JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// `models prompt`.
#[derive(Debug, Clone, Args)]
pub struct PromptArgs {
    /// Checkpoint directory, or a hub id found in the local Hugging Face cache.
    #[arg(value_name = "DIR")]
    pub model_path: PathBuf,
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
    raise_open_files();
    let node = Node::start(config).map_err(|error| error.message)?;
    let runtime = runtime()?;
    runtime.block_on(run_until_signal(node))
}

/// As many open files as the system lets this process have: systems give 1,024 unless asked, for the sake of programs that use `select`.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays");
    }
}

async fn run_until_signal(node: Node) -> Result<(), String> {
    let mut signal = std::pin::pin!(end_signal()?);
    let mut phase = node.phase();
    let mut failed = None;
    loop {
        tokio::select! {
            () = &mut signal => break,
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
    let again = end_signal()?;
    let cut = tokio::select! {
        cut = node.shutdown() => cut.map_err(|error| error.message)?,
        // Who asks twice does not want to wait: not for the threads, either, which dropping the node would.
        () = again => {
            eprintln!("inferno-node: a second signal: ended at once");
            std::process::exit(1);
        }
    };
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

/// Writes a random checkpoint; SIGINT and SIGTERM end it and leave nothing.
///
/// # Errors
/// What stood in the way.
pub fn random(args: RandomArgs) -> Result<(), String> {
    crate::telemetry::init_tracing("info");
    let RandomArgs { like, layers, seed, force, directory } = args;
    let options = RandomOptions { like, layers, seed, force };
    let stop = Arc::new(AtomicBool::new(false));
    let written = runtime()?.block_on(async {
        let (to, stopped) = (directory.clone(), Arc::clone(&stop));
        let signal = end_signal()?;
        let mut work = tokio::task::spawn_blocking(move || random::write(&to, &options, &stopped));
        let outcome = tokio::select! {
            outcome = &mut work => outcome,
            () = signal => {
                stop.store(true, Ordering::Relaxed);
                work.await
            }
        };
        outcome.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    })?;
    print_written(&directory, &written)
}

/// Resolves at the first SIGINT or SIGTERM; both are caught from now on.
fn end_signal() -> Result<impl Future<Output = ()>, String> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| format!("signals: {error}"));
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn print_written(directory: &std::path::Path, written: &Written) -> Result<(), String> {
    let gigabytes = written.bytes as f64 / 1e9;
    let seconds = written.elapsed.as_secs_f64();
    let line = format!(
        "{}: {} parameters, {gigabytes:.2} GB in {} safetensors, {seconds:.1} s ({:.2} GB/s)\n",
        directory.display(),
        written.parameters,
        written.num_shards,
        gigabytes / seconds
    );
    print_out(&line)
}

/// Prints what a checkpoint is and needs.
///
/// # Errors
/// What loading it would say.
pub fn inspect(args: &InspectArgs) -> Result<(), String> {
    let devices = devices_here();
    let hub = HubCache::from_env();
    let report =
        crate::models::inspect::inspect(&args.model_path, args.max_seq_len, &hub, &devices)?;
    if let Some(reason) = gpu::why_none() {
        eprintln!("no GPU: {reason}");
    }
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        print_out(&format!("{json}\n"))
    } else {
        print_out(&report.to_string())
    }
}

/// Answers the questions of standard input.
///
/// # Errors
/// What is wrong with the checkpoint's tokenizer or chat template.
pub fn prompt(args: &PromptArgs) -> Result<(), String> {
    let prompts = Prompts::open(&args.model_path, &HubCache::from_env())?;
    match prompts.answer(std::io::stdin().lock(), &mut std::io::stdout().lock()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// A reader that has seen enough (`| head`) is no fault of ours.
fn print_out(text: &str) -> Result<(), String> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("standard output: {error}"))
        }
        _ => Ok(()),
    }
}
