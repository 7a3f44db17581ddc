//! What the command line offers, and how its flags become configuration.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser, Subcommand};

use crate::checkpoint::random::{Like, RandomFormat, RandomOptions, Written};
use crate::checkpoint::{HubCache, Quantization, random};
use crate::config::{self, Config};
use crate::gpu;
use crate::memory::KvDtype;
use crate::models::inspect::{InspectedAs, devices_here};
use crate::models::prompts::Prompts;

mod bus_target;
pub mod dead;
pub mod durable;
pub mod generate;
pub mod nodes;
mod presence;
mod process;
pub mod serve;

use dead::DeadCommand;
use durable::{CancelArgs, ResumeArgs};
use generate::GenerateArgs;
use nodes::NodesArgs;
use process::{EndSignals, runtime};
use serve::ConfigOptions;

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
    /// Run a node until SIGTERM or SIGINT, then drain: `serve MODEL`.
    Serve(ConfigOptions),
    /// Publish a request on NATS and stream the answer to the terminal.
    Generate(GenerateArgs),
    /// Stream a durable request to the terminal, from its beginning or any of its tokens.
    Resume(ResumeArgs),
    /// Cancel a request, wherever it runs or waits.
    Cancel(CancelArgs),
    /// Look at durable requests that are not tried any more.
    Dead {
        /// What to do with them.
        #[command(subcommand)]
        command: DeadCommand,
    },
    /// List the nodes on one NATS: what they serve, how they are, how much room they have.
    Nodes(NodesArgs),
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
    #[command(visible_alias = "show")]
    Check(Box<ConfigOptions>),
    /// Print docs/configuration.md: every key with its type, default, limits, variable and flags.
    Docs,
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
    /// Writes the layers' matrices quantized, as checkpoints of that kind have them.
    #[arg(long, value_name = "FORMAT")]
    pub quantization: Option<RandomFormat>,
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
    /// A checkpoint's folder, a GGUF file, or a hub id found in the local Hugging Face cache.
    #[arg(value_name = "MODEL")]
    pub model_path: PathBuf,
    /// Reckon with sequences of this length; default: the model's context.
    #[arg(long, value_name = "TOKENS")]
    pub max_seq_len: Option<u32>,
    /// Reckon with a KV cache of this type.
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub kv_dtype: KvDtype,
    /// Reckon with the weights of a checkpoint in 16 bits held in this format.
    #[arg(long, value_name = "FORMAT")]
    pub quantization: Option<Quantization>,
    /// The same of the head.
    #[arg(long, value_name = "FORMAT")]
    pub quantization_head: Option<Quantization>,
    /// One JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// `models prompt`.
#[derive(Debug, Clone, Args)]
pub struct PromptArgs {
    /// A checkpoint's folder, a GGUF file, or a hub id found in the local Hugging Face cache.
    #[arg(value_name = "MODEL")]
    pub model_path: PathBuf,
}

/// Streams one completion from NATS to the terminal.
///
/// # Errors
/// Why there is no answer, or that it failed.
pub fn generate(args: GenerateArgs) -> Result<(), String> {
    runtime()?.block_on(generate::run(args)).map_err(|error| error.to_string())
}

/// Streams a durable request to the terminal.
///
/// # Errors
/// Why there is no answer, or that it failed.
pub fn resume(args: ResumeArgs) -> Result<(), String> {
    runtime()?.block_on(durable::resume(args)).map_err(|error| error.to_string())
}

/// Cancels a request.
///
/// # Errors
/// Why it is not cancelled.
pub fn cancel(args: CancelArgs) -> Result<(), String> {
    runtime()?.block_on(durable::cancel(args)).map_err(|error| error.to_string())
}

/// Looks at dead letters.
///
/// # Errors
/// Why it could not be done.
pub fn dead(command: DeadCommand) -> Result<(), String> {
    runtime()?.block_on(dead::run(command))
}

/// Lists the nodes on one NATS.
///
/// # Errors
/// Why they are not known.
pub fn nodes(args: NodesArgs) -> Result<(), String> {
    runtime()?.block_on(nodes::run(args))
}

/// Prints the effective configuration.
///
/// # Errors
/// Every key at fault.
pub fn check(options: &ConfigOptions) -> Result<(), String> {
    let config = Config::load(&options.sources()).map_err(|error| error.to_string())?;
    print_out(&config.to_toml())
}

/// Prints the page of all keys.
///
/// # Errors
/// Why it cannot be printed.
pub fn docs() -> Result<(), String> {
    print_out(&config::page())
}

/// Writes a random checkpoint; SIGINT and SIGTERM end it and leave nothing.
///
/// # Errors
/// What stood in the way.
pub fn random(args: RandomArgs) -> Result<(), String> {
    crate::telemetry::init_tracing("info");
    let RandomArgs { like, layers, quantization: format, seed, force, directory } = args;
    let options = RandomOptions { like, layers, format, seed, force };
    let stop = Arc::new(AtomicBool::new(false));
    let written = runtime()?.block_on(async {
        let (to, stopped) = (directory.clone(), Arc::clone(&stop));
        let mut signals = EndSignals::listen()?;
        let mut work = tokio::task::spawn_blocking(move || random::write(&to, &options, &stopped));
        let outcome = tokio::select! {
            outcome = &mut work => outcome,
            () = signals.next() => {
                stop.store(true, Ordering::Relaxed);
                work.await
            }
        };
        outcome.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    })?;
    print_written(&directory, &written)
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
    let wanted = InspectedAs {
        max_seq_len: args.max_seq_len,
        kv_dtype: args.kv_dtype,
        quantization: args.quantization,
        quantization_head: args.quantization_head,
    };
    let report = crate::models::inspect::inspect(&args.model_path, wanted, &hub, &devices)?;
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_flag_of_serve_is_about_a_key() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("is there");
        let name = |argument: &clap::Arg| match argument.get_long() {
            Some(long) => format!("--{long}"),
            None => argument.get_id().as_str().to_uppercase(),
        };
        let given: Vec<String> = serve.get_arguments().map(name).collect();
        let known = |flag: &str| config::FLAGS.iter().any(|(known, _)| *known == flag);
        let others = ["--config", "--set", "--help"];
        for flag in given.iter().filter(|flag| !others.contains(&flag.as_str())) {
            assert!(known(flag), "{flag} is in no line of FLAGS");
        }
        for (flag, key) in config::FLAGS {
            assert!(given.iter().any(|given| given == flag), "{flag}");
            assert!(config::keys().iter().any(|known| known.0.path == key), "{key}");
        }
        let help = serve.clone().render_help().to_string();
        assert!(help.contains("[MODEL]") && help.contains("cuda:0"), "{help}");
    }
}
