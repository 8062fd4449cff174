//! Rate limits as people write and read them: `none`, `10 MB/s`, `80 Mbit/s`. No limiting is done here.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A limit in bytes per second, or none.
///
/// Reads a number (with a fraction, if need be) and a unit per second: `B`, `kB`, `MB`, `GB` (powers of 1,000), `KiB`, `MiB`,
/// `GiB` (powers of 1,024), `kbit`, `Mbit`, `Gbit` (bits); `/s` may be left out, capitals do not matter. Prints a form that reads back as the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RateLimit(pub Option<u64>);

/// Less is taken for a mistake of units.
const LEAST_BYTES_PER_SECOND: f64 = 1_000.0;
/// More than any link carries, and far from where a double loses whole numbers.
const MOST_BYTES_PER_SECOND: f64 = 1e12;

/// Units, the ones to print first.
const UNITS: [(&str, f64); 10] = [
    ("GB", 1e9),
    ("MB", 1e6),
    ("kB", 1e3),
    ("GiB", 1_073_741_824.0),
    ("MiB", 1_048_576.0),
    ("KiB", 1_024.0),
    ("B", 1.0),
    ("kbit", 125.0),
    ("Mbit", 125e3),
    ("Gbit", 125e6),
];

/// What a rate limit must be, for messages.
const FORM: &str = "must be \"none\" or a rate from 1 kB/s to 1000 GB/s, such as \"10 MB/s\" or \"80 Mbit/s\"";

impl FromStr for RateLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("none") {
            return Ok(RateLimit(None));
        }
        let wrong = || format!("{FORM}, not \"{}\"", text.chars().take(40).collect::<String>().escape_debug());
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let unit = unit.strip_suffix("/s").unwrap_or(unit).trim_end();
        let factor = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1;
        let rate = number.parse::<f64>().map_err(|_| wrong())? * factor;
        if !(LEAST_BYTES_PER_SECOND..=MOST_BYTES_PER_SECOND).contains(&rate) {
            return Err(wrong());
        }
        Ok(RateLimit(Some(rate.round() as u64)))
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rate) = self.0 else { return f.write_str("none") };
        let whole = UNITS.iter().find(|(_, factor)| rate > 0 && rate % *factor as u64 == 0);
        let (unit, factor) = whole.map_or(("B", 1), |(unit, factor)| (*unit, *factor as u64));
        write!(f, "{} {unit}/s", rate / factor)
    }
}

impl TryFrom<String> for RateLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RateLimit> for String {
    fn from(limit: RateLimit) -> String {
        limit.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_as_people_write_them() {
        for (text, rate) in [
            ("none", None),
            ("10 MB/s", Some(10_000_000)),
            ("10MB", Some(10_000_000)),
            ("1.5 mb/s", Some(1_500_000)),
            ("80 Mbit/s", Some(10_000_000)),
            ("512KiB", Some(524_288)),
            (" 123457 B/s ", Some(123_457)),
        ] {
            let limit: RateLimit = text.parse().unwrap();
            assert_eq!(limit.0, rate, "{text}");
            assert_eq!(limit.to_string().parse::<RateLimit>().unwrap(), limit, "{text} as {limit}");
        }
        for (rate, text) in
            [(10_000_000, "10 MB/s"), (1 << 20, "1 MiB/s"), (1_500_000, "1500 kB/s"), (1_001, "1001 B/s")]
        {
            assert_eq!(RateLimit(Some(rate)).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_rate_is_told_so() {
        for text in [
            "",
            "10",
            "ten MB/s",
            "10 MB/h",
            "-1 MB/s",
            "0 MB/s",
            "999 B",
            "2000 GB/s",
            "1e9 B",
            "1.2.3 MB",
            "∞",
            "NaN B",
        ] {
            let error = text.parse::<RateLimit>().unwrap_err();
            assert!(error.starts_with("must be \"none\" or a rate"), "{text}: {error}");
        }
    }
}
