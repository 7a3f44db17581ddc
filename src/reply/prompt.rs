//! What of a prompt goes back to the client: its text, and how likely each of its tokens was.

use super::text::logprob_entry;
use crate::request::{Scores, TokenLogprob};
use crate::tokenizer::IncrementalDecoder;

/// A prompt of which something goes back.
pub struct PromptShown {
    /// All of it.
    pub token_ids: Vec<u32>,
    /// That has seen nothing.
    pub decoder: IncrementalDecoder,
    /// The request's text begins with it.
    pub echo: bool,
    /// As the client wrote it; absent: what its tokens say. Sent back only without log probabilities, for their offsets count in what
    /// the tokens say, which a tokenizer may have normalised.
    pub text: Option<String>,
    /// Alternatives beside the log probability of each token; none: not even that.
    pub num_logprobs: Option<u32>,
}

/// What goes out with the first event.
#[derive(Debug, PartialEq)]
pub(super) struct PromptTold {
    /// What the request's text begins with.
    pub text: String,
    /// One for each token, where they are wanted.
    pub logprobs: Option<Vec<TokenLogprob>>,
}

impl PromptShown {
    /// Whether these scores, of the second token on, are what is to be told.
    pub(super) fn fits(&self, scores: &[Scores]) -> bool {
        self.num_logprobs.is_none() || scores.len() + 1 == self.token_ids.len()
    }

    /// Decodes the prompt and puts it together with its scores.
    pub(super) fn tell(mut self, scores: Vec<Scores>) -> PromptTold {
        let (mut text, mut num_chars) = (String::new(), 0);
        let mut entries = Vec::new();
        let mut scores = scores.into_iter();
        let mut unseen = self.text.as_deref().unwrap_or_default();
        for (at, &token_id) in self.token_ids.iter().enumerate() {
            if let Some(num_top) = self.num_logprobs {
                let scores = if at == 0 { None } else { scores.next() };
                let mut entry =
                    logprob_entry(self.decoder.tokenizer(), token_id, scores.as_ref(), num_top);
                entry.text_offset = num_chars;
                entries.push(entry);
            }
            let before = text.len();
            self.decoder.push(token_id, &mut text);
            if text.len() == before && self.decoder.tokenizer().is_special(token_id) {
                let mark = self.decoder.tokenizer().token_bytes(token_id);
                let mark = String::from_utf8_lossy(&mark);
                let is_written = at > 0 || self.begins_as_written(&mark);
                if let Some((_, rest)) = unseen.split_once(&*mark).filter(|_| is_written) {
                    unseen = rest;
                    text.push_str(&mark);
                }
            }
            num_chars += text[before..].chars().count() as u32;
        }
        let echo = match self.num_logprobs {
            Some(_) => text,
            None => self.text.unwrap_or(text),
        };
        PromptTold {
            text: if self.echo { echo } else { String::new() },
            logprobs: self.num_logprobs.map(|_| entries),
        }
    }

    /// Whether the client wrote the mark that is the first token: if the tokenizer put it, the prompt begins with one more of them than
    /// the text.
    fn begins_as_written(&self, mark: &str) -> bool {
        let first = self.token_ids.first();
        let marks = self.token_ids.iter().take_while(|id| Some(*id) == first).count();
        self.text.as_deref().is_some_and(|text| text.starts_with(&mark.repeat(marks)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::testing::{self, END};

    fn shown(text: &str) -> PromptShown {
        let tokenizer = testing::bytes();
        PromptShown {
            token_ids: [vec![END], tokenizer.encode(text, false).expect("plain text")].concat(),
            decoder: IncrementalDecoder::new(tokenizer, &[]),
            echo: true,
            text: None,
            num_logprobs: None,
        }
    }

    #[test]
    fn the_first_token_has_no_log_probability_and_marks_have_no_text() {
        let scores = |logprob| Scores { logprob, top: vec![(END, -0.25), (1, f32::NEG_INFINITY)] };
        let wanted = PromptShown { num_logprobs: Some(1), ..shown("é!") };
        assert!(!wanted.fits(&[]));
        let all = vec![scores(-0.5), scores(f32::NEG_INFINITY), scores(-2.0)];
        assert!(wanted.fits(&all));
        let told = wanted.tell(all);
        assert_eq!(told.text, "é!");
        let entries = told.logprobs.expect("wanted");
        let logprobs: Vec<_> = entries.iter().map(|entry| entry.logprob).collect();
        assert_eq!(logprobs, [None, Some(-0.5), Some(-9999.0), Some(-2.0)]);
        let offsets: Vec<_> = entries.iter().map(|entry| entry.text_offset).collect();
        assert_eq!(offsets, [0, 0, 0, 1]);
        assert_eq!((entries[0].token.as_str(), entries[0].token_id), ("</s>", END));
        let tops: Vec<_> = entries.iter().map(|entry| entry.top.len()).collect();
        assert_eq!(tops, [0, 1, 1, 1]);
        assert_eq!(entries[3].top[0].token_id, END);
    }

    #[test]
    fn offsets_count_in_the_text_that_goes_back_however_it_was_written() {
        let told = |text: &str, token_ids: &[u32]| {
            let (token_ids, text) = (token_ids.to_vec(), Some(text.to_owned()));
            let scores = vec![Scores { logprob: -1.0, top: Vec::new() }; token_ids.len() - 1];
            let prompt = PromptShown { token_ids, text, num_logprobs: Some(0), ..shown("") };
            let told = prompt.tell(scores);
            let entries = told.logprobs.expect("wanted");
            let offsets: Vec<_> = entries.iter().map(|entry| entry.text_offset).collect();
            (told.text, offsets)
        };
        let ids = testing::bytes().encode("ab", false).expect("plain text");
        let (a, b) = (ids[0], ids[1]);
        let normalised = told("ａｂ", &[END, a, b]);
        assert_eq!(normalised, ("ab".to_owned(), vec![0, 0, 1]));
        let with_mark = told("a</s>b", &[END, a, END, b]);
        assert_eq!(with_mark, ("a</s>b".to_owned(), vec![0, 0, 1, 5]));
        let normalised_between = told("ａ</s>ｂ</s>", &[END, a, END, b, END, END]);
        assert_eq!(normalised_between, ("a</s>b</s>".to_owned(), vec![0, 0, 1, 5, 6, 10]));
        let doubled = told("</s>a", &[END, END, a]);
        assert_eq!(doubled, ("</s>a".to_owned(), vec![0, 0, 4]));
        let both_written = told("</s></s>a", &[END, END, a]);
        assert_eq!(both_written, ("</s></s>a".to_owned(), vec![0, 4, 8]));
    }

    #[test]
    fn a_text_goes_back_as_it_was_written_and_only_where_it_is_wanted() {
        let written = PromptShown { text: Some("as written".into()), ..shown("decoded") };
        let told = written.tell(Vec::new());
        assert_eq!((told.text.as_str(), told.logprobs), ("as written", None));
        assert_eq!(shown("decoded").tell(Vec::new()).text, "decoded");
        let quiet = PromptShown { echo: false, ..shown("decoded") };
        assert_eq!(quiet.tell(Vec::new()).text, "");
    }
}
