//! The checkpoint's chat template, rendered as Hugging Face renders it, within limits: a checkpoint's author wrote it, not ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;

use super::TokenizerError;
use super::folder::{self, TokenizerConfig, TokenizerFolder};
use crate::error::{Error, Result};
use crate::jinja::{PyValue, RenderError, RenderFault, RenderLimits, Template};
use crate::request::{self, ChatMessage};

/// Instructions that one rendering may take: 20 to 60 for each message of a conversation are usual; all take some 0.1 s.
pub const MAX_INSTRUCTIONS: u64 = 2_000_000;

/// Bytes that a template may write beyond the conversation's own: some 400 for each of 10,000 messages.
pub const MAX_ADDED_BYTES: usize = 4 << 20;

/// Bytes that a template may build on the way, beside [`MAX_BUILT_TIMES`] those of the conversation.
pub const MAX_BUILT_BYTES: u64 = 64 << 20;

/// How often a template may copy the conversation.
pub const MAX_BUILT_TIMES: u64 = 64;

/// The checkpoint's chat template, parsed once.
#[derive(Debug)]
pub struct ChatTemplate {
    template: Template,
    special_tokens: Vec<(Arc<str>, PyValue)>,
    fault: Option<String>,
}

impl ChatTemplate {
    /// Reads the folder's template as `apply_chat_template` chooses it: `chat_template.jinja`, else `default` of
    /// `additional_chat_templates`, else `chat_template` in `tokenizer_config.json` (a text, or a list of named ones whose `default`
    /// is taken); none if the checkpoint has none of them. It is tried once with the shapes that conversations have: see
    /// [`fault`](Self::fault).
    ///
    /// # Errors
    /// Names the file and the reason when one is not readable, not JSON, or not a template.
    pub fn from_dir(dir: &Path) -> std::result::Result<Option<Self>, TokenizerError> {
        Self::of_folder(&TokenizerFolder::open(dir)?)
    }

    /// The same of a folder that was opened.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn of_folder(
        folder: &TokenizerFolder,
    ) -> std::result::Result<Option<Self>, TokenizerError> {
        let Some((file, source)) = find(folder)? else { return Ok(None) };
        let mut template = Self::of(&source, &folder.config)
            .map_err(|reason| TokenizerError::new(&file, format!("chat template: {reason}")))?;
        template.fault = template.try_out().map(|why| format!("{}: {why}", file.display()));
        Ok(Some(template))
    }

    /// Parses a template; `config` is what `tokenizer_config.json` says of the special tokens.
    ///
    /// # Errors
    /// Where and why the text is not a template.
    pub fn new(source: &str, config: &serde_json::Value) -> std::result::Result<Self, String> {
        Self::of(source, &TokenizerConfig::of(config))
    }

    /// Parses another template for the special tokens of one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_tokens_of(source: &str, other: Option<&Self>) -> std::result::Result<Self, String> {
        let special_tokens = other.map_or_else(Vec::new, |other| other.special_tokens.clone());
        Ok(Self { template: Template::new(source)?, special_tokens, fault: None })
    }

    fn of(source: &str, config: &TokenizerConfig) -> std::result::Result<Self, String> {
        let named = config.named().into_iter();
        Ok(Self {
            template: Template::new(source)?,
            special_tokens: named.map(|(name, text)| (name.into(), PyValue::from(text))).collect(),
            fault: None,
        })
    }

    /// Why the template cannot be rendered, whatever the conversation; none where it can, or where it refuses conversations in its own
    /// words.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// What is wrong with every shape of conversation that chats begin with, by the first of them.
    fn try_out(&self) -> Option<String> {
        let shapes = [&["user"][..], &["system", "user"], &["user", "assistant", "user"]];
        let mut fault = None;
        for roles in shapes {
            let turns = roles.iter().map(|role| PyValue::from(&ChatMessage::new(*role, "Hello")));
            match self.render_values(turns.collect(), true, (Vec::new(), 0)) {
                // It can be rendered, or says itself what it does not take.
                Ok(_) => return None,
                Err(error) if error.fault == RenderFault::Raised => return None,
                Err(error) => fault = fault.or(Some(error.to_string())),
            }
        }
        fault
    }

    /// The conversation as the model's prompt, special tokens included; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// `invalid` with the template's own message when it does not take the conversation, or with the limit that it passed
    /// ([`MAX_INSTRUCTIONS`], [`MAX_ADDED_BYTES`], [`MAX_BUILT_BYTES`]).
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
        let own = messages.iter().map(ChatMessage::size).sum();
        let messages = messages.iter().map(PyValue::from).collect();
        let variables = variables.iter().map(|(name, value)| (name.as_str().into(), value.into()));
        self.render_values(messages, add_generation_prompt, (variables.collect(), own))
            .map_err(|error| self.refusal(&error))
    }

    /// The same of messages with any members, and with further variables; `own`: their bytes.
    ///
    /// # Errors
    /// As [`render`](Self::render), but of the template.
    pub fn render_values(
        &self,
        messages: Vec<PyValue>,
        add_generation_prompt: bool,
        (variables, own): (Vec<(Arc<str>, PyValue)>, usize),
    ) -> std::result::Result<String, RenderError> {
        let mut all: Vec<(Arc<str>, PyValue)> = vec![
            ("messages".into(), PyValue::given_list(messages)),
            ("add_generation_prompt".into(), PyValue::Bool(add_generation_prompt)),
            ("tools".into(), PyValue::None),
            ("documents".into(), PyValue::None),
        ];
        all.extend(self.special_tokens.iter().cloned());
        all.extend(variables);
        let limits = RenderLimits {
            instructions: MAX_INSTRUCTIONS,
            built_bytes: MAX_BUILT_BYTES.saturating_add(MAX_BUILT_TIMES.saturating_mul(own as u64)),
            output_bytes: MAX_ADDED_BYTES.saturating_add(own),
        };
        // A node's answer must not depend on where its machine stands, so the time is UTC.
        self.template.render(all, limits, OffsetDateTime::now_utc())
    }

    /// What a client is told: of `raise_exception` the template's own words; a template that cannot be rendered at all is the
    /// checkpoint's fault.
    fn refusal(&self, error: &RenderError) -> Error {
        let why = match error.fault {
            RenderFault::Raised | RenderFault::Failed => error.to_string(),
            RenderFault::Instructions => {
                format!("it took more than {MAX_INSTRUCTIONS} instructions, the most that one may")
            }
            RenderFault::OutputBytes => {
                format!("it added more than {MAX_ADDED_BYTES} bytes, the most that one may")
            }
            RenderFault::BuiltBytes => {
                format!(
                    "it built more than {MAX_BUILT_BYTES} bytes of values, the most that one may"
                )
            }
        };
        if self.fault.is_some() {
            let text = format!(
                "this model's chat template cannot be rendered, whatever the conversation; it is the checkpoint's: {why}"
            );
            return Error::new(crate::error::Kind::Unsupported, text);
        }
        Error::invalid("messages", format!("the chat template refused the conversation: {why}"))
    }
}

/// A message as templates see it: role and content first, then what else it has.
impl From<&ChatMessage> for PyValue {
    fn from(message: &ChatMessage) -> Self {
        let text = |name: &str, text: &str| (name.to_owned(), Self::from(text));
        let mut pairs = vec![text("role", &message.role), text("content", &message.content)];
        pairs.extend(message.more.iter().map(|(name, value)| (name.clone(), value.into())));
        Self::given_dict(pairs)
    }
}

/// What a client wrote, as a template sees it.
impl From<&request::Value> for PyValue {
    fn from(value: &request::Value) -> Self {
        match value {
            request::Value::Null => PyValue::None,
            request::Value::Bool(value) => PyValue::Bool(*value),
            request::Value::Int(value) => PyValue::Int(*value),
            request::Value::Float(value) => PyValue::Float(*value),
            request::Value::Text(text) => PyValue::from(text.as_str()),
            request::Value::List(items) => {
                PyValue::given_list(items.iter().map(PyValue::from).collect())
            }
            request::Value::Map(members) => {
                let pairs =
                    members.iter().map(|(name, value)| (name.clone(), PyValue::from(value)));
                PyValue::given_dict(pairs.collect())
            }
        }
    }
}

/// The folder's template and the file that it stands in.
fn find(
    folder: &TokenizerFolder,
) -> std::result::Result<Option<(PathBuf, String)>, TokenizerError> {
    let own = ["chat_template.jinja", "additional_chat_templates/default.jinja"];
    for name in own.iter().filter(|_| !folder.is_file()) {
        let file = folder.path_of(name);
        if let Some(source) = read(&file)? {
            return Ok(Some((file, source)));
        }
    }
    let file = folder.path_of("tokenizer_config.json");
    match folder.config.get("chat_template").map(default_template).transpose() {
        Ok(source) => Ok(source.map(|source| (file, source))),
        Err(reason) => Err(TokenizerError::new(&file, reason)),
    }
}

fn read(file: &Path) -> std::result::Result<Option<String>, TokenizerError> {
    let text =
        |bytes| String::from_utf8(bytes).map_err(|e| TokenizerError::new(file, e.to_string()));
    folder::read(file)?.map(text).transpose()
}

fn default_template(value: &serde_json::Value) -> std::result::Result<String, String> {
    use serde_json::Value as Json;
    let named = match value {
        Json::String(source) => return Ok(source.clone()),
        Json::Array(named) if !named.is_empty() => named,
        _ => return Err("chat_template: expected a text or a list of named templates".into()),
    };
    let chosen = match named.as_slice() {
        [only] => Some(only),
        several => several.iter().find(|entry| entry["name"] == "default"),
    };
    chosen
        .and_then(|entry| entry["template"].as_str())
        .map(str::to_owned)
        .ok_or_else(|| "chat_template: expected one named \"default\" in the list".into())
}
