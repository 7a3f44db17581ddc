//! Python's values, as far as templates meet them. None of them changes: templates run in an immutable sandbox.

use std::sync::Arc;

use super::super::budget::{Budget, Evaluated, RenderError};
use super::super::globals::Function;
use super::dict::Dict;

/// Lists and dicts inside each other.
const MAX_DEPTH: u16 = 100;

/// A value of a template.
#[derive(Debug, Clone)]
pub enum PyValue {
    /// What is not there, by its name; prints as nothing.
    Undefined(Arc<str>),
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// A whole number; Python's have no bound.
    Int(i128),
    /// Another number.
    Float(f64),
    /// A string.
    Str(Arc<str>),
    /// What `encode` gives.
    Bytes(Arc<[u8]>),
    /// `[…]`
    List(Arc<Items>),
    /// `(…)`
    Tuple(Arc<Items>),
    /// What filters such as `map` give: can be looped over, has no length.
    Generator(Arc<Items>),
    /// `{…}`
    Dict(Arc<Dict>),
    /// Keys, values or pairs of a dict.
    View(ViewKind, Arc<Dict>),
    /// `range(start, stop, step)`
    Range(i128, i128, i128),
    /// Something of the rendering's that can be called or asked.
    Object(Object),
}

/// What of a dict a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewKind {
    /// `keys()`
    Keys,
    /// `values()`
    Values,
    /// `items()`
    Items,
}

/// What has an identity. The numbers are places in the rendering's [`Scopes`](super::super::scopes::Scopes).
#[derive(Debug, Clone)]
pub enum Object {
    /// One of the functions that every template has.
    Function(Function),
    /// A method with the value it is of.
    Method(Arc<(PyValue, &'static str)>),
    /// A macro, or a call block's `caller`.
    Macro(usize),
    /// What a namespace is kept in.
    Namespace(usize),
    /// `loop`
    Loop(usize),
    /// `cycler(…)`
    Cycler(usize),
    /// `joiner(…)`
    Joiner(usize),
}

/// The items of a list, and how deep lists and dicts stand inside each other in it.
#[derive(Debug)]
pub struct Items {
    pub(in crate::jinja) items: Vec<PyValue>,
    depth: u16,
}

impl From<&str> for PyValue {
    fn from(text: &str) -> Self {
        PyValue::Str(text.into())
    }
}

impl From<String> for PyValue {
    fn from(text: String) -> Self {
        PyValue::Str(text.into())
    }
}

impl PyValue {
    pub(in crate::jinja) fn undefined(name: &str) -> Self {
        PyValue::Undefined(name.into())
    }

    /// # Errors
    /// Where lists stand too deep inside each other, or the budget is spent.
    pub(in crate::jinja) fn list(items: Vec<PyValue>, budget: &Budget) -> Evaluated<Self> {
        budget.items(items.len())?;
        Ok(PyValue::List(seal(items)?))
    }

    pub(in crate::jinja) fn tuple(items: Vec<PyValue>, budget: &Budget) -> Evaluated<Self> {
        budget.items(items.len())?;
        Ok(PyValue::Tuple(seal(items)?))
    }

    pub(in crate::jinja) fn generator(items: Vec<PyValue>, budget: &Budget) -> Evaluated<Self> {
        budget.items(items.len())?;
        Ok(PyValue::Generator(seal(items)?))
    }

    /// Of keys that appear again the last value counts, in the first one's place.
    pub(in crate::jinja) fn dict(
        pairs: Vec<(PyValue, PyValue)>,
        budget: &Budget,
    ) -> Evaluated<Self> {
        budget.items(pairs.len().saturating_mul(4))?;
        Dict::of(pairs).map(|dict| PyValue::Dict(Arc::new(dict)))
    }

    /// A string of this budget.
    pub(in crate::jinja) fn text(
        text: impl AsRef<str> + Into<Arc<str>>,
        budget: &Budget,
    ) -> Evaluated<Self> {
        budget.build(text.as_ref().len())?;
        Ok(PyValue::Str(text.into()))
    }

    /// What a client's JSON or msgpack has; not charged, for the conversation is there already. What is too deep is left out.
    pub fn given_list(items: Vec<PyValue>) -> Self {
        seal(items).map_or(PyValue::None, PyValue::List)
    }

    /// The same of an object.
    pub fn given_dict(pairs: Vec<(String, PyValue)>) -> Self {
        let pairs = pairs.into_iter().map(|(key, value)| (PyValue::from(key), value)).collect();
        Dict::of(pairs).map(|dict| PyValue::Dict(Arc::new(dict))).unwrap_or(PyValue::None)
    }

    pub(in crate::jinja) fn is_true(&self) -> bool {
        match self {
            PyValue::Undefined(_) | PyValue::None => false,
            PyValue::Bool(value) => *value,
            PyValue::Int(value) => *value != 0,
            PyValue::Float(value) => *value != 0.0,
            PyValue::Str(text) => !text.is_empty(),
            PyValue::Bytes(bytes) => !bytes.is_empty(),
            PyValue::List(items) | PyValue::Tuple(items) => !items.items.is_empty(),
            PyValue::Dict(dict) | PyValue::View(_, dict) => dict.len() > 0,
            PyValue::Range(start, stop, step) => range_len(*start, *stop, *step) > 0,
            PyValue::Generator(_) | PyValue::Object(_) => true,
        }
    }

    pub(in crate::jinja) fn as_str(&self) -> Option<&str> {
        match self {
            PyValue::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Python's name of the type.
    pub(in crate::jinja) fn type_name(&self) -> &'static str {
        match self {
            PyValue::Undefined(_) => "Undefined",
            PyValue::None => "NoneType",
            PyValue::Bool(_) => "bool",
            PyValue::Int(_) => "int",
            PyValue::Float(_) => "float",
            PyValue::Str(_) => "str",
            PyValue::Bytes(_) => "bytes",
            PyValue::List(_) => "list",
            PyValue::Tuple(_) => "tuple",
            PyValue::Generator(_) => "generator",
            PyValue::Dict(_) => "dict",
            PyValue::View(ViewKind::Keys, _) => "dict_keys",
            PyValue::View(ViewKind::Values, _) => "dict_values",
            PyValue::View(ViewKind::Items, _) => "dict_items",
            PyValue::Range(..) => "range",
            PyValue::Object(object) => match object {
                Object::Function(_) => "function",
                Object::Method(_) => "builtin_function_or_method",
                Object::Macro(_) => "Macro",
                Object::Namespace(_) => "Namespace",
                Object::Loop(_) => "LoopContext",
                Object::Cycler(_) => "Cycler",
                Object::Joiner(_) => "Joiner",
            },
        }
    }

    /// The value as a whole number, where it is one (`True` is 1).
    pub(in crate::jinja) fn as_int(&self) -> Option<i128> {
        match self {
            PyValue::Int(value) => Some(*value),
            PyValue::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// The value as a number.
    pub(in crate::jinja) fn as_float(&self) -> Option<f64> {
        match self {
            PyValue::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    /// How many items it has.
    ///
    /// # Errors
    /// Of what has no length.
    pub(in crate::jinja) fn len(&self) -> Evaluated<usize> {
        match self {
            PyValue::Undefined(_) => Ok(0),
            PyValue::Str(text) => Ok(text.chars().count()),
            PyValue::Bytes(bytes) => Ok(bytes.len()),
            PyValue::List(items) | PyValue::Tuple(items) => Ok(items.items.len()),
            PyValue::Dict(dict) | PyValue::View(_, dict) => Ok(dict.len()),
            PyValue::Range(start, stop, step) => Ok(range_len(*start, *stop, *step)),
            other => Err(RenderError::failed(format!(
                "object of type '{}' has no len()",
                other.type_name()
            ))),
        }
    }

    /// What a loop goes through. It is held for a while only, so that its number is charged, not its bytes.
    ///
    /// # Errors
    /// Of what cannot be looped over.
    pub(in crate::jinja) fn items(&self, budget: &Budget) -> Evaluated<Vec<PyValue>> {
        match self {
            PyValue::Undefined(_) => Ok(Vec::new()),
            PyValue::Str(text) => {
                budget.step(text.len() as u64)?;
                let mut utf8 = [0; 4];
                Ok(text.chars().map(|c| PyValue::from(&*c.encode_utf8(&mut utf8))).collect())
            }
            PyValue::Bytes(bytes) => {
                budget.step(bytes.len() as u64)?;
                Ok(bytes.iter().map(|byte| PyValue::Int((*byte).into())).collect())
            }
            PyValue::List(items) | PyValue::Tuple(items) | PyValue::Generator(items) => {
                budget.step(items.items.len() as u64)?;
                Ok(items.items.clone())
            }
            PyValue::Dict(dict) => view_items(ViewKind::Keys, dict, budget),
            PyValue::View(kind, dict) => view_items(*kind, dict, budget),
            PyValue::Range(start, stop, step) => {
                let len = range_len(*start, *stop, *step);
                budget.step(len as u64)?;
                Ok((0..len as i128).map(|at| PyValue::Int(start + at * step)).collect())
            }
            other => {
                Err(RenderError::failed(format!("'{}' object is not iterable", other.type_name())))
            }
        }
    }
}

impl Object {
    /// Python's `is`.
    pub(in crate::jinja) fn is(&self, other: &Object) -> bool {
        match (self, other) {
            (Object::Function(a), Object::Function(b)) => a == b,
            (Object::Method(a), Object::Method(b)) => a.1 == b.1 && a.0.equals(&b.0),
            (Object::Macro(a), Object::Macro(b))
            | (Object::Namespace(a), Object::Namespace(b))
            | (Object::Loop(a), Object::Loop(b))
            | (Object::Cycler(a), Object::Cycler(b))
            | (Object::Joiner(a), Object::Joiner(b)) => a == b,
            _ => false,
        }
    }
}

fn view_items(kind: ViewKind, dict: &Dict, budget: &Budget) -> Evaluated<Vec<PyValue>> {
    budget.items(dict.len())?;
    let pairs = dict.pairs().iter();
    match kind {
        ViewKind::Keys => Ok(pairs.map(|(key, _)| key.clone()).collect()),
        ViewKind::Values => Ok(pairs.map(|(_, value)| value.clone()).collect()),
        ViewKind::Items => pairs
            .map(|(key, value)| PyValue::tuple(vec![key.clone(), value.clone()], budget))
            .collect(),
    }
}

pub(in crate::jinja) fn range_len(start: i128, stop: i128, step: i128) -> usize {
    let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let len = if span <= 0 { 0 } else { (span - 1) / step.saturating_abs().max(1) + 1 };
    usize::try_from(len).unwrap_or(usize::MAX)
}

pub(super) fn depth_of(value: &PyValue) -> u16 {
    match value {
        PyValue::List(items) | PyValue::Tuple(items) | PyValue::Generator(items) => items.depth,
        PyValue::Dict(dict) | PyValue::View(_, dict) => dict.depth(),
        PyValue::Object(Object::Method(method)) => depth_of(&method.0) + 1,
        _ => 0,
    }
}

pub(super) fn deeper_than(values: impl Iterator<Item = u16>) -> Evaluated<u16> {
    let depth = values.max().unwrap_or(0) + 1;
    if depth > MAX_DEPTH {
        let reason = format!("more than {MAX_DEPTH} lists or dicts inside each other");
        return Err(RenderError::failed(reason));
    }
    Ok(depth)
}

fn seal(items: Vec<PyValue>) -> Evaluated<Arc<Items>> {
    let depth = deeper_than(items.iter().map(depth_of))?;
    Ok(Arc::new(Items { items, depth }))
}
