//! The tokens of a template, walked. Jinja2's grammar, without what needs other templates (`extends`, `include`, `import`).

use std::sync::Arc;

use super::ast::{Name, Statements};
use super::lexer::{Lexeme, SourceToken};

/// Brackets, operators and statements inside each other.
const MAX_DEPTH: u32 = 64;

/// Operators, filters or subscripts behind each other.
const MAX_LINKS: u32 = 120;

/// Names that Jinja2 gives a macro only where its body mentions them.
const SPECIAL: [&str; 3] = ["varargs", "kwargs", "caller"];

pub(in crate::jinja) type Parsed<T> = Result<T, String>;

/// # Errors
/// Line and reason.
pub(in crate::jinja) fn parse(tokens: Vec<SourceToken>) -> Parsed<Statements> {
    let mut parser = Parser { tokens, at: 0, depth: 0, mentioned: [false; 3] };
    let (body, _) = parser.statements(&[])?;
    Ok(body)
}

pub(in crate::jinja) struct Parser {
    tokens: Vec<SourceToken>,
    at: usize,
    depth: u32,
    /// Which of [`SPECIAL`] the macro that is read mentions.
    pub(super) mentioned: [bool; 3],
}

/// Walking the tokens.
impl Parser {
    pub(in crate::jinja) fn kind(&self) -> &Lexeme {
        self.look(0)
    }

    pub(in crate::jinja) fn look(&self, ahead: usize) -> &Lexeme {
        self.tokens.get(self.at + ahead).map_or(&Lexeme::End, |token| &token.kind)
    }

    pub(in crate::jinja) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    pub(in crate::jinja) fn skip(&mut self) {
        self.at += 1;
    }

    pub(in crate::jinja) fn fail<T>(&self, reason: &str) -> Parsed<T> {
        Err(format!("line {}: {reason}", self.line()))
    }

    pub(in crate::jinja) fn unexpected<T>(&self, expected: &str) -> Parsed<T> {
        let got = match self.kind() {
            Lexeme::End => "the end of the template".to_owned(),
            Lexeme::OutputEnd => "'}}'".to_owned(),
            Lexeme::BlockEnd => "'%}'".to_owned(),
            Lexeme::Name(name) => format!("'{name}'"),
            Lexeme::Operator(operator) => format!("'{operator}'"),
            Lexeme::String(_) => "a string".to_owned(),
            _ => "something else".to_owned(),
        };
        self.fail(&format!("expected {expected}, got {got}"))
    }

    pub(in crate::jinja) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.kind(), Lexeme::Operator(found) if *found == operator)
    }

    pub(in crate::jinja) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.at += usize::from(found);
        found
    }

    pub(in crate::jinja) fn expect_operator(&mut self, operator: &str) -> Parsed<()> {
        if self.skip_operator(operator) {
            Ok(())
        } else {
            self.unexpected(&format!("'{operator}'"))
        }
    }

    pub(in crate::jinja) fn is_name(&self, ahead: usize, name: &str) -> bool {
        matches!(self.look(ahead), Lexeme::Name(found) if &**found == name)
    }

    pub(in crate::jinja) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(0, name);
        self.at += usize::from(found);
        found
    }

    pub(in crate::jinja) fn name(&mut self) -> Parsed<Name> {
        let Lexeme::Name(name) = self.kind() else { return self.unexpected("a name") };
        let name = Arc::clone(name);
        self.skip();
        Ok(name)
    }

    pub(in crate::jinja) fn mention(&mut self, name: &str) {
        if let Some(at) = SPECIAL.iter().position(|special| *special == name) {
            self.mentioned[at] = true;
        }
    }

    /// Counts one more operator in a row: each is a node around those before it.
    pub(in crate::jinja) fn link(&self, links: &mut u32) -> Parsed<()> {
        *links += 1;
        if *links <= MAX_LINKS {
            return Ok(());
        }
        self.fail(&format!("more than {MAX_LINKS} operators or filters in a row"))
    }

    /// What `inside` reads, if it is not too deep.
    pub(in crate::jinja) fn deeper<T>(
        &mut self,
        inside: impl FnOnce(&mut Self) -> Parsed<T>,
    ) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return self
                .fail(&format!("more than {MAX_DEPTH} brackets or statements inside each other"));
        }
        self.depth += 1;
        let read = inside(self);
        self.depth -= 1;
        read
    }
}
