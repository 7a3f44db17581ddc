//! `generation_config.json`: end tokens and sampling defaults of a checkpoint.

use std::path::Path;

use serde::Deserialize as _;

use super::fault::{CheckpointError, CheckpointFault};
use super::json_file::JsonFile;
use crate::error::Error;
use crate::request::{Fields, Params, Value};

/// Keys that would change what is generated and that this engine does not have, with their neutral value.
const WITHOUT_EFFECT: &[(&str, f64)] = &[
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
    pub defaults: Params,
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
        let wrong = |error: Error| {
            let key = error.param.unwrap_or_default();
            file.fault(CheckpointFault::Malformed, &key, error.message)
        };
        let mut defaults = Params::read(&mut sampler_fields(&file)).map_err(wrong)?;
        defaults.check(vocab_size).map_err(wrong)?;
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

/// The members of the file that are scalars of the sampler.
fn sampler_fields(file: &JsonFile) -> Fields<'static> {
    let member = |name: &&str| {
        // What JSON can hold, a value can.
        let value = Value::deserialize(file.get(name)?).ok()?;
        Some(((*name).to_owned(), value))
    };
    Fields::new(Params::SCALARS.iter().filter_map(member).collect(), "")
}
