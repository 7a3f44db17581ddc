//! What a person sees meanwhile: a bar on a terminal, a log line for each tenth otherwise.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

const LOG_PARTS: u64 = 10;

pub(super) struct Meter {
    name: &'static str,
    total_bytes: u64,
    done_bytes: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Meter {
    pub(super) fn new(name: &'static str, total_bytes: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total_bytes).with_style(style).with_prefix(format!("writing {name}"))
        });
        Self { name, total_bytes, done_bytes: AtomicU64::new(0), bar }
    }

    /// So much more is written.
    pub(super) fn add(&self, bytes: u64) {
        let before = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        let part = |done: u64| (done * LOG_PARTS).checked_div(self.total_bytes).unwrap_or(0);
        match &self.bar {
            Some(bar) => bar.inc(bytes),
            None if part(before + bytes) > part(before) => tracing::info!(
                model = self.name,
                percent = part(before + bytes) * 100 / LOG_PARTS,
                total_mb = self.total_bytes / 1_000_000,
                "writing"
            ),
            None => {}
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    #[cfg(test)]
    pub(super) fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }
}
