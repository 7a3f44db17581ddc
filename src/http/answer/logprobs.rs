//! Log probabilities in OpenAI's two shapes.

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use super::super::api::Api;
use crate::request::{TokenLogprob, TopLogprob};

/// The value of a choice's `logprobs`.
#[derive(Serialize)]
#[serde(untagged)]
pub enum LogprobsObject<'a> {
    /// Of a chat.
    Chat { content: Vec<ChatToken<'a>>, refusal: () },
    /// Of a completion.
    Completion(Columns<'a>),
}

impl<'a> LogprobsObject<'a> {
    /// The shape that `api` has; a completion that echoes its prompt begins with the prompt's tokens.
    pub fn of(api: Api, prompt: &'a [TokenLogprob], entries: &'a [TokenLogprob]) -> Self {
        let all = prompt.iter().chain(entries);
        match api {
            Api::Chat => {
                LogprobsObject::Chat { content: all.map(ChatToken::of).collect(), refusal: () }
            }
            Api::Completions => LogprobsObject::Completion(Columns::of(all)),
        }
    }
}

/// One token of a chat, or one of its alternatives.
#[derive(Serialize)]
pub struct ChatToken<'a> {
    token: &'a str,
    logprob: Option<f32>,
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
            logprob: Some(top.logprob),
            bytes: top.bytes.as_deref().unwrap_or(top.token.as_bytes()),
            top_logprobs: None,
        }
    }
}

/// The tokens of a completion, a column for each thing that is said of them.
#[derive(Serialize)]
pub struct Columns<'a> {
    tokens: Vec<&'a str>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Alternatives<'a>>>,
    text_offset: Vec<u32>,
}

impl<'a> Columns<'a> {
    fn of(entries: impl Iterator<Item = &'a TokenLogprob> + Clone) -> Self {
        let alternatives = |entry: &'a TokenLogprob| entry.logprob.map(|_| Alternatives(entry));
        Self {
            tokens: entries.clone().map(|entry| entry.token.as_str()).collect(),
            token_logprobs: entries.clone().map(|entry| entry.logprob).collect(),
            top_logprobs: entries.clone().map(alternatives).collect(),
            text_offset: entries.map(|entry| entry.text_offset).collect(),
        }
    }
}

/// An object of texts and log probabilities: the alternatives, and the token itself where it is not among them. Of tokens with
/// the same text the likeliest stands there.
pub struct Alternatives<'a>(&'a TokenLogprob);

impl Serialize for Alternatives<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let top = &self.0.top;
        for (at, entry) in top.iter().enumerate() {
            if !top[..at].iter().any(|before| before.token == entry.token) {
                map.serialize_entry(&entry.token, &entry.logprob)?;
            }
        }
        if let Some(logprob) = self.0.logprob
            && !top.iter().any(|entry| entry.token == self.0.token)
        {
            map.serialize_entry(&self.0.token, &logprob)?;
        }
        map.end()
    }
}

/// vLLM's `prompt_logprobs`: null for the first token, for each further one an object by token id.
pub struct PromptLogprobs<'a>(pub &'a [TokenLogprob]);

impl Serialize for PromptLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|entry| entry.logprob.map(|_| ById(entry))))
    }
}

/// The token itself and the alternatives, with the rank of those that are among the likeliest.
struct ById<'a>(&'a TokenLogprob);

#[derive(Serialize)]
struct RankedLogprob<'a> {
    logprob: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    decoded_token: &'a str,
}

impl Serialize for ById<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let Self(entry) = self;
        for (at, top) in entry.top.iter().enumerate() {
            let rank = Some(at + 1);
            let decoded = RankedLogprob { logprob: top.logprob, rank, decoded_token: &top.token };
            map.serialize_entry(&top.token_id, &decoded)?;
        }
        if let Some(logprob) = entry.logprob
            && !entry.top.iter().any(|top| top.token_id == entry.token_id)
        {
            let decoded = RankedLogprob { logprob, rank: None, decoded_token: &entry.token };
            map.serialize_entry(&entry.token_id, &decoded)?;
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
        let (token, logprob) = (token.to_owned(), Some(logprob));
        TokenLogprob { token_id: 9, token, bytes: None, logprob, text_offset, top }
    }

    fn shown(api: Api, entries: &[TokenLogprob]) -> Value {
        serde_json::to_value(LogprobsObject::of(api, &[], entries)).expect("plain fields")
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

    /// Of a prompt's first token.
    fn first(token: &str) -> TokenLogprob {
        TokenLogprob { logprob: None, ..entry(token, 0.0, 0, Vec::new()) }
    }

    #[test]
    fn an_echo_begins_with_the_prompt_whose_first_token_nothing_precedes() {
        let prompt = [first("a"), entry("b", -1.0, 1, vec![top("c", -0.5)])];
        let completion = [entry("d", -2.0, 2, Vec::new())];
        let columns = LogprobsObject::of(Api::Completions, &prompt, &completion);
        let expected = json!({
            "tokens": ["a", "b", "d"],
            "token_logprobs": [null, -1.0, -2.0],
            "top_logprobs": [null, {"c": -0.5, "b": -1.0}, {"d": -2.0}],
            "text_offset": [0, 1, 2],
        });
        assert_eq!(serde_json::to_value(columns).expect("plain fields"), expected);
    }

    #[test]
    fn prompt_logprobs_are_objects_by_token_id() {
        let mut likeliest = entry("c", -0.5, 1, vec![top("c", -0.5)]);
        likeliest.token_id = 1;
        let prompt = [first("a"), likeliest, entry("b", -1.0, 2, vec![top("c", -0.5)])];
        let c = json!({"logprob": -0.5, "rank": 1, "decoded_token": "c"});
        let expected =
            json!([null, {"1": c}, {"1": c, "9": {"logprob": -1.0, "decoded_token": "b"}}]);
        assert_eq!(serde_json::to_value(PromptLogprobs(&prompt)).expect("plain fields"), expected);
    }
}
