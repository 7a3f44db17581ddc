//! What a person sees while a model loads: a bar on a terminal, lines in a log otherwise.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock::Timestamp;
use crate::executor::LoadProgress;
use crate::health::Progress;

/// Log lines come at each of these parts of the whole.
const LOG_PARTS: u64 = 10;

/// One model's load, over all its devices.
pub(super) struct Display {
    name: String,
    total_bytes: u64,
    /// Bytes done on each device.
    done: Mutex<Vec<u64>>,
    bar: Option<ProgressBar>,
    logged: AtomicU64,
    /// The models actor's cell: a load that moves is no stall.
    progress: Progress,
}

impl Display {
    /// For `bytes` on each of `num_devices`; a bar if standard error is a terminal.
    pub(super) fn new(name: &str, bytes: u64, num_devices: usize, progress: Progress) -> Arc<Self> {
        Self::on(name, bytes, num_devices, progress, std::io::stderr().is_terminal())
    }

    fn on(
        name: &str,
        bytes: u64,
        num_devices: usize,
        progress: Progress,
        terminal: bool,
    ) -> Arc<Self> {
        let total_bytes = bytes.saturating_mul(num_devices as u64);
        let bar = terminal.then(|| {
            let style = ProgressStyle::with_template(
                "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total_bytes).with_style(style).with_prefix(format!("loading {name}"))
        });
        Arc::new(Self {
            name: name.to_owned(),
            total_bytes,
            done: Mutex::new(vec![0; num_devices]),
            bar,
            logged: AtomicU64::new(0),
            progress,
        })
    }

    /// The callback for one device.
    pub(super) fn of_device(self: &Arc<Self>, index: usize) -> LoadProgress {
        let display = Arc::clone(self);
        Arc::new(move |done, _| {
            let sum = {
                // Only whole numbers are written under the lock.
                let mut all = display.done.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(slot) = all.get_mut(index) {
                    *slot = done;
                }
                all.iter().sum()
            };
            display.advance(sum);
        })
    }

    fn advance(&self, done: u64) {
        self.progress.stamp(Timestamp::now());
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None => {
                let part = (done * LOG_PARTS).checked_div(self.total_bytes).unwrap_or(LOG_PARTS);
                if self.logged.fetch_max(part, Ordering::Relaxed) < part {
                    tracing::info!(
                        model = %self.name,
                        percent = part * 100 / LOG_PARTS,
                        total_mb = self.total_bytes / 1_000_000,
                        "loading"
                    );
                }
            }
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_gets_a_line_for_each_tenth_of_all_devices() {
        let display = Display::on("demo", 100, 2, Progress::new(), false);
        let (a, b) = (display.of_device(0), display.of_device(1));
        a(50, 100);
        assert_eq!(display.logged.load(Ordering::Relaxed), 2);
        b(100, 100);
        a(40, 100);
        assert_eq!(display.logged.load(Ordering::Relaxed), 7);
        a(100, 100);
        assert_eq!(display.logged.load(Ordering::Relaxed), 10);
        display.finish();
    }

    #[test]
    fn a_bar_follows_on_a_terminal() {
        let display = Display::on("demo", 100, 1, Progress::new(), true);
        display.of_device(0)(30, 100);
        assert_eq!(display.bar.as_ref().map(ProgressBar::position), Some(30));
        display.finish();
    }

    #[test]
    fn nothing_to_copy_is_all_done() {
        let display = Display::on("demo", 0, 1, Progress::new(), false);
        display.of_device(0)(0, 0);
        assert_eq!(display.logged.load(Ordering::Relaxed), LOG_PARTS);
    }
}
