//! Log probabilities in OpenAI's two shapes.

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use super::wire::Api;
use crate::request::{TokenLogprob, TopLogprob};

/// The value of a choice's `logprobs`.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Logprobs<'a> {
    /// Of a chat.
    Chat { content: Vec<ChatToken<'a>>, refusal: () },
    /// Of a completion.
    Completion(Columns<'a>),
}

impl<'a> Logprobs<'a> {
    /// The shape that `api` has.
    pub(super) fn of(api: Api, entries: &'a [TokenLogprob]) -> Self {
        match api {
            Api::Chat => {
                Logprobs::Chat { content: entries.iter().map(ChatToken::of).collect(), refusal: () }
            }
            Api::Completions => Logprobs::Completion(Columns::of(entries)),
        }
    }
}

/// One token of a chat, or one of its alternatives.
#[derive(Serialize)]
pub(super) struct ChatToken<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<ChatToken<'a>>>,
}

impl<'a> ChatToken<'a> {
    fn of(entry: &'a TokenLogprob) -> Self {
        Self {
            token: &entry.token,
            logprob: entry.logprob,
            bytes: entry.bytes.as_deref().unwrap_or(entry.token.as_bytes()),
            top_logprobs: Some(entry.top.iter().map(Self::alternative).collect()),
        }
    }

    fn alternative(top: &'a TopLogprob) -> Self {
        Self {
            token: &top.token,
            logprob: top.logprob,
            bytes: top.bytes.as_deref().unwrap_or(top.token.as_bytes()),
            top_logprobs: None,
        }
    }
}

/// The tokens of a completion, a column for each thing that is said of them.
#[derive(Serialize)]
pub(super) struct Columns<'a> {
    tokens: Vec<&'a str>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Alternatives<'a>>,
    text_offset: Vec<u32>,
}

impl<'a> Columns<'a> {
    fn of(entries: &'a [TokenLogprob]) -> Self {
        Self {
            tokens: entries.iter().map(|entry| entry.token.as_str()).collect(),
            token_logprobs: entries.iter().map(|entry| entry.logprob).collect(),
            top_logprobs: entries.iter().map(Alternatives).collect(),
            text_offset: entries.iter().map(|entry| entry.text_offset).collect(),
        }
    }
}

/// An object of texts and log probabilities: the alternatives, and the token itself where it is not among them. Of tokens with
/// the same text the likeliest stands there.
pub(super) struct Alternatives<'a>(&'a TokenLogprob);

impl Serialize for Alternatives<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let top = &self.0.top;
        for (at, entry) in top.iter().enumerate() {
            if !top[..at].iter().any(|before| before.token == entry.token) {
                map.serialize_entry(&entry.token, &entry.logprob)?;
            }
        }
        if !top.iter().any(|entry| entry.token == self.0.token) {
            map.serialize_entry(&self.0.token, &self.0.logprob)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn top(token: &str, logprob: f32) -> TopLogprob {
        TopLogprob { token_id: 1, token: token.to_owned(), bytes: None, logprob }
    }

    fn entry(token: &str, logprob: f32, text_offset: u32, top: Vec<TopLogprob>) -> TokenLogprob {
        TokenLogprob { token: token.to_owned(), bytes: None, logprob, text_offset, top }
    }

    fn shown(api: Api, entries: &[TokenLogprob]) -> Value {
        serde_json::to_value(Logprobs::of(api, entries)).expect("plain fields")
    }

    #[test]
    fn a_chat_has_an_object_for_each_token() {
        let mut half = entry("\u{fffd}", -1.5, 2, Vec::new());
        half.bytes = Some(vec![0xc3]);
        let entries = [entry("a", -0.5, 0, vec![top("a", -0.5), top("b", -2.0)]), half];
        let expected = json!({"content": [
            {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]},
                {"token": "b", "logprob": -2.0, "bytes": [98]}]},
            {"token": "\u{fffd}", "logprob": -1.5, "bytes": [0xc3], "top_logprobs": []},
        ], "refusal": null});
        assert_eq!(shown(Api::Chat, &entries), expected);
    }

    #[test]
    fn a_completion_has_columns() {
        let entries = [
            entry("a", -0.5, 0, vec![top("a", -0.5), top("b", -2.0)]),
            entry("z", -9.0, 1, vec![top("b", -1.0), top("b", -2.0)]),
            entry("q", -3.0, 2, Vec::new()),
        ];
        let expected = json!({
            "tokens": ["a", "z", "q"],
            "token_logprobs": [-0.5, -9.0, -3.0],
            "top_logprobs": [{"a": -0.5, "b": -2.0}, {"b": -1.0, "z": -9.0}, {"q": -3.0}],
            "text_offset": [0, 1, 2],
        });
        assert_eq!(shown(Api::Completions, &entries), expected);
    }
}
