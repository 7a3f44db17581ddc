//! The command line: `serve`, `generate`, `resume`, `cancel`, `dead`, `nodes`, `config check`, `config docs`, `models random`,
//! `models inspect`, `models prompt`.

use std::process::ExitCode;

use clap::Parser;
use inferno_node::commands::{self, Cli, Command, ConfigCommand, ModelsCommand};

/// Small blocks come from one thread and go on another all the time, which glibc's allocator is slow at (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(options) => return commands::serve::serve(&options),
        Command::Generate(options) => commands::generate(options),
        Command::Resume(args) => commands::resume(args),
        Command::Cancel(args) => commands::cancel(args),
        Command::Dead { command } => commands::dead(command),
        Command::Nodes(args) => commands::nodes(args),
        Command::Config { command: ConfigCommand::Check(options) } => commands::check(&options),
        Command::Config { command: ConfigCommand::Docs } => commands::docs(),
        Command::Models { command: ModelsCommand::Random(args) } => commands::random(args),
        Command::Models { command: ModelsCommand::Inspect(args) } => commands::inspect(&args),
        Command::Models { command: ModelsCommand::Prompt(args) } => commands::prompt(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("inferno-node: {message}");
            ExitCode::FAILURE
        }
    }
}
