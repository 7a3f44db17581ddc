//! A source as tokens, with Jinja2's rules for the whitespace around tags (`trim_blocks`, `lstrip_blocks`).

use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub(in crate::jinja) enum Lexeme {
    /// Text between tags.
    Text(Arc<str>),
    OutputBegin,
    OutputEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    String(Arc<str>),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

#[derive(Debug, Clone)]
pub(in crate::jinja) struct SourceToken {
    pub kind: Lexeme,
    pub line: u32,
}

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// The longest number that is read, in characters.
const MAX_DIGITS: usize = 64;

/// # Errors
/// Line and reason.
pub(in crate::jinja) fn tokens(source: &str) -> Result<Vec<SourceToken>, String> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { rest: &source, line: 1, tokens: Vec::new(), starts_line: true };
    lexer.run().map_err(|reason| format!("line {}: {reason}", lexer.line))?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    tokens: Vec<SourceToken>,
    /// Whether what was read last ended a line.
    starts_line: bool,
}

impl<'a> Lexer<'a> {
    fn run(&mut self) -> Result<(), String> {
        while let Some((at, kind)) = next_tag(self.rest) {
            let sign = self.rest[at + 2..].chars().next();
            let text = self.left_of_tag(&self.rest[..at], kind, sign);
            self.push_text(text);
            self.advance(at + 2);
            if matches!(sign, Some('-' | '+')) {
                self.advance(1);
            }
            match kind {
                '#' => self.comment()?,
                '{' => self.inside(Lexeme::OutputBegin, "}}")?,
                _ if self.is_raw() => self.raw()?,
                _ => self.inside(Lexeme::BlockBegin, "%}")?,
            }
        }
        let rest = self.rest;
        self.push_text(rest);
        self.push(Lexeme::End);
        Ok(())
    }

    fn push(&mut self, kind: Lexeme) {
        self.tokens.push(SourceToken { kind, line: self.line });
    }

    fn push_text(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Lexeme::Text(text.into()));
        }
    }

    fn advance(&mut self, bytes: usize) {
        let (read, rest) = self.rest.split_at(bytes);
        self.line += read.matches('\n').count() as u32;
        self.starts_line = read.ends_with('\n');
        self.rest = rest;
    }

    fn skip_whitespace(&mut self) {
        let trimmed = self.rest.trim_start();
        if trimmed.len() < self.rest.len() {
            self.advance(self.rest.len() - trimmed.len());
        }
    }

    /// What stays of the text before a tag.
    fn left_of_tag<'t>(&self, text: &'t str, kind: char, sign: Option<char>) -> &'t str {
        if sign == Some('-') {
            return text.trim_end();
        }
        if kind == '{' || sign == Some('+') {
            return text;
        }
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let is_alone = (line > 0 || self.starts_line) && text[line..].trim().is_empty();
        if is_alone { &text[..line] } else { text }
    }

    /// Behind a tag of this end: `-` takes all whitespace, a block's end one line's.
    fn end_of_tag(&mut self, end: &str) -> bool {
        let (sign, behind) = match self.rest.chars().next() {
            Some(sign @ ('-' | '+')) if self.rest[1..].starts_with(end) => (Some(sign), 3),
            _ if self.rest.starts_with(end) => (None, 2),
            _ => return false,
        };
        if sign == Some('+') && end == "}}" {
            return false;
        }
        self.advance(behind);
        match sign {
            Some('-') => self.skip_whitespace(),
            None if end != "}}" && self.rest.starts_with('\n') => self.advance(1),
            _ => {}
        }
        true
    }

    fn comment(&mut self) -> Result<(), String> {
        let end = self.rest.find("#}").ok_or("a comment without an end")?;
        let end = match self.rest[..end].chars().next_back() {
            Some('-' | '+') => end - 1,
            _ => end,
        };
        self.advance(end);
        self.end_of_tag("#}");
        Ok(())
    }

    fn is_raw(&self) -> bool {
        let inside = self.rest.trim_start().strip_prefix("raw").map(str::trim_start);
        inside.is_some_and(|end| end.starts_with("%}") || end.starts_with("-%}"))
    }

    /// `{% raw %}`: text up to `{% endraw %}`.
    fn raw(&mut self) -> Result<(), String> {
        self.skip_whitespace();
        self.advance("raw".len());
        self.skip_whitespace();
        let is_trimmed = self.rest.starts_with('-');
        self.advance(if is_trimmed { 3 } else { 2 });
        if is_trimmed {
            self.skip_whitespace();
        }
        let mut from = 0;
        loop {
            let at =
                self.rest[from..].find("{%").map(|at| at + from).ok_or("raw without endraw")?;
            let sign = self.rest[at + 2..].chars().next();
            let name = self.rest[at + 2..].trim_start_matches(['-', '+']).trim_start();
            let Some(end) = name.strip_prefix("endraw").map(str::trim_start) else {
                from = at + 2;
                continue;
            };
            let text = self.left_of_tag(&self.rest[..at], '%', sign);
            self.push_text(text);
            self.advance(self.rest.len() - end.len());
            return if self.end_of_tag("%}") {
                Ok(())
            } else {
                Err("endraw without an end".into())
            };
        }
    }

    /// The tokens of a tag, up to its end outside of any bracket.
    fn inside(&mut self, begin: Lexeme, end: &'static str) -> Result<(), String> {
        let closed = if end == "}}" { Lexeme::OutputEnd } else { Lexeme::BlockEnd };
        self.push(begin);
        let mut open = Vec::new();
        loop {
            self.skip_whitespace();
            if open.is_empty() && self.end_of_tag(end) {
                self.push(closed);
                return Ok(());
            }
            let next = self.rest.chars().next().ok_or("a tag without an end")?;
            match next {
                '"' | '\'' => self.string(next)?,
                '0'..='9' => self.number()?,
                c if c == '_' || c.is_alphabetic() => self.name(),
                _ => self.operator(&mut open)?,
            }
        }
    }

    fn name(&mut self) {
        let is_part = |c: char| c == '_' || c.is_alphanumeric();
        let len = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let name = self.rest[..len].into();
        self.push(Lexeme::Name(name));
        self.advance(len);
    }

    fn operator(&mut self, open: &mut Vec<&'static str>) -> Result<(), String> {
        let found = OPERATORS.into_iter().find(|operator| self.rest.starts_with(operator));
        let operator = found.ok_or_else(|| {
            format!("unexpected character {:?}", self.rest.chars().next().unwrap_or(' '))
        })?;
        let closes = match operator {
            "(" => return self.opened(operator, ")", open),
            "[" => return self.opened(operator, "]", open),
            "{" => return self.opened(operator, "}", open),
            ")" | "]" | "}" => Some(operator),
            _ => None,
        };
        if closes.is_some() && open.pop() != closes {
            return Err(format!("unexpected '{operator}'"));
        }
        self.push(Lexeme::Operator(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn opened(
        &mut self,
        operator: &'static str,
        end: &'static str,
        open: &mut Vec<&'static str>,
    ) -> Result<(), String> {
        open.push(end);
        self.push(Lexeme::Operator(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        let len = number_len(self.rest);
        let text: String = self.rest[..len].chars().filter(|c| *c != '_').collect();
        let too_long = || format!("the number {text:.20} is too large");
        if text.len() > MAX_DIGITS {
            return Err(too_long());
        }
        let radix = |prefix: &str| text.to_lowercase().strip_prefix(prefix).map(str::to_owned);
        let int = |digits: &str, radix| i128::from_str_radix(digits, radix).map_err(|_| too_long());
        let kind = if let Some(digits) = radix("0x") {
            Lexeme::Int(int(&digits, 16)?)
        } else if let Some(digits) = radix("0o") {
            Lexeme::Int(int(&digits, 8)?)
        } else if let Some(digits) = radix("0b") {
            Lexeme::Int(int(&digits, 2)?)
        } else if text.bytes().all(|b| b.is_ascii_digit()) {
            Lexeme::Int(int(&text, 10)?)
        } else {
            Lexeme::Float(text.parse().map_err(|_| too_long())?)
        };
        self.push(kind);
        self.advance(len);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), String> {
        let mut escaped = false;
        let mut end = None;
        for (at, c) in self.rest.char_indices().skip(1) {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == quote {
                end = Some(at);
                break;
            }
        }
        let end = end.ok_or("a string without an end")?;
        let text = unescaped(&self.rest[1..end])?;
        self.push(Lexeme::String(text.into()));
        self.advance(end + 1);
        Ok(())
    }
}

/// Where the next tag begins, and the second character of its opening.
fn next_tag(text: &str) -> Option<(usize, char)> {
    let mut from = 0;
    while let Some(at) = text[from..].find('{').map(|at| at + from) {
        match text[at + 1..].chars().next() {
            Some(kind @ ('{' | '%' | '#')) => return Some((at, kind)),
            _ => from = at + 1,
        }
    }
    None
}

fn number_len(text: &str) -> usize {
    let digits = |from: usize| {
        let is_digit = |c: char| c.is_ascii_digit() || c == '_';
        text[from..].find(|c| !is_digit(c)).map_or(text.len(), |len| from + len)
    };
    if let [b'0', b'x' | b'X' | b'o' | b'O' | b'b' | b'B', _, ..] = text.as_bytes() {
        let is_digit = |c: char| c.is_ascii_hexdigit() || c == '_';
        return text[2..].find(|c| !is_digit(c)).map_or(text.len(), |len| 2 + len);
    }
    let starts_digit = |at: usize| text[at..].starts_with(|c: char| c.is_ascii_digit());
    let mut end = digits(0);
    if text[end..].starts_with('.') && starts_digit(end + 1) {
        end = digits(end + 1);
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        if starts_digit(end + 1 + sign) {
            end = digits(end + 1 + sign);
        }
    }
    end
}

/// Python's escapes in a string.
fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let escape = chars.next().ok_or("a string without an end")?;
        let code = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>, len: usize| {
            let digits: String = chars.by_ref().take(len).collect();
            let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == len);
            code.and_then(char::from_u32)
                .ok_or_else(|| format!("the escape \\{escape}{digits} is no character"))
        };
        match escape {
            '\n' => {}
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'v' => out.push('\u{b}'),
            '\\' | '\'' | '"' => out.push(escape),
            'x' => out.push(code(&mut chars, 2)?),
            'u' => out.push(code(&mut chars, 4)?),
            'U' => out.push(code(&mut chars, 8)?),
            '0'..='7' => {
                let mut value = escape.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    value = value * 8 + digit;
                    chars.next();
                }
                out.push(char::from_u32(value).unwrap_or('\u{fffd}'));
            }
            other => out.extend(['\\', other]),
        }
    }
    Ok(out)
}
