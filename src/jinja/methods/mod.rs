//! Python's methods of strings, bytes, lists and dicts. Those that would change a value are not there: the sandbox refuses them.

use std::sync::Arc;

use super::budget::{Budget, Evaluated, RenderError};
use super::calls::{CallArguments, given, int_or, required, text};
use super::globals;
use super::interpreter::Interpreter;
use super::value::{Object, PyValue, ViewKind};
use super::values::dict::Dict;

mod braces;
mod search;
mod text;

pub(super) use search::replaced;
pub(super) use text::{in_case, stripped};

const OF_DICTS: [&str; 5] = ["get", "items", "keys", "values", "copy"];
const OF_LISTS: [&str; 3] = ["count", "index", "copy"];
const OF_TUPLES: [&str; 2] = ["count", "index"];

/// The method of that name, if the value has it.
pub(super) fn of(value: &PyValue, name: &str) -> Option<PyValue> {
    let known = |names: &[&'static str]| names.iter().find(|known| **known == name).copied();
    let name = match value {
        PyValue::Str(_) => {
            known(&text::NAMES).or_else(|| known(&search::NAMES)).or_else(|| known(&["format"]))
        }
        PyValue::Bytes(_) => known(&["decode"]),
        PyValue::Dict(_) => known(&OF_DICTS),
        PyValue::List(_) => known(&OF_LISTS),
        // What `groupby` gives are pairs with names.
        PyValue::Tuple(items) if items.items.len() == 2 && name == "grouper" => {
            return items.items.first().cloned();
        }
        PyValue::Tuple(items) if items.items.len() == 2 && name == "list" => {
            return items.items.get(1).cloned();
        }
        PyValue::Tuple(_) => known(&OF_TUPLES),
        PyValue::Int(_) => known(&["bit_length"]),
        PyValue::Float(_) => known(&["is_integer"]),
        _ => None,
    }?;
    Some(PyValue::Object(Object::Method((value.clone(), name).into())))
}

/// What the method says of its value.
pub(super) fn call(
    it: &mut Interpreter<'_>,
    value: &PyValue,
    name: &str,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    match value {
        PyValue::Str(own) if name == "format" => {
            let formatted = braces::format(it, own, &arguments)?;
            PyValue::text(formatted, &it.budget)
        }
        PyValue::Str(own) if search::NAMES.contains(&name) => {
            search::call(own, name, arguments, &it.budget)
        }
        PyValue::Str(own) => text::call(own, name, arguments, &it.budget),
        PyValue::Bytes(bytes) => {
            arguments.bind::<2>(name, ["encoding", "errors"])?;
            let text =
                std::str::from_utf8(bytes).map_err(|e| RenderError::failed(e.to_string()))?;
            PyValue::text(text, &it.budget)
        }
        PyValue::Dict(dict) => of_dict(dict, name, arguments),
        PyValue::List(items) | PyValue::Tuple(items) => {
            of_list(value, &items.items, (name, arguments), &it.budget)
        }
        PyValue::Int(value) => {
            arguments.none(name)?;
            Ok(PyValue::Int((128 - value.unsigned_abs().leading_zeros()).into()))
        }
        PyValue::Float(value) => {
            arguments.none(name)?;
            Ok(PyValue::Bool(value.fract() == 0.0))
        }
        PyValue::Object(object) => globals::call_method(it, object, name, arguments),
        _ => Err(RenderError::failed(format!("no method {name}"))),
    }
}

fn of_dict(dict: &Arc<Dict>, name: &str, arguments: CallArguments) -> Evaluated<PyValue> {
    let kind = match name {
        "get" => {
            let [key, default] = arguments.bind("get", ["key", "default"])?;
            let key = required(key, "get", "key")?;
            return Ok(dict.get(&key).cloned().or(default).unwrap_or(PyValue::None));
        }
        "keys" => ViewKind::Keys,
        "values" => ViewKind::Values,
        "items" => ViewKind::Items,
        _ => return Ok(PyValue::Dict(dict.clone())),
    };
    arguments.none(name)?;
    Ok(PyValue::View(kind, dict.clone()))
}

fn of_list(
    value: &PyValue,
    items: &[PyValue],
    (name, arguments): (&str, CallArguments),
    budget: &Budget,
) -> Evaluated<PyValue> {
    budget.step(items.len() as u64)?;
    if name == "copy" {
        arguments.none(name)?;
        return Ok(value.clone());
    }
    let [wanted, start, stop] = arguments.bind(name, ["value", "start", "stop"])?;
    let wanted = required(wanted, name, "value")?;
    if name == "count" {
        let count = items.iter().filter(|item| item.equals(&wanted)).count();
        return Ok(PyValue::Int(count as i128));
    }
    let (start, stop) = bounds(items.len(), start, stop)?;
    let found = (start..stop).find(|at| items[*at].equals(&wanted));
    let missing = || RenderError::failed("the value is not in the list");
    found.map(|at| PyValue::Int(at as i128)).ok_or_else(missing)
}

/// `start` and `stop` of a search within `len`, counted as Python counts.
fn bounds(len: usize, start: Option<PyValue>, stop: Option<PyValue>) -> Evaluated<(usize, usize)> {
    let len = len as i128;
    let within = |at: i128| if at < 0 { at.saturating_add(len).max(0) } else { at.min(len) };
    let (start, stop) = (within(int_or(given(start), 0)?), within(int_or(given(stop), len)?));
    Ok((start as usize, stop.max(start) as usize))
}

/// A string or a tuple of strings.
fn texts(value: &PyValue) -> Evaluated<Vec<&str>> {
    match value {
        PyValue::Tuple(items) => items.items.iter().map(text).collect(),
        other => Ok(vec![text(other)?]),
    }
}
