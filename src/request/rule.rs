//! What values a parameter takes, and how a value of each type is read and held against that.

use std::collections::BTreeMap;
use std::fmt;

use super::{LogprobsMode, Value};
use crate::error::{Error, Result};

/// Which values are in range: of a number, or of each in a list of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    min: f64,
    /// `min` itself is out of range.
    above: bool,
    max: f64,
    /// Most members of a list.
    items: usize,
    /// Longest text, in bytes.
    bytes: usize,
    minus_one_is_zero: bool,
    flag: bool,
}

impl Rule {
    /// Whatever the type can hold.
    pub const fn any() -> Self {
        Self {
            min: f64::NEG_INFINITY,
            above: false,
            max: f64::INFINITY,
            items: usize::MAX,
            bytes: usize::MAX,
            minus_one_is_zero: false,
            flag: false,
        }
    }

    /// `min` to `max`.
    pub const fn range(min: f64, max: f64) -> Self {
        Self { min, max, ..Self::any() }
    }

    /// `min` and up.
    pub const fn at_least(min: f64) -> Self {
        Self::range(min, f64::INFINITY)
    }

    /// Above `min`, to `max`.
    pub const fn above(min: f64, max: f64) -> Self {
        Self { above: true, ..Self::range(min, max) }
    }

    /// Lists of at most so many members.
    pub const fn items(items: usize) -> Self {
        Self::any().with_items(items)
    }

    /// The same, and lists have at most so many members.
    pub const fn with_items(self, items: usize) -> Self {
        Self { items, ..self }
    }

    /// At most so many texts, each of 1 to so many bytes.
    pub const fn texts(items: usize, bytes: usize) -> Self {
        Self { bytes, ..Self::items(items) }
    }

    /// Other servers' way to write 0.
    pub const fn minus_one_is_zero(self) -> Self {
        Self { minus_one_is_zero: true, ..self }
    }

    /// `true` is 0, `false` is absent.
    pub const fn or_a_flag(self) -> Self {
        Self { flag: true, ..self }
    }

    /// `got` is the value as it is shown.
    fn check(&self, value: f64, got: impl fmt::Display) -> Checked {
        let low = if self.above { value > self.min } else { value >= self.min };
        if low && value <= self.max && value.is_finite() {
            return Ok(());
        }
        let (min, max) = (self.min, self.max);
        let expected = match (self.above, max.is_finite()) {
            (true, _) => format!("more than {min}, at most {max}"),
            (false, true) => format!("{min} to {max}"),
            (false, false) => format!("at least {min}"),
        };
        Err(format!("expected {expected}, got {got}"))
    }

    fn check_items(&self, got: usize, what: &str) -> Checked {
        if got > self.items {
            return Err(format!("expected at most {} {what}, got {got}", self.items));
        }
        Ok(())
    }
}

/// In range, or what was expected and what is there.
type Checked = std::result::Result<(), String>;

/// A type that a parameter can have; its default is an absent parameter.
pub(super) trait Field: Default + Clone + PartialEq {
    /// Reads a value that is not null.
    fn read(value: Value, path: &str, rule: &Rule) -> Result<Self>;

    /// Holds the value against its rule and the model's vocabulary.
    fn check(&self, rule: &Rule, vocab_size: u32) -> Checked;

    /// The value as a client writes it; null for an absent one.
    fn write(&self) -> Value;
}

fn list<T>(items: &[T], write: impl Fn(&T) -> Value) -> Value {
    Value::List(items.iter().map(write).collect())
}

impl Field for Option<f32> {
    fn read(value: Value, path: &str, _: &Rule) -> Result<Self> {
        value.number(path).map(|number| Some(number as f32))
    }

    fn check(&self, rule: &Rule, _: u32) -> Checked {
        self.map_or(Ok(()), |value| rule.check(value.into(), value))
    }

    fn write(&self) -> Value {
        self.map_or(Value::Null, |number| Value::Float(number.into()))
    }
}

impl Field for Option<u32> {
    fn read(value: Value, path: &str, rule: &Rule) -> Result<Self> {
        match value {
            Value::Bool(wanted) if rule.flag => Ok(wanted.then_some(0)),
            Value::Int(-1) if rule.minus_one_is_zero => Ok(Some(0)),
            value => value.integer(path, 0, u32::MAX.into()).map(|number| Some(number as u32)),
        }
    }

    fn check(&self, rule: &Rule, _: u32) -> Checked {
        self.map_or(Ok(()), |value| rule.check(value.into(), value))
    }

    fn write(&self) -> Value {
        self.map_or(Value::Null, |number| Value::Int(number.into()))
    }
}

impl Field for Option<u64> {
    /// 64 bits, signed or not: OpenAI's seeds may be negative.
    fn read(value: Value, path: &str, _: &Rule) -> Result<Self> {
        let bits = value.integer(path, i64::MIN.into(), u64::MAX.into())?;
        Ok(Some(bits as u64))
    }

    fn check(&self, _: &Rule, _: u32) -> Checked {
        Ok(())
    }

    fn write(&self) -> Value {
        self.map_or(Value::Null, |number| Value::Int(number.into()))
    }
}

impl Field for Option<bool> {
    fn read(value: Value, path: &str, _: &Rule) -> Result<Self> {
        value.boolean(path).map(Some)
    }

    fn check(&self, _: &Rule, _: u32) -> Checked {
        Ok(())
    }

    fn write(&self) -> Value {
        self.map_or(Value::Null, Value::Bool)
    }
}

impl Field for Option<LogprobsMode> {
    fn read(value: Value, path: &str, _: &Rule) -> Result<Self> {
        match &value {
            Value::Text(mode) if mode == "raw" => Ok(Some(LogprobsMode::Raw)),
            Value::Text(mode) if mode == "processed" => Ok(Some(LogprobsMode::Processed)),
            other => Err(other.refused(path, "\"raw\" or \"processed\"")),
        }
    }

    fn check(&self, _: &Rule, _: u32) -> Checked {
        Ok(())
    }

    fn write(&self) -> Value {
        let name = |mode: LogprobsMode| match mode {
            LogprobsMode::Raw => "raw",
            LogprobsMode::Processed => "processed",
        };
        self.map_or(Value::Null, |mode| Value::Text(name(mode).to_owned()))
    }
}

/// Texts; one may stand without its list.
impl Field for Vec<String> {
    fn read(value: Value, path: &str, _: &Rule) -> Result<Self> {
        match value {
            Value::Text(text) => Ok(vec![text]),
            Value::List(items) => items
                .into_iter()
                .enumerate()
                .map(|(i, item)| item.text(&format!("{path}[{i}]")))
                .collect(),
            other => Err(other.refused(path, "a string or an array of strings")),
        }
    }

    fn check(&self, rule: &Rule, _: u32) -> Checked {
        rule.check_items(self.len(), "strings")?;
        match self.iter().find(|text| text.is_empty() || text.len() > rule.bytes) {
            Some(text) => {
                Err(format!("expected 1 to {} bytes in a string, got {}", rule.bytes, text.len()))
            }
            None => Ok(()),
        }
    }

    fn write(&self) -> Value {
        list(self, |text| Value::Text(text.clone()))
    }
}

/// Token ids.
impl Field for Vec<u32> {
    fn read(value: Value, path: &str, _: &Rule) -> Result<Self> {
        value.token_ids(path)
    }

    fn check(&self, rule: &Rule, vocab_size: u32) -> Checked {
        rule.check_items(self.len(), "token ids")?;
        check_id(self.iter().max(), vocab_size)
    }

    fn write(&self) -> Value {
        list(self, |id| Value::Int((*id).into()))
    }
}

/// Token ids of which there must be one, if the list is there.
impl Field for Option<Vec<u32>> {
    fn read(value: Value, path: &str, rule: &Rule) -> Result<Self> {
        Vec::<u32>::read(value, path, rule).map(Some)
    }

    fn check(&self, rule: &Rule, vocab_size: u32) -> Checked {
        match self {
            None => Ok(()),
            Some(ids) if ids.is_empty() => Err("expected at least one token id, got none".into()),
            Some(ids) => ids.check(rule, vocab_size),
        }
    }

    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, Field::write)
    }
}

/// Numbers by token id; an object's keys are strings, in both encodings.
impl Field for BTreeMap<u32, f32> {
    fn read(value: Value, path: &str, _: &Rule) -> Result<Self> {
        let Value::Map(members) = value else {
            return Err(value.refused(path, "an object with token ids as keys"));
        };
        let mut by_id = Self::new();
        for (key, value) in members {
            let Some(id) = token_id(&key) else {
                return Err(Value::Text(key).refused(path, "a token id as key"));
            };
            let number = value.number(&format!("{path}.{id}"))? as f32;
            if by_id.insert(id, number).is_some() {
                return Err(Error::invalid(format!("{path}.{id}"), "given twice"));
            }
        }
        Ok(by_id)
    }

    fn check(&self, rule: &Rule, vocab_size: u32) -> Checked {
        rule.check_items(self.len(), "tokens")?;
        for (id, &value) in self {
            let of_this = |message| format!("{message} for token {id}");
            rule.check(value.into(), value).map_err(of_this)?;
        }
        check_id(self.keys().next_back(), vocab_size)
    }

    fn write(&self) -> Value {
        let member = |(id, number): (&u32, &f32)| (id.to_string(), Value::Float((*number).into()));
        Value::Map(self.iter().map(member).collect())
    }
}

/// What a chat template is given by the node: no client's variable may have these names.
const TEMPLATES_OWN: [&str; 4] = ["messages", "add_generation_prompt", "tools", "documents"];

/// Variables by name.
impl Field for Vec<(String, Value)> {
    fn read(value: Value, path: &str, _: &Rule) -> Result<Self> {
        let Value::Map(members) = value else {
            return Err(value.refused(path, "an object"));
        };
        match members.iter().find(|(name, _)| TEMPLATES_OWN.contains(&name.as_str())) {
            None => Ok(members),
            Some((name, _)) => {
                let text = "this name is reserved: the node sets it for the template";
                Err(Error::invalid(format!("{path}.{name}"), text))
            }
        }
    }

    fn check(&self, rule: &Rule, _: u32) -> Checked {
        rule.check_items(self.len(), "variables")
    }

    fn write(&self) -> Value {
        Value::Map(self.clone())
    }
}

/// An id in decimal, as a client writes it.
fn token_id(key: &str) -> Option<u32> {
    let digits = !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit());
    key.parse().ok().filter(|_| digits)
}

fn check_id(largest: Option<&u32>, vocab_size: u32) -> Checked {
    match largest {
        Some(id) if *id >= vocab_size => {
            Err(format!("expected token ids below {vocab_size}, got {id}"))
        }
        _ => Ok(()),
    }
}
