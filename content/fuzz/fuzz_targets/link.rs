//! Any text is a link that prints and parses back, or an error; any path stays inside.

#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use shoal_content::{RelPath, ShoalLink};

fuzz_target!(|text: &str| {
    if let Ok(link) = text.parse::<ShoalLink>() {
        assert_eq!(link.to_string().parse::<ShoalLink>().expect("a printed link parses"), link);
    }
    if let Ok(path) = text.parse::<RelPath>() {
        assert!(Path::new(path.as_str()).components().all(|part| matches!(part, Component::Normal(_))));
    }
});
