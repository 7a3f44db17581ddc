//! Methods of strings that look for something in them.

use super::super::budget::{Budget, Evaluated, RenderError};
use super::super::calls::{CallArguments, at_most, flag, given, required, text};
use super::super::strings::{is_space, lines};
use super::super::value::PyValue;
use super::{bounds, texts};

pub(super) const NAMES: [&str; 13] = [
    "count",
    "find",
    "index",
    "rfind",
    "rindex",
    "startswith",
    "endswith",
    "split",
    "rsplit",
    "splitlines",
    "partition",
    "rpartition",
    "replace",
];

pub(super) fn call(
    own: &str,
    name: &str,
    arguments: CallArguments,
    budget: &Budget,
) -> Evaluated<PyValue> {
    budget.step(own.len() as u64 / 64)?;
    match name {
        "startswith" | "endswith" | "count" | "find" | "index" | "rfind" | "rindex" => {
            within(own, name, arguments)
        }
        "split" | "rsplit" => {
            let [separator, most] = arguments.bind(name, ["sep", "maxsplit"])?;
            let most = at_most(most)?;
            let parts = match given(separator) {
                None => words(own, most, name == "rsplit"),
                Some(separator) => {
                    let separator = not_empty(&separator)?.to_owned();
                    let limit = most.saturating_add(1);
                    if name == "split" {
                        own.splitn(limit, separator.as_str()).collect()
                    } else {
                        let mut parts: Vec<&str> = own.rsplitn(limit, separator.as_str()).collect();
                        parts.reverse();
                        parts
                    }
                }
            };
            list(parts, budget)
        }
        "splitlines" => {
            let [keeps_ends] = arguments.bind(name, ["keepends"])?;
            list(lines(own, flag(keeps_ends, false)), budget)
        }
        "partition" | "rpartition" => {
            let [separator] = arguments.bind(name, ["sep"])?;
            let separator = required(separator, name, "sep")?;
            let separator = not_empty(&separator)?;
            let split = if name == "partition" {
                own.split_once(separator).map_or([own, "", ""], |(a, b)| [a, separator, b])
            } else {
                own.rsplit_once(separator).map_or(["", "", own], |(a, b)| [a, separator, b])
            };
            budget.build(own.len())?;
            PyValue::tuple(split.into_iter().map(PyValue::from).collect(), budget)
        }
        _ => {
            let [old, new, count] = arguments.bind(name, ["old", "new", "count"])?;
            let (old, new) = (required(old, name, "old")?, required(new, name, "new")?);
            replaced(own, (text(&old)?, text(&new)?), at_most(count)?, budget)
        }
    }
}

/// Python's `replace`, charged before it is done.
pub(in crate::jinja) fn replaced(
    own: &str,
    (old, new): (&str, &str),
    count: usize,
    budget: &Budget,
) -> Evaluated<PyValue> {
    let found = own.matches(old).take(count).count();
    budget.build(own.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(PyValue::from(own.replacen(old, new, count)))
}

fn list(parts: Vec<&str>, budget: &Budget) -> Evaluated<PyValue> {
    budget.build(parts.iter().map(|part| part.len()).sum())?;
    PyValue::list(parts.into_iter().map(PyValue::from).collect(), budget)
}

fn not_empty(separator: &PyValue) -> Evaluated<&str> {
    let separator = text(separator)?;
    if separator.is_empty() { Err(RenderError::failed("empty separator")) } else { Ok(separator) }
}

/// What stands between spaces, at most `most` times cut from one end.
fn words(own: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = own;
    loop {
        rest = if from_right {
            rest.trim_end_matches(is_space)
        } else {
            rest.trim_start_matches(is_space)
        };
        if rest.is_empty() {
            break;
        }
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut.filter(|_| parts.len() < most) else {
            let whole = if from_right { rest.trim_start_matches(is_space) } else { rest };
            // Spaces at the far end stay where the number of cuts ended the search.
            parts.push(if parts.len() < most { whole.trim_matches(is_space) } else { rest });
            break;
        };
        if from_right {
            let space = rest[cut..].chars().next().map_or(1, char::len_utf8);
            parts.push(&rest[cut + space..]);
            rest = &rest[..cut];
        } else {
            parts.push(&rest[..cut]);
            rest = &rest[cut..];
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// Searches in a part of the string; places are counted in characters.
fn within(own: &str, name: &str, arguments: CallArguments) -> Evaluated<PyValue> {
    let [wanted, start, stop] = arguments.bind(name, ["sub", "start", "end"])?;
    let wanted = required(wanted, name, "sub")?;
    let len = own.chars().count();
    let (start, stop) = bounds(len, start, stop)?;
    let byte = |at: usize| own.char_indices().nth(at).map_or(own.len(), |(byte, _)| byte);
    let part = if (start, stop) == (0, len) { own } else { &own[byte(start)..byte(stop)] };
    match name {
        "startswith" => {
            Ok(PyValue::Bool(texts(&wanted)?.iter().any(|text| part.starts_with(text))))
        }
        "endswith" => Ok(PyValue::Bool(texts(&wanted)?.iter().any(|text| part.ends_with(text)))),
        "count" => Ok(PyValue::Int(part.matches(text(&wanted)?).count() as i128)),
        _ => {
            let wanted = text(&wanted)?;
            let found = if name.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
            let place = found.map(|byte| (start + part[..byte].chars().count()) as i128);
            match place {
                Some(place) => Ok(PyValue::Int(place)),
                None if name.ends_with("find") => Ok(PyValue::Int(-1)),
                None => Err(RenderError::failed("substring not found")),
            }
        }
    }
}
