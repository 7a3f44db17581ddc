//! Filters that compare items: in their order, the least of them, each once, those that are alike together.

use std::cmp::Ordering;

use super::super::budget::{Budget, Evaluated, RenderError};
use super::super::calls::{CallArguments, flag, given, required, text_or};
use super::super::interpreter::Interpreter;
use super::super::value::PyValue;
use super::super::values::dict::hashable;
use super::picked_by;

pub(super) const NAMES: [&str; 6] = ["dictsort", "groupby", "max", "min", "sort", "unique"];

/// An item with what it is compared by.
type Keyed = (PyValue, PyValue);

pub(super) fn apply(
    it: &mut Interpreter<'_>,
    name: &str,
    value: &PyValue,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    match name {
        "sort" => {
            let [reverse, case, path] =
                arguments.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let keyed = keyed(it, value.items(&it.budget)?, (path, None, flag(case, false)))?;
            let items = sorted(keyed, flag(reverse, false), &it.budget)?;
            PyValue::list(items.into_iter().map(|(_, item)| item).collect(), &it.budget)
        }
        "min" | "max" => {
            let [case, path] = arguments.bind(name, ["case_sensitive", "attribute"])?;
            let keyed = keyed(it, value.items(&it.budget)?, (path, None, flag(case, false)))?;
            let mut best: Option<Keyed> = None;
            for (key, item) in keyed {
                let wins = match &best {
                    None => true,
                    Some((least, _)) if name == "min" => is_less(&key, least)?,
                    Some((most, _)) => is_less(most, &key)?,
                };
                if wins {
                    best = Some((key, item));
                }
            }
            let none = || PyValue::undefined("No aggregated item, sequence was empty.");
            Ok(best.map_or_else(none, |(_, item)| item))
        }
        "unique" => {
            let [case, path] = arguments.bind(name, ["case_sensitive", "attribute"])?;
            let keyed = keyed(it, value.items(&it.budget)?, (path, None, flag(case, false)))?;
            let mut seen = Vec::new();
            let mut items = Vec::new();
            for (key, item) in keyed {
                it.budget.step(seen.len() as u64)?;
                hashable(&key)?;
                if !seen.iter().any(|other: &PyValue| other.equals(&key)) {
                    seen.push(key);
                    items.push(item);
                }
            }
            PyValue::generator(items, &it.budget)
        }
        "groupby" => grouped(it, value, arguments),
        _ => dict_sorted(it, value, arguments),
    }
}

/// Each item with its key: what the path picks of it, strings in small letters unless their case counts.
fn keyed(
    it: &mut Interpreter<'_>,
    items: Vec<PyValue>,
    (path, default, is_case_sensitive): (Option<PyValue>, Option<PyValue>, bool),
) -> Evaluated<Vec<Keyed>> {
    let paths: Vec<PyValue> = match given(path) {
        None => Vec::new(),
        Some(PyValue::Str(path)) => path.split(',').map(PyValue::from).collect(),
        Some(other) => vec![other],
    };
    let mut keyed = Vec::with_capacity(items.len());
    for item in items {
        let mut keys = Vec::with_capacity(paths.len());
        for path in &paths {
            keys.push(picked_by(it, &item, path, default.as_ref())?);
        }
        if paths.is_empty() {
            keys.push(item.clone());
        }
        if !is_case_sensitive {
            for key in &mut keys {
                if let PyValue::Str(text) = key {
                    *key = PyValue::text(text.to_lowercase(), &it.budget)?;
                }
            }
        }
        let key = if keys.len() == 1 { keys.remove(0) } else { PyValue::list(keys, &it.budget)? };
        keyed.push((key, item));
    }
    Ok(keyed)
}

fn is_less(a: &PyValue, b: &PyValue) -> Evaluated<bool> {
    Ok(a.compare(b, "<")? == Some(Ordering::Less))
}

/// In order, equal ones as they stood. By merging, because a comparison may fail.
fn sorted(keyed: Vec<Keyed>, is_reversed: bool, budget: &Budget) -> Evaluated<Vec<Keyed>> {
    let mut runs: Vec<Vec<Keyed>> = keyed.into_iter().map(|item| vec![item]).collect();
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut left = runs.into_iter();
        while let Some(a) = left.next() {
            match left.next() {
                Some(b) => merged.push(merge(a, b, is_reversed, budget)?),
                None => merged.push(a),
            }
        }
        runs = merged;
    }
    Ok(runs.pop().unwrap_or_default())
}

fn merge(
    a: Vec<Keyed>,
    b: Vec<Keyed>,
    is_reversed: bool,
    budget: &Budget,
) -> Evaluated<Vec<Keyed>> {
    budget.step((a.len() + b.len()) as u64)?;
    let mut merged = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    while let (Some((first, _)), Some((second, _))) = (a.peek(), b.peek()) {
        let takes_second =
            if is_reversed { is_less(first, second)? } else { is_less(second, first)? };
        merged.extend(if takes_second { b.next() } else { a.next() });
    }
    Ok(merged.into_iter().chain(a).chain(b).collect())
}

fn grouped(
    it: &mut Interpreter<'_>,
    value: &PyValue,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    let [path, default, case] =
        arguments.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let path = required(path, "groupby", "attribute")?;
    let is_case_sensitive = flag(case, false);
    let by = (Some(path.clone()), default.clone(), is_case_sensitive);
    let keyed = keyed(it, value.items(&it.budget)?, by)?;
    let mut groups: Vec<(PyValue, Vec<PyValue>)> = Vec::new();
    for (key, item) in sorted(keyed, false, &it.budget)? {
        match groups.last_mut() {
            Some((last, items)) if last.equals(&key) => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let mut pairs = Vec::with_capacity(groups.len());
    for (key, items) in groups {
        // The name of a group is as its first item has it.
        let name = match items.first() {
            Some(first) if !is_case_sensitive => picked_by(it, first, &path, default.as_ref())?,
            _ => key,
        };
        let items = PyValue::list(items, &it.budget)?;
        pairs.push(PyValue::tuple(vec![name, items], &it.budget)?);
    }
    PyValue::list(pairs, &it.budget)
}

fn dict_sorted(
    it: &Interpreter<'_>,
    value: &PyValue,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    let [case, by, reverse] = arguments.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let by_value = match text_or(by, "key")?.as_str() {
        "key" => false,
        "value" => true,
        _ => return Err(RenderError::failed("You can only sort by either \"key\" or \"value\"")),
    };
    let is_case_sensitive = flag(case, false);
    let PyValue::Dict(dict) = value else {
        return Err(RenderError::failed(format!(
            "'{}' object has no attribute 'items'",
            value.type_name()
        )));
    };
    let mut keyed = Vec::with_capacity(dict.len());
    for (key, value) in dict.pairs() {
        let by = if by_value { value } else { key };
        let by = match by {
            PyValue::Str(text) if !is_case_sensitive => {
                PyValue::text(text.to_lowercase(), &it.budget)?
            }
            other => other.clone(),
        };
        keyed.push((by, PyValue::tuple(vec![key.clone(), value.clone()], &it.budget)?));
    }
    let items = sorted(keyed, flag(reverse, false), &it.budget)?;
    PyValue::list(items.into_iter().map(|(_, pair)| pair).collect(), &it.budget)
}
