//! Python's numbers: how floats are printed, rounded and read, and the arithmetic whose signs differ from Rust's.

use super::super::budget::{Evaluated, RenderError};
use super::value::PyValue;

/// Python's `repr` of a float: the shortest digits that read back as it, with an exponent below 1e-4 and from 1e16 on.
pub(in crate::jinja) fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = split_exponent(&scientific);
    if !(-4..=15).contains(&exponent) {
        return format!("{digits}{}", exponent_text(exponent));
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// What stands before Rust's `e`, and the number behind it.
fn split_exponent(scientific: &str) -> (&str, i32) {
    let (digits, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    (digits, exponent.parse().unwrap_or(0))
}

/// `e+20`, `e-07`
fn exponent_text(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("e{sign}{:02}", exponent.unsigned_abs())
}

/// The sign of a remainder is the divisor's.
pub(in crate::jinja) fn int_remainder(a: i128, b: i128) -> Option<i128> {
    let remainder = a.checked_rem(b)?;
    Some(if remainder != 0 && (remainder < 0) != (b < 0) { remainder + b } else { remainder })
}

/// Rounded down.
pub(in crate::jinja) fn int_quotient(a: i128, b: i128) -> Option<i128> {
    let quotient = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
}

pub(in crate::jinja) fn float_remainder(a: f64, b: f64) -> f64 {
    let remainder = a % b;
    if remainder != 0.0 && (remainder < 0.0) != (b < 0.0) {
        remainder + b
    } else if remainder == 0.0 {
        0.0_f64.copysign(b)
    } else {
        remainder
    }
}

/// Python's `round(value, digits)`: the nearest decimal, of two equally near ones the even.
pub(in crate::jinja) fn round(value: f64, digits: i128) -> f64 {
    if !value.is_finite() {
        return value;
    }
    if let Ok(digits @ 0..=330) = usize::try_from(digits) {
        return format!("{value:.digits$}").parse().unwrap_or(value);
    }
    if digits >= 0 {
        return value;
    }
    let power = 10_f64.powi(i32::try_from(-digits).unwrap_or(400).min(400));
    let rounded = (value / power).round_ties_even() * power;
    if power.is_infinite() { 0.0_f64.copysign(value) } else { rounded }
}

/// Python's `int(text, base)`: spaces around it, underscores inside.
pub(in crate::jinja) fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_lowercase();
    let (base, digits) = match (base, lower.get(..2)) {
        (16 | 0, Some("0x")) => (16, &lower[2..]),
        (8 | 0, Some("0o")) => (8, &lower[2..]),
        (2 | 0, Some("0b")) => (2, &lower[2..]),
        (0, _) => (10, lower.as_str()),
        (base, _) => (base, lower.as_str()),
    };
    let is_spaced = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    if is_spaced || digits.starts_with(['+', '-']) || !(2..=36).contains(&base) {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), base).ok()
}

/// Python's `float(text)`.
pub(in crate::jinja) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim().replace('_', "");
    text.parse().ok()
}

/// A whole float as an int.
pub(in crate::jinja) fn truncated(value: f64) -> Option<i128> {
    (value.is_finite() && value.abs() < 1e38).then_some(value.trunc() as i128)
}

pub(in crate::jinja) fn overflow() -> RenderError {
    RenderError::failed("a whole number of more than 127 bits")
}

/// So many; none of what is below 0.
pub(in crate::jinja) fn count_of(value: i128) -> usize {
    usize::try_from(value.max(0)).unwrap_or(usize::MAX)
}

/// # Errors
/// Where the value is no number.
pub(in crate::jinja) fn needs_int(value: &PyValue) -> Evaluated<i128> {
    let message = || format!("'{}' object cannot be interpreted as an integer", value.type_name());
    value.as_int().ok_or_else(|| RenderError::failed(message()))
}

/// With one digit before the point, and an exponent.
pub(in crate::jinja) fn scientific(size: f64, precision: usize) -> String {
    let text = format!("{size:.precision$e}");
    let (digits, exponent) = split_exponent(&text);
    format!("{digits}{}", exponent_text(exponent))
}

/// So many digits that count, without zeros at the end, with an exponent where the number is very small or large.
pub(in crate::jinja) fn general(size: f64, precision: usize, keeps_zeros: bool) -> String {
    let text = format!("{size:.digits$e}", digits = precision - 1);
    let (digits, exponent) = split_exponent(&text);
    let short = |digits: &str| {
        if keeps_zeros || !digits.contains('.') {
            return digits.to_owned();
        }
        digits.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if exponent < -4 || exponent >= precision as i32 {
        return short(digits) + &exponent_text(exponent);
    }
    let decimals = (precision as i32 - 1 - exponent).max(0) as usize;
    short(&format!("{size:.decimals$}"))
}
