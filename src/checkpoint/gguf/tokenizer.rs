//! The tokenizer of a GGUF file, as its `tokenizer.json` has it, and its chat template.

use std::collections::HashSet;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::super::fault::{CheckpointError, CheckpointFault};
use super::super::missing_or_io;
use super::super::mmap::MappedFile;
use super::header::GgufHeader;
use super::metadata::GgufMetadata;
use super::vocabulary::{GgufVocabulary, TOKENS, TokenKind};
use crate::tokenizer::{TokenizerFolder, guarded};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// The longest token of SentencePiece, every cut of which may be two tokens.
const MAX_TOKEN_BYTES: usize = 1_024;
/// Of all pairs of tokens that merge.
const MAX_PAIR_BYTES: usize = 512 << 20;

/// SentencePiece's mark of a space.
const SPACE: &str = "▁";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Words by the case of their letters; the second of the two keeps what an apostrophe shortens with its word.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// How a text is cut into words before bytes are merged.
struct WordCut {
    /// In `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Each cuts what the one before it left.
    patterns: &'static [&'static str],
    /// Whether characters are composed first.
    nfc: bool,
    /// Whether a word that is a token is one without merging.
    ignore_merges: bool,
    /// Whether texts begin with the begin token, if the file does not say.
    adds_bos: bool,
}

#[rustfmt::skip]
const WORD_CUTS: &[WordCut] = &[
    WordCut { names: &["llama-bpe", "llama3", "llama-v3"], patterns: &[LLAMA3], nfc: false, ignore_merges: true, adds_bos: true },
    WordCut { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], nfc: false, ignore_merges: false, adds_bos: false },
    WordCut { names: &["qwen2", "deepseek-r1-qwen"], patterns: &[QWEN2], nfc: true, ignore_merges: false, adds_bos: false },
    WordCut { names: &["tekken"], patterns: &[TEKKEN], nfc: false, ignore_merges: true, adds_bos: true },
    WordCut { names: &["gpt-4o"], patterns: &[GPT4O], nfc: false, ignore_merges: false, adds_bos: false },
    WordCut { names: &["gpt-2"], patterns: &[GPT2], nfc: false, ignore_merges: false, adds_bos: false },
    WordCut { names: &["smollm"], patterns: &[r"\p{N}", GPT2], nfc: false, ignore_merges: false, adds_bos: false },
    // What the format says of files whose writer did not know the tokenizer.
    WordCut {
        names: &["default"], patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        nfc: false, ignore_merges: false, adds_bos: false,
    },
];

/// A tokenizer's parts, as `tokenizer.json` has them, and whether texts begin with the begin token if the file does not say.
struct TokenizerParts {
    model: BPE,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    adds_bos: bool,
}

/// What a file says of its tokenizer, its special tokens and its chat template.
///
/// # Errors
/// Names file, key and reason.
pub fn gguf_tokenizer(path: &Path) -> Result<TokenizerFolder, CheckpointError> {
    let file = MappedFile::open(path).map_err(|error| missing_or_io(path, &error))?;
    let header = GgufHeader::read(path, file.bytes())?;
    let metadata = GgufMetadata::new(path, header.metadata);
    let Some(vocabulary) = GgufVocabulary::read(&metadata)? else {
        return Ok(TokenizerFolder::of_file(path, None, &json!({})));
    };
    let mut config = json!({ "chat_template": metadata.text("tokenizer.chat_template")? });
    for (key, name) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        config[format!("{key}_token")] = vocabulary.named(&metadata, name)?.into();
    }
    let tokenizer = tokenizer(&metadata, &vocabulary)?;
    Ok(TokenizerFolder::of_file(path, Some(tokenizer), &config))
}

fn tokenizer(
    metadata: &GgufMetadata<'_>,
    vocabulary: &GgufVocabulary<'_>,
) -> Result<tokenizers::Tokenizer, CheckpointError> {
    let parts = match metadata.text(MODEL)? {
        Some("gpt2") => byte_level(metadata, vocabulary)?,
        Some("llama") => sentence_piece(metadata, vocabulary)?,
        other => {
            let reason = format!("expected gpt2 or llama, got {}", other.unwrap_or("nothing"));
            return Err(metadata.fault(CheckpointFault::Unsupported, MODEL, reason));
        }
    };
    let wrong = |reason: String| metadata.fault(CheckpointFault::Malformed, MODEL, reason);
    let post_processor = post_processor(metadata, vocabulary, parts.adds_bos)?;
    let mut tokenizer = tokenizers::Tokenizer::new(parts.model);
    tokenizer
        .with_normalizer(part::<tokenizers::NormalizerWrapper>(parts.normalizer).map_err(wrong)?)
        .map_err(|error| wrong(error.to_string()))?
        .with_pre_tokenizer(
            part::<tokenizers::PreTokenizerWrapper>(parts.pre_tokenizer).map_err(wrong)?,
        )
        .with_decoder(part::<tokenizers::DecoderWrapper>(parts.decoder).map_err(wrong)?)
        .with_post_processor(
            part::<tokenizers::PostProcessorWrapper>(post_processor).map_err(wrong)?,
        );
    let added = added_tokens(vocabulary, has_greedy_marks(metadata)?);
    tokenizer.add_tokens(added).map_err(|error| wrong(error.to_string()))?;
    Ok(tokenizer)
}

/// A part by its description; null is none.
fn part<T: DeserializeOwned>(description: Value) -> Result<Option<T>, String> {
    serde_json::from_value(description).map_err(|error| error.to_string())
}

/// Tokens that are found before anything is merged.
fn added_tokens(vocabulary: &GgufVocabulary<'_>, greedy_marks: bool) -> Vec<AddedToken> {
    let of = |(id, token): (usize, &&str)| {
        let is_mark = match vocabulary.kind(id) {
            TokenKind::Control | TokenKind::Unknown => true,
            TokenKind::UserDefined => false,
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
        };
        let is_greedy =
            is_mark && greedy_marks && !["<unk>", "<s>", "<|endoftext|>"].contains(token);
        Some(AddedToken::from(*token, is_mark).normalized(false).rstrip(is_greedy))
    };
    vocabulary.tokens.iter().enumerate().filter_map(of).collect()
}

/// Whether marks take the space behind them: Phi-3's do, and the format has no key for it.
fn has_greedy_marks(metadata: &GgufMetadata<'_>) -> Result<bool, CheckpointError> {
    let is_phi3 = metadata.text("general.architecture")? == Some("phi3");
    Ok(is_phi3 && metadata.text(MODEL)? == Some("llama"))
}

/// Begin and end tokens around every text, where the file wants them.
fn post_processor(
    metadata: &GgufMetadata<'_>,
    vocabulary: &GgufVocabulary<'_>,
    adds_bos: bool,
) -> Result<Value, CheckpointError> {
    let around = |name: &str, by_default: bool| -> Result<Option<&str>, CheckpointError> {
        let key = format!("tokenizer.ggml.add_{name}_token");
        let is_added = metadata.boolean(&key)?.unwrap_or(by_default);
        Ok(vocabulary.named(metadata, name)?.filter(|_| is_added))
    };
    let (bos, eos) = (around("bos", adds_bos)?, around("eos", false)?);
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let mark = |text: &str, kind: u32| json!({"SpecialToken": {"id": text, "type_id": kind}});
    let sequence = |name: &str, kind: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": name, "type_id": kind}});
        let marks = |text: Option<&str>| text.map(|text| mark(text, kind));
        marks(bos).into_iter().chain([text]).chain(marks(eos)).collect()
    };
    let special: serde_json::Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .filter_map(|text| {
            let id = vocabulary.tokens.iter().position(|token| *token == text)?;
            Some((text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        })
        .collect();
    let pair = [sequence("A", 0), sequence("B", 1)].concat();
    Ok(json!({
        "type": "TemplateProcessing", "single": sequence("A", 0), "pair": pair,
        "special_tokens": special,
    }))
}

/// Ids by tokens. Of a token that stands twice the first id counts.
fn ids(vocabulary: &GgufVocabulary<'_>) -> Vocab {
    let mut ids = Vocab::default();
    for (id, token) in (0..).zip(vocabulary.tokens) {
        ids.entry((*token).to_owned()).or_insert(id);
    }
    ids
}

/// GPT-2's: bytes, each a character of its alphabet, merged by the list of merges.
fn byte_level(
    metadata: &GgufMetadata<'_>,
    vocabulary: &GgufVocabulary<'_>,
) -> Result<TokenizerParts, CheckpointError> {
    let name = metadata.text(PRE)?.unwrap_or("default");
    let Some(cut) = WORD_CUTS.iter().find(|cut| cut.names.contains(&name)) else {
        let known: Vec<_> = WORD_CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        let reason = format!("expected one of {}; got {name}", known.join(", "));
        return Err(metadata.fault(CheckpointFault::Unsupported, PRE, reason));
    };
    let what = "a list of pairs of tokens with a space between";
    let lines = metadata.texts(MERGES)?.ok_or_else(|| metadata.expected(MERGES, what))?;
    let pair =
        |line: &&str| line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
    let merges: Option<Merges> = lines.iter().map(pair).collect();
    let merges = merges.ok_or_else(|| metadata.expected(MERGES, what))?;
    let ids = ids(vocabulary);
    let is_token = |left: &str, right: &str| ids.contains_key(&[left, right].concat());
    if let Some((left, right)) = merges.iter().find(|(left, right)| !is_token(left, right)) {
        let reason = format!("{left:?} and {right:?} merge to what is no token");
        return Err(metadata.fault(CheckpointFault::Malformed, MERGES, reason));
    }
    let model = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(cut.ignore_merges);
    let model = guarded(|| model.build().map_err(|error| error.to_string()))
        .map_err(|reason| metadata.fault(CheckpointFault::Malformed, MERGES, reason))?;
    let byte_level = |cuts: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": cuts});
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let cuts: Vec<Value> = cut.patterns.iter().map(split).chain([byte_level(false)]).collect();
    Ok(TokenizerParts {
        model,
        normalizer: if cut.nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": cuts}),
        decoder: byte_level(true),
        adds_bos: cut.adds_bos,
    })
}

/// SentencePiece's: characters merged to the token of the best score, bytes for what has none.
fn sentence_piece(
    metadata: &GgufMetadata<'_>,
    vocabulary: &GgufVocabulary<'_>,
) -> Result<TokenizerParts, CheckpointError> {
    let scores = metadata.numbers(SCORES)?.unwrap_or_default();
    if scores.len() != vocabulary.tokens.len() {
        return Err(metadata.expected(SCORES, "a number for each token"));
    }
    let unknown = vocabulary.named(metadata, "unknown")?.or(vocabulary.tokens.first().copied());
    let merges = merges_by_score(vocabulary, scores)
        .map_err(|reason| metadata.fault(CheckpointFault::Unsupported, TOKENS, reason))?;
    let mut model =
        BPE::builder().vocab_and_merges(ids(vocabulary), merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown.to_owned());
    }
    let model = guarded(|| model.build().map_err(|error| error.to_string()))
        .map_err(|reason| metadata.fault(CheckpointFault::Malformed, SCORES, reason))?;
    let mark_spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut normalizers = vec![mark_spaces];
    if metadata.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(TokenizerParts {
        model,
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        adds_bos: true,
    })
}

/// Every pair of tokens that makes a third, the best score first and of the same score the longest first part, as `transformers` has
/// them.
///
/// # Errors
/// Where a token is too long, or the pairs too many.
fn merges_by_score(vocabulary: &GgufVocabulary<'_>, scores: &[f64]) -> Result<Merges, String> {
    let normal = || {
        let tokens = vocabulary.tokens.iter().enumerate();
        tokens.filter(|(id, _)| vocabulary.kind(*id) == TokenKind::Normal)
    };
    let known: HashSet<&str> = normal().map(|(_, token)| *token).collect();
    let mut pairs = Vec::new();
    let mut bytes = 0;
    for (id, token) in normal() {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(format!(
                "token {id} has {} bytes; expected {MAX_TOKEN_BYTES} at most",
                token.len()
            ));
        }
        let before = pairs.len();
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = cuts.filter(|(left, right)| known.contains(left) && known.contains(right));
        pairs.extend(known.map(|(left, right)| (scores[id], left, right)));
        bytes += (pairs.len() - before) * token.len();
        if bytes > MAX_PAIR_BYTES {
            return Err(format!("pairs that merge have more than {MAX_PAIR_BYTES} bytes"));
        }
    }
    pairs.sort_by(|(one, left, _), (other, other_left, _)| {
        let by_length = || other_left.chars().count().cmp(&left.chars().count());
        other.total_cmp(one).then_with(by_length)
    });
    Ok(pairs.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::super::header::MetadataValue;
    use super::*;

    fn of(
        entries: &[(&'static str, MetadataValue<'static>)],
    ) -> Result<tokenizers::Tokenizer, CheckpointError> {
        let entries: BTreeMap<_, _> = entries.iter().cloned().collect();
        let metadata = GgufMetadata::new(Path::new("model.gguf"), entries);
        let vocabulary = GgufVocabulary::read(&metadata)?.expect("tokens");
        tokenizer(&metadata, &vocabulary)
    }

    fn words(pre: &'static str, text: &str) -> Vec<String> {
        let tokenizer = of(&[
            (MODEL, MetadataValue::Text("gpt2")),
            (PRE, MetadataValue::Text(pre)),
            ("tokenizer.ggml.tokens", MetadataValue::Texts(vec!["a", "b"])),
            (MERGES, MetadataValue::Texts(vec![])),
        ]);
        let tokenizer = tokenizer.expect("a tokenizer");
        let mut cut = PreTokenizedString::from(text);
        tokenizer.get_pre_tokenizer().expect("one").pre_tokenize(&mut cut).expect("cuts");
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, ..)| word.replace('Ġ', " ").replace('Ċ', "\n")).collect()
    }

    #[test]
    fn words_are_cut_as_the_file_says() {
        let text = "It's 12345 x, ok\n\n y";
        let end = [" x", ",", " ok", "\n\n", " y"];
        for (pre, begin) in [
            ("llama-bpe", &["It", "'s", " ", "123", "45"][..]),
            ("dbrx", &["It", "'s", " ", "123", "45"]),
            ("qwen2", &["It", "'s", " ", "1", "2", "3", "4", "5"]),
            ("tekken", &["It", "'s", " ", "1", "2", "3", "4", "5"]),
            ("gpt-4o", &["It's", " ", "123", "45"]),
            ("gpt-2", &["It", "'s", " 12345"]),
            ("smollm", &["It", "'s", " ", "1", "2", "3", "4", "5"]),
            ("default", &["It", "'", "s", " ", "123", "45"]),
        ] {
            assert_eq!(words(pre, text), [begin, &end].concat(), "{pre}");
        }
    }

    #[test]
    fn a_merge_of_no_token_and_scores_of_too_few_are_refused() {
        let tokens = MetadataValue::Texts(vec!["a", "b"]);
        let with = |model, entry| {
            let entries = [
                (MODEL, MetadataValue::Text(model)),
                ("tokenizer.ggml.tokens", tokens.clone()),
                entry,
            ];
            of(&entries).expect_err("broken").item
        };
        // The second makes a text that is longer than every token.
        for pair in ["a c", "a b"] {
            let merges = with("gpt2", (MERGES, MetadataValue::Texts(vec![pair])));
            assert_eq!(merges.as_deref(), Some(MERGES), "{pair}");
        }
        let scores = with("llama", (SCORES, MetadataValue::Numbers(vec![1.0])));
        assert_eq!(scores.as_deref(), Some(SCORES));
    }

    #[test]
    fn pairs_that_merge_are_bounded_by_their_bytes() {
        let longest: &str = "a".repeat(MAX_TOKEN_BYTES + 1).leak();
        let refused = |tokens: Vec<&'static str>| {
            let scores = vec![0.0; tokens.len()];
            let error = of(&[
                (MODEL, MetadataValue::Text("llama")),
                (TOKENS, MetadataValue::Texts(tokens)),
                (SCORES, MetadataValue::Numbers(scores)),
            ]);
            error.expect_err("too much").to_string()
        };
        let error = refused(vec!["a", longest]);
        assert!(error.contains("token 1 has 1025 bytes"), "{error}");
        // Every cut of every token is a pair: some 300 MB of each letter.
        let tokens = ["a", "b"].iter().flat_map(|letter| {
            let longest: &str = letter.repeat(MAX_TOKEN_BYTES).leak();
            (1..=MAX_TOKEN_BYTES).map(move |length| &longest[..length])
        });
        let error = refused(tokens.collect());
        assert!(error.contains("pairs that merge"), "{error}");
    }
}
