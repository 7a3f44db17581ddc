//! Expressions, evaluated.

use super::ast::{Arguments, Comparison, Expr};
use super::budget::{Evaluated, RenderError};
use super::calls::CallArguments;
use super::interpreter::Interpreter;
use super::value::{Object, PyValue};
use super::{filters, globals, methods, operators, predicates, strings};

impl<'t> Interpreter<'t> {
    pub(super) fn evaluate(&mut self, expression: &'t Expr) -> Evaluated<PyValue> {
        // What needs no evaluation inside is not worth a step deeper.
        match expression {
            Expr::Const(value) => {
                self.budget.step(1)?;
                Ok(value.clone())
            }
            Expr::Name(name) => {
                self.budget.step(1)?;
                Ok(self.lookup(name))
            }
            other => self.deeper(|it| it.evaluate_inside(other)),
        }
    }

    fn evaluate_inside(&mut self, expression: &'t Expr) -> Evaluated<PyValue> {
        match expression {
            Expr::Hole => Ok(self.hole()),
            Expr::List(items) => {
                let items = self.evaluate_all(items)?;
                PyValue::list(items, &self.budget)
            }
            Expr::Tuple(items) => {
                let items = self.evaluate_all(items)?;
                PyValue::tuple(items, &self.budget)
            }
            Expr::Dict(pairs) => self.dict(pairs),
            Expr::Attribute(value, name) => {
                let value = self.evaluate(value)?;
                self.attribute(&value, name)
            }
            Expr::Item(value, key) => {
                let value = self.evaluate(value)?;
                let key = self.evaluate(key)?;
                self.item(&value, &key)
            }
            Expr::Slice(value, parts) => self.slice(value, parts),
            Expr::Call(..) => self.call_with(expression, None),
            Expr::Filter(value, name, arguments) => {
                let value = self.evaluate(value)?;
                let arguments = self.arguments(arguments)?;
                filters::apply(self, name, value, arguments)
            }
            Expr::Test(value, name, arguments) => {
                let value = self.evaluate(value)?;
                let arguments = self.arguments(arguments)?;
                predicates::holds(self, name, &value, arguments).map(PyValue::Bool)
            }
            other => self.operation(other),
        }
    }

    fn operation(&mut self, expression: &'t Expr) -> Evaluated<PyValue> {
        match expression {
            Expr::Not(value) => Ok(PyValue::Bool(!self.evaluate(value)?.is_true())),
            Expr::Negative(value) => operators::signed(&self.evaluate(value)?, true),
            Expr::Positive(value) => operators::signed(&self.evaluate(value)?, false),
            Expr::Binary(operator, a, b) => {
                let a = self.evaluate(a)?;
                let b = self.evaluate(b)?;
                operators::binary(*operator, &a, &b, &self.budget)
            }
            Expr::Concat(parts) => {
                let parts = self.evaluate_all(parts)?;
                strings::join(&parts, "", &self.budget)
            }
            Expr::Compare(first, others) => self.compare(first, others),
            Expr::And(a, b) => {
                let a = self.evaluate(a)?;
                if a.is_true() { self.evaluate(b) } else { Ok(a) }
            }
            Expr::Or(a, b) => {
                let a = self.evaluate(a)?;
                if a.is_true() { Ok(a) } else { self.evaluate(b) }
            }
            Expr::If(test, value, or_else) => match (self.evaluate(test)?.is_true(), or_else) {
                (true, _) => self.evaluate(value),
                (false, Some(or_else)) => self.evaluate(or_else),
                (false, None) => Ok(PyValue::undefined("the inline if-expression without else")),
            },
            _ => Err(RenderError::failed("an expression that is none")),
        }
    }

    fn evaluate_all(&mut self, expressions: &'t [Expr]) -> Evaluated<Vec<PyValue>> {
        expressions.iter().map(|expression| self.evaluate(expression)).collect()
    }

    fn dict(&mut self, pairs: &'t [(Expr, Expr)]) -> Evaluated<PyValue> {
        let mut values = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            values.push((self.evaluate(key)?, self.evaluate(value)?));
        }
        PyValue::dict(values, &self.budget)
    }

    fn slice(&mut self, value: &'t Expr, parts: &'t [Option<Expr>; 3]) -> Evaluated<PyValue> {
        let value = self.evaluate(value)?;
        let mut bounds = [PyValue::None, PyValue::None, PyValue::None];
        for (bound, part) in bounds.iter_mut().zip(parts) {
            if let Some(part) = part {
                *bound = self.evaluate(part)?;
            }
        }
        operators::slice(&value, bounds.each_ref(), &self.budget)
    }

    fn compare(&mut self, first: &'t Expr, others: &'t [(Comparison, Expr)]) -> Evaluated<PyValue> {
        let mut left = self.evaluate(first)?;
        for (comparison, other) in others {
            let right = self.evaluate(other)?;
            if !operators::compares(*comparison, &left, &right, &self.budget)? {
                return Ok(PyValue::Bool(false));
            }
            left = right;
        }
        Ok(PyValue::Bool(true))
    }

    /// `value.name`: what Python finds as an attribute, else an item.
    pub(super) fn attribute(&mut self, value: &PyValue, name: &str) -> Evaluated<PyValue> {
        if let PyValue::Undefined(undefined) = value {
            return Err(RenderError::failed(format!(
                "'{undefined}' is undefined, so it has no {name}"
            )));
        }
        if let Some(found) = self.own_attribute(value, name) {
            return Ok(found);
        }
        let item = match value {
            PyValue::Dict(dict) => dict.get_str(name).cloned(),
            _ => None,
        };
        Ok(item.unwrap_or_else(|| PyValue::undefined(name)))
    }

    /// `value[key]`: what Python finds as an item, else an attribute.
    pub(super) fn item(&mut self, value: &PyValue, key: &PyValue) -> Evaluated<PyValue> {
        if let PyValue::Undefined(undefined) = value {
            return Err(RenderError::failed(format!(
                "'{undefined}' is undefined, so it has no items"
            )));
        }
        if let Some(found) = operators::item(value, key) {
            return Ok(found);
        }
        let attribute = key.as_str().and_then(|name| self.own_attribute(value, name));
        Ok(attribute.unwrap_or_else(|| PyValue::undefined(key.as_str().unwrap_or("item"))))
    }

    fn own_attribute(&self, value: &PyValue, name: &str) -> Option<PyValue> {
        match value {
            PyValue::Object(Object::Namespace(at)) => self.scopes.member(*at, name).cloned(),
            PyValue::Object(object) => globals::attribute(self, object, name),
            other => methods::of(other, name),
        }
    }

    /// A call's value; `caller` is the call block's body, if it is one's.
    pub(super) fn call_with(
        &mut self,
        call: &'t Expr,
        caller: Option<PyValue>,
    ) -> Evaluated<PyValue> {
        let Expr::Call(callee, arguments) = call else { return self.evaluate(call) };
        let callee = self.evaluate(callee)?;
        let mut arguments = self.arguments(arguments)?;
        if let Some(caller) = caller {
            arguments.named.push(("caller".into(), caller));
        }
        self.call(&callee, arguments)
    }

    pub(super) fn call(
        &mut self,
        callee: &PyValue,
        arguments: CallArguments,
    ) -> Evaluated<PyValue> {
        match callee {
            PyValue::Object(Object::Macro(at)) => self.call_macro(*at, arguments),
            PyValue::Object(Object::Loop(at)) => self.call_loop(*at, arguments),
            PyValue::Object(Object::Joiner(at)) => {
                arguments.none("joiner")?;
                Ok(globals::join_next(self, *at))
            }
            PyValue::Object(Object::Function(function)) => {
                globals::call(self, *function, arguments)
            }
            PyValue::Object(Object::Method(method)) => {
                let (value, name) = &**method;
                methods::call(self, value, name, arguments)
            }
            PyValue::Undefined(name) => Err(RenderError::undefined(name)),
            other => {
                Err(RenderError::failed(format!("'{}' object is not callable", other.type_name())))
            }
        }
    }

    fn arguments(&mut self, arguments: &'t Arguments) -> Evaluated<CallArguments> {
        let mut positional = self.evaluate_all(&arguments.positional)?;
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, value) in &arguments.named {
            named.push((name.clone(), self.evaluate(value)?));
        }
        if let Some(list) = &arguments.list {
            let list = self.evaluate(list)?;
            positional.extend(list.items(&self.budget)?);
        }
        if let Some(dict) = &arguments.dict {
            let PyValue::Dict(dict) = self.evaluate(dict)? else {
                return Err(RenderError::failed("argument after ** must be a mapping"));
            };
            self.budget.items(dict.len())?;
            for (name, value) in dict.pairs() {
                let PyValue::Str(name) = name else {
                    return Err(RenderError::failed("keywords must be strings"));
                };
                named.push((name.clone(), value.clone()));
            }
        }
        Ok(CallArguments { positional, named })
    }
}
