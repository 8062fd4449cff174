//! One raw value of a setting, from a TOML file, the environment or a flag, and how it is read.
//! Messages here say what a value must be; whoever calls adds where it stands.

use std::ops::RangeInclusive;

use shoal_net::Multiaddr;
use toml::de::DeValue;

use crate::RateLimit;

/// A value as it was written.
pub(super) enum Raw<'a> {
    /// In the file, with its type.
    Toml(&'a DeValue<'a>),
    /// In an environment variable: lists are separated by commas.
    Env(&'a str),
    /// By a flag, which may be repeated.
    Flag(&'a [String]),
}

impl Raw<'_> {
    pub(super) fn boolean(&self) -> Result<bool, String> {
        match self {
            Raw::Toml(DeValue::Boolean(value)) => Ok(*value),
            Raw::Env(text) if matches!(text.trim(), "true" | "1" | "yes" | "on") => Ok(true),
            Raw::Env(text) if matches!(text.trim(), "false" | "0" | "no" | "off") => Ok(false),
            Raw::Flag([text]) if text == "true" => Ok(true),
            Raw::Flag([text]) if text == "false" => Ok(false),
            _ => Err(format!("must be true or false, not {}", self.shown())),
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>, unit: &str) -> Result<u64, String> {
        let value = match self {
            Raw::Toml(DeValue::Integer(value)) => u64::from_str_radix(value.as_str(), value.radix()).ok(),
            Raw::Env(text) => text.trim().parse().ok(),
            Raw::Flag([text]) => text.parse().ok(),
            _ => None,
        };
        let unit = if unit.is_empty() { String::new() } else { format!(" of {unit}") };
        value.filter(|value| range.contains(value)).ok_or_else(|| {
            format!("must be a whole number{unit} from {} to {}, not {}", range.start(), range.end(), self.shown())
        })
    }

    pub(super) fn text(&self) -> Result<String, String> {
        match self {
            Raw::Toml(DeValue::String(text)) => Ok(text.to_string()),
            Raw::Env(text) => Ok(text.to_string()),
            Raw::Flag([text]) => Ok(text.clone()),
            _ => Err(format!("must be a text in quotes, not {}", self.shown())),
        }
    }

    pub(super) fn rate_limit(&self) -> Result<RateLimit, String> {
        match self {
            Raw::Toml(DeValue::String(text)) => text.parse(),
            Raw::Env(text) => text.parse(),
            Raw::Flag([text]) => text.parse(),
            // says what it must be
            _ => self.shown().parse(),
        }
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, String> {
        let text = self.text().ok();
        words.iter().find(|(word, _)| Some(*word) == text.as_deref()).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            format!("must be {}, not {}", words.join(" or "), self.shown())
        })
    }

    /// A list of multiaddrs that `check` agrees to.
    pub(super) fn multiaddrs(&self, check: fn(&Multiaddr) -> Result<(), String>) -> Result<Vec<Multiaddr>, String> {
        self.texts()?
            .iter()
            .map(|text| {
                let addr: Multiaddr = text.parse().map_err(|error| {
                    format!("\"{}\" is not a multiaddr ({error}); one looks like {EXAMPLE}", text.escape_debug())
                })?;
                check(&addr).map_err(|why| format!("\"{addr}\" {why}"))?;
                Ok(addr)
            })
            .collect()
    }

    fn texts(&self) -> Result<Vec<String>, String> {
        let wrong = || format!("must be a list of texts, as in [\"{EXAMPLE}\"], not {}", self.shown());
        match self {
            Raw::Toml(DeValue::Array(items)) => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    _ => Err(wrong()),
                })
                .collect(),
            Raw::Toml(_) => Err(wrong()),
            Raw::Env(text) => {
                Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
            }
            Raw::Flag(texts) => Ok(texts.to_vec()),
        }
    }

    /// The value for a message, short and without control characters.
    fn shown(&self) -> String {
        let text = match self {
            Raw::Toml(DeValue::String(text)) => format!("\"{}\"", text.escape_debug()),
            Raw::Toml(DeValue::Integer(value)) => value.to_string(),
            Raw::Toml(DeValue::Float(value)) => value.to_string(),
            Raw::Toml(DeValue::Boolean(value)) => value.to_string(),
            Raw::Toml(DeValue::Datetime(value)) => value.to_string(),
            Raw::Toml(DeValue::Array(_)) => "a list".to_owned(),
            Raw::Toml(DeValue::Table(_)) => "a table".to_owned(),
            Raw::Env(text) => format!("\"{}\"", text.escape_debug()),
            Raw::Flag(texts) => format!("\"{}\"", texts.join(" ").escape_debug()),
        };
        match text.char_indices().nth(80) {
            Some((cut, _)) => format!("{}…", &text[..cut]),
            None => text,
        }
    }
}

const EXAMPLE: &str = "/ip4/0.0.0.0/udp/4001/quic-v1";
