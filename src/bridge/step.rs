//! What stands in the arrays of a step, and how the plain ones are made.

use super::ffi;

/// In `next_token_ids`: there is none.
pub const NO_TOKEN: u32 = u32::MAX;

/// In `mask_rows`: every token may be sampled.
pub const NO_MASK: u32 = u32::MAX;

impl ffi::SamplerSpec {
    /// Draws from the model's own distribution, with seed 0.
    pub fn neutral() -> Self {
        Self { temperature: 1.0, top_p: 1.0, repetition_penalty: 1.0, ..Self::default() }
    }

    /// Takes the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::neutral() }
    }
}

impl ffi::StepOutput {
    /// The answer of a device that says no more than what it sampled, and that only where `sample` holds.
    pub fn of_tokens(token_ids: Vec<u32>, sample: &[bool]) -> Self {
        let status = |sample: &bool| match sample {
            true => ffi::RowStatus::Sampled,
            false => ffi::RowStatus::None,
        };
        Self {
            status: sample.iter().map(status).collect(),
            logprobs: vec![0.0; sample.len()],
            top_starts: vec![0; sample.len() + 1],
            score_starts: vec![0; sample.len() + 1],
            token_ids,
            ..Self::default()
        }
    }
}
