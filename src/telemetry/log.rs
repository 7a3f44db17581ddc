//! Where the log goes, and what goes there.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The crate whose lines the levels are about.
const OWN: &str = "inferno_node";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The filter of `node.log`: a level, or directives joined by commas, as `RUST_LOG` has them. A bare level is this crate's; of other
/// crates there is something only at `debug` and `trace`, or where a directive names them: what they report is said by this crate,
/// and a client must not be able to fill the log through them.
///
/// # Errors
/// What was expected and what came.
pub fn log_filter(text: &str) -> Result<EnvFilter, String> {
    let wrong = || {
        let levels = LEVELS.join(", ");
        format!("expected {levels}, or target=level, joined by commas; got {text:?}")
    };
    let mut directives = vec!["off".to_owned()];
    for directive in text.split(',').map(str::trim) {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        let lower = level.to_ascii_lowercase();
        if !LEVELS.contains(&lower.as_str()) {
            return Err(wrong());
        }
        if directive.contains('=') {
            directives.push(directive.to_owned());
            continue;
        }
        directives.push(format!("{OWN}={lower}"));
        if ["debug", "trace"].contains(&lower.as_str()) {
            directives[0] = lower;
            // It has a line for every try to connect, and what it reports the bus says once.
            directives.insert(1, "async_nats=off".to_owned());
        }
    }
    EnvFilter::try_new(directives.join(",")).map_err(|_| wrong())
}

/// Logs to standard error, filtered by `filter` (see [`log_filter`]): text on a terminal, JSON lines otherwise, panics among them. The
/// first caller decides; a later call changes nothing.
pub fn init_tracing(filter: &str) {
    let filter = log_filter(filter).unwrap_or_else(|_| EnvFilter::new("off,inferno_node=info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let is_first = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().try_init()
    };
    if is_first.is_ok() && !std::io::stderr().is_terminal() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string);
            let text = panic.payload_as_str().unwrap_or("a payload that is no text");
            tracing::error!(place, "panic: {text}");
        }));
    }
}
