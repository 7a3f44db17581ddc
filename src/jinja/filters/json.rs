//! `tojson`, which Hugging Face makes Python's `json.dumps`: nothing is escaped for HTML.

use super::super::budget::{Budget, Evaluated, RenderError};
use super::super::calls::{CallArguments, flag, given};
use super::super::numbers;
use super::super::value::PyValue;

/// The widest indent, in characters.
const MAX_INDENT: i128 = 64;

struct JsonWriter<'a> {
    out: String,
    budget: &'a Budget,
    is_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sorts: bool,
}

pub(super) fn dumps(
    value: &PyValue,
    arguments: CallArguments,
    budget: &Budget,
) -> Evaluated<PyValue> {
    let [ascii, indent, separators, sort_keys] =
        arguments.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match given(indent) {
        None => None,
        Some(PyValue::Str(unit)) => Some(unit.to_string()),
        Some(width) => {
            let width = numbers::needs_int(&width)?.clamp(0, MAX_INDENT);
            Some(" ".repeat(width as usize))
        }
    };
    let (item, key) = match given(separators) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(separators) => match separators.items(budget)?.as_slice() {
            [PyValue::Str(item), PyValue::Str(key)] => (item.to_string(), key.to_string()),
            _ => return Err(RenderError::failed("tojson: expected two separators")),
        },
    };
    let (is_ascii, sorts) = (flag(ascii, false), flag(sort_keys, false));
    let mut writer = JsonWriter { out: String::new(), budget, is_ascii, indent, item, key, sorts };
    writer.value(value, 0)?;
    PyValue::text(writer.out, budget)
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &PyValue, depth: usize) -> Evaluated<()> {
        self.budget.step(1)?;
        let before = self.out.len();
        match value {
            PyValue::None => self.out.push_str("null"),
            PyValue::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            PyValue::Int(value) => self.out.push_str(&value.to_string()),
            PyValue::Float(value) => self.out.push_str(&number(*value)),
            PyValue::Str(text) => self.string(text),
            PyValue::List(items) | PyValue::Tuple(items) => {
                let items = &items.items;
                return self.between(('[', ']'), items.len(), depth, |writer, at| {
                    writer.value(&items[at], depth + 1)
                });
            }
            PyValue::Dict(dict) => {
                let mut pairs = Vec::with_capacity(dict.len());
                for (key, value) in dict.pairs() {
                    pairs.push((key_text(key)?, value));
                }
                if self.sorts {
                    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                return self.between(('{', '}'), pairs.len(), depth, |writer, at| {
                    let (key, value) = &pairs[at];
                    writer.budget.build(key.len() + writer.key.len())?;
                    writer.string(key);
                    writer.out.push_str(&writer.key);
                    writer.value(value, depth + 1)
                });
            }
            other => {
                let name = other.type_name();
                let text = format!("Object of type {name} is not JSON serializable");
                return Err(RenderError::failed(text));
            }
        }
        self.budget.build(self.out.len() - before)
    }

    /// So many items between brackets, each on a line of its own where there is an indent.
    fn between(
        &mut self,
        (open, close): (char, char),
        len: usize,
        depth: usize,
        write: impl Fn(&mut Self, usize) -> Evaluated<()>,
    ) -> Evaluated<()> {
        self.out.push(open);
        for at in 0..len {
            if at > 0 {
                self.budget.build(self.item.len())?;
                self.out.push_str(&self.item);
            }
            self.line(depth + 1)?;
            write(self, at)?;
        }
        if len > 0 {
            self.line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Evaluated<()> {
        let Some(unit) = &self.indent else { return Ok(()) };
        self.budget.build(unit.len() * depth + 1)?;
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(unit.as_str(), depth));
        Ok(())
    }

    fn string(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.is_ascii {
            return self.out.push_str(&quoted);
        }
        for c in quoted.chars() {
            if matches!(c, ' '..='~') {
                self.out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                self.out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        value => numbers::float_text(value),
    }
}

fn key_text(key: &PyValue) -> Evaluated<String> {
    Ok(match key {
        PyValue::Str(text) => text.to_string(),
        PyValue::None => "null".to_owned(),
        PyValue::Bool(value) => value.to_string(),
        PyValue::Int(value) => value.to_string(),
        PyValue::Float(value) => number(*value),
        other => {
            let name = other.type_name();
            let text = format!("keys must be str, int, float, bool or None, not {name}");
            return Err(RenderError::failed(text));
        }
    })
}
