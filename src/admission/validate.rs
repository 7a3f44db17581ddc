//! What a request may ask: parameters, prompt and length against the model. A parameter comes from the request, else from
//! the checkpoint's `generation_config.json`, else from the node's configuration.

use super::Config;
use crate::error::{Error, Kind, Result};
use crate::models::ServedModel;
use crate::request::{ChatMessage, DefaultLength, Params, Prompt, Request, SoFar};

/// `max_tokens` of `/v1/completions`, as OpenAI has it.
const COMPLETIONS_MAX_TOKENS: u32 = 16;

/// Log probabilities of a prompt, with its alternatives: they are told in one event, and held until then.
const MAX_PROMPT_LOGPROBS: u64 = 1 << 18;

/// Log probabilities of all a request's completions, with their alternatives: what does not stream, or is not read, is held until then.
const MAX_LOGPROBS: u64 = 1 << 20;

/// Checks what does not need the prompt's tokens; gives the parameters with all defaults. `seed` is for a request that names none.
pub(super) fn check_params(
    params: Params,
    model: &ServedModel,
    config: &Config,
    seed: u64,
) -> Result<Params> {
    let mut params = params.or(&model.defaults).or(&config.defaults());
    params.check(model.vocab_size)?;
    params.seed.get_or_insert(seed);
    Ok(params)
}

/// Checks what is said of the samples of a request that streams, or does not.
pub(super) fn check_samples(params: &Params, stream: bool, config: &Config) -> Result<()> {
    let samples = params.num_samples();
    let field = if params.ranks_samples() { "best_of" } else { "n" };
    if samples as usize > config.max_requests {
        let most = config.max_requests;
        let text =
            format!("expected at most {most}, the requests that the node may hold, got {samples}");
        return Err(Error::invalid(field, text));
    }
    if stream && params.ranks_samples() {
        let text = "above n it is not supported with stream: the best are known only at the end";
        return Err(Error::unsupported(field, text));
    }
    Ok(())
}

/// Checks what a request has behind it, beside its length.
pub(super) fn check_so_far(request: &Request, params: &Params, model: &ServedModel) -> Result<()> {
    let SoFar { samples, attempt, .. } = &request.so_far;
    if *attempt == 0 {
        return Err(Error::invalid("so_far.attempt", "expected at least 1, got 0"));
    }
    let (most, got) = (params.num_samples() as usize, samples.len());
    if got > most {
        let text = format!("expected at most {most} samples, got {got}");
        return Err(Error::invalid("so_far.samples", text));
    }
    let tokens = samples.iter().flat_map(|begun| &begun.tokens);
    if params.num_prompt_logprobs().is_some() && !request.stream && tokens.clone().count() > 0 {
        let text = "not supported for one answer with the prompt's log probabilities";
        return Err(Error::unsupported("so_far", text));
    }
    check_known(tokens.map(|token| token.id), "so_far", model)
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
            (messages.iter().map(ChatMessage::size).sum(), messages.is_empty())
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
    if let Prompt::Text(text) = prompt {
        check_text(text, field, model)?;
    }
    if matches!(prompt, Prompt::Messages(_)) && model.chat_template.is_none() {
        return Err(Error::unsupported(
            field,
            format!("the model {:?} has no chat template; send a prompt", model.name),
        ));
    }
    Ok(bytes)
}

/// Checks what can be said of some kinds of prompt only: of its way to tokens, and of its echo.
pub(super) fn check_kind_of_prompt(params: &Params, prompt: &Prompt) -> Result<()> {
    let only_for = |field: &str, what: &str| {
        Err(Error::unsupported(field, format!("only supported for {what}; leave it out")))
    };
    let is_chat = matches!(prompt, Prompt::Messages(_));
    if !is_chat && !params.chat_template_kwargs.is_empty() {
        return only_for("chat_template_kwargs", "a chat");
    }
    if !is_chat && params.add_generation_prompt == Some(false) {
        return only_for("add_generation_prompt", "a chat");
    }
    if matches!(prompt, Prompt::TokenIds(_)) && params.add_special_tokens == Some(true) {
        return only_for("add_special_tokens", "text");
    }
    // A chat's prompt is what the template made of it, which no client wrote and no reader takes for the assistant's words.
    if is_chat && params.echoes() {
        return only_for("echo", "a prompt");
    }
    Ok(())
}

/// Refuses a text that cannot fit the model's context, whatever its tokens are: tokenizing takes a second for a few MB.
pub(super) fn check_text(text: &str, field: &str, model: &ServedModel) -> Result<()> {
    match model.tokenizer.longest_token().map(|bytes| text.len().div_ceil(bytes.max(1))) {
        Some(least) if least >= model.max_seq_len as usize => Err(Error::new(
            Kind::ContextLength,
            format!(
                "{}; got a text of {} bytes, which is at least {least} tokens",
                too_long(model),
                text.len()
            ),
        )
        .with_param(field)),
        _ => Ok(()),
    }
}

/// How it is said that something does not fit: with the phrases by which clients know it and turn to another model.
fn too_long(model: &ServedModel) -> String {
    let most = model.max_seq_len;
    format!("This model's maximum context length is {most} tokens, and the prompt is too long")
}

/// Checks a tokenized prompt. What has more tokens than the context is told so before its ids are looked at.
pub(super) fn check_token_ids(ids: &[u32], field: &str, model: &ServedModel) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::invalid(field, "expected at least one token, got none"));
    }
    if ids.len() >= model.max_seq_len as usize {
        return Err(Error::new(
            Kind::ContextLength,
            format!("{}; got {} tokens", too_long(model), ids.len()),
        )
        .with_param(field));
    }
    check_known(ids.iter().copied(), field, model)
}

fn check_known(mut ids: impl Iterator<Item = u32>, field: &str, model: &ServedModel) -> Result<()> {
    match ids.find(|&id| id >= model.vocab_size) {
        Some(id) => {
            let text = format!("expected token ids below {}, got {id}", model.vocab_size);
            Err(Error::invalid(field, text))
        }
        None => Ok(()),
    }
}

/// How many completion tokens a request gets; its prompt is shorter than the context.
pub(super) fn completion_length(
    params: &Params,
    num_prompt_tokens: u32,
    default_length: DefaultLength,
    config: &Config,
    model: &ServedModel,
) -> Result<u32> {
    let left = model.max_seq_len.saturating_sub(num_prompt_tokens);
    let max_tokens = match params.max_tokens {
        Some(wanted) if wanted <= left => wanted,
        Some(wanted) => {
            return Err(Error::new(
                Kind::ContextLength,
                format!(
                    "{}: prompt ({num_prompt_tokens}) and max_tokens ({wanted}) exceed it together",
                    too_long(model)
                ),
            )
            .with_param("max_tokens"));
        }
        None => left.min(model.default_length.unwrap_or(match default_length {
            DefaultLength::Completions => COMPLETIONS_MAX_TOKENS,
            DefaultLength::Context => config.default_max_tokens,
        })),
    };
    params.check_min_tokens(max_tokens)?;
    check_logprobs(params, num_prompt_tokens, max_tokens)?;
    Ok(max_tokens)
}

fn check_logprobs(params: &Params, num_prompt_tokens: u32, max_tokens: u32) -> Result<()> {
    if let Some(num_top) = params.num_prompt_logprobs() {
        let from_echo = params.prompt_logprobs.is_none_or(|own| own < num_top);
        let field = if from_echo { "logprobs" } else { "prompt_logprobs" };
        let tokens = (u64::from(num_prompt_tokens), "of the prompt");
        check_told(field, tokens, num_top, MAX_PROMPT_LOGPROBS)?;
    }
    if let Some(num_top) = params.num_logprobs() {
        let tokens = u64::from(params.num_samples()) * u64::from(max_tokens);
        check_told("logprobs", (tokens, "of all completions"), num_top, MAX_LOGPROBS)?;
    }
    Ok(())
}

/// Refuses to tell more than `most` log probabilities of so many tokens and of the alternatives that each has.
fn check_told(field: &str, (tokens, whose): (u64, &str), num_top: u32, most: u64) -> Result<()> {
    let told = tokens.saturating_mul(1 + u64::from(num_top));
    if told <= most {
        return Ok(());
    }
    let text = format!(
        "expected at most {most} log probabilities {whose}, got {told}: {tokens} tokens with {num_top} alternatives each"
    );
    Err(Error::invalid(field, text))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::actor::testing::model;
    use super::*;
    use crate::bridge::ffi::SamplerSpec;

    fn check(params: Params) -> Result<Params> {
        check_params(params, &model("m"), &Config::default(), 7)
    }

    #[test]
    fn a_value_comes_from_request_then_checkpoint_then_node() {
        let mut model = model("m");
        Arc::get_mut(&mut model).expect("new").defaults = Params {
            temperature: Some(0.6),
            top_k: Some(40),
            repetition_penalty: Some(1.1),
            ..Params::default()
        };
        let config = Config { top_p: 0.5, min_p: 0.25, ..Config::default() };
        let sampler =
            |params| check_params(params, &model, &config, 7).map(|params| params.sampler(4, &[]));
        let from_defaults = SamplerSpec {
            temperature: 0.6,
            top_k: 40,
            top_p: 0.5,
            min_p: 0.25,
            repetition_penalty: 1.1,
            seed: 7,
            ..SamplerSpec::neutral()
        };
        assert_eq!(sampler(Params::default()), Ok(from_defaults.clone()));
        let params = Params { temperature: Some(0.1), seed: Some(u64::MAX), ..Params::default() };
        let from_request = SamplerSpec { temperature: 0.1, seed: u64::MAX, ..from_defaults };
        assert_eq!(sampler(params), Ok(from_request));
    }

    #[test]
    fn a_token_id_that_the_model_has_not_is_refused_by_name() {
        let beyond = || vec![3, 258];
        let cases = [
            Params { stop_token_ids: beyond(), ..Params::default() },
            Params { allowed_token_ids: Some(beyond()), ..Params::default() },
            Params { banned_token_ids: beyond(), ..Params::default() },
            Params { logit_bias: [(258, 1.0)].into(), ..Params::default() },
        ];
        let fault = |params| check(params).map_err(|e| (e.kind, e.param.unwrap_or_default()));
        let names = ["stop_token_ids", "allowed_token_ids", "banned_token_ids", "logit_bias"];
        for (params, name) in cases.into_iter().zip(names) {
            assert_eq!(fault(params), Err((Kind::Invalid, name.to_owned())));
        }
    }

    #[test]
    fn prompts_are_held_to_model_and_size() {
        let model = model("m");
        let config = Config { max_prompt_bytes: 10, ..Config::default() };
        let check = |prompt: Prompt| {
            check_prompt(&prompt, &model, &config)
                .map_err(|e| (e.kind, e.param.unwrap_or_default()))
        };
        let message = |content: &str| ChatMessage::new("user", content);
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
    fn a_text_that_cannot_fit_is_refused_before_it_is_tokenized() {
        // 64 tokens of 4 bytes at most.
        let model = model("m");
        let check = |bytes: usize| {
            let checked = check_text(&"x".repeat(bytes), "prompt", &model);
            checked.map_err(|error| (error.kind, error.param.unwrap_or_default()))
        };
        assert_eq!(check(63 * 4), Ok(()));
        assert_eq!(check(63 * 4 + 1), Err((Kind::ContextLength, "prompt".to_owned())));
    }

    #[test]
    fn what_does_not_fit_is_said_in_the_words_that_clients_know() {
        let (model, config) = (model("m"), Config::default());
        let text = check_text(&"x".repeat(1_000), "prompt", &model).map(|()| 0);
        let ids = check_token_ids(&[1; 64], "prompt", &model).map(|()| 0);
        let params = Params { max_tokens: Some(60), ..Params::default() };
        let both = completion_length(&params, 5, DefaultLength::Context, &config, &model);
        for error in [text, ids, both].map(|checked| checked.expect_err("too long")) {
            assert_eq!(error.kind, Kind::ContextLength);
            for words in ["This model's maximum context length is 64 tokens", "prompt is too long"]
            {
                assert!(error.text().contains(words), "{error}");
            }
        }
    }

    #[test]
    fn what_is_said_of_a_prompt_has_to_fit_its_kind() {
        let fault = |params: &Params, prompt: Prompt| {
            let checked =
                check_kind_of_prompt(params, &prompt).map_err(|error| (error.kind, error.param));
            checked.err().and_then(|(kind, param)| param.filter(|_| kind == Kind::Unsupported))
        };
        let kwargs = vec![("a".to_owned(), crate::request::Value::Null)];
        let kwargs = Params { chat_template_kwargs: kwargs, ..Params::default() };
        let closed = Params { add_generation_prompt: Some(false), ..Params::default() };
        let echo = Params { echo: Some(true), ..Params::default() };
        let marks = Params { add_special_tokens: Some(true), ..Params::default() };
        let chat = || Prompt::Messages(vec![ChatMessage::new("user", "x")]);
        let text = || Prompt::Text("x".to_owned());
        for params in [&kwargs, &closed, &marks] {
            assert_eq!(fault(params, chat()), None);
        }
        for params in [&marks, &echo] {
            assert_eq!(fault(params, text()), None);
        }
        assert_eq!(fault(&echo, Prompt::TokenIds(vec![1])), None);
        assert_eq!(fault(&echo, chat()).as_deref(), Some("echo"));
        assert_eq!(fault(&kwargs, text()).as_deref(), Some("chat_template_kwargs"));
        assert_eq!(fault(&closed, text()).as_deref(), Some("add_generation_prompt"));
        let ids = fault(&marks, Prompt::TokenIds(vec![1]));
        assert_eq!(ids.as_deref(), Some("add_special_tokens"));
    }

    #[test]
    fn messages_need_a_chat_template() {
        let mut model = model("m");
        Arc::get_mut(&mut model).expect("new").chat_template = None;
        let message = ChatMessage::new("user", "hi");
        let error = check_prompt(&Prompt::Messages(vec![message]), &model, &Config::default());
        assert_eq!(error.map_err(|e| e.kind), Err(Kind::Unsupported));
    }

    #[test]
    fn samples_are_held_to_the_places_and_their_best_do_not_stream() {
        let config = Config { max_requests: 4, ..Config::default() };
        let fault = |n, best_of, stream| {
            let params = Params { n, best_of, ..Params::default() };
            let checked = check(params).and_then(|params| check_samples(&params, stream, &config));
            checked.map_err(|error| (error.kind, error.param.unwrap_or_default()))
        };
        assert_eq!(fault(Some(4), None, true), Ok(()));
        assert_eq!(fault(Some(2), Some(2), true), Ok(()));
        assert_eq!(fault(Some(1), Some(4), false), Ok(()));
        let wrong = |kind, name: &str| Err((kind, name.to_owned()));
        assert_eq!(fault(Some(5), None, true), wrong(Kind::Invalid, "n"));
        assert_eq!(fault(None, Some(5), false), wrong(Kind::Invalid, "best_of"));
        assert_eq!(fault(Some(3), Some(2), false), wrong(Kind::Invalid, "best_of"));
        assert_eq!(fault(Some(129), None, false), wrong(Kind::Invalid, "n"));
        assert_eq!(fault(None, Some(2), true), wrong(Kind::Unsupported, "best_of"));
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

    #[test]
    fn the_checkpoints_length_goes_before_the_nodes_and_not_beyond_the_context() {
        let mut model = model("m");
        Arc::get_mut(&mut model).expect("new").default_length = Some(30);
        let params = check(Params::default()).expect("in range");
        let length = |prompt, default| {
            completion_length(&params, prompt, default, &Config::default(), &model)
        };
        assert_eq!(length(4, DefaultLength::Context), Ok(30));
        assert_eq!(length(4, DefaultLength::Completions), Ok(30));
        assert_eq!(length(60, DefaultLength::Context), Ok(4));
    }

    #[test]
    fn what_is_told_of_a_prompt_is_bounded() {
        let checked = |params: Params, tokens| {
            check_logprobs(&params, tokens, 1).map_err(|error| error.param.unwrap_or_default())
        };
        let own = Params { prompt_logprobs: Some(20), ..Params::default() };
        assert_eq!(checked(own.clone(), 12_483), Ok(()));
        assert_eq!(checked(own, 12_484), Err("prompt_logprobs".into()));
        assert_eq!(checked(Params::default(), u32::MAX), Ok(()));
    }

    #[test]
    fn what_is_told_of_completions_is_bounded() {
        let checked = |n, logprobs, tokens| {
            let params = Params { n, logprobs, ..Params::default() };
            check_logprobs(&params, 1, tokens).map_err(|error| error.param.unwrap_or_default())
        };
        assert_eq!(checked(None, Some(20), 49_932), Ok(()));
        assert_eq!(checked(None, Some(20), 49_933), Err("logprobs".into()));
        assert_eq!(checked(Some(128), Some(0), 8_193), Err("logprobs".into()));
        assert_eq!(checked(Some(128), None, u32::MAX), Ok(()));
    }
}
