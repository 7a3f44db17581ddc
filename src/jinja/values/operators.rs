//! Python's operators between two values, subscripts and slices.

use super::super::ast::{Comparison, Operator};
use super::super::budget::{Budget, Evaluated, RenderError};
use super::format;
use super::numbers::{self, overflow};
use super::value::{PyValue, range_len};

pub(in crate::jinja) fn binary(
    operator: Operator,
    a: &PyValue,
    b: &PyValue,
    budget: &Budget,
) -> Evaluated<PyValue> {
    if let (PyValue::Undefined(name), _) | (_, PyValue::Undefined(name)) = (a, b)
        && !(operator == Operator::Remainder && a.as_str().is_some())
    {
        return Err(RenderError::undefined(name));
    }
    let sequences = match operator {
        Operator::Add => joined(a, b, budget)?,
        Operator::Multiply => match (a.as_int(), b.as_int()) {
            (None, Some(times)) => repeated(a, times, budget)?,
            (Some(times), None) => repeated(b, times, budget)?,
            _ => None,
        },
        Operator::Remainder => match a {
            PyValue::Str(text) => Some(PyValue::text(format::percent(text, b, budget)?, budget)?),
            _ => None,
        },
        _ => None,
    };
    if let Some(value) = sequences {
        return Ok(value);
    }
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return of_ints(operator, a, b);
    }
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => of_floats(operator, a, b),
        _ => Err(unsupported(operator, a, b)),
    }
}

fn joined(a: &PyValue, b: &PyValue, budget: &Budget) -> Evaluated<Option<PyValue>> {
    let chained = |a: &[PyValue], b: &[PyValue]| a.iter().chain(b).cloned().collect::<Vec<_>>();
    match (a, b) {
        (PyValue::Str(a), PyValue::Str(b)) => {
            budget.build(a.len() + b.len())?;
            Ok(Some(PyValue::from([&**a, &**b].concat())))
        }
        (PyValue::List(a), PyValue::List(b)) => {
            budget.items(a.items.len() + b.items.len())?;
            PyValue::list(chained(&a.items, &b.items), budget).map(Some)
        }
        (PyValue::Tuple(a), PyValue::Tuple(b)) => {
            budget.items(a.items.len() + b.items.len())?;
            PyValue::tuple(chained(&a.items, &b.items), budget).map(Some)
        }
        _ => Ok(None),
    }
}

fn repeated(value: &PyValue, times: i128, budget: &Budget) -> Evaluated<Option<PyValue>> {
    let times = numbers::count_of(times);
    match value {
        PyValue::Str(text) => {
            budget.build(text.len().saturating_mul(times))?;
            Ok(Some(PyValue::from(text.repeat(times))))
        }
        PyValue::List(items) | PyValue::Tuple(items) => {
            let len = items.items.len().saturating_mul(times);
            budget.items(len)?;
            let all = items.items.iter().cycle().take(len).cloned().collect();
            match value {
                PyValue::List(_) => PyValue::list(all, budget).map(Some),
                _ => PyValue::tuple(all, budget).map(Some),
            }
        }
        _ => Ok(None),
    }
}

fn of_ints(operator: Operator, a: i128, b: i128) -> Evaluated<PyValue> {
    if b == 0 && matches!(operator, Operator::FloorDivide | Operator::Remainder) {
        return Err(RenderError::failed("integer division or modulo by zero"));
    }
    let value = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::FloorDivide => numbers::int_quotient(a, b),
        Operator::Remainder => numbers::int_remainder(a, b),
        Operator::Power => match u32::try_from(b) {
            Ok(exponent) => a.checked_pow(exponent),
            Err(_) if b < 0 => return of_floats(operator, a as f64, b as f64),
            Err(_) => matches!(a, 0 | 1).then_some(a),
        },
        Operator::Divide => return of_floats(operator, a as f64, b as f64),
    };
    value.map(PyValue::Int).ok_or_else(overflow)
}

fn of_floats(operator: Operator, a: f64, b: f64) -> Evaluated<PyValue> {
    let divides =
        matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Remainder);
    if b == 0.0 && divides {
        return Err(RenderError::failed("division by zero"));
    }
    Ok(PyValue::Float(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::FloorDivide => (a / b).floor(),
        Operator::Remainder => numbers::float_remainder(a, b),
        Operator::Power => a.powf(b),
    }))
}

fn unsupported(operator: Operator, a: &PyValue, b: &PyValue) -> RenderError {
    let symbol = match operator {
        Operator::Add if a.as_str().is_some() => {
            let text = format!("can only concatenate str (not \"{}\") to str", b.type_name());
            return RenderError::failed(text);
        }
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Remainder => "%",
        Operator::Power => "** or pow()",
    };
    let (a, b) = (a.type_name(), b.type_name());
    RenderError::failed(format!("unsupported operand type(s) for {symbol}: '{a}' and '{b}'"))
}

/// Python's unary `-` and `+`.
pub(in crate::jinja) fn signed(value: &PyValue, is_negative: bool) -> Evaluated<PyValue> {
    match value {
        PyValue::Float(value) => Ok(PyValue::Float(if is_negative { -value } else { *value })),
        PyValue::Undefined(name) => Err(RenderError::undefined(name)),
        other => match other.as_int() {
            Some(value) if is_negative => {
                value.checked_neg().map(PyValue::Int).ok_or_else(overflow)
            }
            Some(value) => Ok(PyValue::Int(value)),
            None => {
                let name = other.type_name();
                Err(RenderError::failed(format!("bad operand type for unary -: '{name}'")))
            }
        },
    }
}

pub(in crate::jinja) fn compares(
    comparison: Comparison,
    a: &PyValue,
    b: &PyValue,
    budget: &Budget,
) -> Evaluated<bool> {
    let ordered = |symbol: &str, holds: fn(std::cmp::Ordering) -> bool| {
        Ok(a.compare(b, symbol)?.is_some_and(holds))
    };
    match comparison {
        Comparison::Equal => Ok(a.equals(b)),
        Comparison::NotEqual => Ok(!a.equals(b)),
        Comparison::Less => ordered("<", std::cmp::Ordering::is_lt),
        Comparison::LessOrEqual => ordered("<=", std::cmp::Ordering::is_le),
        Comparison::Greater => ordered(">", std::cmp::Ordering::is_gt),
        Comparison::GreaterOrEqual => ordered(">=", std::cmp::Ordering::is_ge),
        Comparison::In => contains(b, a, budget),
        Comparison::NotIn => Ok(!contains(b, a, budget)?),
    }
}

/// Python's `item in container`.
pub(in crate::jinja) fn contains(
    container: &PyValue,
    item: &PyValue,
    budget: &Budget,
) -> Evaluated<bool> {
    match container {
        PyValue::Str(text) => {
            budget.step(text.len() as u64 / 64)?;
            let part = item.as_str().ok_or_else(|| {
                let name = item.type_name();
                RenderError::failed(format!(
                    "'in <string>' requires string as left operand, not {name}"
                ))
            })?;
            Ok(text.contains(part))
        }
        PyValue::Dict(dict) => Ok(dict.find(item)?.is_some()),
        PyValue::Range(start, stop, step) => Ok(item.as_int().is_some_and(|item| {
            let len = range_len(*start, *stop, *step) as i128;
            let offset = item - start;
            offset % step == 0 && (0..len).contains(&(offset / step))
        })),
        PyValue::List(items) | PyValue::Tuple(items) | PyValue::Generator(items) => {
            budget.step(items.items.len() as u64)?;
            Ok(items.items.iter().any(|found| found.equals(item)))
        }
        other
            if matches!(
                other,
                PyValue::None | PyValue::Bool(_) | PyValue::Int(_) | PyValue::Float(_)
            ) =>
        {
            let name = other.type_name();
            Err(RenderError::failed(format!("argument of type '{name}' is not iterable")))
        }
        other => Ok(other.items(budget)?.iter().any(|found| found.equals(item))),
    }
}

/// `container[key]`; none where there is no such item.
pub(in crate::jinja) fn item(container: &PyValue, key: &PyValue) -> Option<PyValue> {
    let place = |len: usize| {
        let index = key.as_int()?;
        let index = if index < 0 { index + len as i128 } else { index };
        usize::try_from(index).ok().filter(|index| *index < len)
    };
    match container {
        PyValue::Dict(dict) => dict.get(key).cloned(),
        PyValue::List(items) | PyValue::Tuple(items) => {
            items.items.get(place(items.items.len())?).cloned()
        }
        PyValue::Str(text) => {
            let c = if text.is_ascii() {
                char::from(text.as_bytes()[place(text.len())?])
            } else {
                text.chars().nth(place(text.chars().count())?)?
            };
            Some(PyValue::from(c.to_string()))
        }
        PyValue::Bytes(bytes) => Some(PyValue::Int(bytes[place(bytes.len())?].into())),
        PyValue::Range(start, stop, step) => {
            let index = place(range_len(*start, *stop, *step))?;
            Some(PyValue::Int(start + step * index as i128))
        }
        _ => None,
    }
}

/// `container[start:stop:step]`
pub(in crate::jinja) fn slice(
    container: &PyValue,
    parts: [&PyValue; 3],
    budget: &Budget,
) -> Evaluated<PyValue> {
    match container {
        PyValue::Str(text) => {
            budget.build(text.len())?;
            let chars: Vec<char> = text.chars().collect();
            let picked = places(chars.len(), parts)?.into_iter().map(|at| chars[at]);
            PyValue::text(picked.collect::<String>(), budget)
        }
        PyValue::List(_) | PyValue::Tuple(_) | PyValue::Range(..) => {
            let items = container.items(budget)?;
            let picked = places(items.len(), parts)?.into_iter().map(|at| items[at].clone());
            match container {
                PyValue::Tuple(_) => PyValue::tuple(picked.collect(), budget),
                _ => PyValue::list(picked.collect(), budget),
            }
        }
        PyValue::Bytes(bytes) => {
            let picked = places(bytes.len(), parts)?.into_iter().map(|at| bytes[at]);
            Ok(PyValue::Bytes(picked.collect()))
        }
        PyValue::Undefined(name) => Err(RenderError::undefined(name)),
        PyValue::None => Ok(PyValue::undefined("a slice of None")),
        other => Err(RenderError::failed(format!("'{}' object has no slices", other.type_name()))),
    }
}

/// The places that a slice picks out of `len`.
fn places(len: usize, [start, stop, step]: [&PyValue; 3]) -> Evaluated<Vec<usize>> {
    let part = |value: &PyValue| match value {
        PyValue::None => Ok(None),
        other => other.as_int().map(Some).ok_or_else(|| {
            RenderError::failed(
                "slice indices must be integers or None or have an __index__ method",
            )
        }),
    };
    let step = part(step)?.unwrap_or(1);
    if step == 0 {
        return Err(RenderError::failed("slice step cannot be zero"));
    }
    let len = len as i128;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let within = |value: i128| {
        let value = if value < 0 { value.saturating_add(len) } else { value };
        value.clamp(lowest, highest)
    };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let start = part(start)?.map_or(first, within);
    let stop = part(stop)?.map_or(last, within);
    let count = range_len(start, stop, step) as i128;
    Ok((0..count).filter_map(|at| usize::try_from(start + at.saturating_mul(step)).ok()).collect())
}
