//! What a request may ask: parameters, prompt and length against the model. A field's value comes from the request, else from
//! the checkpoint's `generation_config.json`, else from the node's configuration.

use super::Config;
use crate::batcher::Sampling;
use crate::error::{Error, Kind, Result};
use crate::models::{GenerationDefaults, ServedModel};
use crate::request::{DefaultLength, Params, Prompt};

/// Most stop strings of a request.
pub const MAX_STOP_STRINGS: usize = 16;

/// Longest stop string in bytes. It bounds the text that is held back from the client, and the memory of the search.
pub const MAX_STOP_BYTES: usize = 256;

/// `max_tokens` of `/v1/completions`, as OpenAI has it.
const COMPLETIONS_MAX_TOKENS: u32 = 16;

/// Parameters in range.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checked {
    pub(super) max_tokens: Option<u32>,
    pub(super) min_tokens: u32,
    pub(super) ignore_eos: bool,
    pub(super) stop: Vec<String>,
    pub(super) sampling: Sampling,
}

pub(super) fn is_temperature(value: f32) -> bool {
    (0.0..=2.0).contains(&value)
}

pub(super) fn is_top_p(value: f32) -> bool {
    value > 0.0 && value <= 1.0
}

pub(super) fn is_min_p(value: f32) -> bool {
    (0.0..=1.0).contains(&value)
}

/// Checks what does not need the prompt's tokens. `seed` is for a request that names none.
pub(super) fn check_params(
    params: Params,
    checkpoint: &GenerationDefaults,
    config: &Config,
    seed: u64,
) -> Result<Checked> {
    let temperature = Field { name: "temperature", expected: "0 to 2", is_valid: is_temperature };
    let top_p = Field { name: "top_p", expected: "above 0 to 1", is_valid: is_top_p };
    let min_p = Field { name: "min_p", expected: "0 to 1", is_valid: is_min_p };
    let sampling = Sampling {
        temperature: temperature.of(
            params.temperature,
            checkpoint.temperature,
            config.temperature,
        )?,
        top_p: top_p.of(params.top_p, checkpoint.top_p, config.top_p)?,
        min_p: min_p.of(params.min_p, checkpoint.min_p, config.min_p)?,
        top_k: params.top_k.or(checkpoint.top_k).unwrap_or(config.top_k),
        seed: params.seed.unwrap_or(seed),
    };
    if params.max_tokens == Some(0) {
        return Err(Error::invalid("max_tokens", "expected at least 1, got 0"));
    }
    let min_tokens = params.min_tokens.unwrap_or(0);
    if let Some(max_tokens) = params.max_tokens {
        check_min_tokens(min_tokens, max_tokens)?;
    }
    check_stop(&params.stop)?;
    Ok(Checked {
        max_tokens: params.max_tokens,
        min_tokens,
        ignore_eos: params.ignore_eos.unwrap_or(false),
        stop: params.stop,
        sampling,
    })
}

struct Field {
    name: &'static str,
    expected: &'static str,
    is_valid: fn(f32) -> bool,
}

impl Field {
    /// A checkpoint's value that is out of range is no reason to refuse every request: the node's stands in.
    fn of(&self, request: Option<f32>, checkpoint: Option<f32>, node: f32) -> Result<f32> {
        match request {
            Some(value) if (self.is_valid)(value) => Ok(value),
            Some(value) => {
                Err(Error::invalid(self.name, format!("expected {}, got {value}", self.expected)))
            }
            None => Ok(checkpoint.filter(|&value| (self.is_valid)(value)).unwrap_or(node)),
        }
    }
}

fn check_stop(stop: &[String]) -> Result<()> {
    if stop.len() > MAX_STOP_STRINGS {
        return Err(Error::invalid(
            "stop",
            format!("expected at most {MAX_STOP_STRINGS} strings, got {}", stop.len()),
        ));
    }
    for text in stop {
        if text.is_empty() || text.len() > MAX_STOP_BYTES {
            return Err(Error::invalid(
                "stop",
                format!("expected 1 to {MAX_STOP_BYTES} bytes in a string, got {}", text.len()),
            ));
        }
    }
    Ok(())
}

fn check_min_tokens(min_tokens: u32, max_tokens: u32) -> Result<()> {
    if min_tokens > max_tokens {
        return Err(Error::invalid(
            "min_tokens",
            format!("expected at most max_tokens ({max_tokens}), got {min_tokens}"),
        ));
    }
    Ok(())
}

/// The field that a prompt came in.
pub(super) fn prompt_field(prompt: &Prompt) -> &'static str {
    match prompt {
        Prompt::Text(_) => "prompt",
        Prompt::Messages(_) => "messages",
        Prompt::TokenIds(_) => "prompt_token_ids",
    }
}

/// Checks what can be said of a prompt before it is tokenized; gives its size in bytes.
pub(super) fn check_prompt(prompt: &Prompt, model: &ServedModel, config: &Config) -> Result<usize> {
    let field = prompt_field(prompt);
    let (bytes, is_empty) = match prompt {
        Prompt::Text(text) => (text.len(), text.is_empty()),
        Prompt::Messages(messages) => {
            let sizes = messages.iter().map(|m| m.role.len() + m.content.len());
            (sizes.sum(), messages.is_empty())
        }
        Prompt::TokenIds(ids) => {
            check_token_ids(ids, field, model)?;
            return Ok(std::mem::size_of_val(ids.as_slice()));
        }
    };
    if is_empty {
        return Err(Error::invalid(field, "expected a prompt, got an empty one"));
    }
    if bytes > config.max_prompt_bytes {
        let limit = config.max_prompt_bytes;
        return Err(Error::new(
            Kind::TooLarge,
            format!("expected at most {limit} bytes of text, got {bytes}"),
        )
        .with_param(field));
    }
    if matches!(prompt, Prompt::Messages(_)) && model.chat_template.is_none() {
        return Err(Error::unsupported(
            field,
            format!("the model {:?} has no chat template; send a prompt", model.name),
        ));
    }
    Ok(bytes)
}

/// Checks a tokenized prompt. What has more tokens than the context is told so before its ids are looked at.
pub(super) fn check_token_ids(ids: &[u32], field: &str, model: &ServedModel) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::invalid(field, "expected at least one token, got none"));
    }
    if ids.len() >= model.max_seq_len as usize {
        return Err(Error::new(
            Kind::ContextLength,
            format!(
                "expected fewer tokens than the model's context of {}, got {}",
                model.max_seq_len,
                ids.len()
            ),
        )
        .with_param(field));
    }
    match ids.iter().find(|&&id| id >= model.vocab_size) {
        Some(id) => Err(Error::invalid(
            field,
            format!("expected token ids below {}, got {id}", model.vocab_size),
        )),
        None => Ok(()),
    }
}

/// How many completion tokens a request gets; its prompt is shorter than the context.
pub(super) fn completion_length(
    checked: &Checked,
    num_prompt_tokens: u32,
    default_length: DefaultLength,
    config: &Config,
    model: &ServedModel,
) -> Result<u32> {
    let left = model.max_seq_len.saturating_sub(num_prompt_tokens);
    let max_tokens = match checked.max_tokens {
        Some(wanted) if wanted <= left => wanted,
        Some(wanted) => {
            return Err(Error::new(
                Kind::ContextLength,
                format!(
                    "expected prompt and max_tokens within the model's context of {}, got \
                     {num_prompt_tokens} and {wanted}",
                    model.max_seq_len
                ),
            )
            .with_param("max_tokens"));
        }
        None => match default_length {
            DefaultLength::Completions => left.min(COMPLETIONS_MAX_TOKENS),
            DefaultLength::Context => left.min(config.default_max_tokens),
        },
    };
    check_min_tokens(checked.min_tokens, max_tokens)?;
    Ok(max_tokens)
}

#[cfg(test)]
mod tests {
    use super::super::actor::testing::model;
    use super::*;
    use crate::request::ChatMessage;

    const NO_DEFAULTS: GenerationDefaults =
        GenerationDefaults { temperature: None, top_p: None, top_k: None, min_p: None };

    fn check(params: Params) -> Result<Checked> {
        check_params(params, &NO_DEFAULTS, &Config::default(), 7)
    }

    fn fault(params: Params) -> (Kind, String) {
        let error = check(params).expect_err("out of range");
        (error.kind, error.param.unwrap_or_default())
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let none = Params::default;
        for value in [-0.1, 2.1, f32::NAN, f32::INFINITY] {
            let params = Params { temperature: Some(value), ..none() };
            assert_eq!(fault(params), (Kind::Invalid, "temperature".into()), "{value}");
        }
        for value in [0.0, -1.0, 1.1, f32::NAN] {
            let params = Params { top_p: Some(value), ..none() };
            assert_eq!(fault(params), (Kind::Invalid, "top_p".into()), "{value}");
        }
        for value in [-0.1, 1.1, f32::NAN] {
            let params = Params { min_p: Some(value), ..none() };
            assert_eq!(fault(params), (Kind::Invalid, "min_p".into()), "{value}");
        }
        let params = Params { max_tokens: Some(0), ..none() };
        assert_eq!(fault(params), (Kind::Invalid, "max_tokens".into()));
        let params = Params { max_tokens: Some(2), min_tokens: Some(3), ..none() };
        assert_eq!(fault(params), (Kind::Invalid, "min_tokens".into()));
        for stop in [vec![String::new()], vec!["x".repeat(257)], vec!["x".to_owned(); 17]] {
            assert_eq!(fault(Params { stop, ..none() }), (Kind::Invalid, "stop".into()));
        }
    }

    #[test]
    fn values_at_their_limits_are_taken() {
        let params = Params {
            max_tokens: Some(3),
            min_tokens: Some(3),
            temperature: Some(2.0),
            top_p: Some(1.0),
            top_k: Some(u32::MAX),
            min_p: Some(1.0),
            seed: Some(u64::MAX),
            stop: vec!["é".repeat(128); 16],
            ignore_eos: Some(true),
        };
        let checked = check(params.clone()).expect("in range");
        let sampling =
            Sampling { temperature: 2.0, top_k: u32::MAX, top_p: 1.0, min_p: 1.0, seed: u64::MAX };
        assert_eq!(checked.sampling, sampling);
        assert_eq!((checked.min_tokens, checked.ignore_eos, checked.stop.len()), (3, true, 16));
        let greedy = check(Params { temperature: Some(0.0), min_p: Some(0.0), ..params });
        assert_eq!(greedy.map(|c| c.sampling.temperature), Ok(0.0));
    }

    #[test]
    fn a_value_comes_from_request_then_checkpoint_then_node() {
        let checkpoint = GenerationDefaults {
            temperature: Some(0.6),
            top_p: Some(9.0),
            top_k: Some(40),
            min_p: None,
        };
        let config = Config { top_p: 0.5, min_p: 0.25, ..Config::default() };
        let params = Params { temperature: Some(0.1), ..Params::default() };
        let sampling = |params| check_params(params, &checkpoint, &config, 7).map(|c| c.sampling);
        // The checkpoint's top_p is out of range and does not count.
        let from_defaults =
            Sampling { temperature: 0.6, top_k: 40, top_p: 0.5, min_p: 0.25, seed: 7 };
        assert_eq!(sampling(Params::default()), Ok(from_defaults));
        assert_eq!(sampling(params), Ok(Sampling { temperature: 0.1, ..from_defaults }));
    }

    #[test]
    fn prompts_are_held_to_model_and_size() {
        let model = model("m");
        let config = Config { max_prompt_bytes: 10, ..Config::default() };
        let check = |prompt: Prompt| {
            check_prompt(&prompt, &model, &config)
                .map_err(|e| (e.kind, e.param.unwrap_or_default()))
        };
        let message = |content: &str| ChatMessage { role: "user".into(), content: content.into() };
        assert_eq!(check(Prompt::Text("0123456789".into())), Ok(10));
        assert_eq!(check(Prompt::TokenIds(vec![1, 257])), Ok(8));
        assert_eq!(check(Prompt::Messages(vec![message("abc")])), Ok(7));
        let cases = [
            (Prompt::Text(String::new()), Kind::Invalid, "prompt"),
            (Prompt::Text("0123456789a".into()), Kind::TooLarge, "prompt"),
            (Prompt::Messages(Vec::new()), Kind::Invalid, "messages"),
            (Prompt::Messages(vec![message("1234567")]), Kind::TooLarge, "messages"),
            (Prompt::TokenIds(Vec::new()), Kind::Invalid, "prompt_token_ids"),
            (Prompt::TokenIds(vec![258]), Kind::Invalid, "prompt_token_ids"),
            (Prompt::TokenIds(vec![1; 64]), Kind::ContextLength, "prompt_token_ids"),
        ];
        for (prompt, kind, field) in cases {
            assert_eq!(check(prompt.clone()), Err((kind, field.to_owned())), "{prompt:?}");
        }
    }

    #[test]
    fn messages_need_a_chat_template() {
        let mut model = model("m");
        std::sync::Arc::get_mut(&mut model).expect("new").chat_template = None;
        let message = ChatMessage { role: "user".into(), content: "hi".into() };
        let error = check_prompt(&Prompt::Messages(vec![message]), &model, &Config::default());
        assert_eq!(error.map_err(|e| e.kind), Err(Kind::Unsupported));
    }

    #[test]
    fn the_length_is_what_was_asked_or_what_is_left() {
        let model = model("m");
        let config = Config { default_max_tokens: 50, ..Config::default() };
        let length = |max_tokens, min_tokens, prompt, default| {
            let params = Params { max_tokens, min_tokens, ..Params::default() };
            let checked = check(params).expect("in range");
            completion_length(&checked, prompt, default, &config, &model).map_err(|e| e.kind)
        };
        let (completions, context) = (DefaultLength::Completions, DefaultLength::Context);
        assert_eq!(length(Some(24), None, 40, context), Ok(24));
        assert_eq!(length(Some(25), None, 40, context), Err(Kind::ContextLength));
        assert_eq!(length(Some(u32::MAX), None, 40, context), Err(Kind::ContextLength));
        assert_eq!(length(None, None, 4, context), Ok(50));
        assert_eq!(length(None, None, 40, context), Ok(24));
        assert_eq!(length(None, None, 4, completions), Ok(16));
        assert_eq!(length(None, None, 60, completions), Ok(4));
        assert_eq!(length(None, Some(17), 4, completions), Err(Kind::Invalid));
    }
}
