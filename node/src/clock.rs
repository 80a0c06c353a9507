//! Dates and times of messages, in UTC: the time zone database is the C library's, which safe code cannot ask.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    pub seconds: u64,
    pub nanoseconds: u32,
    year: i64,
    month: u32,
    day: u32,
    day_of_year: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Utc {
    /// Times before 1970 count as 1970.
    pub fn of(time: SystemTime) -> Utc {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let days = (since.as_secs() / 86_400) as i64;
        let second_of_day = (since.as_secs() % 86_400) as u32;
        let (year, month, day) = date_of(days);
        let (new_year, _, _) = (days_before(year), month, day);
        Utc {
            seconds: since.as_secs(),
            nanoseconds: since.subsec_nanos(),
            year,
            month,
            day,
            day_of_year: (days - new_year) as u32 + 1,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// `2016-08-10T09:47:38+0000`
    pub fn iso8601(&self) -> String {
        format!("{}T{}+0000", self.date(), self.time())
    }

    /// `2016-08-10T09:47:38.786368+0000`
    pub fn iso8601_micros(&self) -> String {
        format!("{}T{}.{:06}+0000", self.date(), self.time(), self.nanoseconds / 1000)
    }

    /// What strftime prints for `%` and this letter, and `N` for nanoseconds; `None` for letters not known here.
    pub fn strftime(&self, letter: char) -> Option<String> {
        Some(match letter {
            'Y' => format!("{:04}", self.year),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{:02}", (self.hour + 11) % 12 + 1),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            's' => self.seconds.to_string(),
            'N' => format!("{:09}", self.nanoseconds),
            'F' => self.date(),
            'D' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'T' => self.time(),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            'b' | 'h' => MONTHS[self.month as usize - 1].to_owned(),
            'a' => DAYS[((self.seconds / 86_400 + 4) % 7) as usize].to_owned(),
            'z' => "+0000".to_owned(),
            'Z' => "UTC".to_owned(),
            _ => return None,
        })
    }

    fn date(&self) -> String {
        format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }

    fn time(&self) -> String {
        format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second)
    }
}

/// Days from 1970-01-01 to the first of January of `year`, 1970 or later.
fn days_before(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past / 4 - past / 100 + past / 400 - DAYS_BEFORE_1970
}

fn date_of(days: i64) -> (i64, u32, u32) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let is_leap = days_before(year + 1) - days_before(year) == 366;
    let mut day = (days - days_before(year)) as u32;
    let mut month = 0;
    for length in [31, 28 + u32::from(is_leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month + 1, day + 1)
}

/// From 0001-01-01.
const DAYS_BEFORE_1970: i64 = 719_162;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_those_of_date() {
        let check = |seconds: u64, expected: &str| {
            let utc = Utc::of(UNIX_EPOCH + Duration::new(seconds, 7_000));
            let told: Vec<String> = "FTja".chars().filter_map(|letter| utc.strftime(letter)).collect();
            assert_eq!(told.join(" "), expected, "{seconds}");
        };
        // As `date -u -d @SECONDS '+%F %T %j %a'` prints them.
        check(0, "1970-01-01 00:00:00 001 Thu");
        check(951_782_399, "2000-02-28 23:59:59 059 Mon");
        check(951_782_400, "2000-02-29 00:00:00 060 Tue");
        check(978_307_199, "2000-12-31 23:59:59 366 Sun");
        check(1_470_818_943, "2016-08-10 08:49:03 223 Wed");
        check(1_795_520_042, "2026-11-24 11:34:02 328 Tue");
        check(4_107_542_400, "2100-03-01 00:00:00 060 Mon");
        let utc = Utc::of(UNIX_EPOCH + Duration::new(1_470_818_943, 786_368_637));
        assert_eq!(utc.iso8601(), "2016-08-10T08:49:03+0000");
        assert_eq!(utc.iso8601_micros(), "2016-08-10T08:49:03.786368+0000");
        assert_eq!(utc.strftime('Q'), None);
    }
}
