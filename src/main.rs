//! The command line: `serve`, `generate`, `config check`, `config docs`, `models random`, `models inspect`, `models prompt`.

use std::process::ExitCode;

use clap::Parser;
use inferno_node::cli::{Cli, Command, ConfigCommand, ModelsCommand};

/// Small blocks come from one thread and go on another all the time, which glibc's allocator is slow at (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(options) => return inferno_node::serve::serve(&options),
        Command::Generate(options) => inferno_node::cli::generate(options),
        Command::Config { command: ConfigCommand::Check(options) } => {
            inferno_node::cli::check(&options)
        }
        Command::Config { command: ConfigCommand::Docs } => inferno_node::cli::docs(),
        Command::Models { command: ModelsCommand::Random(args) } => inferno_node::cli::random(args),
        Command::Models { command: ModelsCommand::Inspect(args) } => {
            inferno_node::cli::inspect(&args)
        }
        Command::Models { command: ModelsCommand::Prompt(args) } => {
            inferno_node::cli::prompt(&args)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("inferno-node: {message}");
            ExitCode::FAILURE
        }
    }
}
