//! The arguments of a call, and how they find their parameters.

use super::ast::Name;
use super::budget::{Evaluated, RenderError};
use super::value::PyValue;

#[derive(Debug, Default, Clone)]
pub(super) struct CallArguments {
    pub positional: Vec<PyValue>,
    pub named: Vec<(Name, PyValue)>,
}

impl CallArguments {
    /// Each parameter's argument, by place or name.
    ///
    /// # Errors
    /// For an argument too many, one given twice, or a name that is not known.
    pub(super) fn bind<const N: usize>(
        self,
        callee: &str,
        parameters: [&str; N],
    ) -> Evaluated<[Option<PyValue>; N]> {
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(RenderError::failed(format!(
                "{callee}() takes at most {N} arguments ({given} given)"
            )));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(at) = parameters.iter().position(|known| *known == &*name) else {
                let message = format!("{callee}() got an unexpected keyword argument '{name}'");
                return Err(RenderError::failed(message));
            };
            if bound[at].replace(value).is_some() {
                let message = format!("{callee}() got multiple values for argument '{name}'");
                return Err(RenderError::failed(message));
            }
        }
        Ok(bound)
    }

    /// # Errors
    /// Unless there are none.
    pub(super) fn none(self, callee: &str) -> Evaluated<()> {
        self.bind(callee, []).map(|_: [Option<PyValue>; 0]| ())
    }
}

/// # Errors
/// Where a parameter that must be given is not.
pub(super) fn required(value: Option<PyValue>, callee: &str, name: &str) -> Evaluated<PyValue> {
    value.ok_or_else(|| {
        RenderError::failed(format!("{callee}() missing 1 required positional argument: '{name}'"))
    })
}

/// An argument; `None` counts as none.
pub(super) fn given(value: Option<PyValue>) -> Option<PyValue> {
    value.filter(|value| !matches!(value, PyValue::None))
}

/// A string, or the default.
pub(super) fn text_or(value: Option<PyValue>, default: &str) -> Evaluated<String> {
    match value {
        None => Ok(default.to_owned()),
        Some(value) => text(&value).map(str::to_owned),
    }
}

/// # Errors
/// Of what is no string.
pub(super) fn text(value: &PyValue) -> Evaluated<&str> {
    match value {
        PyValue::Str(text) => Ok(text),
        PyValue::Undefined(name) => Err(RenderError::undefined(name)),
        other => {
            let name = other.type_name();
            Err(RenderError::failed(format!("expected a string, got '{name}'")))
        }
    }
}

/// A whole number, or the default.
pub(super) fn int_or(value: Option<PyValue>, default: i128) -> Evaluated<i128> {
    match value {
        None => Ok(default),
        Some(value) => super::numbers::needs_int(&value),
    }
}

/// How often at most: without bound where it is below 0 or not given.
pub(super) fn at_most(value: Option<PyValue>) -> Evaluated<usize> {
    Ok(usize::try_from(int_or(value, -1)?).unwrap_or(usize::MAX))
}

/// Whether it is given and holds.
pub(super) fn flag(value: Option<PyValue>, default: bool) -> bool {
    value.map_or(default, |value| value.is_true())
}
