//! Python's `%` and `format`: one value in the form that a specification asks for.

use std::borrow::Cow;

use super::super::budget::{Budget, Evaluated, RenderError};
use super::display;
use super::numbers::{self, overflow};
use super::strings::padded;
use super::value::PyValue;

/// The most decimals that a number is printed with.
const MAX_PRECISION: usize = 1_000;

/// How one value is to be printed.
#[derive(Debug, Clone)]
struct Spec {
    fill: char,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    grouping: Option<char>,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            fill: ' ',
            align: None,
            sign: None,
            alternate: false,
            grouping: None,
            width: 0,
            precision: None,
            kind: None,
        }
    }
}

/// `text % arguments`
pub(in crate::jinja) fn percent(
    text: &str,
    arguments: &PyValue,
    budget: &Budget,
) -> Evaluated<String> {
    let mut values = match arguments {
        PyValue::Tuple(items) => items.items.clone(),
        other => vec![other.clone()],
    }
    .into_iter();
    // Of what has items by a key, not all need be used.
    let mut uses_names = matches!(
        arguments,
        PyValue::Dict(_) | PyValue::List(_) | PyValue::Range(..) | PyValue::Undefined(_)
    );
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let mut chars = rest[at + 1..].chars().peekable();
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let name: String = chars.by_ref().take_while(|c| *c != ')').collect();
            let PyValue::Dict(dict) = arguments else {
                return Err(RenderError::failed("format requires a mapping"));
            };
            let found = dict.get_str(&name).cloned();
            named = Some(found.ok_or_else(|| RenderError::failed(format!("KeyError: '{name}'")))?);
            uses_names = true;
        }
        let spec = percent_spec(&mut chars, &mut values)?;
        if spec.kind == Some('%') {
            out.push('%');
        } else {
            let next = || RenderError::failed("not enough arguments for format string");
            let value = match named {
                Some(value) => value,
                None => values.next().ok_or_else(next)?,
            };
            out.push_str(&percent_value(&value, spec, budget)?);
        }
        let left: usize = chars.map(char::len_utf8).sum();
        rest = &rest[rest.len() - left..];
        budget.step(1)?;
    }
    out.push_str(rest);
    if values.next().is_some() && !uses_names {
        return Err(RenderError::failed("not all arguments converted during string formatting"));
    }
    Ok(out)
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn percent_spec(
    chars: &mut Chars<'_>,
    values: &mut impl Iterator<Item = PyValue>,
) -> Evaluated<Spec> {
    let mut spec = Spec::default();
    let mut is_zeroed = false;
    while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
        match flag {
            '-' => spec.align = Some('<'),
            '#' => spec.alternate = true,
            '0' => is_zeroed = true,
            sign => spec.sign = if spec.sign == Some('+') { spec.sign } else { Some(sign) },
        }
    }
    let star = |chars: &mut Chars<'_>, values: &mut dyn Iterator<Item = PyValue>| {
        if chars.next_if_eq(&'*').is_none() {
            return Ok(None);
        }
        let value = values.next().as_ref().and_then(PyValue::as_int);
        value.map(Some).ok_or_else(|| RenderError::failed("* wants int"))
    };
    match star(chars, values)? {
        Some(width) => {
            spec.align = if width < 0 { Some('<') } else { spec.align };
            spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        }
        None => spec.width = number(chars)?.unwrap_or(0),
    }
    if chars.next_if_eq(&'.').is_some() {
        spec.precision = match star(chars, values)? {
            Some(precision) => Some(numbers::count_of(precision)),
            None => Some(number(chars)?.unwrap_or(0)),
        };
    }
    while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
    let kind = chars.next().ok_or_else(|| RenderError::failed("incomplete format"))?;
    spec.kind = Some(kind);
    let is_number = "diuxXoeEfFgG".contains(kind);
    if is_zeroed && spec.align.is_none() && is_number {
        (spec.fill, spec.align) = ('0', Some('='));
    }
    spec.align = spec.align.or(Some('>'));
    Ok(spec)
}

fn percent_value(value: &PyValue, spec: Spec, budget: &Budget) -> Evaluated<String> {
    let kind = spec.kind.unwrap_or('s');
    let text = match kind {
        's' => display::text(value, budget)?,
        'r' => display::repr(value, budget)?.into(),
        'a' => ascii(&display::repr(value, budget)?).into(),
        'c' => match value {
            PyValue::Str(text) if text.chars().count() == 1 => Cow::Borrowed(&**text),
            other => character(other)?.into(),
        },
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let whole = match value {
                PyValue::Float(value) if matches!(kind, 'd' | 'i' | 'u') => {
                    Some(numbers::truncated(*value).ok_or_else(overflow)?)
                }
                other => other.as_int(),
            };
            let Some(whole) = whole else {
                let name = value.type_name();
                let text = format!("%{kind} format: a real number is required, not {name}");
                return Err(RenderError::failed(text));
            };
            let kind = if matches!(kind, 'i' | 'u') { 'd' } else { kind };
            return int_text(whole, &Spec { kind: Some(kind), ..spec }, budget);
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(number) = value.as_float() else {
                let name = value.type_name();
                return Err(RenderError::failed(format!("must be real number, not {name}")));
            };
            return float_text(number, &spec, budget);
        }
        other => {
            return Err(RenderError::failed(format!("unsupported format character '{other}'")));
        }
    };
    aligned(cut(&text, spec.precision), &spec, budget)
}

/// `format(value, spec)`, the specification in Python's small language.
pub(in crate::jinja) fn formatted(
    value: &PyValue,
    spec: &str,
    budget: &Budget,
) -> Evaluated<String> {
    if spec.is_empty() {
        return display::text(value, budget).map(Cow::into_owned);
    }
    let spec = parse_spec(spec)?;
    let is_float_kind = matches!(spec.kind, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%'));
    match value {
        PyValue::Str(text) => {
            if !matches!(spec.kind, None | Some('s'))
                || spec.sign.is_some()
                || spec.align == Some('=')
            {
                return Err(RenderError::failed("this format is not for a string"));
            }
            let align = spec.align.or(Some('<'));
            aligned(cut(text, spec.precision), &Spec { align, ..spec }, budget)
        }
        PyValue::Float(number) => float_text(*number, &spec, budget),
        PyValue::Int(_) | PyValue::Bool(_) if is_float_kind => {
            float_text(value.as_float().unwrap_or_default(), &spec, budget)
        }
        PyValue::Int(number) => int_text(*number, &spec, budget),
        PyValue::Bool(flag) if spec.kind.is_some() => int_text((*flag).into(), &spec, budget),
        PyValue::Bool(_) => {
            let align = spec.align.or(Some('>'));
            aligned(&display::text(value, budget)?, &Spec { align, ..spec }, budget)
        }
        other => {
            let name = other.type_name();
            let text = format!("unsupported format string passed to {name}.__format__");
            Err(RenderError::failed(text))
        }
    }
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
fn parse_spec(text: &str) -> Evaluated<Spec> {
    let mut spec = Spec::default();
    let is_align = |c: char| matches!(c, '<' | '>' | '=' | '^');
    let mut chars = text.chars().peekable();
    let second = text.chars().nth(1);
    if let Some(align) = second.filter(|c| is_align(*c)) {
        spec.fill = chars.next().unwrap_or(' ');
        chars.next();
        spec.align = Some(align);
    } else {
        spec.align = chars.next_if(|c| is_align(*c));
    }
    spec.sign = chars.next_if(|c| "+- ".contains(*c));
    spec.alternate = chars.next_if_eq(&'#').is_some();
    if chars.next_if_eq(&'0').is_some() && spec.align.is_none() {
        (spec.fill, spec.align) = ('0', Some('='));
    }
    spec.width = number(&mut chars)?.unwrap_or(0);
    spec.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
    if chars.next_if_eq(&'.').is_some() {
        let precision = number(&mut chars)?;
        spec.precision = Some(
            precision.ok_or_else(|| RenderError::failed("Format specifier missing precision"))?,
        );
    }
    spec.kind = chars.next();
    if chars.next().is_some() {
        return Err(RenderError::failed("Invalid format specifier"));
    }
    Ok(spec)
}

fn number(chars: &mut Chars<'_>) -> Evaluated<Option<usize>> {
    let mut value: Option<usize> = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        let shifted = value.unwrap_or(0).checked_mul(10);
        value = shifted.and_then(|shifted| shifted.checked_add(digit as usize));
        if value.is_none() {
            return Err(RenderError::failed("Too many decimal digits in format string"));
        }
    }
    Ok(value)
}

fn cut(text: &str, precision: Option<usize>) -> &str {
    let end = precision.and_then(|most| text.char_indices().nth(most));
    end.map_or(text, |(end, _)| &text[..end])
}

fn aligned(text: &str, spec: &Spec, budget: &Budget) -> Evaluated<String> {
    let room = spec.width.saturating_sub(text.chars().count());
    let margins = match spec.align {
        Some('<') => (0, room),
        Some('^') => (room / 2, room - room / 2),
        _ => (room, 0),
    };
    padded(text, spec.fill, margins, budget)
}

/// A number's sign, prefix and digits in their width.
fn numeral(
    (is_negative, prefix): (bool, &str),
    digits: &str,
    spec: &Spec,
    budget: &Budget,
) -> Evaluated<String> {
    let sign = match (is_negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let digits = match spec.grouping {
        Some(separator) => grouped(digits, separator),
        None => digits.to_owned(),
    };
    let front = format!("{sign}{prefix}");
    if spec.align == Some('=') {
        let room = spec.width.saturating_sub(front.len() + digits.len());
        let digits = padded(&digits, spec.fill, (room, 0), budget)?;
        return Ok(front + &digits);
    }
    aligned(&(front + &digits), spec, budget)
}

fn grouped(digits: &str, separator: char) -> String {
    let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut out = String::new();
    for (at, c) in digits[..whole].chars().enumerate() {
        if at > 0 && (whole - at).is_multiple_of(3) {
            out.push(separator);
        }
        out.push(c);
    }
    out + &digits[whole..]
}

fn int_text(value: i128, spec: &Spec, budget: &Budget) -> Evaluated<String> {
    let size = value.unsigned_abs();
    let (prefix, mut digits) = match spec.kind {
        None | Some('d' | 'n') => ("", size.to_string()),
        Some('x') => ("0x", format!("{size:x}")),
        Some('X') => ("0X", format!("{size:X}")),
        Some('o') => ("0o", format!("{size:o}")),
        Some('b') => ("0b", format!("{size:b}")),
        Some('c') => return aligned(&character(&PyValue::Int(value))?, spec, budget),
        Some(other) => {
            let text = format!("Unknown format code '{other}' for object of type 'int'");
            return Err(RenderError::failed(text));
        }
    };
    if let Some(least) = spec.precision {
        let zeros = least.saturating_sub(digits.len());
        digits = padded(&digits, '0', (zeros, 0), budget)?;
    }
    let prefix = if spec.alternate { prefix } else { "" };
    numeral((value < 0, prefix), &digits, spec, budget)
}

fn float_text(value: f64, spec: &Spec, budget: &Budget) -> Evaluated<String> {
    let precision = spec.precision.unwrap_or(6);
    if precision > MAX_PRECISION {
        return Err(RenderError::failed(format!("a precision of more than {MAX_PRECISION}")));
    }
    let size = value.abs();
    let digits = match spec.kind {
        _ if !size.is_finite() => numbers::float_text(size),
        Some('e' | 'E') => numbers::scientific(size, precision),
        Some('f' | 'F') => format!("{size:.precision$}"),
        Some('%') => format!("{:.precision$}%", size * 100.0),
        Some('g' | 'G' | 'n') => numbers::general(size, precision.max(1), spec.alternate),
        None => match spec.precision {
            None => numbers::float_text(size),
            Some(precision) => {
                let text = numbers::general(size, precision.max(1), false);
                if text.contains(['.', 'e']) { text } else { text + ".0" }
            }
        },
        Some(other) => {
            let text = format!("Unknown format code '{other}' for object of type 'float'");
            return Err(RenderError::failed(text));
        }
    };
    let is_large = matches!(spec.kind, Some('E' | 'F' | 'G'));
    let digits = if is_large { digits.to_uppercase() } else { digits };
    numeral((value.is_sign_negative() && !value.is_nan(), ""), &digits, spec, budget)
}

fn character(value: &PyValue) -> Evaluated<String> {
    let code = value.as_int().and_then(|code| u32::try_from(code).ok());
    let c = code.and_then(char::from_u32);
    c.map(String::from)
        .ok_or_else(|| RenderError::failed("%c requires an int in range or a unicode character"))
}

pub(in crate::jinja) fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            display::write_escape(c, &mut out);
        }
    }
    out
}
