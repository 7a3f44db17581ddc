//! A request's bytes to its fields, strictly: what is not understood is refused by name.
//!
//! Both encodings go through one tree, so JSON and msgpack have the same rules: null is absent; a key given twice, an unknown
//! key, a number that is none are refused. Ranges that depend on the model are admission's.

use std::collections::HashSet;

use super::encode::Encoding;
use super::tree::{Tree, read};
use crate::error::{Error, Kind, Result};
use crate::request::{ChatMessage, DEFAULT_PRIORITY, Params, Prompt, RequestId};

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
    let tree = read(encoding, body).map_err(|error| Undecodable { id: None, error })?;
    let id = peek_id(&tree);
    request(tree).map_err(|error| Undecodable { id, error })
}

/// The members of the request that are known and come later.
const LATER: [&str; 2] = ["tenant", "deadline_ms"];

/// Parameters that others know and this node does not have yet, and the value that changes nothing.
const OTHERS: &[(&str, Neutral)] = &[
    ("best_of", Neutral::Number(1.0)),
    ("echo", Neutral::False),
    ("frequency_penalty", Neutral::Number(0.0)),
    ("grammar", Neutral::Nothing),
    ("guided_choice", Neutral::Nothing),
    ("guided_grammar", Neutral::Nothing),
    ("guided_json", Neutral::Nothing),
    ("guided_regex", Neutral::Nothing),
    ("json_schema", Neutral::Nothing),
    ("logit_bias", Neutral::Empty),
    ("logprobs", Neutral::False),
    ("n", Neutral::Number(1.0)),
    ("presence_penalty", Neutral::Number(0.0)),
    ("prompt_logprobs", Neutral::Nothing),
    ("repetition_penalty", Neutral::Number(1.0)),
    ("response_format", Neutral::Nothing),
    ("stop_token_ids", Neutral::Empty),
    ("suffix", Neutral::Nothing),
    ("tool_choice", Neutral::Nothing),
    ("tools", Neutral::Empty),
    ("top_logprobs", Neutral::Number(0.0)),
];

/// The value of a parameter that leaves the output as it is without it; null always does.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    Nothing,
    False,
    Number(f64),
    Empty,
}

impl Neutral {
    fn holds(self, value: &Tree) -> bool {
        match (self, value) {
            (Neutral::False, Tree::Bool(false)) => true,
            (Neutral::Number(neutral), Tree::Int(n)) => neutral == *n as f64,
            (Neutral::Number(neutral), Tree::Float(x)) => neutral == *x,
            (Neutral::Empty, Tree::List(items)) => items.is_empty(),
            (Neutral::Empty, Tree::Map(entries)) => entries.is_empty(),
            _ => false,
        }
    }
}

fn request(tree: Tree) -> Result<Decoded> {
    let mut fields = Fields::of("", tree)?;
    let id = match fields.take("request_id") {
        Some(value) => Some(RequestId::parse(&text("request_id", value)?)?),
        None => None,
    };
    let prompt = prompt(&mut fields)?;
    let priority = match fields.take("priority") {
        Some(value) => integer("priority", value, 0, 255)? as u8,
        None => DEFAULT_PRIORITY,
    };
    let detached = match fields.take("detached") {
        Some(value) => boolean("detached", value)?,
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
        (Some(value), None, None) => Ok(Prompt::Text(text("prompt", value)?)),
        (None, Some(value), None) => list("messages", value)?
            .into_iter()
            .enumerate()
            .map(|(i, message)| chat_message(&format!("messages[{i}]"), message))
            .collect::<Result<_>>()
            .map(Prompt::Messages),
        (None, None, Some(value)) => list("prompt_token_ids", value)?
            .into_iter()
            .map(|id| integer("prompt_token_ids", id, 0, u32::MAX.into()).map(|id| id as u32))
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

fn chat_message(path: &str, value: Tree) -> Result<ChatMessage> {
    let mut fields = Fields::of(path, value)?;
    let mut required = |name: &str| {
        let at = format!("{path}.{name}");
        match fields.take(name) {
            Some(value) => text(&at, value),
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
    let count = |fields: &mut Fields, name: &str| match fields.take(name) {
        Some(value) => integer(&fields.at(name), value, 0, u32::MAX.into()).map(|n| Some(n as u32)),
        None => Ok(None),
    };
    let real = |fields: &mut Fields, name: &str| match fields.take(name) {
        Some(value) => number(&fields.at(name), value).map(|x| Some(x as f32)),
        None => Ok(None),
    };
    let params = Params {
        max_tokens: count(&mut fields, "max_tokens")?,
        min_tokens: count(&mut fields, "min_tokens")?,
        temperature: real(&mut fields, "temperature")?,
        top_p: real(&mut fields, "top_p")?,
        top_k: count(&mut fields, "top_k")?,
        min_p: real(&mut fields, "min_p")?,
        seed: match fields.take("seed") {
            // 64 bits, given as signed or unsigned.
            Some(value) => {
                Some(integer("params.seed", value, i64::MIN.into(), u64::MAX.into())? as u64)
            }
            None => None,
        },
        stop: match fields.take("stop") {
            Some(Tree::Text(one)) => vec![one],
            Some(value) => list("params.stop", value)?
                .into_iter()
                .map(|stop| text("params.stop", stop))
                .collect::<Result<_>>()?,
            None => Vec::new(),
        },
        ignore_eos: match fields.take("ignore_eos") {
            Some(value) => Some(boolean("params.ignore_eos", value)?),
            None => None,
        },
    };
    let stream = match fields.take("stream") {
        Some(value) => boolean("params.stream", value)?,
        None => true,
    };
    fields.entries.retain(|(name, value)| {
        !OTHERS.iter().any(|(other, neutral)| other == name && neutral.holds(value))
    });
    fields.refuse_rest(|name, _| OTHERS.iter().any(|(other, _)| *other == name))?;
    Ok((params, stream))
}

/// The client's id in a body that may be wrong elsewhere, so that the refusal can name it.
fn peek_id(tree: &Tree) -> Option<RequestId> {
    let Tree::Map(entries) = tree else { return None };
    let mut ids = entries.iter().filter(|(name, _)| name == "request_id");
    match (ids.next(), ids.next()) {
        (Some((_, Tree::Text(id))), None) => RequestId::parse(id).ok(),
        _ => None,
    }
}

/// The members of an object that are still to be looked at.
struct Fields {
    path: String,
    entries: Vec<(String, Tree)>,
}

impl Fields {
    fn of(path: &str, value: Tree) -> Result<Self> {
        let Tree::Map(entries) = value else {
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
                return Err(Error::invalid(fields.at(name), "given twice"));
            }
        }
        Ok(fields)
    }

    fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The member's value; null is absent.
    fn take(&mut self, name: &str) -> Option<Tree> {
        let at = self.entries.iter().position(|(entry, _)| entry == name)?;
        match self.entries.swap_remove(at).1 {
            Tree::Null => None,
            value => Some(value),
        }
    }

    /// Refuses the first member that is left; a known one that is null is absent.
    fn refuse_rest(self, known: impl Fn(&str, &Tree) -> bool) -> Result<()> {
        for (name, value) in &self.entries {
            if !known(name, value) {
                return Err(Error::invalid(self.at(name), "not a member of this object"));
            }
            if !matches!(value, Tree::Null) {
                return Err(Error::unsupported(self.at(name), "known, but not to be had here"));
            }
        }
        Ok(())
    }
}

fn text(path: &str, value: Tree) -> Result<String> {
    match value {
        Tree::Text(text) => Ok(text),
        other => Err(Error::invalid(path, format!("expected a string, got {other}"))),
    }
}

fn boolean(path: &str, value: Tree) -> Result<bool> {
    match value {
        Tree::Bool(value) => Ok(value),
        other => Err(Error::invalid(path, format!("expected true or false, got {other}"))),
    }
}

fn list(path: &str, value: Tree) -> Result<Vec<Tree>> {
    match value {
        Tree::List(items) => Ok(items),
        other => Err(Error::invalid(path, format!("expected an array, got {other}"))),
    }
}

fn integer(path: &str, value: Tree, min: i128, max: i128) -> Result<i128> {
    match value {
        Tree::Int(n) if (min..=max).contains(&n) => Ok(n),
        other => Err(Error::invalid(path, format!("expected {min} to {max}, got {other}"))),
    }
}

fn number(path: &str, value: Tree) -> Result<f64> {
    match value {
        Tree::Int(n) => Ok(n as f64),
        Tree::Float(x) if x.is_finite() => Ok(x),
        other => Err(Error::invalid(path, format!("expected a number, got {other}"))),
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
