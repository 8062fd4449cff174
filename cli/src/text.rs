//! How values read: sizes, durations, names that may hold anything, columns.

use std::{fmt::Write as _, time::Duration};

/// Bytes in decimal units, three digits: `1.36 GB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A duration as people say it: `850 ms`, `4.2 s`, `3 min 20 s`, `5 h 10 min`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..=59 => format!("{:.1} s", duration.as_secs_f64()),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A count with its noun.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Text that is safe on a terminal, whoever wrote it: control characters, and those that change the direction of
/// writing, come out escaped.
pub(crate) fn clean(text: &str) -> String {
    let unsafe_on_terminals = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(unsafe_on_terminals) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c if unsafe_on_terminals(c) => {
                // Writing to a String does not fail.
                if write!(safe, "\\u{{{:x}}}", u32::from(c)).is_err() {
                    safe.push('?');
                }
            }
            c => safe.push(c),
        }
    }
    safe
}

/// The first characters of a peer id that tell peers apart: the last ones, since all begin alike.
pub(crate) fn short_peer(peer: &str) -> String {
    match peer.char_indices().rev().nth(7) {
        Some((at, _)) if at > 0 => format!("…{}", &peer[at..]),
        _ => peer.to_owned(),
    }
}

/// Rows under a heading, in columns; numbers to the right.
pub(crate) struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Headings; those that begin with `>` are for columns that stand to the right.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Table {
            right: headings.iter().map(|heading| heading.starts_with('>')).collect(),
            rows: vec![headings.iter().map(|heading| heading.trim_start_matches('>').to_owned()).collect()],
        }
    }

    /// Adds a row; its cells are cleaned.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }

    /// Whether there are only headings.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = |cell: &String| console_width(cell);
        let widths: Vec<usize> = (0..self.right.len())
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(width).max().unwrap_or(0))
            .collect();
        self.rows
            .iter()
            .map(|row| {
                let mut line = String::new();
                for (column, cell) in row.iter().enumerate() {
                    let pad = " ".repeat(widths.get(column).copied().unwrap_or(0).saturating_sub(width(cell)));
                    let right = self.right.get(column).copied().unwrap_or(false);
                    if column > 0 {
                        line.push_str("  ");
                    }
                    if right {
                        line.push_str(&pad);
                    }
                    line.push_str(cell);
                    if !right {
                        line.push_str(&pad);
                    }
                }
                line.trim_end().to_owned()
            })
            .collect()
    }
}

/// Characters, which is near enough to columns for names.
fn console_width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_well() {
        let sizes = [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_362_000_000, "1.36 GB"), (99_960, "100 kB")];
        for (count, text) in sizes {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(999_600), "1.00 MB");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
        assert_eq!(duration(Duration::from_millis(850)), "850 ms");
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(duration(Duration::from_secs(3600 * 5 + 601)), "5 h 10 min");
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\u{9b}c\nd\u{202e}e"), "a\\u{1b}[31mb\\u{9b}c\\nd\\u{202e}e");
        assert_eq!(clean("ünïcode ok"), "ünïcode ok");
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", ">size"]);
        table.row(["a\n".to_owned(), "1".to_owned()]);
        table.row(["long name".to_owned(), "100".to_owned()]);
        assert_eq!(table.lines(), ["name       size", "a\\n           1", "long name   100"]);
    }
}
