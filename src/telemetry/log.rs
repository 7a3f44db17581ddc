//! Where the log goes, and what goes there.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The crate whose lines the levels are about.
const OWN: &str = "inferno_node";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What is held of a start, at most: some 500 lines.
const MAX_HELD_BYTES: usize = 64 << 10;

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
    init(filter, StartLines::default());
}

/// The same, but on a terminal lines are held until the start is over, so that what people read first is what they need; an error
/// lets them out.
pub fn init_tracing_of_start(filter: &str) -> HeldLog {
    let lines = StartLines::default();
    if io::stderr().is_terminal() {
        *lines.held() = Some(Vec::new());
    }
    init(filter, lines.clone());
    HeldLog(lines)
}

fn init(filter: &str, lines: StartLines) {
    let filter = log_filter(filter).unwrap_or_else(|_| EnvFilter::new("off,inferno_node=info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    let is_first = if io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().try_init()
    };
    if is_first.is_ok() && !io::stderr().is_terminal() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string);
            let text = panic.payload_as_str().unwrap_or("a payload that is no text");
            tracing::error!(place, "panic: {text}");
        }));
    }
}

/// The log of a start; dropped, it holds nothing any more.
pub struct HeldLog(StartLines);

impl Drop for HeldLog {
    fn drop(&mut self) {
        // Standard error that takes nothing has nobody to be told.
        let _ = self.0.release(&mut io::stderr());
    }
}

/// Standard error, and what is held back from it; none where nothing is held.
#[derive(Clone, Default)]
struct StartLines(Arc<Mutex<Option<Vec<u8>>>>);

impl StartLines {
    fn held(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        // Only whole lines are written under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is held; from now on lines go through.
    fn release(&self, to: &mut impl Write) -> io::Result<()> {
        let held = self.held().take();
        held.map_or(Ok(()), |held| to.write_all(&held))
    }

    /// Holds a line, or writes it.
    fn line(&self, line: &[u8], is_error: bool, to: &mut impl Write) -> io::Result<()> {
        if let Some(held) = self.held().as_mut()
            && !is_error
            && held.len() + line.len() <= MAX_HELD_BYTES
        {
            held.extend_from_slice(line);
            return Ok(());
        }
        self.release(to)?;
        to.write_all(line)
    }
}

impl MakeWriter<'_> for StartLines {
    type Writer = LineWriter;

    fn make_writer(&self) -> LineWriter {
        LineWriter { lines: self.clone(), is_error: true }
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> LineWriter {
        LineWriter { lines: self.clone(), is_error: *meta.level() == Level::ERROR }
    }
}

/// Takes one line, at once.
struct LineWriter {
    lines: StartLines,
    is_error: bool,
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.line(line, self.is_error, &mut io::stderr())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_start_are_held_until_it_is_over() {
        let (lines, mut out) = (StartLines(Arc::new(Mutex::new(Some(Vec::new())))), Vec::new());
        lines.line(b"a warning\n", false, &mut out).expect("written");
        assert_eq!(out, b"");
        lines.release(&mut out).expect("written");
        lines.line(b"later\n", false, &mut out).expect("written");
        assert_eq!(out, b"a warning\nlater\n");
    }

    #[test]
    fn an_error_and_too_many_lines_let_out_what_is_held() {
        for (line, is_error) in [(b"x".repeat(8), true), (b"x".repeat(MAX_HELD_BYTES), false)] {
            let (lines, mut out) = (StartLines(Arc::new(Mutex::new(Some(Vec::new())))), Vec::new());
            lines.line(b"held\n", false, &mut out).expect("written");
            lines.line(&line, is_error, &mut out).expect("written");
            assert_eq!(out, [b"held\n".as_slice(), &line].concat());
        }
    }

    /// What a subscriber wrote.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What an event's place remembers is said by all subscribers that there are: there is one at a time.
    static TURN: Mutex<()> = Mutex::new(());

    /// The targets of the events that a filter lets through; one event for each level of ours, of a part of ours, and of two others.
    fn let_through(filter: &str) -> Vec<String> {
        macro_rules! at_every_level {
            ($($target:literal),*) => {$(
                tracing::error!(target: $target, "said");
                tracing::warn!(target: $target, "said");
                tracing::info!(target: $target, "said");
                tracing::debug!(target: $target, "said");
                tracing::trace!(target: $target, "said");
            )*};
        }
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(log_filter(filter).expect("a filter"))
            .with_writer(move || writer.clone())
            .without_time()
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            at_every_level!(
                "inferno_node::bus",
                "inferno_node::request",
                "actix_http",
                "async_nats"
            );
        });
        let text = String::from_utf8(written.0.lock().expect("no panic").clone()).expect("UTF-8");
        let targets = text.lines().map(|line| line.trim().trim_end_matches(": said").to_owned());
        targets.collect()
    }

    const LEVELS_DOWN: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];

    /// Those lines that the first `count` levels of a target make.
    fn first_of(target: &str, count: usize) -> Vec<String> {
        LEVELS_DOWN[..count].iter().map(|level| format!("{level} {target}")).collect()
    }

    #[test]
    fn a_bare_level_is_of_this_crate_and_of_others_only_from_debug_on() {
        let counts = [("off", 0, 0), ("error", 1, 0), ("warn", 2, 0), ("info", 3, 0)];
        let counts = counts.into_iter().chain([("debug", 4, 4), ("TRACE", 5, 5)]);
        for (level, ours, others) in counts {
            let expected = [
                first_of("inferno_node::bus", ours),
                first_of("inferno_node::request", ours),
                first_of("actix_http", others),
            ];
            assert_eq!(let_through(level), expected.concat(), "{level}");
        }
    }

    #[test]
    fn a_directive_names_another_crate_or_a_part_of_this_one() {
        let info = [first_of("inferno_node::bus", 3), first_of("inferno_node::request", 3)];
        let nats = [info.concat(), first_of("async_nats", 2)].concat();
        assert_eq!(let_through("info,async_nats=warn"), nats);
        let without_requests = first_of("inferno_node::bus", 3);
        assert_eq!(let_through("info, inferno_node::request=off"), without_requests);
        assert_eq!(let_through("actix_http=error"), first_of("actix_http", 1));
        let all = [first_of("inferno_node::bus", 4), first_of("inferno_node::request", 4)];
        let all = [all.concat(), first_of("actix_http", 4), first_of("async_nats", 4)].concat();
        assert_eq!(let_through("debug,async_nats=debug"), all);
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_one_is() {
        for text in ["loud", "", "info,", "inferno_node=", "info,a=b"] {
            let why = log_filter(text).expect_err(text);
            let expected = "expected off, error, warn, info, debug, trace, or target=level";
            assert!(why.starts_with(expected) && why.ends_with(&format!("{text:?}")), "{why}");
        }
    }
}
