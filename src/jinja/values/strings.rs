//! What several filters and methods do with strings.

use super::super::budget::{Budget, Evaluated};
use super::display;
use super::value::PyValue;

/// Python's `str.isspace` of one character.
pub(in crate::jinja) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The texts of values with a separator between them.
pub(in crate::jinja) fn join(
    values: &[PyValue],
    separator: &str,
    budget: &Budget,
) -> Evaluated<PyValue> {
    let mut out = String::new();
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            budget.build(separator.len())?;
            out.push_str(separator);
        }
        display::write(value, &mut out, budget)?;
    }
    PyValue::text(out, budget)
}

/// The first letter large, the others small.
pub(in crate::jinja) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect()
}

/// Python's `str.islower`.
pub(in crate::jinja) fn is_lower(text: &str) -> bool {
    has_case(text) && !text.chars().any(char::is_uppercase)
}

/// Python's `str.isupper`.
pub(in crate::jinja) fn is_upper(text: &str) -> bool {
    has_case(text) && !text.chars().any(char::is_lowercase)
}

/// Whether some letter is small or large.
pub(in crate::jinja) fn has_case(text: &str) -> bool {
    text.chars().any(|c| c.is_lowercase() || c.is_uppercase())
}

/// Python's `str.title`: each letter that follows none is large.
pub(in crate::jinja) fn titled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut follows_letter = false;
    for c in text.chars() {
        if follows_letter {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        follows_letter = c.is_alphabetic();
    }
    out
}

/// Jinja's filter `title`: the beginning of each word, where words end at spaces, hyphens and opening brackets.
pub(in crate::jinja) fn words_titled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        let ends_word = is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
        if begins && !ends_word {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        begins = ends_word;
    }
    out
}

/// A text between `left` and `right` fill characters.
///
/// # Errors
/// Where the budget has no room for it.
pub(in crate::jinja) fn padded(
    text: &str,
    fill: char,
    (left, right): (usize, usize),
    budget: &Budget,
) -> Evaluated<String> {
    let fills = left.saturating_add(right);
    budget.build(fills.saturating_mul(fill.len_utf8()).saturating_add(text.len()))?;
    let fill = |count| std::iter::repeat_n(fill, count);
    Ok(fill(left).chain(text.chars()).chain(fill(right)).collect())
}

/// How much stands on each side of a text in the middle of `width`, as Python shares it.
pub(in crate::jinja) fn margins(len: usize, width: usize) -> (usize, usize) {
    let margin = width.saturating_sub(len);
    let left = margin / 2 + (margin & width & 1);
    (left, margin - left)
}

/// For HTML.
pub(in crate::jinja) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Python's `str.splitlines`; `keeps_ends`: with the ends of the lines.
pub(in crate::jinja) fn lines(text: &str, keeps_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_end) {
        let c = rest[end..].chars().next().map_or(1, char::len_utf8);
        let len = if rest[end..].starts_with("\r\n") { 2 } else { c };
        lines.push(&rest[..if keeps_ends { end + len } else { end }]);
        rest = &rest[end + len..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Percent-encoding of all but letters, digits, `_.-~` and `safe`.
pub(in crate::jinja) fn url_quoted(text: &str, safe: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte);
        if is_plain || safe.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
