//! The functions that every template has: Jinja2's, and those that Hugging Face adds.

use super::budget::{Evaluated, RenderError, RenderFault};
use super::calls::{CallArguments, required, text};
use super::clock::strftime;
use super::display;
use super::interpreter::Interpreter;
use super::numbers::needs_int;
use super::scopes::Loop;
use super::value::{Object, PyValue, range_len};
use super::values::dict::pairs_of;

/// The longest range, as in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

/// A function by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
}

pub(super) fn of(name: &str) -> Option<PyValue> {
    let function = match name {
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "cycler" => Function::Cycler,
        "joiner" => Function::Joiner,
        "raise_exception" => Function::RaiseException,
        "strftime_now" => Function::StrftimeNow,
        _ => return None,
    };
    Some(PyValue::Object(Object::Function(function)))
}

pub(super) fn call(
    it: &mut Interpreter<'_>,
    function: Function,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    match function {
        Function::Range => range(arguments),
        Function::Dict => dict(it, arguments),
        Function::Namespace => namespace(it, arguments),
        Function::Cycler => {
            if arguments.positional.is_empty() {
                return Err(RenderError::failed("at least one item has to be provided"));
            }
            it.budget.items(arguments.positional.len() + 1)?;
            it.scopes.cyclers.push((arguments.positional, 0));
            Ok(PyValue::Object(Object::Cycler(it.scopes.cyclers.len() - 1)))
        }
        Function::Joiner => {
            let [separator] = arguments.bind("joiner", ["sep"])?;
            it.budget.items(2)?;
            it.scopes.joiners.push((separator.unwrap_or_else(|| PyValue::from(", ")), false));
            Ok(PyValue::Object(Object::Joiner(it.scopes.joiners.len() - 1)))
        }
        Function::RaiseException => {
            let [message] = arguments.bind("raise_exception", ["message"])?;
            let message = required(message, "raise_exception", "message")?;
            let message = display::text(&message, &it.budget)?;
            Err(RenderError::of(RenderFault::Raised, message))
        }
        Function::StrftimeNow => {
            let [format] = arguments.bind("strftime_now", ["format"])?;
            let format = required(format, "strftime_now", "format")?;
            let format = text(&format)?;
            it.budget.build(format.len().saturating_mul(32))?;
            PyValue::text(strftime(it.now, format), &it.budget)
        }
    }
}

fn range(arguments: CallArguments) -> Evaluated<PyValue> {
    let [first, second, step] = arguments.bind("range", ["start", "stop", "step"])?;
    let first = needs_int(&required(first, "range", "stop")?)?;
    let (start, stop) = match second {
        Some(stop) => (first, needs_int(&stop)?),
        None => (0, first),
    };
    let step = step.map_or(Ok(1), |step| needs_int(&step))?;
    if step == 0 {
        return Err(RenderError::failed("range() arg 3 must not be zero"));
    }
    if range_len(start, stop, step) > MAX_RANGE {
        let text = format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        );
        return Err(RenderError::failed(text));
    }
    Ok(PyValue::Range(start, stop, step))
}

/// The pairs of a dict, or of a list of pairs, with named ones behind.
fn pairs(it: &Interpreter<'_>, arguments: CallArguments) -> Evaluated<Vec<(PyValue, PyValue)>> {
    let CallArguments { positional, named } = arguments;
    let mut pairs = match positional.as_slice() {
        [] => Vec::new(),
        [value] => pairs_of(value, "dict", &it.budget)?,
        _ => return Err(RenderError::failed("dict expected at most 1 argument")),
    };
    pairs.extend(named.into_iter().map(|(name, value)| (PyValue::Str(name), value)));
    Ok(pairs)
}

fn dict(it: &Interpreter<'_>, arguments: CallArguments) -> Evaluated<PyValue> {
    PyValue::dict(pairs(it, arguments)?, &it.budget)
}

fn namespace(it: &mut Interpreter<'_>, arguments: CallArguments) -> Evaluated<PyValue> {
    let pairs = pairs(it, arguments)?;
    it.budget.items(pairs.len() + 1)?;
    let at = it.scopes.namespaces.len();
    it.scopes.namespaces.push(Vec::new());
    for (name, value) in pairs {
        if let PyValue::Str(name) = name {
            it.scopes.set_member(at, &name, value);
        }
    }
    Ok(PyValue::Object(Object::Namespace(at)))
}

/// Nothing at first, the separator from then on.
pub(super) fn join_next(it: &mut Interpreter<'_>, at: usize) -> PyValue {
    match it.scopes.joiners.get_mut(at) {
        Some((separator, true)) => separator.clone(),
        Some((_, was_asked)) => {
            *was_asked = true;
            PyValue::from("")
        }
        None => PyValue::undefined("joiner"),
    }
}

/// What can be asked of `loop` and a cycler.
pub(super) fn attribute(it: &Interpreter<'_>, object: &Object, name: &str) -> Option<PyValue> {
    let method = |name| {
        Some(PyValue::Object(Object::Method((PyValue::Object(object.clone()), name).into())))
    };
    match (object, name) {
        (Object::Loop(_), "cycle") => method("cycle"),
        (Object::Loop(_), "changed") => method("changed"),
        (Object::Loop(at), name) => of_loop(it.scopes.loops.get(*at)?, name),
        (Object::Cycler(_), "next") => method("next"),
        (Object::Cycler(_), "reset") => method("reset"),
        (Object::Cycler(at), "current") => {
            let (items, place) = it.scopes.cyclers.get(*at)?;
            items.get(*place).cloned()
        }
        (Object::Macro(at), "name") => {
            let closure = it.scopes.macros.get(*at)?;
            Some(PyValue::Str(closure.definition.name.clone()))
        }
        (Object::Function(Function::Dict), "fromkeys") => method("fromkeys"),
        _ => None,
    }
}

fn of_loop(running: &Loop<'_>, name: &str) -> Option<PyValue> {
    let (index, len) = (running.index, running.items.len());
    let int = |value: usize| Some(PyValue::Int(value as i128));
    match name {
        "index" => int(index + 1),
        "index0" => int(index),
        "revindex" => int(len - index),
        "revindex0" => int(len - index - 1),
        "first" => Some(PyValue::Bool(index == 0)),
        "last" => Some(PyValue::Bool(index + 1 == len)),
        "length" => int(len),
        "depth" => int(running.depth + 1),
        "depth0" => int(running.depth),
        "previtem" => {
            let item = index.checked_sub(1).and_then(|at| running.items.get(at));
            Some(item.cloned().unwrap_or_else(|| PyValue::undefined("loop.previtem")))
        }
        "nextitem" => {
            let item = running.items.get(index + 1);
            Some(item.cloned().unwrap_or_else(|| PyValue::undefined("loop.nextitem")))
        }
        _ => None,
    }
}

/// A method of something that [`attribute`] gave one of.
pub(super) fn call_method(
    it: &mut Interpreter<'_>,
    object: &Object,
    name: &str,
    arguments: CallArguments,
) -> Evaluated<PyValue> {
    let gone = || RenderError::failed(format!("{name}() of something that is no more"));
    match (object, name) {
        (Object::Loop(at), "cycle") => {
            let index = it.scopes.loops.get(*at).ok_or_else(gone)?.index;
            let given = arguments.positional;
            let at = index.checked_rem(given.len());
            at.map(|at| given[at].clone())
                .ok_or_else(|| RenderError::failed("no items for cycling given"))
        }
        (Object::Loop(at), "changed") => {
            let running = it.scopes.loops.get_mut(*at).ok_or_else(gone)?;
            let given = arguments.positional;
            let is_same = running.seen.as_ref().is_some_and(|seen| {
                seen.len() == given.len() && seen.iter().zip(&given).all(|(a, b)| a.equals(b))
            });
            running.seen = Some(given);
            Ok(PyValue::Bool(!is_same))
        }
        (Object::Cycler(at), _) => {
            let (items, place) = it.scopes.cyclers.get_mut(*at).ok_or_else(gone)?;
            arguments.none(name)?;
            let current = items.get(*place).cloned();
            *place = if name == "next" { (*place + 1) % items.len() } else { 0 };
            Ok(if name == "next" { current.unwrap_or(PyValue::None) } else { PyValue::None })
        }
        (Object::Function(_), _) => {
            let [keys, value] = arguments.bind(name, ["iterable", "value"])?;
            let value = value.unwrap_or(PyValue::None);
            let keys = required(keys, name, "iterable")?.items(&it.budget)?;
            PyValue::dict(keys.into_iter().map(|key| (key, value.clone())).collect(), &it.budget)
        }
        _ => Err(gone()),
    }
}
