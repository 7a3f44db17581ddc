//! `generation_config.json`: end tokens and sampling defaults of a checkpoint.

use std::path::Path;

use serde::Deserialize as _;

use super::fault::{CheckpointError, CheckpointFault};
use super::json_file::JsonFile;
use crate::error::Error;
use crate::request::{Fields, Params, Value};

/// Keys that change what is generated, unless they have this value, and that this engine does not have.
const NEUTRAL: &[(&str, f64)] = &[
    ("encoder_repetition_penalty", 1.0),
    ("length_penalty", 1.0),
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("guidance_scale", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("diversity_penalty", 0.0),
    ("min_length", 0.0),
    ("penalty_alpha", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
];

/// Keys that do the same without a neutral value but nothing, false, and an empty list.
const UNKNOWN_HERE: &[&str] = &[
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "forced_decoder_ids",
    "constraints",
    "stop_strings",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "max_time",
    "min_new_tokens",
    "renormalize_logits",
    "remove_invalid_values",
    "token_healing",
    "watermarking_config",
    "dola_layers",
    "prompt_lookup_num_tokens",
    "low_memory",
];

/// No sequence has more.
const MAX_NEW_TOKENS: u32 = i32::MAX as u32;

/// What the file says; everything is absent if there is no file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Replaces `config.json`'s end tokens where present.
    pub end_token_ids: Option<Vec<u32>>,
    /// For requests that do not say.
    pub defaults: Params,
    /// `max_new_tokens`: the length of completions of requests that do not say, as far as the context goes.
    pub default_length: Option<u32>,
    /// Keys that would change what is generated and are not honoured here, for the log.
    pub not_honoured: Vec<String>,
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
        Ok(Self {
            end_token_ids: file.token_ids("eos_token_id", vocab_size)?,
            defaults,
            default_length: file.size("max_new_tokens", MAX_NEW_TOKENS)?,
            not_honoured: not_honoured(&file),
        })
    }
}

fn not_honoured(file: &JsonFile) -> Vec<String> {
    let is_nothing = |value: &serde_json::Value| match value {
        serde_json::Value::Bool(value) => !value,
        serde_json::Value::Array(items) => items.is_empty(),
        serde_json::Value::Object(members) => members.is_empty(),
        _ => false,
    };
    let numbers = NEUTRAL.iter().filter(|(key, neutral)| {
        file.get(key).is_some_and(|value| !is_nothing(value) && value.as_f64() != Some(*neutral))
    });
    let others =
        UNKNOWN_HERE.iter().filter(|key| file.get(key).is_some_and(|value| !is_nothing(value)));
    numbers.map(|(key, _)| *key).chain(others.copied()).map(str::to_owned).collect()
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
