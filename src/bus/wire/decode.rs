//! A request's bytes to what they ask for, strictly: what is not understood is refused by name.
//!
//! Both encodings become one kind of [`Value`], so JSON and msgpack have the same rules. What stands in a request is read by
//! [`crate::reader`], as for HTTP; here is where the bus's prompts stand.

use super::encode::Encoding;
use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::reader::{self, Layout, RequestOptions};
use crate::request::{Fields, Prompt, Value};

/// How clients of the bus write a request.
pub(in crate::bus) const LAYOUT: Layout = Layout {
    params_in: Some("params"),
    streams: true,
    detaches: true,
    max_tokens: "max_tokens",
    prompt: None,
};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// What is to be continued.
    pub prompt: Prompt,
    /// All that stands beside it.
    pub options: RequestOptions,
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
/// `invalid` or `unsupported`, naming the member; with the client's id where the body shows one.
pub fn decode(encoding: Encoding, body: &[u8]) -> std::result::Result<Decoded, Undecodable> {
    let value = match encoding {
        Encoding::Json => reader::json(body),
        Encoding::Msgpack => reader::msgpack(body),
    };
    let value = value.map_err(|error| Undecodable { id: None, error })?;
    let id = peek_id(&value);
    request(value).map_err(|error| Undecodable { id, error })
}

fn request(body: Value) -> Result<Decoded> {
    let mut fields = Fields::of_body(body, None)?;
    let prompt = prompt(&mut fields);
    let options = RequestOptions::read(&mut fields, &LAYOUT)?;
    // A misspelt name comes first: the prompt's own may be it.
    fields.finish()?;
    Ok(Decoded { prompt: prompt?, options })
}

fn prompt(fields: &mut Fields<'_>) -> Result<Prompt> {
    let messages = |value: Value, path: &str| reader::messages(value, path, None);
    let given = [
        fields.optional("prompt", Value::text).map(|text| text.map(Prompt::Text)),
        fields.optional("messages", messages).map(|messages| messages.map(Prompt::Messages)),
        fields.optional("prompt_token_ids", Value::token_ids).map(|ids| ids.map(Prompt::TokenIds)),
    ];
    let given: Vec<Option<Prompt>> = given.into_iter().collect::<Result<_>>()?;
    let count = given.iter().flatten().count();
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(prompt), None) => Ok(prompt),
        _ => Err(Error::invalid(
            "prompt",
            format!("expected exactly one of prompt, messages, prompt_token_ids, got {count}"),
        )),
    }
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

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
