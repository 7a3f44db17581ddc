//! A request's bytes to its fields, strictly: what is not understood is refused by name.
//!
//! Both encodings become one kind of [`Value`], so JSON and msgpack have the same rules: null is absent; a key given twice, an unknown
//! key, a number that is none are refused. Ranges that depend on the model are admission's.

use std::collections::HashSet;

use serde::Deserialize as _;

use super::encode::Encoding;
use crate::error::{Error, Kind, Result};
use crate::ids::RequestId;
use crate::request::{ChatMessage, DEFAULT_PRIORITY, Members, Params, Prompt, Value};

/// A request's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The client's id, if it gave one.
    pub id: Option<RequestId>,
    /// What is to be continued.
    pub prompt: Prompt,
    /// As given.
    pub params: Params,
    /// False: one event with everything.
    pub stream: bool,
    /// 0 to 255.
    pub priority: u8,
    /// Goes on when nobody listens.
    pub detached: bool,
}

/// A body that is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Undecodable {
    /// The client's id, where it could be read.
    pub id: Option<RequestId>,
    /// Why.
    pub error: Error,
}

/// Reads a request.
///
/// # Errors
/// `invalid` or `unsupported`, naming the field; with the client's id where the body shows one.
pub fn decode(encoding: Encoding, body: &[u8]) -> std::result::Result<Decoded, Undecodable> {
    let value = read(encoding, body).map_err(|error| Undecodable { id: None, error })?;
    let id = peek_id(&value);
    request(value).map_err(|error| Undecodable { id, error })
}

/// Reads the one value that a body is.
///
/// # Errors
/// `invalid`: not this encoding, or bytes after the end.
fn read(encoding: Encoding, body: &[u8]) -> Result<Value> {
    let wrong = |why: String| Error::new(Kind::Invalid, format!("expected {encoding}: {why}"));
    match encoding {
        Encoding::Json => serde_json::from_slice(body).map_err(|error| wrong(error.to_string())),
        Encoding::Msgpack => {
            let mut rest = body;
            let mut reader = rmp_serde::Deserializer::new(&mut rest);
            // As JSON has it: deep enough for anything of ours, and far from the stack's end.
            reader.set_max_depth(128);
            let value =
                Value::deserialize(&mut reader).map_err(|error| wrong(error.to_string()))?;
            drop(reader);
            match rest.len() {
                0 => Ok(value),
                more => Err(wrong(format!("{more} bytes after its end"))),
            }
        }
    }
}

/// The members of the request that are known and come later.
const LATER: [&str; 2] = ["tenant", "deadline_ms"];

/// Parameters that others know and this node does not have yet, and the value that changes nothing.
const OTHERS: &[(&str, Neutral)] = &[
    ("grammar", Neutral::Nothing),
    ("guided_choice", Neutral::Nothing),
    ("guided_grammar", Neutral::Nothing),
    ("guided_json", Neutral::Nothing),
    ("guided_regex", Neutral::Nothing),
    ("json_schema", Neutral::Nothing),
    ("response_format", Neutral::Nothing),
    ("suffix", Neutral::Nothing),
    ("tool_choice", Neutral::Nothing),
    ("tools", Neutral::Empty),
];

/// The value of a parameter that leaves the output as it is without it; null always does.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    Nothing,
    Empty,
}

impl Neutral {
    fn holds(self, value: &Value) -> bool {
        match (self, value) {
            (Neutral::Empty, Value::List(items)) => items.is_empty(),
            (Neutral::Empty, Value::Map(entries)) => entries.is_empty(),
            _ => false,
        }
    }
}

fn request(value: Value) -> Result<Decoded> {
    let mut fields = Fields::of("", value)?;
    let id = match fields.take("request_id") {
        Some(value) => Some(RequestId::parse(&value.text("request_id")?)?),
        None => None,
    };
    let prompt = prompt(&mut fields)?;
    let priority = match fields.take("priority") {
        Some(value) => value.integer("priority", 0, 255)? as u8,
        None => DEFAULT_PRIORITY,
    };
    let detached = match fields.take("detached") {
        Some(value) => value.boolean("detached")?,
        None => false,
    };
    let (params, stream) = match fields.take("params") {
        Some(value) => params(Fields::of("params", value)?)?,
        None => (Params::default(), true),
    };
    fields.refuse_rest(|name, _| LATER.contains(&name))?;
    Ok(Decoded { id, prompt, params, stream, priority, detached })
}

fn prompt(fields: &mut Fields) -> Result<Prompt> {
    let given = (fields.take("prompt"), fields.take("messages"), fields.take("prompt_token_ids"));
    match given {
        (Some(value), None, None) => Ok(Prompt::Text(value.text("prompt")?)),
        (None, Some(value), None) => value
            .list("messages")?
            .into_iter()
            .enumerate()
            .map(|(i, message)| chat_message(&format!("messages[{i}]"), message))
            .collect::<Result<_>>()
            .map(Prompt::Messages),
        (None, None, Some(value)) => value
            .list("prompt_token_ids")?
            .into_iter()
            .map(|id| id.integer("prompt_token_ids", 0, u32::MAX.into()).map(|id| id as u32))
            .collect::<Result<_>>()
            .map(Prompt::TokenIds),
        (prompt, messages, ids) => {
            let count = [prompt, messages, ids].iter().flatten().count();
            Err(Error::invalid(
                "prompt",
                format!("expected exactly one of prompt, messages, prompt_token_ids, got {count}"),
            ))
        }
    }
}

fn chat_message(path: &str, value: Value) -> Result<ChatMessage> {
    let mut fields = Fields::of(path, value)?;
    let mut required = |name: &str| {
        let at = format!("{path}.{name}");
        match fields.take(name) {
            Some(value) => value.text(&at),
            None => Err(Error::invalid(at, "expected a string, got nothing")),
        }
    };
    let message = ChatMessage { role: required("role")?, content: required("content")? };
    fields.refuse_rest(|name, _| matches!(name, "name" | "tool_calls" | "tool_call_id"))?;
    let role = format!("{path}.role");
    match message.role.as_str() {
        "system" | "user" | "assistant" => {}
        "tool" | "function" => {
            return Err(Error::unsupported(
                role,
                format!("the role {} is not supported by this node", message.role),
            ));
        }
        other => {
            return Err(Error::invalid(
                role,
                format!("expected system, user or assistant, got {other:?}"),
            ));
        }
    }
    Ok(message)
}

fn params(mut fields: Fields) -> Result<(Params, bool)> {
    let params = Params::read(&mut fields)?;
    let stream = match fields.take("stream") {
        Some(value) => value.boolean("params.stream")?,
        None => true,
    };
    fields.entries.retain(|(name, value)| {
        !OTHERS.iter().any(|(other, neutral)| other == name && neutral.holds(value))
    });
    fields.refuse_rest(|name, _| OTHERS.iter().any(|(other, _)| *other == name))?;
    Ok((params, stream))
}

/// The client's id in a body that may be wrong elsewhere, so that the refusal can name it.
fn peek_id(value: &Value) -> Option<RequestId> {
    let Value::Map(entries) = value else { return None };
    let mut ids = entries.iter().filter(|(name, _)| name == "request_id");
    match (ids.next(), ids.next()) {
        (Some((_, Value::Text(id))), None) => RequestId::parse(id).ok(),
        _ => None,
    }
}

/// The members of an object that are still to be looked at.
struct Fields {
    path: String,
    entries: Vec<(String, Value)>,
}

impl Fields {
    fn of(path: &str, value: Value) -> Result<Self> {
        let Value::Map(entries) = value else {
            let message = format!("expected an object, got {value}");
            return Err(match path {
                "" => Error::new(Kind::Invalid, message),
                _ => Error::invalid(path, message),
            });
        };
        let fields = Self { path: path.to_owned(), entries };
        let mut seen = HashSet::with_capacity(fields.entries.len());
        for (name, _) in &fields.entries {
            if !seen.insert(name) {
                return Err(Error::invalid(fields.path(name), "given twice"));
            }
        }
        Ok(fields)
    }

    /// Refuses the first member that is left; a known one that is null is absent.
    fn refuse_rest(self, known: impl Fn(&str, &Value) -> bool) -> Result<()> {
        for (name, value) in &self.entries {
            if !known(name, value) {
                return Err(Error::invalid(self.path(name), "not a member of this object"));
            }
            if !matches!(value, Value::Null) {
                return Err(Error::unsupported(self.path(name), "not supported by this node"));
            }
        }
        Ok(())
    }
}

impl Members for Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.entries.iter().position(|(entry, _)| entry == name)?;
        match self.entries.swap_remove(at).1 {
            Value::Null => None,
            value => Some(value),
        }
    }

    fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
