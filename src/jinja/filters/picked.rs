//! Filters that take some items, or something of each.

use super::super::budget::{Evaluated, RenderError};
use super::super::calls::{CallArguments, text};
use super::super::interpreter::Interpreter;
use super::super::predicates;
use super::super::value::PyValue;
use super::picked_by;

pub(super) const NAMES: [&str; 5] = ["map", "reject", "rejectattr", "select", "selectattr"];

pub(super) fn apply(
    it: &mut Interpreter<'_>,
    name: &str,
    value: &PyValue,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    // Nothing and zero are nothing to go through, as Jinja2 has it.
    let items = if value.is_true() { value.items(&it.budget)? } else { Vec::new() };
    if name == "map" {
        return mapped(it, items, arguments);
    }
    let mut arguments = arguments;
    let missing = || RenderError::failed(format!("{name}: expected an argument"));
    let path = if name.ends_with("attr") {
        if arguments.positional.is_empty() {
            return Err(missing());
        }
        Some(arguments.positional.remove(0))
    } else {
        None
    };
    let test = if arguments.positional.is_empty() {
        None
    } else {
        Some(text(&arguments.positional.remove(0))?.to_owned())
    };
    let wanted = name.starts_with("select");
    let mut kept = Vec::new();
    for item in items {
        it.budget.step(1)?;
        let asked = match &path {
            Some(path) => picked_by(it, &item, path, None)?,
            None => item.clone(),
        };
        let holds = match &test {
            Some(test) => predicates::holds(it, test, &asked, arguments.clone())?,
            None => asked.is_true(),
        };
        if holds == wanted {
            kept.push(item);
        }
    }
    PyValue::generator(kept, &it.budget)
}

/// By a filter's name and its arguments, or `attribute` and `default`.
fn mapped(
    it: &mut Interpreter<'_>,
    items: Vec<PyValue>,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    let mut mapped = Vec::with_capacity(items.len());
    if arguments.positional.is_empty() {
        let [path, default] = arguments.bind("map", ["attribute", "default"])?;
        let path = path.ok_or_else(|| RenderError::failed("map requires a filter argument"))?;
        for item in items {
            mapped.push(picked_by(it, &item, &path, default.as_ref())?);
        }
        return PyValue::generator(mapped, &it.budget);
    }
    let mut arguments = arguments;
    let filter = arguments.positional.remove(0);
    let filter = text(&filter)?;
    for item in items {
        it.budget.step(1)?;
        mapped.push(super::apply(it, filter, item, arguments.clone())?);
    }
    PyValue::generator(mapped, &it.budget)
}
