//! The functions and filters that Hugging Face gives to chat templates beside Jinja's own.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

/// `raise_exception`, `strftime_now` and Python's `tojson`.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The time is UTC: a node's answer must not depend on where its machine stands.
fn strftime_now(format: String) -> Result<String, Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(&format, seconds).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`: Jinja's own filter escapes for HTML, which would change the prompt.
fn tojson(value: Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // What Hugging Face's default is may be said again.
    if let Some(true) = arguments.get::<Option<bool>>("ensure_ascii")? {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: ensure_ascii=true is not known",
        ));
    }
    arguments.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let unit = " ".repeat(width);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(unit.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Python)),
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// Python puts a space after commas and colons.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A moment of the Gregorian calendar, UTC.
struct Moment {
    year: u64,
    /// 1 to 12.
    month: usize,
    /// 1 to 31.
    day: u64,
    /// 1 to 366.
    day_of_year: u64,
    /// 0 is Monday.
    weekday: usize,
    /// Seconds since midnight.
    second: u64,
}

impl Moment {
    fn of(unix_seconds: u64) -> Self {
        let is_leap =
            |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
        let days = unix_seconds / 86_400;
        let (mut year, mut left) = (1970, days);
        while left >= 365 + u64::from(is_leap(year)) {
            left -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let day_of_year = left + 1;
        let february = 28 + u64::from(is_leap(year));
        let mut month = 1;
        for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if left < len {
                break;
            }
            left -= len;
            month += 1;
        }
        // 1970 began on a Thursday.
        let weekday = ((days + 3) % 7) as usize;
        Self { year, month, day: left + 1, day_of_year, weekday, second: unix_seconds % 86_400 }
    }

    /// One directive of `strftime`, C locale.
    fn field(&self, directive: char) -> Option<String> {
        let (hour, minute) = (self.second / 3600, self.second / 60 % 60);
        let (month, day) = (MONTHS[self.month - 1], DAYS[self.weekday]);
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{:02}", self.second % 60),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{hour:02}:{minute:02}:{:02}", self.second % 60),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// Formats a moment; `%-d` leaves the zeros out.
fn strftime(format: &str, unix_seconds: u64) -> Result<String, String> {
    let moment = Moment::of(unix_seconds);
    let mut out = String::with_capacity(format.len() * 2);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (bare, directive) = match chars.next() {
            Some('-') => (true, chars.next()),
            other => (false, other),
        };
        let field = directive
            .and_then(|d| moment.field(d))
            .ok_or_else(|| format!("strftime_now: unknown directive in {format:?}"))?;
        out.push_str(if bare { without_padding(&field) } else { &field });
    }
    Ok(out)
}

fn without_padding(field: &str) -> &str {
    let trimmed = field.trim_start_matches(['0', ' ']);
    if trimmed.is_empty() { &field[field.len() - 1..] } else { trimmed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        add_to(&mut environment);
        let value = serde_json::json!({"b": [1, 2.5, null, true], "a": "<é> \"q\""});
        environment.render_str(source, minijinja::context! { value })
    }

    #[test]
    fn moments_are_what_date_says() {
        let full = "%A %a %d %B %b %Y %y-%m %H:%M:%S %I %p %j %e %F %T %Z%z %%";
        let cases = [
            (
                0,
                "Thursday Thu 01 January Jan 1970 70-01 00:00:00 12 AM 001  1 1970-01-01 00:00:00 UTC+0000 %",
            ),
            (
                951_827_696,
                "Tuesday Tue 29 February Feb 2000 00-02 12:34:56 12 PM 060 29 2000-02-29 12:34:56 UTC+0000 %",
            ),
            (
                1_735_689_599,
                "Tuesday Tue 31 December Dec 2024 24-12 23:59:59 11 PM 366 31 2024-12-31 23:59:59 UTC+0000 %",
            ),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime(full, seconds).as_deref(), Ok(expected));
        }
        assert_eq!(strftime("%-d.%-m. %-H", 0).as_deref(), Ok("1.1. 0"));
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("100%", 0).is_err());
    }

    #[test]
    fn json_is_spaced_as_python_spaces_it_and_not_escaped_for_html() {
        assert_eq!(
            render("{{ value|tojson }}").as_deref().ok(),
            Some(r#"{"a": "<é> \"q\"", "b": [1, 2.5, null, true]}"#)
        );
        assert_eq!(render("{{ [1]|tojson(indent=2) }}").ok().as_deref(), Some("[\n  1\n]"));
        assert!(render("{{ value|tojson(ensure_ascii=true) }}").is_err());
        assert!(render("{{ value|tojson(ensure_ascii=false) }}").is_ok());
        assert!(render("{{ value|tojson(colour=1) }}").is_err());
    }

    #[test]
    fn an_unknown_time_format_is_an_error_of_the_template() {
        assert!(render("{{ strftime_now('%Y') }}").is_ok_and(|year| year.len() == 4));
        assert!(render("{{ strftime_now('%Q') }}").is_err());
    }
}
