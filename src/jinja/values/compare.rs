//! Python's `==` and its order.

use std::cmp::Ordering;

use super::super::budget::{Evaluated, RenderError};
use super::value::PyValue;

impl PyValue {
    /// Python's `==`.
    pub(in crate::jinja) fn equals(&self, other: &PyValue) -> bool {
        match (self, other) {
            (PyValue::Undefined(_), PyValue::Undefined(_)) | (PyValue::None, PyValue::None) => true,
            (PyValue::Str(a), PyValue::Str(b)) => a == b,
            (PyValue::Bytes(a), PyValue::Bytes(b)) => a == b,
            (PyValue::List(a), PyValue::List(b)) | (PyValue::Tuple(a), PyValue::Tuple(b)) => {
                a.items.len() == b.items.len()
                    && a.items.iter().zip(&b.items).all(|(a, b)| a.equals(b))
            }
            (PyValue::Dict(a), PyValue::Dict(b)) => {
                a.len() == b.len()
                    && a.pairs().iter().all(|(k, v)| b.get(k).is_some_and(|other| v.equals(other)))
            }
            (PyValue::Range(a, b, c), PyValue::Range(d, e, f)) => (a, b, c) == (d, e, f),
            (PyValue::Object(a), PyValue::Object(b)) => a.is(b),
            (a, b) => match (a.as_int(), b.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => matches!((a.as_float(), b.as_float()), (Some(a), Some(b)) if a == b),
            },
        }
    }

    /// Python's `<` and its like.
    ///
    /// # Errors
    /// Where Python cannot tell either. `symbol` is for that message.
    pub(in crate::jinja) fn compare(
        &self,
        other: &PyValue,
        symbol: &str,
    ) -> Evaluated<Option<Ordering>> {
        match (self, other) {
            (PyValue::Str(a), PyValue::Str(b)) => Ok(Some(a.cmp(b))),
            (PyValue::Bytes(a), PyValue::Bytes(b)) => Ok(Some(a.cmp(b))),
            (PyValue::List(a), PyValue::List(b)) | (PyValue::Tuple(a), PyValue::Tuple(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b) {
                        return a.compare(b, symbol);
                    }
                }
                Ok(Some(a.items.len().cmp(&b.items.len())))
            }
            (a, b) => match (a.as_int(), b.as_int(), a.as_float(), b.as_float()) {
                (Some(a), Some(b), ..) => Ok(Some(a.cmp(&b))),
                (_, _, Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
                _ => Err(unordered(a, b, symbol)),
            },
        }
    }
}

fn unordered(a: &PyValue, b: &PyValue, symbol: &str) -> RenderError {
    if let (PyValue::Undefined(name), _) | (_, PyValue::Undefined(name)) = (a, b) {
        return RenderError::undefined(name);
    }
    RenderError::failed(format!(
        "'{symbol}' not supported between instances of '{}' and '{}'",
        a.type_name(),
        b.type_name()
    ))
}
