//! Statements, carried out.

use std::collections::HashMap;
use std::sync::Arc;

use time::OffsetDateTime;

use super::ast::{Expr, For, Macro, Statement, StatementKind, Target};
use super::budget::{Budget, Evaluated, RenderError};
use super::calls::CallArguments;
use super::display;
use super::scopes::{Closure, Loop, OUTERMOST, Scopes};
use super::value::{Object, PyValue};

/// Statements, expressions and calls inside each other: what the smallest stack of a thread here (2 MiB) has room for.
const MAX_DEPTH: u32 = 250;

pub(super) struct Interpreter<'t> {
    variables: HashMap<Arc<str>, PyValue>,
    pub(super) budget: Budget,
    pub(super) now: OffsetDateTime,
    pub(super) scopes: Scopes<'t>,
    /// The scope that names are looked up in.
    pub(super) scope: usize,
    /// What was written so far, by the macro or block under way.
    out: String,
    depth: u32,
    /// What the filter blocks under way wrote.
    holes: Vec<PyValue>,
}

/// How a body was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl<'t> Interpreter<'t> {
    pub(super) fn new(
        variables: Vec<(Arc<str>, PyValue)>,
        budget: Budget,
        now: OffsetDateTime,
    ) -> Self {
        let mut scopes = Scopes::default();
        let scope = scopes.open(None);
        debug_assert_eq!(scope, OUTERMOST);
        let variables = variables.into_iter().collect();
        Self {
            variables,
            budget,
            now,
            scopes,
            scope,
            out: String::new(),
            depth: 0,
            holes: Vec::new(),
        }
    }

    pub(super) fn run(mut self, body: &'t [Statement]) -> Evaluated<String> {
        self.body(body)?;
        Ok(self.out)
    }

    pub(super) fn lookup(&self, name: &str) -> PyValue {
        let found = self.scopes.get(self.scope, name).or_else(|| self.variables.get(name)).cloned();
        found.or_else(|| super::globals::of(name)).unwrap_or_else(|| PyValue::undefined(name))
    }

    pub(super) fn hole(&self) -> PyValue {
        self.holes.last().cloned().unwrap_or(PyValue::None)
    }

    /// Does something inside of what is being done, if that is not too deep.
    pub(super) fn deeper<T>(
        &mut self,
        inside: impl FnOnce(&mut Self) -> Evaluated<T>,
    ) -> Evaluated<T> {
        self.budget.step(1)?;
        if self.depth == MAX_DEPTH {
            return Err(RenderError::failed(format!(
                "more than {MAX_DEPTH} calls inside each other"
            )));
        }
        self.depth += 1;
        let done = inside(self);
        self.depth -= 1;
        done
    }

    fn write(&mut self, text: &str) -> Evaluated<()> {
        self.budget.output(self.out.len() + text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    fn body(&mut self, body: &'t [Statement]) -> Evaluated<Flow> {
        for statement in body {
            let done = self.deeper(|it| it.statement(statement));
            match done.map_err(|error| error.at(statement.line))? {
                Flow::On => {}
                left => return Ok(left),
            }
        }
        Ok(Flow::On)
    }

    fn statement(&mut self, statement: &'t Statement) -> Evaluated<Flow> {
        match &statement.kind {
            StatementKind::Text(text) => self.write(text)?,
            StatementKind::Output(value) => self.output(value)?,
            StatementKind::If(branches, or_else) => {
                for (test, body) in branches {
                    if self.evaluate(test)?.is_true() {
                        return self.body(body);
                    }
                }
                return self.body(or_else);
            }
            StatementKind::For(each) => {
                let items = self.evaluate(&each.items)?;
                self.for_each(each, &items, (self.scope, 0))?;
            }
            StatementKind::Set(target, value) => {
                let value = self.evaluate(value)?;
                self.assign(target, value)?;
            }
            StatementKind::SetBlock(target, filters, body) => {
                let value = self.filtered(filters, body)?;
                self.assign(target, value)?;
            }
            StatementKind::Filter(filters, body) => {
                let value = self.filtered(filters, body)?;
                self.write_value(&value)?;
            }
            StatementKind::With(values, body) => self.with(values, body)?,
            StatementKind::Macro(definition) => {
                let value = self.define(definition)?;
                self.scopes.set(self.scope, &definition.name, value);
            }
            StatementKind::Call(call, body) => {
                let caller = self.define(body)?;
                let value = self.call_with(call, Some(caller))?;
                self.write_value(&value)?;
            }
            StatementKind::Scope(body) => return self.in_scope(|it| it.body(body)),
            StatementKind::Break => return Ok(Flow::Break),
            StatementKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn output(&mut self, value: &'t Expr) -> Evaluated<()> {
        let value = self.evaluate(value)?;
        self.write_value(&value)
    }

    fn write_value(&mut self, value: &PyValue) -> Evaluated<()> {
        match value {
            PyValue::Str(text) => self.write(text),
            other => {
                let text = display::text(other, &self.budget)?;
                self.write(&text)
            }
        }
    }

    fn define(&mut self, definition: &'t Macro) -> Evaluated<PyValue> {
        self.budget.build(size_of::<Closure<'_>>())?;
        Ok(PyValue::Object(Object::Macro(self.scopes.define(definition, self.scope))))
    }

    fn in_scope<T>(&mut self, inside: impl FnOnce(&mut Self) -> Evaluated<T>) -> Evaluated<T> {
        self.in_scope_of(self.scope, inside)
    }

    /// In a new scope that sees what `parent` sees.
    fn in_scope_of<T>(
        &mut self,
        parent: usize,
        inside: impl FnOnce(&mut Self) -> Evaluated<T>,
    ) -> Evaluated<T> {
        let own = self.scopes.open(Some(parent));
        let outside = std::mem::replace(&mut self.scope, own);
        let done = inside(self);
        self.scopes.close(own);
        self.scope = outside;
        done
    }

    /// What `inside` writes.
    fn captured(
        &mut self,
        inside: impl FnOnce(&mut Self) -> Evaluated<Flow>,
    ) -> Evaluated<PyValue> {
        let outside = std::mem::take(&mut self.out);
        let done = inside(self);
        let written = std::mem::replace(&mut self.out, outside);
        done?;
        PyValue::text(written, &self.budget)
    }

    fn filtered(&mut self, filters: &'t Expr, body: &'t [Statement]) -> Evaluated<PyValue> {
        let written = self.captured(|it| it.in_scope(|it| it.body(body)))?;
        self.holes.push(written);
        let value = self.evaluate(filters);
        self.holes.pop();
        value
    }

    fn with(&mut self, values: &'t [(Target, Expr)], body: &'t [Statement]) -> Evaluated<()> {
        let mut bound = Vec::new();
        for (target, value) in values {
            bound.push((target, self.evaluate(value)?));
        }
        self.in_scope(|it| {
            for (target, value) in bound {
                it.assign(target, value)?;
            }
            it.body(body).map(|_| ())
        })
    }

    fn assign(&mut self, target: &Target, value: PyValue) -> Evaluated<()> {
        match target {
            Target::Name(name) => self.scopes.set(self.scope, name, value),
            Target::Member(namespace, name) => match self.lookup(namespace) {
                PyValue::Object(Object::Namespace(at)) => self.scopes.set_member(at, name, value),
                _ => {
                    return Err(RenderError::failed(
                        "cannot assign attribute on non-namespace object",
                    ));
                }
            },
            Target::Several(targets) => {
                let values = value.items(&self.budget)?;
                if values.len() != targets.len() {
                    let (want, got) = (targets.len(), values.len());
                    let text = format!("expected {want} values to unpack, got {got}");
                    return Err(RenderError::failed(text));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
            }
        }
        Ok(())
    }

    /// A loop in `scope`; `depth` counts how often it called itself.
    fn for_each(
        &mut self,
        each: &'t For,
        items: &PyValue,
        (scope, depth): (usize, usize),
    ) -> Evaluated<()> {
        let items = items.items(&self.budget)?;
        let items = self.picked(each, items)?;
        if items.is_empty() {
            return self.in_scope(|it| it.body(&each.or_else)).map(|_| ());
        }
        let recursive = each.is_recursive.then_some((each, scope));
        let at = self.scopes.loops.len();
        self.scopes.loops.push(Loop { items, index: 0, depth, seen: None, recursive });
        let outside = std::mem::replace(&mut self.scope, scope);
        let done = self.iterations(each, at);
        self.scope = outside;
        self.scopes.end_loop(at);
        done
    }

    fn picked(&mut self, each: &'t For, items: Vec<PyValue>) -> Evaluated<Vec<PyValue>> {
        let Some(test) = &each.test else { return Ok(items) };
        let mut picked = Vec::new();
        for item in items {
            let keeps = self.in_scope(|it| {
                it.assign(&each.target, item.clone())?;
                Ok(it.evaluate(test)?.is_true())
            })?;
            if keeps {
                picked.push(item);
            }
        }
        Ok(picked)
    }

    fn iterations(&mut self, each: &'t For, at: usize) -> Evaluated<()> {
        let name: Arc<str> = "loop".into();
        for index in 0.. {
            self.budget.step(1)?;
            let Some(running) = self.scopes.loops.get_mut(at) else { break };
            running.index = index;
            let Some(item) = running.items.get(index).cloned() else { break };
            let flow = self.in_scope(|it| {
                it.scopes.set(it.scope, &name, PyValue::Object(Object::Loop(at)));
                it.assign(&each.target, item)?;
                it.body(&each.body)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    /// `loop(items)` of a recursive loop.
    pub(super) fn call_loop(&mut self, at: usize, arguments: CallArguments) -> Evaluated<PyValue> {
        let running = self.scopes.loops.get(at);
        let depth = running.map_or(0, |running| running.depth + 1);
        let Some((each, scope)) = running.and_then(|running| running.recursive) else {
            let text = "The loop must have the 'recursive' marker to be called recursively.";
            return Err(RenderError::failed(text));
        };
        let [items] = arguments.bind("loop", ["iterable"])?;
        let items = super::calls::required(items, "loop", "iterable")?;
        self.captured(|it| it.for_each(each, &items, (scope, depth)).map(|()| Flow::On))
    }

    /// A macro's text.
    pub(super) fn call_macro(&mut self, at: usize, arguments: CallArguments) -> Evaluated<PyValue> {
        let Some(Closure { definition, scope }) = self.scopes.macros.get(at).copied() else {
            return Err(RenderError::failed("a macro that is no more"));
        };
        self.in_scope_of(scope, |it| {
            it.bind_macro(definition, arguments)?;
            it.captured(|it| it.deeper(|it| it.body(&definition.body)))
        })
    }

    /// Sets a macro's parameters in the scope that was opened for it.
    fn bind_macro(&mut self, definition: &'t Macro, arguments: CallArguments) -> Evaluated<()> {
        let CallArguments { positional, mut named } = arguments;
        let callee = &definition.name;
        let mut positional = positional.into_iter();
        for (name, default) in &definition.parameters {
            let given = positional.next().or_else(|| {
                let at = named.iter().position(|(found, _)| found == name)?;
                Some(named.remove(at).1)
            });
            let value = match (given, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.evaluate(default)?,
                (None, None) => PyValue::undefined(name),
            };
            self.scopes.set(self.scope, name, value);
        }
        let caller = named.iter().position(|(name, _)| &**name == "caller");
        if let Some(at) = caller.filter(|_| definition.takes_caller) {
            let (name, value) = named.remove(at);
            self.scopes.set(self.scope, &name, value);
        }
        let rest: Vec<PyValue> = positional.collect();
        if definition.takes_varargs {
            let rest = PyValue::tuple(rest, &self.budget)?;
            self.scopes.set(self.scope, &"varargs".into(), rest);
        } else if !rest.is_empty() {
            let most = definition.parameters.len();
            let text = format!("macro '{callee}' takes not more than {most} argument(s)");
            return Err(RenderError::failed(text));
        }
        if definition.takes_kwargs {
            let named =
                named.into_iter().map(|(name, value)| (PyValue::Str(name), value)).collect();
            let named = PyValue::dict(named, &self.budget)?;
            self.scopes.set(self.scope, &"kwargs".into(), named);
        } else if let Some((name, _)) = named.first() {
            return Err(RenderError::failed(format!(
                "macro '{callee}' takes no keyword argument '{name}'"
            )));
        }
        Ok(())
    }
}
