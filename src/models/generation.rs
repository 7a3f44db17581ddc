//! `generation_config.json`: end tokens and sampling defaults of a checkpoint.

use std::path::Path;

use super::GenerationDefaults;
use super::fault::CheckpointError;
use super::json_file::JsonFile;

/// Keys that would change what is generated and that this engine does not have, with their neutral value.
const WITHOUT_EFFECT: &[(&str, f64)] = &[
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("length_penalty", 1.0),
    ("num_beams", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("penalty_alpha", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
];

/// What the file says; everything is absent if there is no file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Replaces `config.json`'s end tokens where present.
    pub end_token_ids: Option<Vec<u32>>,
    /// For requests that do not say.
    pub defaults: GenerationDefaults,
    /// What was found and has no effect here, for the log.
    pub notes: Vec<String>,
}

impl GenerationConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Names the key and says what was expected and what came.
    pub fn read(path: &Path, vocab_size: u32) -> Result<Self, CheckpointError> {
        let Some(file) = JsonFile::read_if_there(path)? else { return Ok(Self::default()) };
        let within = |key: &str, range: &str, holds: fn(f64) -> bool| match file.number(key)? {
            Some(number) if !holds(number) => Err(file.expected(key, range)),
            number => Ok(number.map(|number| number as f32)),
        };
        let mut defaults = GenerationDefaults {
            temperature: within("temperature", "0 to 2", |t| (0.0..=2.0).contains(&t))?,
            top_p: within("top_p", "above 0 to 1", |p| p > 0.0 && p <= 1.0)?,
            top_k: top_k(&file)?,
            min_p: within("min_p", "0 to 1", |p| (0.0..=1.0).contains(&p))?,
        };
        // Said, not just left out: greedy, whatever else stands there.
        if file.boolean("do_sample")? == Some(false) {
            defaults.temperature = Some(0.0);
        }
        let mut notes = Vec::new();
        for (key, neutral) in WITHOUT_EFFECT {
            if let Some(value) = file.number(key)?.filter(|value| value != neutral) {
                notes.push(format!("{}: {key} = {value} has no effect here", path.display()));
            }
        }
        Ok(Self { end_token_ids: file.token_ids("eos_token_id", vocab_size)?, defaults, notes })
    }
}

/// −1 is transformers' other way to say off.
fn top_k(file: &JsonFile) -> Result<Option<u32>, CheckpointError> {
    let Some(value) = file.get("top_k") else { return Ok(None) };
    if value.as_i64() == Some(-1) {
        return Ok(Some(0));
    }
    value
        .as_u64()
        .and_then(|k| u32::try_from(k).ok())
        .map(Some)
        .ok_or_else(|| file.expected("top_k", "a whole number from 0"))
}
