//! `inferno-node dead`: durable requests that are not tried any more.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Subcommand;

use super::bus_target::{BusArgs, BusTarget};
use super::generate::GenerateError;
use super::{presence, print_out};
use crate::bus::client::Client;

/// How long NATS may take.
const WAIT: Duration = Duration::from_secs(10);

/// What can be done with them.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadCommand {
    /// All of them, a line each.
    List(DeadList),
    /// One, with its request.
    Show(DeadNumber),
    /// Publish its request afresh, under a new id.
    Requeue(DeadNumber),
    /// Let go of it.
    Drop(DeadNumber),
}

/// `dead list`.
#[derive(Debug, Clone, clap::Args)]
pub struct DeadList {
    /// Where NATS is
    #[command(flatten)]
    pub bus: BusArgs,
}

/// A dead letter.
#[derive(Debug, Clone, clap::Args)]
pub struct DeadNumber {
    /// Its number, as `dead list` has it
    pub number: u64,
    /// Where NATS is
    #[command(flatten)]
    pub bus: BusArgs,
}

/// Runs the command; gives what it prints.
async fn outcome(command: &DeadCommand) -> Result<String, GenerateError> {
    Ok(match command {
        DeadCommand::List(list) => {
            let mut lines = String::new();
            for letter in connect(&list.bus).await?.dead_letters().await? {
                let id = letter.request_id.as_deref().unwrap_or("-");
                // Memory has room.
                let _ =
                    writeln!(lines, "{}  {}  {id}  {}", letter.number, letter.model, letter.reason);
            }
            lines
        }
        DeadCommand::Show(one) => {
            let letter = connect(&one.bus).await?.dead_letter(one.number).await?;
            let json = serde_json::to_string_pretty(&letter).unwrap_or_default();
            format!("{json}\n")
        }
        DeadCommand::Requeue(one) => {
            let id = connect(&one.bus).await?.requeue(one.number).await?;
            format!("{} goes on as {id}\n", one.number)
        }
        DeadCommand::Drop(one) => {
            connect(&one.bus).await?.drop_dead_letter(one.number).await?;
            format!("{} is gone\n", one.number)
        }
    })
}

/// Runs the command.
///
/// # Errors
/// Why it could not be done.
pub async fn run(command: DeadCommand) -> Result<(), String> {
    print_out(&outcome(&command).await.map_err(|error| error.to_string())?)
}

async fn connect(bus: &BusArgs) -> Result<Client, GenerateError> {
    let target = BusTarget::choose(bus, None, &presence::find());
    Ok(target.connect(bus, WAIT).await?)
}
