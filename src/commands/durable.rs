//! Commands about durable requests: `generate --durable`, `resume`, `cancel`.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bus_target::{BusArgs, BusTarget};
use super::generate::{Figures, GenerateError, finish};
use super::presence;
use crate::bus::client::{Client, ClientError, DurableStream, id_of};
use crate::ids::RequestId;

/// `resume`.
#[derive(Debug, Clone, clap::Args)]
pub struct ResumeArgs {
    /// The request's id
    pub id: String,
    /// So many tokens of it are known: it goes on with the next
    #[arg(long, default_value_t = 0)]
    pub from: u32,
    /// Where NATS is
    #[command(flatten)]
    pub bus: BusArgs,
    /// Longest wait for the next event, in seconds
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
    /// No figures at the end
    #[arg(long, short)]
    pub quiet: bool,
}

/// `cancel`.
#[derive(Debug, Clone, clap::Args)]
pub struct CancelArgs {
    /// The request's id
    pub id: String,
    /// Where NATS is
    #[command(flatten)]
    pub bus: BusArgs,
    /// Longest wait for the answer, in seconds
    #[arg(long, default_value_t = 10)]
    pub timeout: u64,
}

/// Publishes a durable request and writes its text as it comes.
pub(super) async fn generate(
    client: &Client,
    model: &str,
    mut body: Value,
    is_quiet: bool,
) -> Result<(), GenerateError> {
    let id = id_of(&mut body)?;
    let asked_at = Instant::now();
    let mut stream = client.follow(&id, 0).await?;
    client.publish_durable(model, &body).await?;
    if !is_quiet {
        eprintln!("[{id}]");
    }
    write(&mut stream, &id, asked_at, is_quiet).await
}

/// Writes what a durable request says, from some token on.
///
/// # Errors
/// See [`GenerateError`].
pub async fn resume(args: ResumeArgs) -> Result<(), GenerateError> {
    let id = RequestId::parse(&args.id).map_err(ClientError::Refused)?;
    let client = connect(&args.bus, args.timeout).await?;
    let mut stream = client.follow(&id, args.from).await?;
    write(&mut stream, &id, Instant::now(), args.quiet).await
}

/// Cancels a request, durable or not, wherever it runs or waits.
///
/// # Errors
/// See [`GenerateError`].
pub async fn cancel(args: CancelArgs) -> Result<(), GenerateError> {
    let id = RequestId::parse(&args.id).map_err(ClientError::Refused)?;
    let answer = connect(&args.bus, args.timeout).await?.cancel_anywhere(&id).await?;
    let what = if answer.cancelled { "cancelled" } else { "had ended" };
    println!("{} {what} after {} tokens", answer.request_id, answer.tokens);
    Ok(())
}

async fn connect(bus: &BusArgs, seconds: u64) -> Result<Client, GenerateError> {
    let target = BusTarget::choose(bus, None, &presence::find());
    Ok(target.connect(bus, Duration::from_secs(seconds)).await?)
}

/// Ctrl-C ends the writing, not the request.
async fn write(
    stream: &mut DurableStream,
    id: &RequestId,
    asked_at: Instant,
    is_quiet: bool,
) -> Result<(), GenerateError> {
    let mut figures = Figures::new(asked_at, id.as_str());
    let mut out = std::io::stdout();
    loop {
        let event = tokio::select! {
            event = stream.next() => event?,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                out.write_all(b"\n")?;
                let from = figures.tokens;
                eprintln!("[{id} goes on; `inferno-node resume {id} --from {from}` or `cancel {id}`]");
                return Ok(());
            }
        };
        // One that had ended before: there is nothing to add.
        let Some(event) = event else { return Ok(()) };
        figures.count(&event);
        out.write_all(event.text.as_bytes())?;
        if event.is_last() {
            out.write_all(b"\n")?;
        }
        out.flush()?;
        if event.is_last() {
            return finish(&event, &figures, is_quiet);
        }
    }
}
