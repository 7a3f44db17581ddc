//! What `strftime_now` tells: Python's directives for a moment, in the C locale.

use time::OffsetDateTime;
use time::format_description::parse_strftime_owned;

/// Those that the `time` crate knows as glibc does.
const DIRECTIVES: &str = "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVWxXyY%";

/// Python's `strftime` of a moment, UTC; a directive that is not known stays as it stands, as glibc has it.
pub(in crate::jinja) fn strftime(now: OffsetDateTime, format: &str) -> String {
    let mut out = String::with_capacity(format.len() * 2);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let behind = rest.strip_prefix(['-', '_', '0', '^']).unwrap_or(rest);
        let flag = &rest[..rest.len() - behind.len()];
        let mut chars = behind.chars();
        match chars.next().and_then(|directive| field(now, flag, directive)) {
            Some(field) => {
                out.push_str(&field);
                rest = chars.as_str();
            }
            None => out.push('%'),
        }
    }
    out + rest
}

fn field(now: OffsetDateTime, flag: &str, directive: char) -> Option<String> {
    match directive {
        // Python's time of day has no zone.
        'Z' | 'z' => Some(String::new()),
        'f' => Some("000000".to_owned()),
        // The crate's own counts from 1.
        'w' => Some(now.weekday().number_days_from_sunday().to_string()),
        known if DIRECTIVES.contains(known) => {
            let is_large = flag == "^";
            let padding = if is_large { "" } else { flag };
            let format = parse_strftime_owned(&format!("%{padding}{known}")).ok()?;
            let field = now.format(&format).ok()?;
            Some(if is_large { field.to_uppercase() } else { field })
        }
        _ => None,
    }
}
