//! What a person sees while a model loads: bars on a terminal, lines in a log otherwise.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::clock::Timestamp;
use crate::executor::{LoadProgress, LoadStage};
use crate::progress::Progress;

/// Log lines come at each of these parts of the whole.
const LOG_PARTS: u64 = 10;

/// One model's load, over all its devices.
pub(super) struct Display {
    name: String,
    /// Where bars are drawn; `None`: there are log lines.
    terminal: Option<MultiProgress>,
    num_devices: usize,
    /// Locked for a moment by one executor's thread at a time.
    meters: Mutex<Meters>,
    /// The models actor's cell: a load that moves is no stall.
    progress: Progress,
}

struct Meters {
    weights: LoadMeter,
    warm_up: LoadMeter,
}

/// What is shown of one stage.
struct LoadMeter {
    verb: &'static str,
    template: &'static str,
    /// Bytes or steps done on each device.
    done: Vec<u64>,
    bar: Option<ProgressBar>,
    logged: u64,
}

impl Display {
    /// For a load on `num_devices`; with bars if standard error is a terminal.
    pub(super) fn new(name: &str, num_devices: usize, progress: Progress) -> Arc<Self> {
        let terminal = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self::on(name, num_devices, progress, terminal)
    }

    fn on(
        name: &str,
        num_devices: usize,
        progress: Progress,
        terminal: Option<MultiProgress>,
    ) -> Arc<Self> {
        let meter = |verb, template| LoadMeter {
            verb,
            template,
            done: vec![0; num_devices],
            bar: None,
            logged: 0,
        };
        let weights = "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        let meters = Meters {
            weights: meter("loading", weights),
            warm_up: meter("warming up", "{prefix} [{bar:30}] step {pos} of {len}"),
        };
        let (name, meters) = (name.to_owned(), Mutex::new(meters));
        Arc::new(Self { name, terminal, num_devices, meters, progress })
    }

    /// The callback for one device.
    pub(super) fn of_device(self: &Arc<Self>, index: usize) -> LoadProgress {
        let display = Arc::clone(self);
        Arc::new(move |stage| display.advance(index, stage))
    }

    fn advance(&self, index: usize, stage: LoadStage) {
        self.progress.stamp(Timestamp::now());
        let mut meters = self.meters();
        let (meter, done, total) = match stage {
            LoadStage::Weights { done_bytes, total_bytes } => {
                (&mut meters.weights, done_bytes, total_bytes)
            }
            LoadStage::WarmUp { done_steps, total_steps } => {
                (&mut meters.warm_up, done_steps.into(), total_steps.into())
            }
        };
        if let Some(slot) = meter.done.get_mut(index) {
            *slot = done;
        }
        let total = total * self.num_devices as u64;
        match &self.terminal {
            Some(terminal) => meter.draw(&self.name, total, terminal),
            None => meter.log(&self.name, total),
        }
    }

    /// Takes the bars away.
    pub(super) fn finish(&self) {
        let meters = self.meters();
        for bar in [&meters.weights.bar, &meters.warm_up.bar].into_iter().flatten() {
            bar.finish_and_clear();
        }
    }

    fn meters(&self) -> std::sync::MutexGuard<'_, Meters> {
        // Only numbers are written under the lock, which are whole after a panic too.
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LoadMeter {
    fn sum(&self) -> u64 {
        self.done.iter().sum()
    }

    fn draw(&mut self, name: &str, total: u64, terminal: &MultiProgress) {
        let done = self.sum();
        let (verb, template) = (self.verb, self.template);
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style);
            terminal.add(bar.with_prefix(format!("{verb} {name}")))
        });
        bar.set_position(done);
    }

    fn log(&mut self, name: &str, total: u64) {
        let part = (self.sum() * LOG_PARTS).checked_div(total).unwrap_or(LOG_PARTS);
        if self.logged < part {
            self.logged = part;
            tracing::info!(model = %name, percent = part * 100 / LOG_PARTS, total, "{}", self.verb);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(done_bytes: u64, total_bytes: u64) -> LoadStage {
        LoadStage::Weights { done_bytes, total_bytes }
    }

    fn warm_up(done_steps: u32, total_steps: u32) -> LoadStage {
        LoadStage::WarmUp { done_steps, total_steps }
    }

    #[test]
    fn the_log_gets_a_line_for_each_tenth_of_all_devices() {
        let display = Display::on("demo", 2, Progress::new(), None);
        let (a, b) = (display.of_device(0), display.of_device(1));
        let logged = || {
            let meters = display.meters();
            (meters.weights.logged, meters.warm_up.logged)
        };
        a(weights(50, 100));
        assert_eq!(logged(), (2, 0));
        b(weights(100, 100));
        a(weights(40, 100));
        assert_eq!(logged(), (7, 0));
        a(weights(100, 100));
        b(warm_up(20, 40));
        assert_eq!(logged(), (10, 2));
        display.finish();
    }

    #[test]
    fn a_bar_for_each_stage_follows_on_a_terminal() {
        let display = Display::on("demo", 1, Progress::new(), Some(MultiProgress::new()));
        let of_device = display.of_device(0);
        let shown = |bar: &Option<ProgressBar>| bar.as_ref().map(ProgressBar::position);
        of_device(weights(30, 100));
        assert_eq!(shown(&display.meters().weights.bar), Some(30));
        assert_eq!(shown(&display.meters().warm_up.bar), None);
        of_device(warm_up(3, 37));
        assert_eq!(shown(&display.meters().warm_up.bar), Some(3));
        assert_eq!(display.meters().warm_up.bar.as_ref().and_then(ProgressBar::length), Some(37));
        display.finish();
    }

    #[test]
    fn nothing_to_copy_is_all_done() {
        let display = Display::on("demo", 1, Progress::new(), None);
        display.of_device(0)(weights(0, 0));
        assert_eq!(display.meters().weights.logged, LOG_PARTS);
    }
}
