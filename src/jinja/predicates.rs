//! Jinja's tests: what may follow `is`.

use super::ast::Comparison;
use super::budget::{Evaluated, RenderError};
use super::calls::{CallArguments, required};
use super::interpreter::Interpreter;
use super::numbers;
use super::operators;
use super::value::{Object, PyValue};
use super::{display, filters, strings};

const NAMES: [&str; 39] = [
    "defined",
    "undefined",
    "none",
    "boolean",
    "true",
    "false",
    "integer",
    "float",
    "number",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "callable",
    "escaped",
    "odd",
    "even",
    "lower",
    "upper",
    "divisibleby",
    "sameas",
    "in",
    "eq",
    "equalto",
    "==",
    "ne",
    "!=",
    "lt",
    "lessthan",
    "<",
    "le",
    "<=",
    "gt",
    "greaterthan",
    ">",
    "ge",
    ">=",
    "filter",
    "test",
];

/// `value is name(arguments)`
pub(super) fn holds(
    it: &Interpreter<'_>,
    name: &str,
    value: &PyValue,
    arguments: CallArguments,
) -> Evaluated<bool> {
    if let Some(of_type) = type_test(name, value) {
        arguments.none(name)?;
        return Ok(of_type);
    }
    match name {
        "odd" | "even" => {
            arguments.none(name)?;
            let number = operators::binary(
                super::ast::Operator::Remainder,
                value,
                &PyValue::Int(2),
                &it.budget,
            )?;
            Ok(number.equals(&PyValue::Int(i128::from(name == "odd"))))
        }
        "lower" | "upper" => {
            arguments.none(name)?;
            let text = display::text(value, &it.budget)?;
            Ok(if name == "lower" { strings::is_lower(&text) } else { strings::is_upper(&text) })
        }
        "filter" | "test" => {
            arguments.none(name)?;
            let known = value.as_str().unwrap_or_default();
            Ok(if name == "filter" { filters::is_known(known) } else { NAMES.contains(&known) })
        }
        _ => of_two(it, name, value, arguments),
    }
}

fn type_test(name: &str, value: &PyValue) -> Option<bool> {
    Some(match name {
        "defined" => !matches!(value, PyValue::Undefined(_)),
        "undefined" => matches!(value, PyValue::Undefined(_)),
        "none" => matches!(value, PyValue::None),
        "boolean" => matches!(value, PyValue::Bool(_)),
        "true" => matches!(value, PyValue::Bool(true)),
        "false" => matches!(value, PyValue::Bool(false)),
        "integer" => matches!(value, PyValue::Int(_)),
        "float" => matches!(value, PyValue::Float(_)),
        "number" => matches!(value, PyValue::Int(_) | PyValue::Float(_) | PyValue::Bool(_)),
        "string" => matches!(value, PyValue::Str(_)),
        "mapping" => matches!(value, PyValue::Dict(_)),
        "sequence" => matches!(
            value,
            PyValue::Str(_)
                | PyValue::Bytes(_)
                | PyValue::List(_)
                | PyValue::Tuple(_)
                | PyValue::Dict(_)
                | PyValue::Range(..)
                | PyValue::Undefined(_)
        ),
        "iterable" => match value {
            PyValue::Object(object) => matches!(object, Object::Loop(_)),
            PyValue::None | PyValue::Bool(_) | PyValue::Int(_) | PyValue::Float(_) => false,
            _ => true,
        },
        "callable" => match value {
            PyValue::Object(object) => !matches!(object, Object::Namespace(_) | Object::Cycler(_)),
            other => matches!(other, PyValue::Undefined(_)),
        },
        "escaped" => false,
        _ => return None,
    })
}

/// Tests with one argument.
fn of_two(
    it: &Interpreter<'_>,
    name: &str,
    value: &PyValue,
    arguments: CallArguments,
) -> Evaluated<bool> {
    let comparison = match name {
        "eq" | "equalto" | "==" => Some(Comparison::Equal),
        "ne" | "!=" => Some(Comparison::NotEqual),
        "lt" | "lessthan" | "<" => Some(Comparison::Less),
        "le" | "<=" => Some(Comparison::LessOrEqual),
        "gt" | "greaterthan" | ">" => Some(Comparison::Greater),
        "ge" | ">=" => Some(Comparison::GreaterOrEqual),
        "in" => Some(Comparison::In),
        "divisibleby" | "sameas" => None,
        _ => return Err(RenderError::failed(format!("No test named '{name}'."))),
    };
    let [other] = arguments.bind(name, ["other"])?;
    let other = required(other, name, "other")?;
    match (comparison, name) {
        (Some(comparison), _) => operators::compares(comparison, value, &other, &it.budget),
        (None, "sameas") => Ok(value.type_name() == other.type_name() && value.equals(&other)),
        (None, _) => {
            let (a, b) = (numbers::needs_int(value)?, numbers::needs_int(&other)?);
            let rest = numbers::int_remainder(a, b);
            rest.map(|rest| rest == 0).ok_or_else(|| RenderError::failed("integer modulo by zero"))
        }
    }
}
