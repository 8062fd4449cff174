//! What the commands without a network print: settings, completions, the manual page, help, the shape of JSON.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Place, Running, text};

fn plain(place: &Place, args: &[&str]) -> common::Finished {
    let mut command = place.bare("a");
    command.args(args);
    Running::start(command).finish()
}

#[test]
fn settings_come_with_their_origin_and_are_a_valid_file() {
    let place = Place::new();
    std::fs::create_dir(place.path("a")).unwrap();
    std::fs::write(place.path("a/config.toml"), "give_up_after = 9\n").unwrap();
    let mut command = place.bare("a");
    command.env("SHOAL_PROVIDE", "false").args(["config", "--json", "--listen", common::LOOPBACK]);
    let settings = Running::start(command).finish().ok();
    let setting = |key: &str| settings.events.iter().find(|event| event["key"] == key).unwrap().clone();
    assert_eq!(
        (&setting("give_up_after")["value"], &setting("give_up_after")["origin"]["line"]),
        (&9.into(), &1.into())
    );
    assert_eq!(setting("provide")["origin"]["name"], "SHOAL_PROVIDE");
    assert_eq!(setting("listen")["origin"]["name"], "--listen");
    assert_eq!(setting("connections")["origin"]["from"], "default");

    let file = plain(&place, &["config"]).ok().stdout;
    std::fs::write(place.path("a/config.toml"), &file).unwrap();
    let again = plain(&place, &["config"]).ok().stdout;
    assert!(again.contains("config.toml:2;"), "{again}");
    // Looking at settings makes no home.
    assert!(!place.path("a/key").exists());
}

#[test]
fn a_variable_with_a_typing_error_is_pointed_out() {
    let place = Place::new();
    let mut command = place.bare("a");
    command.env("SHOAL_MNDS", "false").arg("config");
    assert!(Running::start(command).finish().ok().stderr.contains("SHOAL_MNDS"));
}

#[test]
fn completions_and_the_manual_page_are_there() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(plain(&place, &["completions", shell]).ok().stdout.contains("fetch"), "{shell}");
    }
    assert!(plain(&place, &["man"]).ok().stdout.contains(".TH"));
    let help = plain(&place, &["--help"]).ok().stdout;
    assert!(help.contains("130") && help.contains("Example"), "{help}");
    assert!(plain(&place, &["config", "--help"]).ok().stdout.contains("give_up_after (seconds; default 60)"));
}

#[test]
fn the_home_is_private_and_the_identity_stays() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let peer = || text(place.run("a", ["id"]).ok().event("id"), "peer");
    assert_eq!(peer(), peer());
    let mode = |path: &str| std::fs::metadata(place.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a"), mode("a/key")), (0o700, 0o600));
}
