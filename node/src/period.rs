//! A stretch of time as people write it in settings and flags.

/// A time such as `90`, `90s`, `15m`, `12h`, `7d` or `4w`, in seconds; never zero.
///
/// # Errors
/// A sentence that says how a time is written.
pub fn period(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err("a time is a number with s, m, h, d or w behind it, as in 12h".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a time begins with a number, as in 12h".to_owned())?;
    number.checked_mul(unit).filter(|&seconds| seconds > 0).ok_or("this time is out of range".to_owned())
}

/// The shortest way to write it.
pub(crate) fn shown(seconds: u64) -> String {
    let units = [(7 * 86_400, "w"), (86_400, "d"), (3600, "h"), (60, "m")];
    let fits = units.into_iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit));
    fits.map_or_else(|| format!("{seconds}s"), |(unit, letter)| format!("{}{letter}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(
            ["90", "90s", "15m", "12h", "7d", "4w"].map(|text| period(text).unwrap()),
            [90, 90, 900, 43_200, 604_800, 2_419_200]
        );
        for bad in ["", "h", "0", "1y", "1.5h", "-1", "99999999999999999999", "9999999999999999w", "7 d"] {
            assert!(period(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_means_what_was_written() {
        for text in ["1s", "90s", "15m", "36h", "30d", "4w"] {
            let seconds = period(text).unwrap();
            assert_eq!(period(&shown(seconds)).unwrap(), seconds, "{text}");
        }
        assert_eq!(shown(30 * 86_400), "30d");
    }
}
