//! What `strftime_now` tells: the time of day and Python's directives for it, in the C locale.

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
#[derive(Debug, Clone, Copy)]
pub struct Moment {
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
    /// Seconds since 1970.
    pub fn of(unix_seconds: u64) -> Self {
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

    /// Python's `strftime`; a directive that is not known stays as it stands, as glibc has it.
    pub(in crate::jinja) fn strftime(&self, format: &str) -> String {
        let mut out = String::with_capacity(format.len() * 2);
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let behind = &rest[at + 1..];
            let flag = behind.chars().next().filter(|c| matches!(c, '-' | '_' | '0' | '^'));
            let mut chars = behind[usize::from(flag.is_some())..].chars();
            let Some(field) = chars.next().and_then(|directive| self.field(directive)) else {
                out.push('%');
                rest = behind;
                continue;
            };
            match flag {
                Some('-') => out.push_str(without_padding(&field)),
                Some('_') => out.push_str(&spaced(&field)),
                Some('0') => out.push_str(&field.replacen(' ', "0", 1)),
                Some('^') => out.push_str(&field.to_uppercase()),
                _ => out.push_str(&field),
            }
            rest = chars.as_str();
        }
        out + rest
    }

    fn field(&self, directive: char) -> Option<String> {
        self.date_field(directive).or_else(|| self.time_field(directive)).or_else(|| {
            Some(match directive {
                'D' | 'x' => self.strftime("%m/%d/%y"),
                'X' | 'T' => self.strftime("%H:%M:%S"),
                'c' => self.strftime("%a %b %e %H:%M:%S %Y"),
                'F' => self.strftime("%Y-%m-%d"),
                'R' => self.strftime("%H:%M"),
                'r' => self.strftime("%I:%M:%S %p"),
                // Python's time of day has no zone.
                'Z' | 'z' => String::new(),
                'n' => "\n".to_owned(),
                't' => "\t".to_owned(),
                '%' => "%".to_owned(),
                _ => return None,
            })
        })
    }

    fn date_field(&self, directive: char) -> Option<String> {
        let (month, day) = (MONTHS[self.month - 1], DAYS[self.weekday]);
        let from_sunday = (self.weekday as u64 + 1) % 7;
        let (iso_year, iso_week) = self.iso_week();
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'C' => format!("{:02}", self.year / 100),
            'G' => iso_year.to_string(),
            'g' => format!("{:02}", iso_year % 100),
            'V' => format!("{iso_week:02}"),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'U' => format!("{:02}", (self.day_of_year + 6 - from_sunday) / 7),
            'W' => format!("{:02}", (self.day_of_year + 6 - self.weekday as u64) / 7),
            'w' => from_sunday.to_string(),
            'u' => (self.weekday + 1).to_string(),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            _ => return None,
        })
    }

    fn time_field(&self, directive: char) -> Option<String> {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        let half = if hour < 12 { "AM" } else { "PM" };
        Some(match directive {
            'H' => format!("{hour:02}"),
            'k' => format!("{hour:2}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'l' => format!("{:2}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => "000000".to_owned(),
            'p' => half.to_owned(),
            'P' => half.to_lowercase(),
            _ => return None,
        })
    }

    /// The year and week of ISO 8601: weeks begin on Monday, and the first has the year's first Thursday.
    fn iso_week(&self) -> (u64, u64) {
        let is_leap =
            |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
        let thursday =
            (self.day_of_year + 3).checked_sub(self.weekday as u64).filter(|day| *day > 0);
        let len = 365 + u64::from(is_leap(self.year));
        match thursday {
            Some(day) if day > len => (self.year + 1, 1),
            Some(day) => (self.year, (day - 1) / 7 + 1),
            None => {
                let before = 365 + u64::from(is_leap(self.year - 1));
                let day = before + self.day_of_year + 3 - self.weekday as u64;
                (self.year - 1, (day - 1) / 7 + 1)
            }
        }
    }
}

fn without_padding(field: &str) -> &str {
    let trimmed = field.trim_start_matches(['0', ' ']);
    if trimmed.is_empty() { &field[field.len().saturating_sub(1)..] } else { trimmed }
}

/// Zeros in front as spaces.
fn spaced(field: &str) -> String {
    let bare = without_padding(field);
    format!("{bare:>width$}", width = field.len())
}
