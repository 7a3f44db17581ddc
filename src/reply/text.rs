//! A completion's text: decoded token by token, cut at a stop string, held back where one could begin.

use super::StopMatcher;
use crate::request::{Scores, Token, TokenLogprob, TopLogprob};
use crate::tokenizer::{IncrementalDecoder, Tokenizer};

/// What JSON has for a log probability that is none: OpenAI's word for "very unlikely".
const LEAST_LOGPROB: f32 = -9999.0;

/// See the module.
pub(super) struct Text {
    decoder: IncrementalDecoder,
    stop: StopMatcher,
    /// The stop string, or the token, that ends the completion is shown.
    includes_stop: bool,
    /// Decoded and not taken.
    pending: String,
    /// `None`: nobody wants them.
    logprobs: Option<Logprobs>,
}

/// What is known of the tokens' log probabilities.
#[derive(Default)]
struct Logprobs {
    /// Those that are not taken.
    entries: Vec<TokenLogprob>,
    /// Alternatives of each.
    num_top: u32,
    /// Characters of the whole text.
    num_chars: u32,
}

impl Text {
    /// An empty text.
    pub fn new(decoder: IncrementalDecoder, stop: Vec<String>, includes_stop: bool) -> Self {
        let stop = StopMatcher::new(stop);
        Self { decoder, stop, includes_stop, pending: String::new(), logprobs: None }
    }

    /// Keeps each token's log probability and so many alternatives, if they are wanted.
    #[must_use]
    pub fn with_logprobs(self, num_top: Option<u32>) -> Self {
        let logprobs = num_top.map(|num_top| Logprobs { num_top, ..Logprobs::default() });
        Self { logprobs, ..self }
    }

    /// Puts a prompt before the completion's tokens, none of which was taken; no stop string is searched in it.
    pub fn begin_with(&mut self, prompt: &str) {
        self.pending.insert_str(0, prompt);
        if let Some(logprobs) = &mut self.logprobs {
            let num_chars = prompt.chars().count() as u32;
            logprobs.num_chars += num_chars;
            logprobs.entries.iter_mut().for_each(|entry| entry.text_offset += num_chars);
        }
    }

    /// Whether a token that ends the completion is shown like any other.
    pub fn shows_end(&self) -> bool {
        self.includes_stop
    }

    /// Adds a token; true if a stop string is complete with it. One that is not `armed` does not count, but one begun here may be
    /// completed later.
    pub fn push(&mut self, token: &Token, armed: bool) -> bool {
        let before = self.pending.len();
        self.note(token);
        self.decoder.push(token.id, &mut self.pending);
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.num_chars += self.pending[before..].chars().count() as u32;
        }
        if self.stop.is_empty() || self.pending.len() == before {
            return false;
        }
        let Some(found) = self.stop.push(&self.pending[before..], armed) else { return false };
        let cut = if self.includes_stop { 0 } else { found.len };
        self.pending.truncate(before + found.end - cut);
        true
    }

    /// Adds a token that is not shown.
    pub fn push_unseen(&mut self, token: &Token) {
        self.note(token);
    }

    fn note(&mut self, token: &Token) {
        if let Some(logprobs) = &mut self.logprobs {
            // What a device does not say is as good as impossible.
            let unknown = Scores { logprob: LEAST_LOGPROB, top: Vec::new() };
            let scores = token.scores.as_deref().unwrap_or(&unknown);
            let tokenizer = self.decoder.tokenizer();
            let mut entry = logprob_entry(tokenizer, token.id, Some(scores), logprobs.num_top);
            entry.text_offset = logprobs.num_chars;
            logprobs.entries.push(entry);
        }
    }

    /// Moves the text to the end of `to`, but for what a stop string may still take back.
    pub fn take_shown(&mut self, to: &mut String) {
        let held = if self.includes_stop { 0 } else { self.stop.held() };
        // The bytes held back begin at a character, because stop strings do.
        let shown = self.pending.len().saturating_sub(held);
        to.push_str(&self.pending[..shown]);
        self.pending.drain(..shown);
    }

    /// Moves all of the text there; half a character at its end is none.
    pub fn take_all(&mut self, to: &mut String) {
        to.push_str(&self.pending);
        self.pending.clear();
    }

    /// Takes the log probabilities of the tokens since the last time, if they are wanted.
    pub fn take_logprobs(&mut self) -> Option<Vec<TokenLogprob>> {
        self.logprobs.as_mut().map(|logprobs| std::mem::take(&mut logprobs.entries))
    }
}

/// What a client reads of a token at the text's beginning; without scores it is one that nothing precedes.
pub(super) fn logprob_entry(
    tokenizer: &Tokenizer,
    token_id: u32,
    scores: Option<&Scores>,
    num_top: u32,
) -> TokenLogprob {
    let (token, bytes) = spelling(tokenizer, token_id);
    let top = scores.map_or(&[][..], |scores| scores.top.as_slice());
    let top = top.iter().take(num_top as usize).map(|&(token_id, logprob)| {
        let (token, bytes) = spelling(tokenizer, token_id);
        TopLogprob { token_id, token, bytes, logprob: logprob.max(LEAST_LOGPROB) }
    });
    TokenLogprob {
        token_id,
        token,
        bytes,
        logprob: scores.map(|scores| scores.logprob.max(LEAST_LOGPROB)),
        text_offset: 0,
        top: top.collect(),
    }
}

/// A token's text, and its bytes where they are no whole characters.
fn spelling(tokenizer: &Tokenizer, token_id: u32) -> (String, Option<Vec<u8>>) {
    let bytes = tokenizer.token_bytes(token_id);
    match std::str::from_utf8(&bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (String::from_utf8_lossy(&bytes).into_owned(), Some(bytes.into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Collected, Fixture, at, ids, lock, tokens, with_stop};
    use super::*;
    use crate::request::{FinishReason, Scores};
    use crate::tokenizer::testing::END;

    /// Each with a log probability and alternatives.
    fn scored(text: &str, logprob: f32, top: &[(u32, f32)]) -> Vec<Token> {
        let scores = Scores { logprob, top: top.to_vec() };
        ids(text)
            .into_iter()
            .map(|id| Token { id, scores: Some(Box::new(scores.clone())) })
            .collect()
    }

    #[test]
    fn log_probabilities_come_with_their_tokens_shown_or_not() {
        for streams in [true, false] {
            let sink = Collected::default();
            let fixture = Fixture { logprobs: Some(2), stream: streams, ..with_stop(&["STOP"]) };
            let started = fixture.start(&sink);
            let mut stream = lock(&started);
            let b = ids("b")[0];
            stream.push(
                1,
                &scored("a", -0.5, &[(b, -0.25), (END, f32::NEG_INFINITY)]),
                None,
                at(5_000),
            );
            stream.push(1, &scored("é", f32::NEG_INFINITY, &[]), None, at(5_000));
            stream.push(1, &scored("S", -1.0, &[]), None, at(5_000));
            stream.push(1, &[END.into()], Some(FinishReason::Stop), at(6_000));
            let events = sink.events();
            let entries: Vec<_> =
                events.iter().flat_map(|event| event.logprobs.clone().expect("wanted")).collect();
            assert_eq!(entries.len(), sink.token_ids().len());
            for event in &events {
                assert_eq!(event.logprobs.as_ref().map(Vec::len), Some(event.token_ids.len()));
            }
            let top = |token_id, token: &str, logprob| TopLogprob {
                token_id,
                token: token.into(),
                bytes: None,
                logprob,
            };
            assert_eq!(entries[0].top, [top(b, "b", -0.25), top(END, "</s>", -9999.0)]);
            assert_eq!((entries[0].token.as_str(), entries[0].logprob), ("a", Some(-0.5)));
            assert_eq!(
                (entries[1].token.as_str(), entries[1].logprob),
                ("\u{fffd}", Some(-9999.0))
            );
            assert_eq!((&entries[1].bytes, &entries[3].bytes), (&Some(vec![0xc3]), &None));
            let offsets: Vec<_> = entries.iter().map(|entry| entry.text_offset).collect();
            assert_eq!(offsets, [0, 1, 1, 2, 3]);
            let tokens: String = entries[3..].iter().map(|entry| entry.token.as_str()).collect();
            assert_eq!((tokens.as_str(), sink.text().as_str()), ("S</s>", "aéS"));
        }
        let sink = Collected::default();
        lock(&Fixture::default().start(&sink)).push(1, &tokens("a"), None, at(5_000));
        assert_eq!(sink.events()[0].logprobs, None, "nobody wants them");
    }

    #[test]
    fn what_ends_a_completion_is_shown_where_that_is_wanted() {
        let start = |sink: &Collected| {
            Fixture { include_stop: true, special_tokens: true, ..with_stop(&["END"]) }.start(sink)
        };
        let sink = Collected::default();
        let started = start(&sink);
        lock(&started).push(1, &tokens("ok EN"), None, at(5_000));
        assert_eq!(sink.text(), "ok EN", "nothing is to be taken back");
        lock(&started).push(1, &tokens("D more"), None, at(5_000));
        assert_eq!((sink.text(), sink.token_ids()), ("ok END".to_owned(), ids("ok END")));

        let sink = Collected::default();
        lock(&start(&sink)).push(1, &[END.into()], Some(FinishReason::Stop), at(5_000));
        assert_eq!(sink.text(), "</s>");
    }
}
