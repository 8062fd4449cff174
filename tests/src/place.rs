//! A directory for one test, with homes and files in it, and commands of the binary on those homes.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use shoal_content::ShoalLink;
use tempfile::TempDir;

use crate::{
    binary,
    content::write_noise,
    lan::Host,
    piped::Piped,
    process::{Finished, Running, text},
};

/// Any port of the loopback device.
pub const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A temporary directory, removed at the end.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
}

impl Default for Place {
    fn default() -> Self {
        Place::new()
    }
}

impl Place {
    /// A new one.
    pub fn new() -> Self {
        Place { dir: tempfile::Builder::new().prefix("shoal-e2e-").tempdir().unwrap() }
    }

    /// The same, in a directory of the caller's choice: for content that does not fit where temporary files are.
    pub fn below(dir: &Path) -> Self {
        Place { dir: tempfile::Builder::new().prefix("shoal-e2e-").tempdir_in(dir).unwrap() }
    }

    /// A path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of bytes that depend on its length, and says where.
    pub fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        write_noise(&path, len, len);
        path
    }

    /// A command on the home of this name: JSON, loopback, no mDNS.
    pub fn shoal<S: AsRef<OsStr>>(&self, home: &str, args: impl IntoIterator<Item = S>) -> Shoal {
        let mut command = Command::new(binary::shoal());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SHOAL_") {
                command.env_remove(name);
            }
        }
        command.env("SHOAL_MDNS", "false").env("SHOAL_LISTEN", LOOPBACK).env("SHOAL_HOME", self.path(home));
        command.arg("--json").args(args).current_dir(self.dir.path());
        Shoal { command, name: home.to_owned() }
    }

    /// Starts sharing a path; gives the link.
    pub fn share(&self, home: &str, path: &Path) -> (Running, ShoalLink) {
        let mut running = self.shoal(home, [OsStr::new("share"), path.as_os_str()]).start();
        let link = link_of(&running.event("shared"));
        (running, link)
    }

    /// A fetch of a link into the directory of this name.
    pub fn fetch(&self, home: &str, link: &ShoalLink, dir: &str) -> Shoal {
        self.shoal(home, ["fetch", &link.to_string(), "--output", dir])
    }

    /// Starts a daemon and waits until it runs; gives its address for `--bootstrap`.
    pub fn daemon(&self, home: &str, bootstrap: &[&str]) -> (Running, String) {
        let mut command = self.shoal(home, ["daemon"]);
        for peer in bootstrap {
            command = command.args(["--bootstrap", peer]);
        }
        let mut running = command.start();
        let addr = addr_of(&running.event("listening"));
        (running, addr)
    }

    /// What a node that has this home open says it sent so far: payload bytes handed to QUIC.
    pub fn sent_by(&self, home: &str) -> u64 {
        let counters = self.shoal(home, ["peers"]).run().ok();
        counters.event("counters")["bytes_out"].as_u64().unwrap()
    }
}

/// A command that is not started yet.
#[derive(Debug)]
pub struct Shoal {
    command: Command,
    name: String,
}

impl Shoal {
    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Another setting, such as `("SHOAL_MDNS", "true")`.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// As somebody would start it who sets nothing: all interfaces, mDNS.
    #[must_use]
    pub fn with_defaults(mut self) -> Self {
        self.command.env_remove("SHOAL_LISTEN").env_remove("SHOAL_MDNS");
        self
    }

    /// In this namespace. The process is that of `shoal` itself: `ip` makes way for it.
    #[must_use]
    pub fn within(mut self, host: &Host) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host.name()]).arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(dir) = self.command.get_current_dir() {
            command.current_dir(dir);
        }
        self.command = command;
        self
    }

    /// Starts it.
    pub fn start(self) -> Running {
        Running::start(self.command, self.name)
    }

    /// Starts it with standard output for the bytes of a file.
    pub fn pipe(self) -> Piped {
        Piped::start(self.command, self.name)
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        self.start().finish()
    }
}

/// The link of a `shared` or `root` event.
pub fn link_of(event: &Value) -> ShoalLink {
    text(event, "link").parse().unwrap()
}

/// The first address of a `listening` event.
pub fn addr_of(event: &Value) -> String {
    event["addrs"][0].as_str().unwrap_or_else(|| panic!("no address in {event}")).to_owned()
}
