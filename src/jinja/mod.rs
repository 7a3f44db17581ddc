//! Jinja for chat templates, as Python has it: what `apply_chat_template` renders, rendered here within limits.
//!
//! A checkpoint's template was written against Jinja2 with Python's values: its printing of lists and floats, its methods of strings,
//! its `%`. [`Template`] parses a source once (`syntax`); [`Template::render`] walks the tree with a `Budget` that
//! every step and every value built is charged to, because a template is a program of a stranger. `docs/templates.md` lists what
//! differs on purpose.

use std::sync::Arc;

use time::OffsetDateTime;

mod budget;
mod calls;
mod evaluate;
mod filters;
mod globals;
mod interpreter;
mod methods;
mod predicates;
mod scopes;
mod syntax;
mod values;

pub use budget::{RenderError, RenderFault, RenderLimits};
pub use values::value::PyValue;

use budget::Budget;
use syntax::{ast, lexer, parser};
use values::{clock, display, format, numbers, operators, strings, value};

/// A parsed template; any number of threads may render it at once.
#[derive(Debug)]
pub struct Template {
    body: Vec<ast::Statement>,
}

impl Template {
    /// Parses a source.
    ///
    /// # Errors
    /// Line and reason, where Jinja2 would not compile it either.
    pub fn new(source: &str) -> std::result::Result<Self, String> {
        let tokens = lexer::tokens(source)?;
        Ok(Self { body: parser::parse(tokens)? })
    }

    /// The text that the template makes of these variables. `now`, UTC, is what `strftime_now` tells.
    ///
    /// # Errors
    /// What stopped it: see [`RenderFault`].
    pub fn render(
        &self,
        variables: Vec<(Arc<str>, PyValue)>,
        limits: RenderLimits,
        now: OffsetDateTime,
    ) -> std::result::Result<String, RenderError> {
        interpreter::Interpreter::new(variables, Budget::new(limits), now).run(&self.body)
    }
}

#[cfg(test)]
mod tests;
