//! OpenAI's bodies and chunks. A chunk's constant parts are written once per stream; per event only index and text are new.

use std::sync::Arc;

use serde::Serialize;

use super::super::api::Api;
use super::super::intake::parse::StreamUsage;
use super::super::json;
use super::bill::{Bill, WireUsage};
use super::choices::TokensSoFar;
use super::logprobs::{LogprobsObject, PromptLogprobs};
use crate::ids::RequestId;
use crate::log::Positions;
use crate::request::{FinishReason, Receipt, TokenLogprob};

/// What answers as `system_fingerprint`: same engine, same numbers.
const FINGERPRINT: &str = concat!("inferno-", env!("CARGO_PKG_VERSION"));

/// What every part of one answer says about it.
#[derive(Debug, Clone)]
pub struct Title {
    pub api: Api,
    pub request_id: RequestId,
    pub model: Arc<str>,
    /// Unix seconds.
    pub created: u64,
    /// Log probabilities are of prompt and completion.
    pub echoes: bool,
    /// Those of the prompt stand in a member of their own, too.
    pub prompt_logprobs: bool,
}

/// A whole choice.
#[derive(Debug, Default)]
pub struct Whole {
    pub text: String,
    /// None where nobody wants them.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Empty where nobody wants them.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// None until it has ended.
    pub reason: Option<FinishReason>,
}

impl Whole {
    /// What stands before the completion's log probabilities.
    fn echoed(&self, title: &Title) -> &[TokenLogprob] {
        if title.echoes { &self.prompt_logprobs } else { &[] }
    }
}

/// One whole body; `choices` in the order of the prompts.
pub fn body(title: &Title, choices: &[Whole], bill: &Bill) -> Vec<u8> {
    #[derive(Serialize)]
    struct CompletionObject<'a> {
        id: String,
        object: &'static str,
        created: u64,
        model: &'a str,
        system_fingerprint: &'static str,
        choices: Vec<ChoiceObject<'a>>,
        usage: WireUsage,
        /// Where vLLM has those of a chat.
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_logprobs: Option<PromptLogprobs<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        receipt: Option<&'a Receipt>,
    }
    #[derive(Serialize)]
    struct ChoiceObject<'a> {
        index: usize,
        #[serde(flatten)]
        content: Content<'a>,
        logprobs: Option<LogprobsObject<'a>>,
        finish_reason: Option<FinishReason>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_logprobs: Option<PromptLogprobs<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Content<'a> {
        Text(&'a str),
        Message { role: &'static str, content: &'a str, refusal: () },
    }
    let of_prompt = |whole| of_prompt(title, whole);
    let body = CompletionObject {
        id: format!("{}{}", title.api.id_prefix(), title.request_id),
        object: title.api.object(false),
        created: title.created,
        model: &title.model,
        system_fingerprint: FINGERPRINT,
        choices: choices
            .iter()
            .enumerate()
            .map(|(index, whole)| ChoiceObject {
                index,
                content: match title.api {
                    Api::Completions => Content::Text(&whole.text),
                    Api::Chat => {
                        let content = whole.text.as_str();
                        Content::Message { role: "assistant", content, refusal: () }
                    }
                },
                logprobs: whole
                    .logprobs
                    .as_deref()
                    .map(|entries| LogprobsObject::of(title.api, whole.echoed(title), entries)),
                finish_reason: whole.reason,
                prompt_logprobs: of_prompt(whole).filter(|_| title.api == Api::Completions),
            })
            .collect(),
        usage: bill.usage(),
        prompt_logprobs: choices.first().and_then(of_prompt).filter(|_| title.api == Api::Chat),
        receipt: bill.receipt(),
    };
    json::to_vec(&body)
}

/// What stands in a choice's member of its own, where it is wanted.
fn of_prompt<'a>(title: &Title, whole: &'a Whole) -> Option<PromptLogprobs<'a>> {
    title.prompt_logprobs.then_some(PromptLogprobs(&whole.prompt_logprobs))
}

/// Writes the chunks of one stream. A chunk of a choice is told what it has cost until then.
pub struct Chunks {
    api: Api,
    usage: StreamUsage,
    /// `data: {"id": … "choices":[`
    head: Vec<u8>,
    /// Where chunks say how far their reader has come, so that it can go on from there.
    ids: Option<ChunkIds>,
}

/// How far the reader of a durable request has come.
struct ChunkIds {
    positions: Positions,
    /// Choices that belong to it: what comes behind them are other requests, of the same body's other prompts.
    choices: usize,
}

impl Chunks {
    /// Of the stream that `title` names.
    pub fn new(title: &Title, usage: StreamUsage) -> Self {
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(b"data: {\"id\":\"");
        head.extend_from_slice(title.api.id_prefix().as_bytes());
        head.extend_from_slice(title.request_id.as_str().as_bytes());
        head.extend_from_slice(b"\",\"object\":\"");
        head.extend_from_slice(title.api.object(true).as_bytes());
        head.extend_from_slice(b"\",\"created\":");
        json::write(&mut head, &title.created);
        head.extend_from_slice(b",\"model\":");
        json::write(&mut head, title.model.as_ref());
        head.extend_from_slice(b",\"system_fingerprint\":");
        json::write(&mut head, FINGERPRINT);
        head.extend_from_slice(b",\"choices\":[");
        Self { api: title.api, usage, head, ids: None }
    }

    /// Chunks of the first so many choices say how far their reader has come.
    #[must_use]
    pub fn with_ids(self, choices: Option<usize>) -> Self {
        let ids = |choices| ChunkIds { positions: Positions::default(), choices };
        Self { ids: choices.map(ids), ..self }
    }

    /// With what is written of a choice from here on, its reader has come so far.
    pub fn reach(&mut self, index: usize, so_far: TokensSoFar) {
        if let Some(ids) = self.ids.as_mut().filter(|ids| index < ids.choices) {
            ids.positions.reach(index as u32, so_far.completion_tokens);
        }
    }

    /// About how long an event with a short text is, in bytes.
    pub fn event_len(&self) -> usize {
        self.head.len() + 128
    }

    /// The first chunk of a chat choice, which says who speaks.
    pub fn role(&self, out: &mut Vec<u8>, index: usize, so_far: TokensSoFar) {
        if self.api == Api::Chat {
            self.open(out, index);
            out.extend_from_slice(
                b",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}",
            );
            self.close(out, so_far);
        }
    }

    /// A piece of text, with the log probabilities of its tokens if they are wanted.
    pub fn text(
        &self,
        out: &mut Vec<u8>,
        (index, so_far): (usize, TokensSoFar),
        text: &str,
        logprobs: Option<LogprobsObject<'_>>,
    ) {
        self.open(out, index);
        self.piece(out, text);
        out.extend_from_slice(b",\"logprobs\":");
        match logprobs {
            Some(logprobs) => json::write(out, &logprobs),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"finish_reason\":null}");
        self.close(out, so_far);
    }

    /// The end of a choice; with the bill, this is the last chunk.
    pub fn finish(
        &self,
        out: &mut Vec<u8>,
        (index, so_far): (usize, TokensSoFar),
        reason: FinishReason,
        bill: Option<&Bill>,
    ) {
        self.open(out, index);
        match self.api {
            Api::Completions => self.piece(out, ""),
            Api::Chat => out.extend_from_slice(b",\"delta\":{}"),
        }
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":\"");
        out.extend_from_slice(reason.as_str().as_bytes());
        out.extend_from_slice(b"\"}");
        match bill.and_then(Bill::receipt) {
            Some(receipt) if self.usage == StreamUsage::Nowhere => {
                out.extend_from_slice(b"],\"receipt\":");
                json::write(out, receipt);
                out.extend_from_slice(b"}\n\n");
            }
            _ => self.close(out, so_far),
        }
    }

    /// What ends the stream: the usage, if it was asked for, and `[DONE]`.
    pub fn done(&self, out: &mut Vec<u8>, bill: &Bill) {
        if self.usage != StreamUsage::Nowhere {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b"],\"usage\":");
            json::write(out, &bill.usage());
            if let Some(receipt) = bill.receipt() {
                out.extend_from_slice(b",\"receipt\":");
                json::write(out, receipt);
            }
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// The end of a chunk after which others follow.
    fn close(&self, out: &mut Vec<u8>, so_far: TokensSoFar) {
        match self.usage {
            StreamUsage::Nowhere => out.extend_from_slice(b"]}\n\n"),
            StreamUsage::AtEnd => out.extend_from_slice(b"],\"usage\":null}\n\n"),
            StreamUsage::Everywhere => {
                out.extend_from_slice(b"],\"usage\":");
                json::write(out, &WireUsage::from(so_far));
                out.extend_from_slice(b"}\n\n");
            }
        }
    }

    fn open(&self, out: &mut Vec<u8>, index: usize) {
        let ids = self.ids.as_ref().filter(|ids| index < ids.choices && !ids.positions.is_start());
        if let Some(ids) = ids {
            out.extend_from_slice(format!("id: {}\n", ids.positions).as_bytes());
        }
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"{\"index\":");
        json::write(out, &index);
    }

    fn piece(&self, out: &mut Vec<u8>, text: &str) {
        match self.api {
            Api::Completions => {
                out.extend_from_slice(b",\"text\":");
                json::write(out, text);
            }
            Api::Chat => {
                out.extend_from_slice(b",\"delta\":{\"content\":");
                json::write(out, text);
                out.push(b'}');
            }
        }
    }
}

/// An error in mid-stream: its body as an event.
pub fn error_event(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(body);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::super::bill::testing::finished;
    use super::*;
    use serde_json::{Value, json};

    const NONE: TokensSoFar = TokensSoFar { prompt_tokens: 0, completion_tokens: 0 };

    fn title(api: Api) -> Title {
        Title {
            api,
            request_id: RequestId::parse("r-1").expect("valid"),
            model: "de\"mo".into(),
            created: 7,
            echoes: false,
            prompt_logprobs: false,
        }
    }

    fn events(out: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(out).expect("UTF-8");
        assert!(text.ends_with("\n\n"));
        text.split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").expect("an SSE event"))
            .map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data)))
            .collect()
    }

    #[test]
    fn bodies_are_openais() {
        let mut bill = Bill::default();
        bill.add(&mut finished("cpu:0", 1.0));
        let choices = [Whole {
            text: "a\n".to_owned(),
            reason: Some(FinishReason::Stop),
            ..Whole::default()
        }];
        let body: Value =
            serde_json::from_slice(&super::body(&title(Api::Chat), &choices, &bill)).expect("JSON");
        assert_eq!(body["id"], "chatcmpl-r-1");
        assert_eq!(body["object"], "chat.completion");
        assert_eq!(body["model"], "de\"mo");
        assert_eq!(body["created"], 7);
        assert_eq!(
            body["choices"],
            json!([{"index": 0, "message": {"role": "assistant", "content": "a\n", "refusal": null},
                    "logprobs": null, "finish_reason": "stop"}])
        );
        assert_eq!(
            body["usage"],
            json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                   "prompt_tokens_details": {"cached_tokens": 1}})
        );
        assert_eq!(body["receipt"]["device"], "cpu:0");
        let body: Value =
            serde_json::from_slice(&super::body(&title(Api::Completions), &choices, &bill))
                .expect("JSON");
        assert_eq!((&body["id"], &body["object"]), (&json!("cmpl-r-1"), &json!("text_completion")));
        assert_eq!(
            body["choices"],
            json!([{"index": 0, "text": "a\n", "logprobs": null, "finish_reason": "stop"}])
        );
    }

    #[test]
    fn chat_chunks_are_role_text_finish() {
        let chunks = Chunks::new(&title(Api::Chat), StreamUsage::Nowhere);
        let (mut out, mut bill) = (Vec::new(), Bill::default());
        chunks.role(&mut out, 0, NONE);
        chunks.text(&mut out, (0, NONE), "a\"\n\u{1}ä", None);
        bill.add(&mut finished("cpu:0", 1.0));
        chunks.finish(&mut out, (0, NONE), FinishReason::Length, Some(&bill));
        chunks.done(&mut out, &bill);
        let events = events(&out);
        assert_eq!(events.len(), 4);
        for chunk in &events[..3] {
            assert_eq!(chunk["id"], "chatcmpl-r-1");
            assert_eq!(chunk["object"], "chat.completion.chunk");
            assert!(chunk.get("usage").is_none());
        }
        let choice = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
        assert_eq!(
            events[0]["choices"],
            choice(json!({"role": "assistant", "content": ""}), Value::Null)
        );
        assert_eq!(events[1]["choices"], choice(json!({"content": "a\"\n\u{1}ä"}), Value::Null));
        assert_eq!(events[2]["choices"], choice(json!({}), json!("length")));
        assert_eq!(events[2]["receipt"]["node_id"], "n");
        assert_eq!(events[3], json!("[DONE]"));
    }

    #[test]
    fn asked_for_usage_comes_in_a_chunk_of_its_own() {
        let chunks = Chunks::new(&title(Api::Completions), StreamUsage::AtEnd);
        let (mut out, mut bill) = (Vec::new(), Bill::default());
        chunks.role(&mut out, 1, NONE);
        chunks.text(&mut out, (1, NONE), "x", None);
        bill.add(&mut finished("cpu:0", 1.0));
        chunks.finish(&mut out, (1, NONE), FinishReason::Stop, Some(&bill));
        chunks.done(&mut out, &bill);
        let events = events(&out);
        assert_eq!(events.len(), 4);
        assert_eq!(
            events[0]["choices"],
            json!([{"index": 1, "text": "x", "logprobs": null, "finish_reason": null}])
        );
        assert_eq!(
            events[1]["choices"],
            json!([{"index": 1, "text": "", "logprobs": null, "finish_reason": "stop"}])
        );
        for chunk in &events[..2] {
            assert!(chunk.get("usage").is_some_and(Value::is_null));
            assert!(chunk.get("receipt").is_none());
        }
        assert_eq!(events[2]["choices"], json!([]));
        assert_eq!(events[2]["usage"]["total_tokens"], 5);
        assert_eq!(events[2]["receipt"]["decode_ms"], 2.0);
    }

    #[test]
    fn usage_is_in_every_chunk_where_that_is_asked_for() {
        let chunks = Chunks::new(&title(Api::Chat), StreamUsage::Everywhere);
        let (mut out, mut bill) = (Vec::new(), Bill::default());
        let at = |completion_tokens| TokensSoFar { prompt_tokens: 3, completion_tokens };
        chunks.role(&mut out, 0, at(0));
        chunks.text(&mut out, (0, at(1)), "x", None);
        bill.add(&mut finished("cpu:0", 1.0));
        chunks.finish(&mut out, (0, at(2)), FinishReason::Stop, Some(&bill));
        chunks.done(&mut out, &bill);
        let events = events(&out);
        let total = |event: &Value| event["usage"]["total_tokens"].as_u64();
        let totals: Vec<_> = events.iter().filter_map(total).collect();
        assert_eq!(totals, [3, 4, 5, 5]);
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4});
        assert_eq!(events[1]["usage"], usage);
        assert_eq!(events[3]["receipt"]["node_id"], "n");
    }
}
