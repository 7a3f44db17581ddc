//! What a step costs on a device: a file of numbers, by which `sim` takes its time, so that a cluster can be tried on a laptop; on
//! every device they are fitted while it runs ([`CostFit`](super::CostFit)).

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bridge::ffi::StepBatch;
use crate::memory::ByteSize;

/// What of a step takes time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepWork {
    /// Sequences that decode (one query token).
    pub decodes: u32,
    /// Tokens of prompt chunks.
    pub prompt_tokens: u32,
    /// Positions of context that are attended to, over all sequences.
    pub context: u64,
}

impl StepWork {
    /// What is in a batch.
    pub fn of(batch: &StepBatch) -> Self {
        let mut work = Self::default();
        for (query_len, context_len) in batch.query_lens.iter().zip(&batch.context_lens) {
            work.add(*query_len, *context_len);
        }
        work
    }

    /// One more sequence.
    pub fn add(&mut self, query_len: u32, context_len: u32) {
        match query_len {
            1 => self.decodes += 1,
            tokens => self.prompt_tokens += tokens,
        }
        self.context += u64::from(context_len);
    }
}

/// The file that `executor.sim_cost_model` names, TOML or JSON by its ending. Every key is optional; all absent costs nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CostModel {
    /// Microseconds of every step, however small (the time to read the weights).
    pub step_us: f64,
    /// Microseconds for each sequence that decodes (one query token).
    pub decode_us_per_sequence: f64,
    /// Microseconds for each token of a prompt chunk.
    pub prefill_us_per_token: f64,
    /// Microseconds for each 1,000 positions of context that are attended to, over all sequences.
    pub context_us_per_1k: f64,
    /// Milliseconds that loading a model takes.
    pub load_ms: f64,
    /// KV blocks of each model; absent: as many as its KV cache would hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_blocks: Option<u32>,
    /// Memory of the device, bytes or `"80GiB"`; absent: the pool size that the node has worked out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Length of a whole sequence, prompt included, at which the end token is sampled; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_after: Option<u32>,
}

impl Default for CostModel {
    fn default() -> Self {
        Self {
            step_us: 0.0,
            decode_us_per_sequence: 0.0,
            prefill_us_per_token: 0.0,
            context_us_per_1k: 0.0,
            load_ms: 0.0,
            num_blocks: None,
            memory: None,
            end_after: None,
        }
    }
}

impl CostModel {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Names file and key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let named = |error: String| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        let model: Self = if path.extension().is_some_and(|ending| ending == "json") {
            serde_json::from_str(&text).map_err(|error| named(error.to_string()))?
        } else {
            toml::from_str(&text).map_err(|error| named(error.to_string()))?
        };
        model.check().map_err(named)?;
        Ok(model)
    }

    fn check(&self) -> Result<(), String> {
        for (key, value) in self.of_step().into_iter().chain([("load_ms", self.load_ms)]) {
            // An hour is beyond anything meant; it also keeps sums inside a Duration.
            if !(0.0..=3.6e9).contains(&value) {
                return Err(format!("{key}: expected 0 to 3600000000, got {value}"));
            }
        }
        if self.num_blocks == Some(0) {
            return Err("num_blocks: expected at least 1, got 0".to_owned());
        }
        Ok(())
    }

    /// The time of one step.
    pub fn step_time(&self, batch: &StepBatch) -> Duration {
        Duration::from_nanos((self.micros(&StepWork::of(batch)) * 1e3) as u64)
    }

    /// The time of so much work, in microseconds.
    pub fn micros(&self, work: &StepWork) -> f64 {
        self.step_us
            + self.decode_us_per_sequence * f64::from(work.decodes)
            + self.prefill_us_per_token * f64::from(work.prompt_tokens)
            + self.context_us_per_1k * work.context as f64 / 1000.0
    }

    /// What a step costs, by the file's keys.
    pub fn of_step(&self) -> [(&'static str, f64); 4] {
        [
            ("step_us", self.step_us),
            ("decode_us_per_sequence", self.decode_us_per_sequence),
            ("prefill_us_per_token", self.prefill_us_per_token),
            ("context_us_per_1k", self.context_us_per_1k),
        ]
    }

    /// The time of loading a model.
    pub fn load_time(&self) -> Duration {
        Duration::from_nanos((self.load_ms * 1e6) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_costs_by_its_sequences_and_tokens() {
        let model = CostModel {
            step_us: 100.0,
            decode_us_per_sequence: 10.0,
            prefill_us_per_token: 1.0,
            context_us_per_1k: 2.0,
            ..CostModel::default()
        };
        let batch = StepBatch {
            query_lens: vec![1, 1, 50],
            context_lens: vec![1000, 900, 100],
            ..StepBatch::default()
        };
        assert_eq!(model.step_time(&batch), Duration::from_micros(100 + 20 + 50 + 4));
        assert_eq!(CostModel::default().step_time(&batch), Duration::ZERO);
        assert_eq!(CostModel::default().load_time(), Duration::ZERO);
    }

    #[test]
    fn the_examples_are_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sim");
        let zero = CostModel::read(&root.join("zero.toml")).expect("reads");
        assert_eq!(zero.step_time(&StepBatch::default()), Duration::ZERO);
        let h200 = CostModel::read(&root.join("h200-8b.toml")).expect("reads");
        let eight =
            StepBatch { query_lens: vec![1; 8], context_lens: vec![1; 8], ..StepBatch::default() };
        assert!(h200.step_time(&eight) > Duration::from_millis(3));
    }

    #[test]
    fn bad_files_are_refused_with_file_and_key() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text, part) in [
            ("a.toml", "step_us = -1", "step_us"),
            ("b.json", "{\"load_ms\": 1e300}", "load_ms"),
            ("c.toml", "speed = 1", "speed"),
            ("d.json", "{", "d.json"),
            ("e.toml", "num_blocks = 0", "num_blocks"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("writes");
            let error = CostModel::read(&path).expect_err(name);
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
        assert!(CostModel::read(&dir.path().join("absent.toml")).is_err());
    }
}
