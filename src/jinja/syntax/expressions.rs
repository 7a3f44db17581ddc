//! Expressions, in the order of their precedence.

use std::sync::Arc;

use super::super::PyValue;
use super::ast::{Arguments, Comparison, Expr, Operator};
use super::lexer::Lexeme;
use super::parser::{Parsed, Parser};

impl Parser {
    /// One expression, or a tuple of several with commas. `ends`: names that end it after a comma.
    pub(in crate::jinja) fn tuple(&mut self, ends: &[&str]) -> Parsed<Expr> {
        self.tuple_of(ends, Self::expression)
    }

    /// The same of expressions without `if` and `else` of their own.
    pub(in crate::jinja) fn tuple_without_condition(&mut self, ends: &[&str]) -> Parsed<Expr> {
        self.tuple_of(ends, |parser| parser.deeper(Self::or))
    }

    fn tuple_of(
        &mut self,
        ends: &[&str],
        read: impl Fn(&mut Self) -> Parsed<Expr>,
    ) -> Parsed<Expr> {
        let first = read(self)?;
        if !self.is_operator(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_operator(",") {
            let is_end =
                matches!(self.kind(), Lexeme::OutputEnd | Lexeme::BlockEnd | Lexeme::Operator(")"))
                    || ends.iter().any(|end| self.is_name(0, end));
            if is_end {
                break;
            }
            items.push(read(self)?);
        }
        Ok(Expr::Tuple(items))
    }

    pub(in crate::jinja) fn expression(&mut self) -> Parsed<Expr> {
        self.deeper(Self::condition)
    }

    fn condition(&mut self) -> Parsed<Expr> {
        let mut value = self.or()?;
        let mut links = 0;
        while self.skip_name("if") {
            self.link(&mut links)?;
            let test = self.or()?;
            let or_else =
                if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            value = Expr::If(Box::new(test), Box::new(value), or_else);
        }
        Ok(value)
    }

    fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        let mut links = 0;
        while self.skip_name("or") {
            self.link(&mut links)?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.not()?;
        let mut links = 0;
        while self.skip_name("and") {
            self.link(&mut links)?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.deeper(Self::not)?)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Parsed<Expr> {
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let comparison = match self.kind() {
                Lexeme::Operator("==") => Comparison::Equal,
                Lexeme::Operator("!=") => Comparison::NotEqual,
                Lexeme::Operator("<") => Comparison::Less,
                Lexeme::Operator("<=") => Comparison::LessOrEqual,
                Lexeme::Operator(">") => Comparison::Greater,
                Lexeme::Operator(">=") => Comparison::GreaterOrEqual,
                _ if self.is_name(0, "in") => Comparison::In,
                _ if self.is_name(0, "not") && self.is_name(1, "in") => {
                    self.skip();
                    Comparison::NotIn
                }
                _ if others.is_empty() => return Ok(first),
                _ => return Ok(Expr::Compare(Box::new(first), others)),
            };
            self.skip();
            others.push((comparison, self.sum()?));
        }
    }

    fn sum(&mut self) -> Parsed<Expr> {
        let mut left = self.concatenation()?;
        let mut links = 0;
        loop {
            self.link(&mut links)?;
            let operator = match self.kind() {
                Lexeme::Operator("+") => Operator::Add,
                Lexeme::Operator("-") => Operator::Subtract,
                _ => return Ok(left),
            };
            self.skip();
            left = Expr::Binary(operator, Box::new(left), Box::new(self.concatenation()?));
        }
    }

    fn concatenation(&mut self) -> Parsed<Expr> {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut left = self.power()?;
        let mut links = 0;
        loop {
            self.link(&mut links)?;
            let operator = match self.kind() {
                Lexeme::Operator("*") => Operator::Multiply,
                Lexeme::Operator("/") => Operator::Divide,
                Lexeme::Operator("//") => Operator::FloorDivide,
                Lexeme::Operator("%") => Operator::Remainder,
                _ => return Ok(left),
            };
            self.skip();
            left = Expr::Binary(operator, Box::new(left), Box::new(self.power()?));
        }
    }

    fn power(&mut self) -> Parsed<Expr> {
        let mut left = self.unary(true)?;
        let mut links = 0;
        while self.skip_operator("**") {
            self.link(&mut links)?;
            left = Expr::Binary(Operator::Power, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Parsed<Expr> {
        let value = if self.skip_operator("-") {
            Expr::Negative(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else if self.skip_operator("+") {
            Expr::Positive(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if with_filters { self.filters(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let value = match self.kind() {
            Lexeme::Name(name) => {
                let name = Arc::clone(name);
                match &*name {
                    "true" | "True" => Expr::Const(PyValue::Bool(true)),
                    "false" | "False" => Expr::Const(PyValue::Bool(false)),
                    "none" | "None" => Expr::Const(PyValue::None),
                    _ => {
                        self.mention(&name);
                        Expr::Name(name)
                    }
                }
            }
            Lexeme::String(_) => return Ok(self.strings()),
            Lexeme::Int(value) => Expr::Const(PyValue::Int(*value)),
            Lexeme::Float(value) => Expr::Const(PyValue::Float(*value)),
            Lexeme::Operator("(") => {
                self.skip();
                let inside =
                    if self.is_operator(")") { Expr::Tuple(Vec::new()) } else { self.tuple(&[])? };
                self.expect_operator(")")?;
                return Ok(inside);
            }
            Lexeme::Operator("[") => return self.list(),
            Lexeme::Operator("{") => return self.dict(),
            _ => return self.unexpected("an expression"),
        };
        self.skip();
        Ok(value)
    }

    /// Strings side by side are one.
    fn strings(&mut self) -> Expr {
        let mut text = String::new();
        while let Lexeme::String(part) = self.kind() {
            text.push_str(part);
            self.skip();
        }
        Expr::Const(PyValue::from(text))
    }

    fn list(&mut self) -> Parsed<Expr> {
        self.skip();
        let mut items = Vec::new();
        while !self.is_operator("]") {
            items.push(self.expression()?);
            if !self.is_operator("]") {
                self.expect_operator(",")?;
            }
        }
        self.skip();
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Parsed<Expr> {
        self.skip();
        let mut items = Vec::new();
        while !self.is_operator("}") {
            let key = self.expression()?;
            self.expect_operator(":")?;
            items.push((key, self.expression()?));
            if !self.is_operator("}") {
                self.expect_operator(",")?;
            }
        }
        self.skip();
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, value: Expr) -> Parsed<Expr> {
        let mut value = value;
        let mut links = 0;
        loop {
            self.link(&mut links)?;
            value = match self.kind() {
                Lexeme::Operator(".") => self.attribute(value)?,
                Lexeme::Operator("[") => self.subscript(value)?,
                Lexeme::Operator("(") => Expr::Call(Box::new(value), self.arguments()?),
                _ => return Ok(value),
            };
        }
    }

    fn attribute(&mut self, value: Expr) -> Parsed<Expr> {
        self.skip();
        if let Lexeme::Int(index) = self.kind() {
            let index = Expr::Const(PyValue::Int(*index));
            self.skip();
            return Ok(Expr::Item(Box::new(value), Box::new(index)));
        }
        let name = self.name()?;
        Ok(Expr::Attribute(Box::new(value), name))
    }

    fn subscript(&mut self, value: Expr) -> Parsed<Expr> {
        self.skip();
        let mut part = None;
        if !self.is_operator(":") {
            let index = self.tuple(&[])?;
            if self.skip_operator("]") {
                return Ok(Expr::Item(Box::new(value), Box::new(index)));
            }
            part = Some(index);
        }
        let mut parts = [part, None, None];
        for part in &mut parts[1..] {
            if !self.skip_operator(":") {
                break;
            }
            if !matches!(self.kind(), Lexeme::Operator(":" | "]")) {
                *part = Some(self.expression()?);
            }
        }
        self.expect_operator("]")?;
        Ok(Expr::Slice(Box::new(value), Box::new(parts)))
    }

    /// Filters and tests behind a value.
    pub(in crate::jinja) fn filters(&mut self, value: Expr) -> Parsed<Expr> {
        let mut value = value;
        let mut links = 0;
        loop {
            self.link(&mut links)?;
            value = match self.kind() {
                Lexeme::Operator("|") => {
                    self.skip();
                    self.filter(value)?
                }
                Lexeme::Operator("(") => Expr::Call(Box::new(value), self.arguments()?),
                _ if self.is_name(0, "is") => self.test(value)?,
                _ => return Ok(value),
            };
        }
    }

    /// One filter, its name next.
    pub(in crate::jinja) fn filter(&mut self, value: Expr) -> Parsed<Expr> {
        let name = self.name()?;
        let arguments =
            if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
        Ok(Expr::Filter(Box::new(value), name, arguments))
    }

    fn test(&mut self, value: Expr) -> Parsed<Expr> {
        self.skip();
        let is_negated = self.skip_name("not");
        let name = self.name()?;
        let mut arguments = Arguments::default();
        let takes_one = match self.kind() {
            Lexeme::Operator("(") => {
                arguments = self.arguments()?;
                false
            }
            Lexeme::Name(next) => !matches!(&**next, "else" | "or" | "and" | "is"),
            Lexeme::String(_) | Lexeme::Int(_) | Lexeme::Float(_) | Lexeme::Operator("[" | "{") => {
                true
            }
            _ => false,
        };
        if takes_one {
            let argument = self.primary()?;
            arguments.positional.push(self.postfix(argument)?);
        }
        let test = Expr::Test(Box::new(value), name, arguments);
        Ok(if is_negated { Expr::Not(Box::new(test)) } else { test })
    }
}
