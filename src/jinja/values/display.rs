//! How Python prints values: `str()` and `repr()`.

use std::borrow::Cow;

use super::super::budget::{Budget, Evaluated};
use super::numbers;
use super::value::{Object, PyValue, ViewKind};

/// Python's `str()`.
pub(in crate::jinja) fn text<'v>(value: &'v PyValue, budget: &Budget) -> Evaluated<Cow<'v, str>> {
    match value {
        PyValue::Undefined(_) => Ok(Cow::Borrowed("")),
        PyValue::Str(text) => {
            budget.build(text.len())?;
            Ok(Cow::Borrowed(text))
        }
        other => repr(other, budget).map(Cow::Owned),
    }
}

/// The same at the end of a text.
pub(in crate::jinja) fn write(value: &PyValue, out: &mut String, budget: &Budget) -> Evaluated<()> {
    match value {
        PyValue::Undefined(_) | PyValue::Str(_) => out.push_str(&text(value, budget)?),
        other => write_repr(other, out, budget)?,
    }
    Ok(())
}

/// Python's `repr()`.
pub(in crate::jinja) fn repr(value: &PyValue, budget: &Budget) -> Evaluated<String> {
    let mut out = String::new();
    write_repr(value, &mut out, budget)?;
    Ok(out)
}

fn write_repr(value: &PyValue, out: &mut String, budget: &Budget) -> Evaluated<()> {
    budget.step(1)?;
    let before = out.len();
    match value {
        PyValue::Undefined(_) => out.push_str("Undefined"),
        PyValue::None => out.push_str("None"),
        PyValue::Bool(true) => out.push_str("True"),
        PyValue::Bool(false) => out.push_str("False"),
        PyValue::Int(value) => out.push_str(&value.to_string()),
        PyValue::Float(value) => out.push_str(&numbers::float_text(*value)),
        PyValue::Str(text) => write_quoted(text.chars(), is_printable, out),
        PyValue::Bytes(bytes) => {
            out.push('b');
            write_quoted(
                bytes.iter().map(|byte| char::from(*byte)),
                |c| matches!(c, ' '..='~'),
                out,
            );
        }
        PyValue::List(items) => write_items(("[", "]"), &items.items, out, budget)?,
        PyValue::Tuple(items) => match items.items.as_slice() {
            [only] => write_items(("(", ",)"), std::slice::from_ref(only), out, budget)?,
            items => write_items(("(", ")"), items, out, budget)?,
        },
        PyValue::Dict(dict) => write_pairs(dict.pairs(), out, budget)?,
        PyValue::View(kind, _) => {
            let name = match kind {
                ViewKind::Keys => "dict_keys([",
                ViewKind::Values => "dict_values([",
                ViewKind::Items => "dict_items([",
            };
            write_items((name, "])"), &value.items(budget)?, out, budget)?;
        }
        PyValue::Range(start, stop, 1) => out.push_str(&format!("range({start}, {stop})")),
        PyValue::Range(start, stop, step) => {
            out.push_str(&format!("range({start}, {stop}, {step})"));
        }
        PyValue::Generator(_) => out.push_str("<generator object>"),
        PyValue::Object(Object::Joiner(_)) => out.push_str("<Joiner>"),
        PyValue::Object(_) => out.push_str(&format!("<{}>", value.type_name())),
    }
    budget.build(out.len() - before)
}

fn write_items(
    (open, close): (&str, &str),
    items: &[PyValue],
    out: &mut String,
    budget: &Budget,
) -> Evaluated<()> {
    out.push_str(open);
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_repr(item, out, budget)?;
    }
    out.push_str(close);
    Ok(())
}

fn write_pairs(pairs: &[(PyValue, PyValue)], out: &mut String, budget: &Budget) -> Evaluated<()> {
    out.push('{');
    for (at, (key, value)) in pairs.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_repr(key, out, budget)?;
        out.push_str(": ");
        write_repr(value, out, budget)?;
    }
    out.push('}');
    Ok(())
}

/// In single quotes, unless there is one and no double one; what is not `plain` by its code.
fn write_quoted(
    chars: impl Iterator<Item = char> + Clone,
    is_plain: impl Fn(char) -> bool,
    out: &mut String,
) {
    let has = |quote| chars.clone().any(|c| c == quote);
    let quote = if has('\'') && !has('"') { '"' } else { '\'' };
    out.push(quote);
    for c in chars {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_plain(c) => out.push(c),
            c => write_escape(c, out),
        }
    }
    out.push(quote);
}

/// A character by its code.
pub(super) fn write_escape(c: char, out: &mut String) {
    out.push_str(&match u32::from(c) {
        code @ ..=0xff => format!("\\x{code:02x}"),
        code @ ..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    });
}

/// As near to Python's `isprintable` as the standard library's tables go: no controls, separators, marks of direction, private or
/// unassigned planes.
pub(in crate::jinja) fn is_printable(c: char) -> bool {
    let is_format = matches!(
        u32::from(c),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e
            | 0x2060..=0x206f | 0xd800..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xfffe | 0xffff
            | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe00ff | 0xe01f0..=0x10_ffff
    );
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_format)
}
