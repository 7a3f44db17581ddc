//! What the files beside `tokenizer.json` say of special tokens, read as `AutoTokenizer.from_pretrained` reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TokenizerError;
use super::guard::{check_character_maps, guarded};
use crate::files;

/// The largest of these files; `tokenizer.json` of a large vocabulary has some 35 MB.
const MAX_BYTES: u64 = 256 << 20;

/// Special tokens with a name, which templates know them by.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A checkpoint's folder, of which it was read what the files beside `tokenizer.json` say: for its tokenizer and its chat template. Or
/// what a checkpoint of one file says of them.
#[derive(Debug)]
pub struct TokenizerFolder {
    pub(super) dir: PathBuf,
    pub(super) config: TokenizerConfig,
    /// Of one file.
    file: Option<TokenizerOfFile>,
}

/// The tokenizer of a checkpoint of one file, if it has one.
#[derive(Debug)]
struct TokenizerOfFile(Option<tokenizers::Tokenizer>);

impl TokenizerFolder {
    /// Reads those files; each may be absent.
    ///
    /// # Errors
    /// Names the file and the reason when one is not readable, or not what it should be.
    pub fn open(dir: &Path) -> Result<Self, TokenizerError> {
        let config = TokenizerConfig::from_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), config, file: None })
    }

    /// Of a checkpoint of one file; `config` is what its `tokenizer_config.json` would say.
    pub fn of_file(file: &Path, tokenizer: Option<tokenizers::Tokenizer>, config: &Value) -> Self {
        let config = TokenizerConfig::of(config);
        Self { dir: file.to_owned(), config, file: Some(TokenizerOfFile(tokenizer)) }
    }

    /// Whether there is a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        match &self.file {
            Some(TokenizerOfFile(tokenizer)) => tokenizer.is_some(),
            None => self.path_of("tokenizer.json").symlink_metadata().is_ok(),
        }
    }

    /// Whether all of it stands in one file.
    pub(super) fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// The file that says what one of this name says.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        if self.is_file() { self.dir.clone() } else { self.dir.join(name) }
    }

    /// The tokenizer, before the special tokens of the other files are added.
    pub(super) fn tokenizer(&self) -> Result<tokenizers::Tokenizer, String> {
        if let Some(TokenizerOfFile(tokenizer)) = &self.file {
            return tokenizer.clone().ok_or_else(|| "it has no tokenizer".to_owned());
        }
        let bytes = read(&self.path_of("tokenizer.json")).map_err(|error| error.reason)?;
        let bytes = bytes.ok_or("the file does not exist")?;
        check_character_maps(&bytes)?;
        guarded(|| tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| error.to_string()))
            .map_err(|reason| format!("not a tokenizer: {reason}"))
    }
}

/// `tokenizer_config.json`, and for folders of older tools `special_tokens_map.json` and `added_tokens.json`.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    members: Map<String, Value>,
    /// `added_tokens_decoder`: tokens by their ids.
    decoder: BTreeMap<u32, AddedToken>,
    /// Whether there is none in `tokenizer_config.json`; what `tokenizer.json` adds then counts as if it stood there.
    is_old: bool,
}

impl TokenizerConfig {
    fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer_config.json");
        let mut config = Self { members: object(&path)?, ..Self::default() };
        if let Some(decoder) = config.members.remove("added_tokens_decoder") {
            config.decoder = decoder_of(&decoder).map_err(|reason| {
                TokenizerError::new(&path, format!("added_tokens_decoder: {reason}"))
            })?;
            return Ok(config);
        }
        config.is_old = true;
        // Older tools wrote these beside it; what the map says goes before.
        config.members.extend(object(&dir.join("special_tokens_map.json"))?);
        let path = dir.join("added_tokens.json");
        let special = config.special_texts();
        for (text, id) in object(&path)? {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id =
                id.ok_or_else(|| TokenizerError::new(&path, format!("{text}: expected an id")))?;
            let is_special = special.contains(&text);
            let token = AddedToken::from(text, is_special).normalized(!is_special);
            config.decoder.insert(id, token);
        }
        Ok(config)
    }

    /// What these members of a `tokenizer_config.json` say.
    pub(super) fn of(members: &Value) -> Self {
        Self { members: members.as_object().cloned().unwrap_or_default(), ..Self::default() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    /// Each named special token with its text: the usual names, and those that a model adds.
    pub(super) fn named(&self) -> Vec<(String, String)> {
        let own = self.members.iter().filter(|(name, value)| {
            name.ends_with("_token") && !NAMED.contains(&name.as_str()) && !value.is_boolean()
        });
        let usual = NAMED.iter().filter_map(|name| Some((*name, self.members.get(*name)?)));
        let extra = self.get("extra_special_tokens").and_then(Value::as_object);
        usual
            .chain(own.map(|(name, value)| (name.as_str(), value)))
            .chain(extra.into_iter().flatten().map(|(name, value)| (name.as_str(), value)))
            .filter_map(|(name, value)| Some((name.to_owned(), text_of(value)?.to_owned())))
            .collect()
    }

    /// Further special tokens, without names.
    fn extra(&self) -> impl Iterator<Item = &Value> {
        let list = |name: &str| self.get(name)?.as_array().filter(|list| !list.is_empty());
        let list = list("extra_special_tokens").or_else(|| list("additional_special_tokens"));
        list.into_iter().flatten()
    }

    fn special_texts(&self) -> BTreeSet<String> {
        let named = self.named().into_iter().map(|(_, text)| text);
        named.chain(self.extra().filter_map(text_of).map(str::to_owned)).collect()
    }

    /// The tokens that are to be added to a tokenizer that has `existing`, in order.
    pub(super) fn tokens_to_add(&self, existing: &[AddedToken]) -> Vec<AddedToken> {
        let named = self.named();
        let mut known: BTreeSet<String> =
            existing.iter().map(|token| token.content.clone()).collect();
        let mut tokens = Vec::new();
        let with_name: BTreeSet<&str> = named.iter().map(|(_, text)| text.as_str()).collect();
        let mut by_text: BTreeMap<&str, Vec<&AddedToken>> = BTreeMap::new();
        for token in existing {
            by_text.entry(&token.content).or_default().push(token);
        }
        let old = existing.iter().filter(|_| self.is_old);
        for token in old.chain(self.decoder.values()) {
            let mut token = token.clone();
            // One with a name is special, whatever is said of it.
            token.special |= with_name.contains(token.content.as_str());
            let others = by_text.get(token.content.as_str());
            if !others.is_some_and(|others| others.iter().any(|other| is_same(other, &token))) {
                known.insert(token.content.clone());
                tokens.push(token);
            }
        }
        let named =
            named.iter().filter_map(|(name, text)| Some((text.as_str(), self.members.get(name)?)));
        let extra = self.extra().filter_map(|value| Some((text_of(value)?, value)));
        for (text, value) in named.chain(extra) {
            if known.insert(text.to_owned()) {
                let mut token = token_of(value, text);
                token.special = true;
                tokens.push(token);
            }
        }
        tokens
    }
}

/// All that `repr` of one shows; the crate's `==` compares the text alone.
fn is_same(a: &AddedToken, b: &AddedToken) -> bool {
    let flags = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized, t.special);
    a.content == b.content && flags(a) == flags(b)
}

/// A token is a text, or an object with its `content`.
fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

fn token_of(value: &Value, text: &str) -> AddedToken {
    let flag = |name: &str| value[name].as_bool();
    let is_special = flag("special").unwrap_or(value.is_string());
    AddedToken::from(text, is_special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!is_special))
}

fn decoder_of(value: &Value) -> Result<BTreeMap<u32, AddedToken>, String> {
    let entries = value.as_object().ok_or("expected an object of ids and tokens")?;
    let read = |(id, token): (&String, &Value)| {
        let number = id.parse().map_err(|_| format!("{id}: expected an id"))?;
        let text =
            token["content"].as_str().ok_or_else(|| format!("{id}.content: expected a text"))?;
        Ok((number, token_of(token, text)))
    };
    entries.iter().map(read).collect()
}

/// One of these files; none if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    files::read(path, MAX_BYTES).map_err(|error| TokenizerError::new(path, error.to_string()))
}

fn object(path: &Path) -> Result<Map<String, Value>, TokenizerError> {
    let wrong = |reason: String| TokenizerError::new(path, reason);
    let Some(bytes) = read(path)? else { return Ok(Map::new()) };
    match serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))? {
        Value::Object(members) => Ok(members),
        _ => Err(wrong("expected an object".to_owned())),
    }
}
