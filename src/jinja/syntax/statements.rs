//! Statements.

use std::sync::Arc;

use super::ast::{Arguments, Expr, For, Macro, Name, Statement, StatementKind, Statements, Target};
use super::lexer::Lexeme;
use super::parser::{Parsed, Parser};

/// Statements.
impl Parser {
    /// Statements up to a tag with one of the names, which is read (but not its rest) and given; with no names, to the end.
    pub(super) fn statements(&mut self, ends: &[&str]) -> Parsed<(Statements, String)> {
        self.deeper(|parser| parser.statements_here(ends))
    }

    fn statements_here(&mut self, ends: &[&str]) -> Parsed<(Statements, String)> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.kind() {
                Lexeme::Text(text) => {
                    let text = Arc::clone(text);
                    self.skip();
                    StatementKind::Text(text)
                }
                Lexeme::OutputBegin => {
                    self.skip();
                    let value = self.tuple(&[])?;
                    if *self.kind() != Lexeme::OutputEnd {
                        return self.unexpected("'}}'");
                    }
                    self.skip();
                    StatementKind::Output(value)
                }
                Lexeme::BlockBegin => {
                    self.skip();
                    let name = self.name()?;
                    if ends.contains(&&*name) {
                        return Ok((body, name.to_string()));
                    }
                    self.statement(&name)?
                }
                Lexeme::End if ends.is_empty() => return Ok((body, String::new())),
                _ => return self.unexpected(&ends.join(" or ")),
            };
            body.push(Statement { line, kind });
        }
    }

    fn statement(&mut self, name: &str) -> Parsed<StatementKind> {
        match name {
            "if" => self.conditions(),
            "for" => self.for_loop(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => self.macro_definition(),
            "call" => self.call_block(),
            "filter" => self.filter_block(),
            // Marks the assistant's text for training; shows nothing.
            "generation" => self.body_until("endgeneration").map(StatementKind::Scope),
            "block" => {
                self.name()?;
                self.skip_name("scoped");
                self.skip_name("required");
                let (body, _) = self.block(&["endblock"])?;
                let _ = self.name();
                self.end_of_block()?;
                Ok(StatementKind::Scope(body))
            }
            "autoescape" => {
                self.expression()?;
                self.body_until("endautoescape").map(StatementKind::Scope)
            }
            "break" => self.end_of_block().map(|()| StatementKind::Break),
            "continue" => self.end_of_block().map(|()| StatementKind::Continue),
            "include" | "import" | "from" | "extends" => {
                self.fail(&format!("'{name}' needs other templates, and there are none"))
            }
            _ => self.fail(&format!("unknown tag '{name}'")),
        }
    }

    fn end_of_block(&mut self) -> Parsed<()> {
        if *self.kind() != Lexeme::BlockEnd {
            return self.unexpected("'%}'");
        }
        self.skip();
        Ok(())
    }

    /// The end of this tag, and the statements up to another.
    fn block(&mut self, ends: &[&str]) -> Parsed<(Statements, String)> {
        self.skip_operator(":");
        self.end_of_block()?;
        self.statements(ends)
    }

    fn body_until(&mut self, end: &str) -> Parsed<Statements> {
        let (body, _) = self.block(&[end])?;
        self.end_of_block()?;
        Ok(body)
    }

    fn conditions(&mut self) -> Parsed<StatementKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(&[])?;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match end.as_str() {
                "elif" => {}
                "else" => {
                    let or_else = self.body_until("endif")?;
                    return Ok(StatementKind::If(branches, or_else));
                }
                _ => {
                    self.end_of_block()?;
                    return Ok(StatementKind::If(branches, Vec::new()));
                }
            }
        }
    }

    fn for_loop(&mut self) -> Parsed<StatementKind> {
        let target = self.target(&["in"], false)?;
        if !self.skip_name("in") {
            return self.unexpected("'in'");
        }
        let items = self.tuple_without_condition(&["recursive"])?;
        let test = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let is_recursive = self.skip_name("recursive");
        let (body, end) = self.block(&["endfor", "else"])?;
        let or_else = if end == "else" {
            self.body_until("endfor")?
        } else {
            self.end_of_block()?;
            Vec::new()
        };
        Ok(StatementKind::For(Box::new(For { target, items, test, is_recursive, body, or_else })))
    }

    fn set(&mut self) -> Parsed<StatementKind> {
        let target = self.target(&[], true)?;
        if self.skip_operator("=") {
            let value = self.tuple(&[])?;
            self.end_of_block()?;
            return Ok(StatementKind::Set(target, value));
        }
        let filters = self.filters(Expr::Hole)?;
        let body = self.body_until("endset")?;
        Ok(StatementKind::SetBlock(target, filters, body))
    }

    fn with(&mut self) -> Parsed<StatementKind> {
        let mut values = Vec::new();
        while *self.kind() != Lexeme::BlockEnd {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            let target = Target::Name(self.name()?);
            self.expect_operator("=")?;
            values.push((target, self.expression()?));
        }
        let body = self.body_until("endwith")?;
        Ok(StatementKind::With(values, body))
    }

    fn macro_definition(&mut self) -> Parsed<StatementKind> {
        let name = self.name()?;
        let parameters = self.parameters()?;
        Ok(StatementKind::Macro(Arc::new(self.macro_body(name, parameters, "endmacro")?)))
    }

    fn call_block(&mut self) -> Parsed<StatementKind> {
        let parameters = if self.is_operator("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return self.fail("expected a call");
        }
        let body = self.macro_body("caller".into(), parameters, "endcall")?;
        Ok(StatementKind::Call(call, Arc::new(body)))
    }

    fn macro_body(
        &mut self,
        name: Name,
        parameters: Vec<(Name, Option<Expr>)>,
        end: &str,
    ) -> Parsed<Macro> {
        let outside = std::mem::take(&mut self.mentioned);
        let body = self.body_until(end)?;
        let [takes_varargs, takes_kwargs, takes_caller] =
            std::mem::replace(&mut self.mentioned, outside);
        Ok(Macro { name, parameters, body, takes_varargs, takes_kwargs, takes_caller })
    }

    fn parameters(&mut self) -> Parsed<Vec<(Name, Option<Expr>)>> {
        self.expect_operator("(")?;
        let mut parameters: Vec<(Name, Option<Expr>)> = Vec::new();
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.name()?;
            let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, before)| before.is_some()) {
                return self.fail("a parameter without default behind one that has one");
            }
            parameters.push((name, default));
        }
        self.skip();
        Ok(parameters)
    }

    fn filter_block(&mut self) -> Parsed<StatementKind> {
        let first = self.filter(Expr::Hole)?;
        let filters = self.filters(first)?;
        let body = self.body_until("endfilter")?;
        Ok(StatementKind::Filter(filters, body))
    }

    /// One or several targets, with commas; `ends`: names that end a list with a last comma.
    fn target(&mut self, ends: &[&str], may_be_member: bool) -> Parsed<Target> {
        let mut targets = Vec::new();
        loop {
            let is_end = ends.iter().any(|end| self.is_name(0, end))
                || matches!(self.kind(), Lexeme::Operator("=" | ")") | Lexeme::BlockEnd);
            if is_end && !targets.is_empty() {
                return Ok(Target::Several(targets));
            }
            targets.push(self.single_target(may_be_member)?);
            if !self.skip_operator(",") {
                return Ok(match targets.len() {
                    1 => targets.remove(0),
                    _ => Target::Several(targets),
                });
            }
        }
    }

    fn single_target(&mut self, may_be_member: bool) -> Parsed<Target> {
        if self.skip_operator("(") {
            let inside = self.deeper(|parser| parser.target(&[], may_be_member))?;
            self.expect_operator(")")?;
            return Ok(inside);
        }
        let name = self.name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.fail(&format!("cannot assign to '{name}'"));
        }
        if may_be_member && self.skip_operator(".") {
            return Ok(Target::Member(name, self.name()?));
        }
        Ok(Target::Name(name))
    }

    /// The arguments of a call, its opening parenthesis next.
    pub(in crate::jinja) fn arguments(&mut self) -> Parsed<Arguments> {
        self.expect_operator("(")?;
        let mut read = Arguments::default();
        let mut is_first = true;
        while !self.is_operator(")") {
            if !is_first {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            is_first = false;
            if self.skip_operator("*") {
                read.list = Some(Box::new(self.expression()?));
            } else if self.skip_operator("**") {
                read.dict = Some(Box::new(self.expression()?));
            } else if matches!(self.look(1), Lexeme::Operator("=")) {
                let name = self.name()?;
                self.skip();
                read.named.push((name, self.expression()?));
            } else if read.named.is_empty() && read.list.is_none() && read.dict.is_none() {
                read.positional.push(self.expression()?);
            } else {
                return self.fail("invalid syntax for function call expression");
            }
        }
        self.skip();
        Ok(read)
    }
}
