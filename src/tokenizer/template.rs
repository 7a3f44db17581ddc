//! The checkpoint's chat template, rendered as Hugging Face renders it, within limits: a checkpoint's author wrote it, not ours.

use std::io;
use std::path::Path;

use minijinja::{Environment, ErrorKind, Value, context};

use super::{TokenizerError, functions};
use crate::error::{Error, Result};
use crate::request::{self, ChatMessage};

const NAME: &str = "chat_template";

/// Instructions that one rendering may take: 20 to 40 for each message of a conversation are usual; all take some 0.1 s.
pub const MAX_INSTRUCTIONS: u64 = 2_000_000;

/// Bytes that a template may write beyond the conversation's own: some 400 for each of 10,000 messages.
pub const MAX_ADDED_BYTES: usize = 4 << 20;

/// Special tokens that a template may name.
const SPECIAL_TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// The checkpoint's chat template, compiled once.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, Value)>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (a text, or a list of named ones whose
    /// `default` is taken); none if the checkpoint has neither. The special tokens come from `tokenizer_config.json`.
    ///
    /// # Errors
    /// Names the file and the reason when one is not readable, not JSON, or not a template.
    pub fn from_dir(dir: &Path) -> std::result::Result<Option<Self>, TokenizerError> {
        let config_file = dir.join("tokenizer_config.json");
        let config: serde_json::Value = match read(&config_file)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|e| TokenizerError::new(&config_file, e.to_string()))?,
            None => serde_json::Value::Null,
        };
        let template_file = dir.join("chat_template.jinja");
        let (file, source) = match read(&template_file)? {
            Some(source) => (template_file, source),
            None => match default_template(&config["chat_template"]) {
                Ok(Some(source)) => (config_file, source),
                Ok(None) => return Ok(None),
                Err(reason) => return Err(TokenizerError::new(&config_file, reason)),
            },
        };
        Self::new(&source, &config).map(Some).map_err(|reason| TokenizerError::new(&file, reason))
    }

    /// Compiles a template; `config` is what `tokenizer_config.json` says of the special tokens.
    ///
    /// # Errors
    /// Where and why the text is not a template.
    pub fn new(source: &str, config: &serde_json::Value) -> std::result::Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        functions::add_to(&mut environment);
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|e| format!("chat template: {e}"))?;
        let special_tokens = SPECIAL_TOKENS
            .into_iter()
            .filter_map(|name| Some((name, Value::from(special_token(&config[name])?))))
            .collect();
        Ok(Self { environment, special_tokens })
    }

    /// The conversation as the model's prompt, special tokens included; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// `invalid` with the template's own message when it does not take the conversation, or with the limit that it passed
    /// ([`MAX_INSTRUCTIONS`], [`MAX_ADDED_BYTES`]).
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, add_generation_prompt, &[])
    }

    /// The same with `variables` of the client's, which go before those of the checkpoint.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_with(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        variables: &[(String, request::Value)],
    ) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(refusal)?;
        let conversation = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
        };
        let tokens: Value = self.special_tokens.iter().cloned().collect();
        let variables = variables.iter();
        let variables: Value =
            variables.map(|(name, value)| (name.as_str(), Value::from_serialize(value))).collect();
        let own = messages.iter().map(ChatMessage::size);
        let mut text =
            BoundedText { bytes: Vec::new(), room: own.sum::<usize>() + MAX_ADDED_BYTES };
        let context = context! { ..conversation, ..variables, ..tokens };
        template.render_captured_to(context, &mut text).map_err(refusal)?;
        String::from_utf8(text.bytes)
            .map_err(|error| Error::internal(format!("chat template: {error}")))
    }
}

/// What a template has written so far, and how much more it may.
struct BoundedText {
    bytes: Vec<u8>,
    room: usize,
}

impl io::Write for BoundedText {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.room = self.room.checked_sub(text.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template says when it does not like the conversation is its message alone; for other errors the place helps.
fn refusal(error: minijinja::Error) -> Error {
    let why = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            format!("it took more than {MAX_INSTRUCTIONS} instructions, the most that one may")
        }
        (ErrorKind::WriteFailure, _) => {
            format!("it added more than {MAX_ADDED_BYTES} bytes, the most that one may")
        }
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    };
    Error::invalid("messages", format!("the chat template refused the conversation: {why}"))
}

fn read(file: &Path) -> std::result::Result<Option<String>, TokenizerError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TokenizerError::new(file, error.to_string())),
    }
}

fn default_template(value: &serde_json::Value) -> std::result::Result<Option<String>, String> {
    use serde_json::Value as Json;
    let named = match value {
        Json::Null => return Ok(None),
        Json::String(source) => return Ok(Some(source.clone())),
        Json::Array(named) if !named.is_empty() => named,
        _ => return Err("chat_template: expected a text or a list of named templates".into()),
    };
    let chosen = match named.as_slice() {
        [only] => Some(only),
        several => several.iter().find(|entry| entry["name"] == "default"),
    };
    chosen
        .and_then(|entry| entry["template"].as_str())
        .map(|source| Some(source.to_owned()))
        .ok_or_else(|| "chat_template: expected one named \"default\" in the list".into())
}

/// A special token is a text or an object with its `content`.
fn special_token(value: &serde_json::Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// `{% generation %}` marks the assistant's text for training and shows nothing; Jinja knows no such tag. As a condition
/// that always holds, it keeps the whitespace rules of a tag.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(len) = rest[open..].find("%}") else { break };
        let tag = &rest[open..open + len + 2];
        let name = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']);
        let plain = match name.trim() {
            "generation" => tag.replacen("generation", "if true", 1),
            "endgeneration" => tag.replacen("endgeneration", "endif", 1),
            _ => tag.to_owned(),
        };
        out.push_str(&rest[..open]);
        out.push_str(&plain);
        rest = &rest[open + tag.len()..];
    }
    out.push_str(rest);
    out
}
