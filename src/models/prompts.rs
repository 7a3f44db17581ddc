//! What a checkpoint's tokenizer and chat template make of messages and texts, without loading its weights.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::open::tokenizer_folder;
use crate::checkpoint::HubCache;
use crate::jinja;
use crate::reader;
use crate::request::Value;
use crate::tokenizer::{ChatTemplate, Tokenizer};

/// The longest line that is read, in bytes.
const MAX_LINE_BYTES: usize = 64 << 20;

/// A checkpoint's tokenizer, and its chat template if it has one.
pub struct Prompts {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

/// What a line asks for.
#[derive(Default)]
struct Question {
    messages: Option<Vec<Value>>,
    text: Option<String>,
    token_ids: Option<Vec<Value>>,
    chat_template: Option<String>,
    variables: Vec<(String, Value)>,
    add_generation_prompt: Option<bool>,
    skip_special_tokens: Option<bool>,
    /// Bytes of the line: of the conversation there are no more.
    bytes: usize,
}

impl Prompts {
    /// Reads them from a directory, or the hub id of one in the cache.
    ///
    /// # Errors
    /// Names the file and the reason.
    pub fn open(model_path: &Path, hub: &HubCache) -> Result<Self, String> {
        let directory = hub.resolve(model_path).map_err(|error| error.to_string())?;
        let folder = tokenizer_folder(&directory)?;
        let tokenizer = Tokenizer::of_folder(&folder, None).map_err(|error| error.to_string())?;
        let template = ChatTemplate::of_folder(&folder).map_err(|error| error.to_string())?;
        Ok(Self { tokenizer, template })
    }

    /// Answers each line of `questions`, a JSON object, with a line of JSON: `messages` with the prompt that the chat template makes
    /// of them and its tokens (`chat_template` tries another one, `variables` and `add_generation_prompt` are the template's), `text`
    /// with its tokens, `token_ids` with their text.
    ///
    /// # Errors
    /// When it cannot read or write. A question that has no answer is answered with `error`.
    pub fn answer(&self, questions: impl BufRead, answers: &mut impl Write) -> std::io::Result<()> {
        let mut questions = questions;
        let mut line = String::new();
        loop {
            line.clear();
            let limit = MAX_LINE_BYTES as u64 + 1;
            if std::io::Read::take(&mut questions, limit).read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.len() > MAX_LINE_BYTES {
                let text = format!("a line of more than {MAX_LINE_BYTES} bytes");
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
            }
            if line.trim().is_empty() {
                continue;
            }
            let answer = Question::read(&line).and_then(|question| self.answer_to(question));
            let answer = answer.unwrap_or_else(|error| json!({"error": error}));
            writeln!(answers, "{answer}")?;
            answers.flush()?;
        }
    }

    fn answer_to(&self, question: Question) -> Result<serde_json::Value, String> {
        if let Some(ids) = &question.token_ids {
            let id = |value: &Value| match value {
                Value::Int(id) => u32::try_from(*id).ok(),
                _ => None,
            };
            let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
            let ids = ids.ok_or("token_ids: expected a list of ids")?;
            let text = self.tokenizer.decode(&ids, question.skip_special_tokens.unwrap_or(true))?;
            return Ok(json!({"text": text}));
        }
        if let Some(text) = &question.text {
            return Ok(json!({"token_ids": self.tokenizer.encode(text, true)?}));
        }
        let given = question.chat_template.as_ref().map(|source| {
            ChatTemplate::with_tokens_of(source, self.template.as_ref())
                .map_err(|reason| format!("chat_template: {reason}"))
        });
        let given = given.transpose()?;
        let Some(template) = given.as_ref().or(self.template.as_ref()) else {
            return Err("the checkpoint has no chat template".to_owned());
        };
        let messages = question.messages.ok_or("expected messages, text or token_ids")?;
        let messages = messages.iter().map(jinja::PyValue::from).collect();
        let variables = question.variables.iter();
        let variables = variables.map(|(name, value)| (Arc::from(name.as_str()), value.into()));
        let opens_turn = question.add_generation_prompt.unwrap_or(true);
        let prompt = template
            .render_values(messages, opens_turn, (variables.collect(), question.bytes))
            .map_err(|error| error.to_string())?;
        let token_ids = self.tokenizer.encode(&prompt, false)?;
        Ok(json!({"prompt": prompt, "token_ids": token_ids}))
    }
}

impl Question {
    fn read(line: &str) -> Result<Self, String> {
        let value = reader::json(line.as_bytes()).map_err(|error| error.text())?;
        let Value::Map(members) = value else { return Err("expected an object".to_owned()) };
        let mut question = Question { bytes: line.len(), ..Question::default() };
        for (name, value) in members {
            match (name.as_str(), value) {
                ("messages", Value::List(messages)) => question.messages = Some(messages),
                ("text", Value::Text(text)) => question.text = Some(text),
                ("token_ids", Value::List(ids)) => question.token_ids = Some(ids),
                ("chat_template", Value::Text(source)) => question.chat_template = Some(source),
                ("variables", Value::Map(variables)) => question.variables = variables,
                ("add_generation_prompt", Value::Bool(value)) => {
                    question.add_generation_prompt = Some(value);
                }
                ("skip_special_tokens", Value::Bool(value)) => {
                    question.skip_special_tokens = Some(value);
                }
                (name, value) => return Err(format!("{name}: not expected, or not as {value}")),
            }
        }
        Ok(question)
    }
}
