//! Networks of their own: namespaces with names that no other process uses, joined by a cable. For root only.

use std::{
    fs,
    net::Ipv4Addr,
    process::{Command, id},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::Pid;

use crate::{is_root, skipped};

/// A network namespace, removed when dropped. Processes are started in it with
/// [`Shoal::within`](crate::place::Shoal::within).
#[derive(Debug)]
pub struct Host {
    name: String,
}

/// Two hosts on one Ethernet cable with the usual MTU of 1,500.
#[derive(Debug)]
pub struct Lan {
    /// One end, at 10.77.0.1.
    pub left: Host,
    /// The other, at 10.77.0.2.
    pub right: Host,
}

impl Host {
    /// A namespace whose loopback device is up. `None`, with a word about it, where that cannot be made.
    pub fn new() -> Option<Host> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !is_root() {
            skipped("a network namespace takes root");
            return None;
        }
        let name = format!("shoal-test-{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        if let Err(error) = ip(&["netns", "add", &name]) {
            skipped(&format!("a network namespace cannot be made: {error}"));
            return None;
        }
        let host = Host { name };
        host.ip(&["link", "set", "lo", "up"]);
        Some(host)
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` about this namespace.
    pub fn ip(&self, args: &[&str]) {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        ip(&all).unwrap_or_else(|error| panic!("ip {}: {error}", all.join(" ")));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("namespace {} stays: {error}", self.name);
        }
    }
}

impl Lan {
    /// The two hosts. `None`, with a word about it, where they cannot be made.
    pub fn new() -> Option<Lan> {
        let (left, right) = (Host::new()?, Host::new()?);
        left.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &right.name]);
        for (host, addr) in [(&left, Ipv4Addr::new(10, 77, 0, 1)), (&right, Ipv4Addr::new(10, 77, 0, 2))] {
            host.ip(&["addr", "add", &format!("{addr}/24"), "dev", "eth0"]);
            host.ip(&["link", "set", "eth0", "mtu", "1500", "up"]);
        }
        Some(Lan { left, right })
    }
}

/// Bytes that a network device has received since it came up, in the namespace of a process. Quick enough to ask a
/// thousand times a second.
pub fn received(process: Pid, device: &str) -> u64 {
    let table = fs::read_to_string(format!("/proc/{}/net/dev", process.as_raw_nonzero())).unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()).and_then(|bytes| bytes.parse().ok()).unwrap()
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|error| format!("there is no `ip` here: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
