//! Filters of texts.

use super::super::budget::{Budget, Evaluated, RenderError};
use super::super::calls::{CallArguments, at_most, flag, given, int_or, required, text_or};
use super::super::methods::{in_case, replaced, stripped};
use super::super::numbers::count_of;
use super::super::strings::{self, escaped, is_space, lines, margins, padded};
use super::super::value::PyValue;
use super::super::values::dict::pairs_of;
use super::super::{display, format};

pub(super) const NAMES: [&str; 17] = [
    "capitalize",
    "center",
    "e",
    "escape",
    "filesizeformat",
    "forceescape",
    "format",
    "indent",
    "lower",
    "replace",
    "striptags",
    "title",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "wordcount",
];

pub(super) fn apply(
    name: &str,
    value: &PyValue,
    arguments: CallArguments,
    budget: &Budget,
) -> Evaluated<PyValue> {
    if name == "urlencode" {
        arguments.none(name)?;
        return PyValue::text(url_encoded(value, budget)?, budget);
    }
    if name == "filesizeformat" {
        let [binary] = arguments.bind(name, ["binary"])?;
        return size_text(value, flag(binary, false)).map(PyValue::from);
    }
    if matches!(name, "truncate" | "indent") && value.as_str().is_none() {
        return of_no_text(name, value, arguments);
    }
    let own = display::text(value, budget)?;
    match name {
        "format" => {
            let CallArguments { positional, named } = arguments;
            if !positional.is_empty() && !named.is_empty() {
                return Err(RenderError::failed(
                    "can't handle positional and keyword arguments at the same time",
                ));
            }
            let given = if named.is_empty() {
                PyValue::tuple(positional, budget)?
            } else {
                let named = named.into_iter().map(|(name, value)| (PyValue::Str(name), value));
                PyValue::dict(named.collect(), budget)?
            };
            PyValue::text(format::percent(&own, &given, budget)?, budget)
        }
        "center" => {
            let [width] = arguments.bind(name, ["width"])?;
            let width = count_of(int_or(width, 80)?);
            let margins = margins(own.chars().count(), width);
            padded(&own, ' ', margins, budget).map(PyValue::from)
        }
        "replace" => {
            let [old, new, count] = arguments.bind(name, ["old", "new", "count"])?;
            let count = at_most(given(count))?;
            let (old, new) = (required(old, name, "old")?, required(new, name, "new")?);
            let (old, new) = (display::text(&old, budget)?, display::text(&new, budget)?);
            replaced(&own, (&old, &new), count, budget)
        }
        "trim" => {
            let [chars] = arguments.bind(name, ["chars"])?;
            stripped(&own, "strip", chars, budget)
        }
        "truncate" => truncated(&own, arguments, budget),
        "indent" => indented(&own, arguments, budget),
        _ => {
            arguments.none(name)?;
            plain(name, &own, budget)
        }
    }
}

/// What is short enough is not looked at.
fn of_no_text(name: &str, value: &PyValue, arguments: CallArguments) -> Evaluated<PyValue> {
    if name == "truncate" {
        let [length, _, _, leeway] =
            arguments.bind(name, ["length", "killwords", "end", "leeway"])?;
        if value.len()? as i128 <= int_or(length, 255)?.saturating_add(int_or(given(leeway), 5)?) {
            return Ok(value.clone());
        }
    }
    let kind = value.type_name();
    Err(RenderError::failed(format!("{name}: expected a string, got '{kind}'")))
}

fn plain(name: &str, own: &str, budget: &Budget) -> Evaluated<PyValue> {
    let text = match name {
        "capitalize" | "lower" | "upper" => in_case(own, name),
        "title" => strings::words_titled(own),
        "striptags" => without_tags(own),
        "wordcount" => {
            let is_word = |c: char| c == '_' || c.is_alphanumeric();
            let words = own.split(|c| !is_word(c)).filter(|word| !word.is_empty());
            return Ok(PyValue::Int(words.count() as i128));
        }
        _ => escaped(own),
    };
    PyValue::text(text, budget)
}

fn truncated(own: &str, arguments: CallArguments, budget: &Budget) -> Evaluated<PyValue> {
    let [length, killwords, end, leeway] =
        arguments.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let (length, leeway) = (int_or(length, 255)?, int_or(given(leeway), 5)?);
    let end = text_or(end, "...")?;
    let kept = length - end.chars().count() as i128;
    if kept < 0 || leeway < 0 {
        return Err(RenderError::failed("truncate: expected a length of at least that of its end"));
    }
    if own.chars().count() as i128 <= length.saturating_add(leeway) {
        return PyValue::text(own, budget);
    }
    let cut: String = own.chars().take(count_of(kept)).collect();
    let cut = match cut.rsplit_once(' ') {
        Some((words, _)) if !flag(killwords, false) => words.to_owned(),
        _ => cut,
    };
    PyValue::text(cut + &end, budget)
}

fn indented(own: &str, arguments: CallArguments, budget: &Budget) -> Evaluated<PyValue> {
    let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"])?;
    let (first, blank) = (flag(first, false), flag(blank, false));
    let unit = match width {
        Some(PyValue::Str(unit)) => unit.to_string(),
        width => {
            let width = count_of(int_or(width, 4)?);
            padded("", ' ', (width, 0), budget)?
        }
    };
    let own = format!("{own}\n");
    let lines = lines(&own, false);
    budget.build(unit.len().saturating_mul(lines.len()).saturating_add(own.len()))?;
    let mut out = String::new();
    for (at, line) in lines.into_iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        let is_indented = if at == 0 { first } else { blank || !line.is_empty() };
        out.push_str(if is_indented { &unit } else { "" });
        out.push_str(line);
    }
    Ok(PyValue::from(out))
}

/// Without comments and tags of HTML, its entities as characters, spaces put together.
fn without_tags(own: &str) -> String {
    let mut plain = String::with_capacity(own.len());
    let mut rest = own;
    while let Some(at) = rest.find('<') {
        let (end, len) = if rest[at..].starts_with("<!--") { ("-->", 3) } else { (">", 1) };
        let Some(close) = rest[at..].find(end) else { break };
        plain.push_str(&rest[..at]);
        rest = &rest[at + close + len..];
    }
    plain.push_str(rest);
    let spaced =
        plain.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&nbsp;", "\u{a0}"),
        ("&amp;", "&"),
    ];
    entities.iter().fold(spaced, |text, (entity, c)| text.replace(entity, c))
}

fn url_encoded(value: &PyValue, budget: &Budget) -> Evaluated<String> {
    let in_query = |value: &PyValue| {
        let text = display::text(value, budget)?;
        Ok(strings::url_quoted(&text, "").replace("%20", "+"))
    };
    let pairs = match value {
        PyValue::Dict(_)
        | PyValue::List(_)
        | PyValue::Tuple(_)
        | PyValue::Generator(_)
        | PyValue::View(..) => pairs_of(value, "urlencode", budget)?,
        other => {
            let text = display::text(other, budget)?;
            budget.build(text.len() * 3)?;
            return Ok(strings::url_quoted(&text, "/"));
        }
    };
    let mut encoded = Vec::new();
    for (key, value) in &pairs {
        encoded.push(format!("{}={}", in_query(key)?, in_query(value)?));
    }
    Ok(encoded.join("&"))
}

fn size_text(value: &PyValue, is_binary: bool) -> Evaluated<String> {
    let number = match value {
        PyValue::Str(text) => text.trim().parse().ok(),
        other => other.as_float(),
    };
    let bytes: f64 =
        number.ok_or_else(|| RenderError::failed("filesizeformat: expected a number"))?;
    let (base, units) = if is_binary {
        (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"])
    } else {
        (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"])
    };
    if bytes == 1.0 {
        return Ok("1 Byte".to_owned());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc()));
    }
    let mut unit = base;
    for name in units {
        unit *= base;
        if bytes < unit || name.starts_with('Y') {
            return Ok(format!("{:.1} {name}", base * bytes / unit));
        }
    }
    Ok(String::new())
}
