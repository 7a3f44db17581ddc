//! The tokens that a sim device samples from.

use std::path::Path;
use std::sync::Arc;

use crate::bridge::ffi::SamplerSpec;
use crate::checkpoint::Checkpoint;

/// What a sim device keeps of a seat's sampler: what every token needs, and the rest where it matters.
#[derive(Clone)]
pub(super) struct SimSampler {
    seed: u64,
    /// Of the whole sequence's tokens: no end token before.
    end_from: u32,
    /// Beside a log probability; none: nobody wants one.
    pub num_top: Option<u32>,
    /// Of a scored prompt's tokens.
    pub num_scored_top: u32,
    /// Where some tokens are banned, or only some allowed.
    limits: Option<Arc<SamplerSpec>>,
}

impl SimSampler {
    pub fn of(spec: &Arc<SamplerSpec>) -> Self {
        let is_free = spec.allowed_ids.is_empty() && spec.banned_ids.is_empty();
        Self {
            seed: spec.seed,
            end_from: spec.end_from,
            num_top: spec.want_logprob.then_some(spec.num_logprobs),
            num_scored_top: spec.num_logprobs,
            limits: (!is_free).then(|| Arc::clone(spec)),
        }
    }
}

/// What a sim device may sample.
pub(super) struct Vocabulary {
    printable: Vec<u32>,
    /// The first end token.
    end: Option<u32>,
}

impl Vocabulary {
    /// The tokens that show as a word or a part of one; without a `tokenizer.json` (or one with no such token), all but the
    /// end tokens.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let ends = checkpoint.end_token_ids();
        let size = checkpoint.spec().vocab_size;
        let usable = |id: &u32| *id < size && !ends.contains(id);
        let mut printable: Vec<u32> =
            printable_ids(checkpoint.directory()).into_iter().filter(usable).collect();
        if printable.is_empty() {
            printable = (0..size).filter(usable).collect();
        }
        printable.sort_unstable();
        Self { printable, end: ends.first().copied() }
    }

    /// The token at `position`, the end token if it may be (and is allowed); none if nothing is allowed. A pure function of
    /// its arguments.
    pub fn sample(&self, sampler: &SimSampler, position: u32, may_end: bool) -> Option<u32> {
        let limits = sampler.limits.as_deref();
        let allowed = |id: &u32| {
            limits.is_none_or(|limits| {
                (limits.allowed_ids.is_empty() || limits.allowed_ids.contains(id))
                    && !limits.banned_ids.contains(id)
            })
        };
        let end = self.end.filter(|end| may_end && position >= sampler.end_from && allowed(end));
        if end.is_some() {
            return end;
        }
        let key = mix(sampler.seed ^ mix(u64::from(position).wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let pick = |ids: &[u32]| {
            let index = key % ids.len().max(1) as u64;
            ids.get(index as usize).copied()
        };
        let Some(limits) = limits else { return pick(&self.printable) };
        let candidates =
            if limits.allowed_ids.is_empty() { &self.printable } else { &limits.allowed_ids };
        pick(&candidates.iter().copied().filter(allowed).collect::<Vec<_>>())
    }

    /// Other tokens, in a fixed order.
    pub fn others(&self, token_id: u32) -> impl Iterator<Item = u32> {
        self.printable.iter().copied().filter(move |id| *id != token_id)
    }
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Ids of `tokenizer.json` whose text is letters and digits after an optional mark of a word's beginning, added tokens left out.
/// A file that cannot be read gives none: the tokenizer's own loader is the one to complain.
fn printable_ids(directory: &Path) -> Vec<u32> {
    let Ok(bytes) = std::fs::read(directory.join("tokenizer.json")) else { return Vec::new() };
    let Ok(file) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Vec::new() };
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let plain = |text: &str| {
        let text = text.strip_prefix(['Ġ', '▁', ' ']).unwrap_or(text);
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let added: Vec<u32> = file["added_tokens"]
        .as_array()
        .map(|tokens| tokens.iter().filter_map(|token| id(&token["id"])).collect())
        .unwrap_or_default();
    let ids: Vec<u32> = match &file["model"]["vocab"] {
        // text → id (BPE, WordPiece, WordLevel)
        serde_json::Value::Object(vocab) => vocab
            .iter()
            .filter(|(text, _)| plain(text))
            .filter_map(|(_, value)| id(value))
            .collect(),
        // [text, score] by id (Unigram)
        serde_json::Value::Array(vocab) => (0..)
            .zip(vocab)
            .filter(|(_, entry)| entry[0].as_str().is_some_and(plain))
            .map(|(index, _)| index)
            .collect(),
        _ => Vec::new(),
    };
    ids.into_iter().filter(|id| !added.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing;

    #[test]
    fn printable_tokens_are_found_in_every_kind_of_vocabulary() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ids = |json: &str| {
            std::fs::write(dir.path().join("tokenizer.json"), json).expect("writes");
            let mut ids = printable_ids(dir.path());
            ids.sort_unstable();
            ids
        };
        let added = "\"added_tokens\": [{\"id\": 4, \"content\": \"bos\"}]";
        let table = "{\"a\": 0, \"Ġthe\": 1, \"\u{2581}of\": 2, \"!\": 3, \"bos\": 4, \"Ġ\": 5}";
        assert_eq!(ids(&format!("{{{added}, \"model\": {{\"vocab\": {table}}}}}")), [0, 1, 2]);
        let list = "[[\"<unk>\", 0], [\"\u{2581}of\", -1], [\"b\", -2], [\"é\", -3]]";
        assert_eq!(ids(&format!("{{{added}, \"model\": {{\"vocab\": {list}}}}}")), [1, 2]);
        assert!(ids("{").is_empty());
        assert!(ids("{}").is_empty());
    }

    #[test]
    fn without_a_tokenizer_all_but_the_end_tokens_are_used() {
        let (dir, checkpoint) = testing::dummy();
        std::fs::remove_file(dir.path().join("tokenizer.json")).expect("removes");
        let vocabulary = Vocabulary::of(&checkpoint);
        let expected: Vec<u32> = (0..16).filter(|id| *id != testing::END).collect();
        assert_eq!(vocabulary.printable, expected);
    }
}
