//! Methods of strings that give another form of them, or say of what kind they are.

use super::super::budget::{Budget, Evaluated, RenderError};
use super::super::calls::{CallArguments, given, int_or, required, text, text_or};
use super::super::display::is_printable;
use super::super::numbers::{count_of, needs_int};
use super::super::strings::{
    self, capitalized, has_case, is_lower, is_space, is_upper, margins, padded, titled,
};
use super::super::value::PyValue;

pub(super) const NAMES: [&str; 31] = [
    "capitalize",
    "casefold",
    "center",
    "encode",
    "expandtabs",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "removeprefix",
    "removesuffix",
    "rjust",
    "rstrip",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "__str__",
];

pub(super) fn call(
    own: &str,
    name: &str,
    arguments: CallArguments,
    budget: &Budget,
) -> Evaluated<PyValue> {
    budget.step(own.len() as u64 / 64)?;
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = arguments.bind(name, ["chars"])?;
            stripped(own, name, chars, budget)
        }
        "ljust" | "rjust" | "center" | "zfill" => in_width(own, name, arguments, budget),
        "removeprefix" | "removesuffix" => {
            let [part] = arguments.bind(name, ["part"])?;
            let part = required(part, name, "part")?;
            let part = text(&part)?;
            let rest = match name {
                "removeprefix" => own.strip_prefix(part),
                _ => own.strip_suffix(part),
            };
            PyValue::text(rest.unwrap_or(own), budget)
        }
        "join" => {
            let [items] = arguments.bind(name, ["iterable"])?;
            let items = required(items, name, "iterable")?.items(budget)?;
            for (at, item) in items.iter().enumerate() {
                if item.as_str().is_none() {
                    let kind = item.type_name();
                    let reason = format!("sequence item {at}: expected str instance, {kind} found");
                    return Err(RenderError::failed(reason));
                }
            }
            strings::join(&items, own, budget)
        }
        "encode" => {
            let [encoding, _] = arguments.bind(name, ["encoding", "errors"])?;
            let encoding = text_or(encoding, "utf-8")?;
            if !matches!(encoding.to_lowercase().as_str(), "utf-8" | "utf8") {
                return Err(RenderError::failed(format!("the encoding {encoding} is not known")));
            }
            budget.build(own.len())?;
            Ok(PyValue::Bytes(own.as_bytes().into()))
        }
        "expandtabs" => {
            let [size] = arguments.bind(name, ["tabsize"])?;
            with_tabs(own, count_of(int_or(size, 8)?), budget)
        }
        _ => {
            arguments.none(name)?;
            match is_of_kind(own, name) {
                Some(holds) => Ok(PyValue::Bool(holds)),
                None => PyValue::text(in_case(own, name), budget),
            }
        }
    }
}

/// Python's `strip`, `lstrip` and `rstrip`.
pub(in crate::jinja) fn stripped(
    own: &str,
    name: &str,
    chars: Option<PyValue>,
    budget: &Budget,
) -> Evaluated<PyValue> {
    let chars = given(chars);
    let chars = chars.as_ref().map(text).transpose()?;
    let is_stripped = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let left = if name == "rstrip" { own } else { own.trim_start_matches(is_stripped) };
    let rest = if name == "lstrip" { left } else { left.trim_end_matches(is_stripped) };
    PyValue::text(rest, budget)
}

fn in_width(
    own: &str,
    name: &str,
    arguments: CallArguments,
    budget: &Budget,
) -> Evaluated<PyValue> {
    let [width, fill] = arguments.bind(name, ["width", "fillchar"])?;
    let width = count_of(needs_int(&required(width, name, "width")?)?);
    let fill = text_or(fill, " ")?;
    let mut chars = fill.chars();
    let (Some(fill), None) = (chars.next(), chars.next()) else {
        return Err(RenderError::failed("The fill character must be exactly one character long"));
    };
    let len = own.chars().count();
    let room = width.saturating_sub(len);
    let text = match name {
        "ljust" => padded(own, fill, (0, room), budget)?,
        "rjust" => padded(own, fill, (room, 0), budget)?,
        "center" => padded(own, fill, margins(len, width), budget)?,
        _ => {
            let sign = own.chars().next().filter(|c| matches!(c, '+' | '-'));
            let digits = &own[usize::from(sign.is_some())..];
            let zeros = padded(digits, '0', (room, 0), budget)?;
            sign.into_iter().map(String::from).collect::<String>() + &zeros
        }
    };
    Ok(PyValue::from(text))
}

fn with_tabs(own: &str, size: usize, budget: &Budget) -> Evaluated<PyValue> {
    let mut out = String::new();
    let mut column: usize = 0;
    for c in own.chars() {
        match c {
            '\t' => {
                let spaces = column.checked_rem(size).map_or(0, |over| size - over);
                budget.build(spaces)?;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    PyValue::text(out, budget)
}

/// Another form of a text, by the method's name.
pub(in crate::jinja) fn in_case(own: &str, name: &str) -> String {
    match name {
        "capitalize" => capitalized(own),
        "title" => titled(own),
        "upper" => own.to_uppercase(),
        "lower" => own.to_lowercase(),
        "casefold" => own.replace(['ß', 'ẞ'], "ss").to_lowercase().replace('ς', "σ"),
        "swapcase" => {
            let mut out = String::with_capacity(own.len());
            for c in own.chars() {
                if c.is_uppercase() {
                    out.extend(c.to_lowercase());
                } else {
                    out.extend(c.to_uppercase());
                }
            }
            out
        }
        _ => own.to_owned(),
    }
}

fn is_of_kind(own: &str, name: &str) -> Option<bool> {
    let all = |holds: fn(char) -> bool| Some(!own.is_empty() && own.chars().all(holds));
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => Some(own.is_ascii()),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(|c| is_decimal(c) || matches!(c, '²' | '³' | '¹' | '⁰'..='⁹' | '₀'..='₉')),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isidentifier" => {
            let is_first = own.starts_with(|c: char| c == '_' || c.is_alphabetic());
            Some(is_first && own.chars().all(|c| c == '_' || c.is_alphanumeric()))
        }
        "isprintable" => Some(own.chars().all(is_printable)),
        "islower" => Some(is_lower(own)),
        "isupper" => Some(is_upper(own)),
        "istitle" => Some(has_case(own) && titled(own) == own),
        _ => None,
    }
}

/// A digit of a writing system in use.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 20] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
        0xe50, 0xed0, 0xf20, 0x1040, 0x17e0, 0x1810, 0xff10,
    ];
    let code = u32::from(c);
    c.is_ascii_digit() || ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}
