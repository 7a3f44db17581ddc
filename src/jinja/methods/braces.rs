//! Python's `str.format`: what stands in braces, replaced.

use super::super::budget::{Evaluated, RenderError};
use super::super::calls::CallArguments;
use super::super::interpreter::Interpreter;
use super::super::value::PyValue;
use super::super::{display, format as formats, scopes};

/// Fields inside the specification of a field.
const MAX_NESTED: u32 = 2;

/// `own.format(arguments)`
pub(super) fn format(
    it: &mut Interpreter<'_>,
    own: &str,
    arguments: &CallArguments,
) -> Evaluated<String> {
    let mut fields = BraceFields { arguments, next: 0 };
    fields.replaced(it, own, MAX_NESTED)
}

struct BraceFields<'a> {
    arguments: &'a CallArguments,
    /// The place of the next field without a name.
    next: usize,
}

impl BraceFields<'_> {
    fn replaced(&mut self, it: &mut Interpreter<'_>, text: &str, depth: u32) -> Evaluated<String> {
        if depth == 0 {
            return Err(RenderError::failed("Max string recursion exceeded"));
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = behind;
            } else if brace == "}" {
                return Err(RenderError::failed("Single '}' encountered in format string"));
            } else {
                let end = closing(rest)
                    .ok_or_else(|| RenderError::failed("expected '}' before end of string"))?;
                out.push_str(&self.field(it, &rest[..end], depth)?);
                rest = &rest[end + 1..];
            }
            it.budget.step(1)?;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// `name!conversion:specification`
    fn field(&mut self, it: &mut Interpreter<'_>, field: &str, depth: u32) -> Evaluated<String> {
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').unwrap_or((name, ""));
        let value = self.value(it, name)?;
        let spec = self.replaced(it, spec, depth - 1 + u32::from(!spec.contains('{')))?;
        let text = match conversion {
            "" => return formats::formatted(&value, &spec, &it.budget),
            "r" => display::repr(&value, &it.budget)?,
            "s" => display::text(&value, &it.budget)?.into_owned(),
            "a" => formats::ascii(&display::repr(&value, &it.budget)?),
            other => {
                return Err(RenderError::failed(format!("Unknown conversion specifier {other}")));
            }
        };
        formats::formatted(&PyValue::from(text), &spec, &it.budget)
    }

    /// An argument by its place or name, and what is asked of it with `.` and `[]`.
    fn value(&mut self, it: &mut Interpreter<'_>, name: &str) -> Evaluated<PyValue> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let place = if first.is_empty() {
            self.next += 1;
            Some(self.next - 1)
        } else {
            first.parse().ok()
        };
        let found = match place {
            Some(place) => self.arguments.positional.get(place),
            None => scopes::find(&self.arguments.named, first),
        };
        let mut value = found.cloned().ok_or_else(|| {
            RenderError::failed(format!("there is no argument '{first}' for the format string"))
        })?;
        while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix('.') {
                let end = behind.find(['.', '[']).unwrap_or(behind.len());
                value = it.attribute(&value, &behind[..end])?;
                rest = &behind[end..];
            } else {
                if !rest.starts_with('[') {
                    return Err(RenderError::failed(
                        "Only '.' or '[' may follow ']' in format field specifier",
                    ));
                }
                let end = rest
                    .find(']')
                    .ok_or_else(|| RenderError::failed("Missing ']' in format string"))?;
                let key = rest[1..end]
                    .parse()
                    .map_or_else(|_| PyValue::from(&rest[1..end]), PyValue::Int);
                value = it.item(&value, &key)?;
                rest = &rest[end + 1..];
            }
        }
        Ok(value)
    }
}

/// Where a field ends, others inside it passed over.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}
