//! `shoal config`: the effective settings, in a form that `config.toml` takes back, and the list of keys for its help.

use serde::Serialize;
use shoal_node::{
    Config, Home,
    config::{KEYS, Origin},
};

use crate::{output::Output, text::clean};

/// A setting as a JSON line.
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    key: &'a str,
    value: &'a toml::Value,
    unit: &'a str,
    origin: Source<'a>,
}

#[derive(Serialize)]
#[serde(tag = "from", rename_all = "snake_case")]
enum Source<'a> {
    Default,
    File { path: String, line: usize },
    Environment { name: &'a str },
    Flag { name: &'a str },
}

/// Prints every setting with its origin.
pub(crate) fn print(home: &Home, config: &Config, output: &Output) {
    if !output.json() {
        output.result(&format!("# {}", clean(&home.config_file().display().to_string())));
    }
    for setting in config.effective() {
        if output.json() {
            let origin = match &setting.origin {
                Origin::Default => Source::Default,
                Origin::File { path, line } => Source::File { path: path.display().to_string(), line: *line },
                Origin::Environment(name) => Source::Environment { name },
                Origin::Flag(name) => Source::Flag { name },
            };
            let (key, value, unit) = (&setting.key, &setting.value, &setting.unit);
            output.line(&Line { event: "setting", key, value, unit, origin });
        } else {
            let value = format!("{} = {}", setting.key, setting.value);
            output.result(&clean(&format!("{value:<40}  # {}; {}", setting.origin, setting.unit)));
        }
    }
}

/// The keys, for `shoal config --help`.
pub(crate) fn help() -> String {
    let defaults = Config::default();
    let mut text = "Keys of config.toml. Each is also an environment variable: SHOAL_ and the key in capitals, \
                    lists separated by commas.\n"
        .to_owned();
    for (key, setting) in KEYS.iter().zip(defaults.effective()) {
        text.push_str(&format!("\n  {} ({}; default {})\n      {}\n", key.name, key.unit, setting.value, key.help));
    }
    text
}
