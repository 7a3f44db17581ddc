//! Filters of lists that keep all of their items.

use super::super::budget::{Evaluated, RenderError};
use super::super::calls::{CallArguments, given, required};
use super::super::interpreter::Interpreter;
use super::super::numbers::{count_of, needs_int};
use super::super::operators;
use super::super::strings;
use super::super::value::{PyValue, ViewKind};
use super::{display, picked_by};

pub(super) const NAMES: [&str; 10] =
    ["batch", "first", "items", "join", "last", "list", "reverse", "slice", "sum", "random"];

pub(super) fn apply(
    it: &mut Interpreter<'_>,
    name: &str,
    value: &PyValue,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    match name {
        "first" | "last" => {
            arguments.none(name)?;
            if name == "last" && matches!(value, PyValue::Generator(_)) {
                return Err(RenderError::failed("'generator' object is not reversible"));
            }
            let mut items = value.items(&it.budget)?.into_iter();
            let item = if name == "first" { items.next() } else { items.next_back() };
            Ok(item.unwrap_or_else(|| PyValue::undefined(name)))
        }
        "list" => {
            arguments.none(name)?;
            PyValue::list(value.items(&it.budget)?, &it.budget)
        }
        "items" => {
            arguments.none(name)?;
            match value {
                PyValue::Undefined(_) => PyValue::generator(Vec::new(), &it.budget),
                PyValue::Dict(dict) => {
                    let items = PyValue::View(ViewKind::Items, dict.clone()).items(&it.budget)?;
                    PyValue::generator(items, &it.budget)
                }
                _ => Err(RenderError::failed("Can only get item pairs from a mapping.")),
            }
        }
        "reverse" => {
            arguments.none(name)?;
            if let PyValue::Str(text) = value {
                return PyValue::text(text.chars().rev().collect::<String>(), &it.budget);
            }
            let items = value.items(&it.budget)?.into_iter().rev().collect();
            PyValue::generator(items, &it.budget)
        }
        "join" => {
            let [separator, attribute] = arguments.bind(name, ["d", "attribute"])?;
            let mut items = value.items(&it.budget)?;
            if let Some(path) = given(attribute) {
                for item in &mut items {
                    *item = picked_by(it, item, &path, None)?;
                }
            }
            let separator = separator.unwrap_or_else(|| PyValue::from(""));
            let separator = display::text(&separator, &it.budget)?;
            strings::join(&items, &separator, &it.budget)
        }
        "sum" => {
            let [attribute, start] = arguments.bind(name, ["attribute", "start"])?;
            let attribute = given(attribute);
            let mut sum = start.unwrap_or(PyValue::Int(0));
            for item in value.items(&it.budget)? {
                let item = match &attribute {
                    None => item,
                    Some(path) => picked_by(it, &item, path, None)?,
                };
                sum = operators::binary(super::super::ast::Operator::Add, &sum, &item, &it.budget)?;
            }
            Ok(sum)
        }
        "batch" | "slice" => parts(it, name, value, arguments),
        _ => Err(RenderError::failed("random is not known here: a prompt is the same each time")),
    }
}

/// `batch`: lists of so many items; `slice`: so many lists.
fn parts(
    it: &Interpreter<'_>,
    name: &str,
    value: &PyValue,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    let [count, fill] = arguments.bind(name, ["count", "fill_with"])?;
    let fill = given(fill);
    let count = count_of(needs_int(&required(count, name, "count")?)?);
    if count == 0 {
        return Err(RenderError::failed(format!("{name}: expected a number above 0")));
    }
    let items = value.items(&it.budget)?;
    let mut lists = Vec::new();
    if name == "batch" {
        for chunk in items.chunks(count) {
            let mut list = chunk.to_vec();
            if let Some(fill) = &fill {
                it.budget.items(count)?;
                list.resize(count, fill.clone());
            }
            lists.push(PyValue::list(list, &it.budget)?);
        }
    } else {
        it.budget.items(count)?;
        let (each, longer) = (items.len() / count, items.len() % count);
        let mut items = items.into_iter();
        for at in 0..count {
            let is_short = at >= longer;
            let mut list: Vec<PyValue> =
                items.by_ref().take(each + usize::from(!is_short)).collect();
            if is_short {
                list.extend(fill.clone());
            }
            lists.push(PyValue::list(list, &it.budget)?);
        }
    }
    PyValue::generator(lists, &it.budget)
}
