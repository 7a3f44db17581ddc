//! Generation parameters: one table of what they are called, which values they take, and where they go.
//!
//! A scalar of the sampler is added by its row here, its field of [`SamplerSpec`], what the engine does with it, and its line in
//! docs/parameters.md with a test. Doors, checkpoint defaults, admission's check and the way to the seat follow from the row.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::rule::{Field, Rule};
use super::{Fields, LogprobsMode, Value};
use crate::bridge::ffi::{SamplerSpec, TokenBias};
use crate::error::{Error, Result};

/// Makes [`Params`] of rows `name: type, rule`. A row that ends with `sampler x` goes to the field of [`SamplerSpec`] with its
/// name, with `x` (which changes nothing) where nobody gives a value.
macro_rules! params {
    ($($(#[$doc:meta])* $name:ident: $type:ty, $rule:expr $(, sampler $neutral:expr)?;)*) => {
        /// Generation parameters as they were given; an absent one takes the checkpoint's or the node's default.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct Params {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Params {
            /// The names of all parameters.
            pub const FIELDS: &[&str] = &[$(stringify!($name)),*];

            /// The scalars of the sampler: a checkpoint may say them, too.
            pub const SCALARS: &[&str] = &[$($({ let _ = $neutral; stringify!($name) },)?)*];

            /// Takes every parameter from an object. Types are judged here, ranges by [`Params::check`].
            ///
            /// # Errors
            /// `invalid`, naming the member.
            pub fn read(fields: &mut Fields) -> Result<Self> {
                Ok(Self { $($name: take(fields, stringify!($name), &$rule)?,)* })
            }

            /// Those that were given, by name, as a client writes them.
            pub fn write(&self) -> Value {
                let mut members = Vec::new();
                $(if self.$name != <$type>::default() {
                    members.push((stringify!($name).to_owned(), self.$name.write()));
                })*
                Value::Map(members)
            }

            /// These, and for absent ones `defaults`.
            #[must_use]
            pub fn or(mut self, defaults: &Params) -> Self {
                $(if self.$name == <$type>::default() {
                    self.$name.clone_from(&defaults.$name);
                })*
                self
            }

            fn check_ranges(&self, vocab_size: u32) -> Result<()> {
                $(
                    let wrong = |message: String| Error::invalid(stringify!($name), message);
                    self.$name.check(&$rule, vocab_size).map_err(wrong)?;
                )*
                Ok(())
            }

            fn scalars(&self) -> SamplerSpec {
                SamplerSpec {
                    $($($name: self.$name.unwrap_or($neutral),)?)*
                    ..SamplerSpec::default()
                }
            }
        }
    };
}

/// Most token ids in a list. Longer ones would be a vocabulary of their own.
const MAX_IDS: usize = 16_384;

/// Most samples of one request: it takes as many places in the node.
pub const MAX_SAMPLES: u32 = 128;
const SAMPLES: Rule = Rule::range(1.0, MAX_SAMPLES as f64);

params! {
    /// Most tokens of the completion; 0 where the prompt alone is asked about.
    max_tokens: Option<u32>, Rule::at_least(0.0);
    /// Choices of the answer, each drawn with a seed of its own.
    n: Option<u32>, SAMPLES;
    /// Samples drawn for them: the `n` with the best mean log probability are the answer. Absent: as many as `n`.
    best_of: Option<u32>, SAMPLES;
    /// No end token, stop token or stop string ends the completion before so many tokens.
    min_tokens: Option<u32>, Rule::at_least(0.0);
    /// Go on after an end token.
    ignore_eos: Option<bool>, Rule::any();
    /// Texts that end the completion; each holds back what could begin it.
    stop: Vec<String>, Rule::texts(16, 256);
    /// Tokens that end the completion, beside the model's own.
    stop_token_ids: Vec<u32>, Rule::items(128);
    /// Show the stop string, or the token, that ended the completion.
    include_stop_str_in_output: Option<bool>, Rule::any();
    /// False: the text shows tokens that are marks, not text.
    skip_special_tokens: Option<bool>, Rule::any();

    /// 0 is greedy.
    temperature: Option<f32>, Rule::range(0.0, 2.0), sampler 1.0;
    /// Only so many likeliest tokens; 0 is off, and so is -1.
    top_k: Option<u32>, Rule::at_least(0.0).minus_one_is_zero(), sampler 0;
    /// Only the likeliest tokens that together have so much of the probability.
    top_p: Option<f32>, Rule::above(0.0, 1.0), sampler 1.0;
    /// Only tokens with so much of the likeliest token's probability.
    min_p: Option<f32>, Rule::range(0.0, 1.0), sampler 0.0;
    /// Taken off the logit of every token that the completion has.
    presence_penalty: Option<f32>, Rule::range(-2.0, 2.0), sampler 0.0;
    /// Taken off the logit of a token, times how often the completion has it.
    frequency_penalty: Option<f32>, Rule::range(-2.0, 2.0), sampler 0.0;
    /// Divides a positive logit, and multiplies a negative one, of every token that prompt or completion has.
    repetition_penalty: Option<f32>, Rule::above(0.0, 1_000.0), sampler 1.0;

    /// The same seed gives the same text.
    seed: Option<u64>, Rule::any();
    /// Added to a token's logit, by token id.
    logit_bias: BTreeMap<u32, f32>, Rule::range(-100.0, 100.0).with_items(1_024);
    /// The only tokens that may be sampled.
    allowed_token_ids: Option<Vec<u32>>, Rule::items(MAX_IDS);
    /// Tokens that may not be sampled.
    banned_token_ids: Vec<u32>, Rule::items(MAX_IDS);
    /// Texts that the completion may not have: their last token is not sampled after the others.
    bad_words: Vec<String>, Rule::texts(256, 256);

    /// The log probability of every token, with so many alternatives; `true` is 0.
    logprobs: Option<u32>, Rule::range(0.0, 20.0).or_a_flag();
    /// The alternatives beside `logprobs: true`, as OpenAI's chat has it.
    top_logprobs: Option<u32>, Rule::range(0.0, 20.0);
    /// The log probability of every token of the prompt, with so many alternatives.
    prompt_logprobs: Option<u32>, Rule::range(0.0, 20.0);
    /// The text begins with the prompt; beside `logprobs`, log probabilities are of the prompt's tokens, too.
    echo: Option<bool>, Rule::any();
    /// Whose log probabilities: the model's own, or those that were drawn from.
    logprobs_mode: Option<LogprobsMode>, Rule::any();

    /// Whether the tokenizer puts its marks (a begin token, mostly) around the text. Absent: yes for a prompt, no for a chat, whose
    /// template writes them.
    add_special_tokens: Option<bool>, Rule::any();
    /// Whether the chat template opens the assistant's turn; absent: yes.
    add_generation_prompt: Option<bool>, Rule::any();
    /// Variables for the chat template, beside those of the node and before those of the checkpoint.
    chat_template_kwargs: Vec<(String, Value)>, Rule::items(64);
}

fn take<T: Field>(fields: &mut Fields<'_>, name: &'static str, rule: &Rule) -> Result<T> {
    Ok(fields.optional(name, |value, path| T::read(value, path, rule))?.unwrap_or_default())
}

impl Params {
    /// Checks every value, and each against the others, for a model with so many tokens.
    ///
    /// # Errors
    /// `invalid`, naming the parameter: what was expected and what came.
    pub fn check(&self, vocab_size: u32) -> Result<()> {
        self.check_ranges(vocab_size)?;
        if let Some(max_tokens) = self.max_tokens {
            self.check_min_tokens(max_tokens)?;
            if max_tokens == 0 && !self.echoes() && self.prompt_logprobs.is_none() {
                let text = "expected at least 1 (0 only beside echo or prompt_logprobs), got 0";
                return Err(Error::invalid("max_tokens", text));
            }
        }
        if let Some(best_of) = self.best_of.filter(|best_of| *best_of < self.num_choices()) {
            let text = format!("expected at least n ({}), got {best_of}", self.num_choices());
            return Err(Error::invalid("best_of", text));
        }
        match (self.logprobs, self.top_logprobs) {
            (None, Some(1..)) => Err(Error::invalid("top_logprobs", "needs logprobs: true")),
            (Some(count @ 1..), Some(top)) if top != count => Err(Error::invalid(
                "top_logprobs",
                format!("expected the number that logprobs has ({count}), got {top}"),
            )),
            _ => Ok(()),
        }
    }

    /// Checks how many choices are asked for, before room is made for each.
    ///
    /// # Errors
    /// `invalid` for `n`.
    pub fn check_num_choices(&self) -> Result<()> {
        self.n.check(&SAMPLES, 0).map_err(|message| Error::invalid("n", message))
    }

    /// Whether the completion's length leaves room for `min_tokens`.
    ///
    /// # Errors
    /// `invalid` for `min_tokens`.
    pub fn check_min_tokens(&self, max_tokens: u32) -> Result<()> {
        match self.min_tokens {
            Some(min_tokens) if min_tokens > max_tokens => Err(Error::invalid(
                "min_tokens",
                format!("expected at most max_tokens ({max_tokens}), got {min_tokens}"),
            )),
            _ => Ok(()),
        }
    }

    /// Choices of the answer.
    pub fn num_choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Samples drawn for them.
    pub fn num_samples(&self) -> u32 {
        self.best_of.unwrap_or(self.num_choices())
    }

    /// Whether the choices are the best of more samples.
    pub fn ranks_samples(&self) -> bool {
        self.num_samples() > self.num_choices()
    }

    /// How many alternatives are wanted beside the log probability of each token; none: not even that.
    pub fn num_logprobs(&self) -> Option<u32> {
        self.logprobs.map(|count| count.max(self.top_logprobs.unwrap_or(0)))
    }

    /// Whether the text begins with the prompt.
    pub fn echoes(&self) -> bool {
        self.echo == Some(true)
    }

    /// How many alternatives are wanted beside the log probability of each token of the prompt; none: not even that.
    pub fn num_prompt_logprobs(&self) -> Option<u32> {
        self.prompt_logprobs.max(self.num_logprobs().filter(|_| self.echoes()))
    }

    /// The seed of one sample: the first has the request's, so that a choice more does not change it.
    pub fn seed_of(&self, sample: u32) -> u64 {
        let seed = self.seed.unwrap_or(0);
        if sample == 0 { seed } else { xxh3_64_with_seed(&sample.to_le_bytes(), seed) }
    }

    /// What the seat of the request's first sample is bound with: these parameters after a prompt of so many tokens. `bad_words` are
    /// tokenized, none of them empty.
    pub fn sampler(&self, num_prompt_tokens: u32, bad_words: &[Vec<u32>]) -> SamplerSpec {
        let min_tokens = self.min_tokens.unwrap_or(0);
        let mut spec = SamplerSpec {
            seed: self.seed_of(0),
            end_from: if min_tokens == 0 { 0 } else { num_prompt_tokens + min_tokens },
            stop_token_ids: self.stop_token_ids.clone(),
            bias: self
                .logit_bias
                .iter()
                .map(|(&token_id, &value)| TokenBias { token_id, value })
                .collect(),
            allowed_ids: self.allowed_token_ids.clone().unwrap_or_default(),
            banned_ids: self.banned_token_ids.clone(),
            // The device has one number for prompt and completion.
            num_logprobs: self.num_logprobs().max(self.num_prompt_logprobs()).unwrap_or(0),
            want_logprob: self.logprobs.is_some() || self.ranks_samples(),
            processed_logprobs: self.logprobs_mode == Some(LogprobsMode::Processed),
            ..self.scalars()
        };
        for word in bad_words {
            match word.as_slice() {
                [token_id] => spec.banned_ids.push(*token_id),
                word => {
                    spec.banned_words.extend_from_slice(word);
                    spec.banned_word_lens.push(word.len() as u32);
                }
            }
        }
        spec
    }
}

#[cfg(test)]
#[path = "params_tests.rs"]
mod tests;
