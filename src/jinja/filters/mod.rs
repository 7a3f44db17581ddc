//! Jinja's filters: what may follow `|`.

use super::budget::{Evaluated, RenderError};
use super::calls::{CallArguments, flag, required};
use super::display;
use super::interpreter::Interpreter;
use super::numbers;
use super::value::PyValue;

mod json;
mod lists;
mod ordered;
mod picked;
mod text;

pub(super) fn is_known(name: &str) -> bool {
    [&NAMES[..], &text::NAMES, &lists::NAMES, &ordered::NAMES, &picked::NAMES]
        .iter()
        .any(|names| names.contains(&name))
}

const NAMES: [&str; 13] = [
    "abs", "attr", "count", "d", "default", "float", "int", "length", "round", "string", "tojson",
    "safe", "pprint",
];

/// `value|name(arguments)`
pub(super) fn apply(
    it: &mut Interpreter<'_>,
    name: &str,
    value: PyValue,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    if text::NAMES.contains(&name) {
        return text::apply(name, &value, arguments, &it.budget);
    }
    if lists::NAMES.contains(&name) {
        return lists::apply(it, name, &value, arguments);
    }
    if ordered::NAMES.contains(&name) {
        return ordered::apply(it, name, &value, arguments);
    }
    if picked::NAMES.contains(&name) {
        return picked::apply(it, name, &value, arguments);
    }
    match name {
        "default" | "d" => {
            let [other, boolean] = arguments.bind(name, ["default_value", "boolean"])?;
            let is_taken = matches!(value, PyValue::Undefined(_))
                || (flag(boolean, false) && !value.is_true());
            Ok(if is_taken { other.unwrap_or_else(|| PyValue::from("")) } else { value })
        }
        "length" | "count" => {
            arguments.none(name)?;
            Ok(PyValue::Int(value.len()? as i128))
        }
        "string" | "safe" => {
            arguments.none(name)?;
            if value.as_str().is_some() {
                return Ok(value);
            }
            PyValue::text(display::text(&value, &it.budget)?, &it.budget)
        }
        "pprint" => {
            arguments.none(name)?;
            PyValue::text(display::repr(&value, &it.budget)?, &it.budget)
        }
        "tojson" => json::dumps(&value, arguments, &it.budget),
        "attr" => {
            let [key] = arguments.bind(name, ["name"])?;
            let key = required(key, name, "name")?;
            match value {
                // An item is no attribute.
                PyValue::Dict(_) => {
                    let found = key.as_str().and_then(|key| super::methods::of(&value, key));
                    Ok(found.unwrap_or_else(|| PyValue::undefined("attr")))
                }
                value => it.attribute(&value, key.as_str().unwrap_or_default()),
            }
        }
        "int" | "float" | "abs" | "round" => number(name, &value, arguments),
        _ => Err(RenderError::failed(format!("No filter named '{name}'."))),
    }
}

fn number(name: &str, value: &PyValue, arguments: CallArguments) -> Evaluated<PyValue> {
    if let PyValue::Undefined(undefined) = value {
        return Err(RenderError::undefined(undefined));
    }
    match name {
        "int" => {
            let [default, base] = arguments.bind(name, ["default", "base"])?;
            let base = super::calls::int_or(base, 10)?;
            let whole = match value {
                PyValue::Str(text) => {
                    let base = u32::try_from(base).unwrap_or(10);
                    let float = || numbers::parse_float(text).and_then(numbers::truncated);
                    numbers::parse_int(text, base).or_else(float)
                }
                PyValue::Float(value) => numbers::truncated(*value),
                other => other.as_int(),
            };
            Ok(whole.map_or_else(|| default.unwrap_or(PyValue::Int(0)), PyValue::Int))
        }
        "float" => {
            let [default] = arguments.bind(name, ["default"])?;
            let number = match value {
                PyValue::Str(text) => numbers::parse_float(text),
                other => other.as_float(),
            };
            Ok(number.map_or_else(|| default.unwrap_or(PyValue::Float(0.0)), PyValue::Float))
        }
        "abs" => {
            arguments.none(name)?;
            match (value.as_int(), value.as_float()) {
                (Some(whole), _) => {
                    whole.checked_abs().map(PyValue::Int).ok_or_else(numbers::overflow)
                }
                (None, Some(value)) => Ok(PyValue::Float(value.abs())),
                _ => {
                    let name = value.type_name();
                    Err(RenderError::failed(format!("bad operand type for abs(): '{name}'")))
                }
            }
        }
        _ => round(value, arguments),
    }
}

fn round(value: &PyValue, arguments: CallArguments) -> Evaluated<PyValue> {
    let [precision, method] = arguments.bind("round", ["precision", "method"])?;
    let precision = super::calls::int_or(precision, 0)?;
    let method = super::calls::text_or(method, "common")?;
    let Some(number) = value.as_float() else {
        let name = value.type_name();
        return Err(RenderError::failed(format!("type {name} doesn't define __round__ method")));
    };
    let power = 10_f64.powi(i32::try_from(precision).unwrap_or(300).clamp(-300, 300));
    match method.as_str() {
        "common" => match value.as_int() {
            Some(whole) if precision >= 0 => Ok(PyValue::Int(whole)),
            Some(_) => {
                let rounded = numbers::truncated(numbers::round(number, precision));
                rounded.map(PyValue::Int).ok_or_else(numbers::overflow)
            }
            None => Ok(PyValue::Float(numbers::round(number, precision))),
        },
        "ceil" => Ok(PyValue::Float((number * power).ceil() / power)),
        "floor" => Ok(PyValue::Float((number * power).floor() / power)),
        _ => Err(RenderError::failed("method must be common, ceil or floor")),
    }
}

/// What `a.b.0` picks of a value; `default` where it is not there.
fn picked_by(
    it: &mut Interpreter<'_>,
    value: &PyValue,
    path: &PyValue,
    default: Option<&PyValue>,
) -> Evaluated<PyValue> {
    let mut found = value.clone();
    match path {
        PyValue::Str(path) => {
            for part in path.split('.') {
                let index = part.parse().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
                let key = index.map_or_else(|| PyValue::from(part), PyValue::Int);
                found = or_default(it.item(&found, &key)?, default);
            }
        }
        key => found = or_default(it.item(&found, key)?, default),
    }
    Ok(found)
}

fn or_default(value: PyValue, default: Option<&PyValue>) -> PyValue {
    match (value, default) {
        (PyValue::Undefined(_), Some(default)) => default.clone(),
        (value, _) => value,
    }
}
