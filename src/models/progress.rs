//! What a person sees while a model loads: bars on a terminal, lines in a log otherwise.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::clock::Timestamp;
use crate::executor::{LoadProgress, LoadStage};
use crate::progress::Progress;

/// A log line comes so long after the last one: what loads in a moment has none.
const LOG_PAUSE: Duration = Duration::from_secs(10);

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
    /// The last log line, or the beginning.
    logged_at: Timestamp,
}

/// What is shown of one stage.
struct LoadMeter {
    verb: &'static str,
    template: &'static str,
    /// Bytes or steps done on each device.
    done: Vec<u64>,
    bar: Option<ProgressBar>,
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
        let meter =
            |verb, template| LoadMeter { verb, template, done: vec![0; num_devices], bar: None };
        let weights = "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        let meters = Meters {
            weights: meter("loading", weights),
            warm_up: meter("warming up", "{prefix} [{bar:30}] step {pos} of {len}"),
            logged_at: Timestamp::now(),
        };
        let (name, meters) = (name.to_owned(), Mutex::new(meters));
        Arc::new(Self { name, terminal, num_devices, meters, progress })
    }

    /// The callback for one device.
    pub(super) fn of_device(self: &Arc<Self>, index: usize) -> LoadProgress {
        let display = Arc::clone(self);
        Arc::new(move |stage| display.advance(index, stage, Timestamp::now()))
    }

    fn advance(&self, index: usize, stage: LoadStage, now: Timestamp) {
        self.progress.stamp(now);
        let mut meters = self.meters();
        let is_due = self.terminal.is_none() && meters.is_due(now);
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
            None if is_due => meter.log(&self.name, total),
            None => {}
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

impl Meters {
    /// Whether a log line may come; if so, the pause begins anew.
    fn is_due(&mut self, now: Timestamp) -> bool {
        let is_due = now.since(self.logged_at) >= LOG_PAUSE;
        if is_due {
            self.logged_at = now;
        }
        is_due
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

    fn log(&self, name: &str, total: u64) {
        tracing::info!(model = %name, percent = self.percent(total), total, "{}", self.verb);
    }

    fn percent(&self, total: u64) -> u64 {
        (self.sum() * 100).checked_div(total).unwrap_or(100)
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
    fn the_log_gets_a_line_every_ten_seconds_for_all_devices_together() {
        let display = Display::on("demo", 2, Progress::new(), None);
        let begin = display.meters().logged_at;
        let at = |seconds: u64| Timestamp::from_micros(begin.as_micros() + seconds * 1_000_000);
        display.advance(0, weights(50, 100), at(1));
        display.advance(1, weights(100, 100), at(2));
        let mut meters = display.meters();
        assert_eq!(meters.weights.percent(200), 75);
        assert!(!meters.is_due(at(9)) && meters.is_due(at(10)));
        assert!(!meters.is_due(at(19)) && meters.is_due(at(25)) && !meters.is_due(at(26)));
        drop(meters);
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
        assert_eq!(display.meters().weights.percent(0), 100);
    }
}
