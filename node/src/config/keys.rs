//! The table of settings: every key with its unit, its default, its range, and what it does. Nothing else knows a key.

use std::{num::NonZeroUsize, time::Duration};

use shoal_net::{Congestion, Multiaddr};
use shoal_transfer::{Compression, Rates, choke::Policy as UplinkPolicy};

use super::value::Raw;
use crate::{RateLimit, period};

/// What a node runs with. `Settings::default()` holds the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// See the table of [`KEYS`], as for all fields. Empty: all interfaces, on the port of the last start.
    pub listen: Vec<Multiaddr>,
    /// Multiaddrs with `/p2p/<peer>`.
    pub bootstrap: Vec<Multiaddr>,
    /// Peers on the local network.
    pub mdns: bool,
    /// The DHT's network.
    pub kad_protocol: String,
    /// Relay for others.
    pub relay_server: bool,
    /// Announce what is served.
    pub provide: bool,
    /// Without a provider, or without progress.
    pub give_up_after: Duration,
    /// Congestion controller.
    pub congestion: Congestion,
    /// Bytes per second sent to all peers together.
    pub upload_limit: RateLimit,
    /// Bytes per second received from all peers together.
    pub download_limit: RateLimit,
    /// Bytes per second sent to one peer.
    pub upload_limit_per_peer: RateLimit,
    /// Bytes per second received from one peer.
    pub download_limit_per_peer: RateLimit,
    /// Compression on the wire.
    pub compression: Compression,
    /// For whom the uplink works.
    pub uplink: UplinkPolicy,
    /// Connections in all.
    pub connections: usize,
    /// Page cache of the index, in bytes.
    pub index_cache_bytes: usize,
    /// A store that is made is encrypted, and one that is there must be.
    pub encrypt: bool,
    /// How fast everything is read again in search of rot; 0 for never.
    pub scrub_bytes_per_second: u64,
    /// How long after a scrub the next one begins.
    pub scrub_every: Duration,
    /// What the store may take; 0 for a part of the disk.
    pub quota_bytes: u64,
    /// Threads that hash while sharing.
    pub import_threads: usize,
    /// Threads of the runtime.
    pub worker_threads: usize,
}

impl Settings {
    /// The rate limits to begin with.
    pub fn rates(&self) -> Rates {
        Rates {
            up: self.upload_limit.0,
            down: self.download_limit.0,
            up_per_peer: self.upload_limit_per_peer.0,
            down_per_peer: self.download_limit_per_peer.0,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Settings {
            listen: Vec::new(),
            bootstrap: Vec::new(),
            mdns: true,
            kad_protocol: "/shoal/kad/1.0.0".to_owned(),
            relay_server: true,
            provide: true,
            give_up_after: Duration::from_secs(60),
            congestion: Congestion::default(),
            upload_limit: RateLimit::default(),
            download_limit: RateLimit::default(),
            upload_limit_per_peer: RateLimit::default(),
            download_limit_per_peer: RateLimit::default(),
            compression: Compression::default(),
            uplink: UplinkPolicy::default(),
            connections: 1024,
            index_cache_bytes: 16 << 20,
            encrypt: false,
            scrub_bytes_per_second: 16 << 20,
            scrub_every: Duration::from_secs(30 * 24 * 3600),
            quota_bytes: 0,
            import_threads: cores.min(16),
            worker_threads: (cores / 2).clamp(1, 32),
        }
    }
}

/// One setting.
pub struct Key {
    /// Its name in the file. In the environment it is `SHOAL_` and the name in capitals.
    pub name: &'static str,
    /// What a value is: a unit or a kind.
    pub unit: &'static str,
    /// What it does.
    pub help: &'static str,
    pub(super) set: fn(&mut Settings, &Raw<'_>) -> Result<(), String>,
    pub(super) show: fn(&Settings) -> toml::Value,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("unit", &self.unit).finish_non_exhaustive()
    }
}

impl Key {
    /// The environment variable of this key.
    pub fn variable(&self) -> String {
        format!("SHOAL_{}", self.name.to_uppercase())
    }
}

const MIB: usize = 1 << 20;
/// The unit of rate limits.
const RATE: &str = "\"none\" or a rate, such as \"10 MB/s\" or \"80 Mbit/s\"";

const CONGESTION: [(&str, Congestion); 4] = [
    ("tide", Congestion::Tide),
    ("cubic", Congestion::Cubic),
    ("bbr", Congestion::Bbr),
    ("new-reno", Congestion::NewReno),
];

const UPLINK: [(&str, UplinkPolicy); 2] =
    [("cooperative", UplinkPolicy::Cooperative), ("reciprocal", UplinkPolicy::Reciprocal)];

const COMPRESSION: [(&str, Compression); 3] =
    [("auto", Compression::Auto), ("always", Compression::Always), ("off", Compression::Off)];

/// All settings, in the order in which they are listed.
pub const KEYS: &[Key] = &[
    Key {
        name: "listen",
        unit: "list of multiaddrs",
        help: "Where to listen: one UDP port, so one address, or the two wildcards with the same port. \
               Empty: all interfaces, on the port of the last start if it is free.",
        set: |settings, raw| raw.multiaddrs(listen_addr).map(|addrs| settings.listen = addrs),
        show: |settings| list(&settings.listen),
    },
    Key {
        name: "bootstrap",
        unit: "list of multiaddrs with /p2p/<peer>",
        help: "Peers through which to join the DHT.",
        set: |settings, raw| raw.multiaddrs(peer_addr).map(|addrs| settings.bootstrap = addrs),
        show: |settings| list(&settings.bootstrap),
    },
    Key {
        name: "mdns",
        unit: "true or false",
        help: "Find peers on the local network, and be found there.",
        set: |settings, raw| raw.boolean().map(|on| settings.mdns = on),
        show: |settings| settings.mdns.into(),
    },
    Key {
        name: "kad_protocol",
        unit: "protocol name",
        help: "The DHT's protocol name; peers of another name are another network.",
        set: |settings, raw| {
            let name = raw.text()?;
            if !name.starts_with('/') || name.len() > 128 || name.contains(|c: char| !c.is_ascii_graphic()) {
                return Err(format!(
                    "must begin with \"/\", as in \"/shoal/kad/1.0.0\", not \"{}\"",
                    name.escape_debug()
                ));
            }
            settings.kad_protocol = name;
            Ok(())
        },
        show: |settings| settings.kad_protocol.clone().into(),
    },
    Key {
        name: "relay_server",
        unit: "true or false",
        help: "Relay for peers that cannot be reached directly, within narrow limits.",
        set: |settings, raw| raw.boolean().map(|on| settings.relay_server = on),
        show: |settings| settings.relay_server.into(),
    },
    Key {
        name: "provide",
        unit: "true or false",
        help: "Announce to the DHT what is served, so that others find it by its CID.",
        set: |settings, raw| raw.boolean().map(|on| settings.provide = on),
        show: |settings| settings.provide.into(),
    },
    Key {
        name: "give_up_after",
        unit: "seconds",
        help: "A fetch fails after this long without any provider, or without progress.",
        set: |settings, raw| {
            raw.integer(1..=86_400, "seconds").map(|seconds| settings.give_up_after = Duration::from_secs(seconds))
        },
        show: |settings| number(settings.give_up_after.as_secs()),
    },
    Key {
        name: "congestion",
        unit: "\"tide\", \"cubic\", \"bbr\" or \"new-reno\"",
        help: "Congestion controller of all connections.",
        set: |settings, raw| raw.word(&CONGESTION).map(|congestion| settings.congestion = congestion),
        show: |settings| {
            let word = CONGESTION.iter().find(|(_, value)| *value == settings.congestion).map_or("tide", |pair| pair.0);
            word.into()
        },
    },
    Key {
        name: "upload_limit",
        unit: RATE,
        help: "Most that is sent, to all peers together. `shoal limit` changes it while a node runs.",
        set: |settings, raw| raw.rate_limit().map(|limit| settings.upload_limit = limit),
        show: |settings| settings.upload_limit.to_string().into(),
    },
    Key {
        name: "download_limit",
        unit: RATE,
        help: "Most that is received, from all peers together.",
        set: |settings, raw| raw.rate_limit().map(|limit| settings.download_limit = limit),
        show: |settings| settings.download_limit.to_string().into(),
    },
    Key {
        name: "upload_limit_per_peer",
        unit: RATE,
        help: "Most that is sent to one peer.",
        set: |settings, raw| raw.rate_limit().map(|limit| settings.upload_limit_per_peer = limit),
        show: |settings| settings.upload_limit_per_peer.to_string().into(),
    },
    Key {
        name: "download_limit_per_peer",
        unit: RATE,
        help: "Most that is received from one peer.",
        set: |settings, raw| raw.rate_limit().map(|limit| settings.download_limit_per_peer = limit),
        show: |settings| settings.download_limit_per_peer.to_string().into(),
    },
    Key {
        name: "compression",
        unit: "\"auto\", \"always\" or \"off\"",
        help: "Compress what travels: where a link is slower than a core and for next versions, wherever it gets smaller, \
               or never. What is stored and hashed is not compressed in any case.",
        set: |settings, raw| raw.word(&COMPRESSION).map(|compression| settings.compression = compression),
        show: |settings| {
            let word = COMPRESSION.iter().find(|(_, value)| *value == settings.compression);
            word.map_or("auto", |pair| pair.0).into()
        },
    },
    Key {
        name: "uplink",
        unit: "\"cooperative\" or \"reciprocal\"",
        help: "Whom to serve: whoever asks, or, in a swarm of strangers, those first who pass on what they get.",
        set: |settings, raw| raw.word(&UPLINK).map(|uplink| settings.uplink = uplink),
        show: |settings| {
            let word = UPLINK.iter().find(|(_, value)| *value == settings.uplink);
            word.map_or("cooperative", |pair| pair.0).into()
        },
    },
    Key {
        name: "connections",
        unit: "count",
        help: "Most connections at once; an idle one costs about 64 KiB of memory.",
        set: |settings, raw| small(raw, 16..=65_536, "").map(|count| settings.connections = count),
        show: |settings| number(settings.connections as u64),
    },
    Key {
        name: "index_cache",
        unit: "MiB",
        help: "Memory for the index of blocks.",
        set: |settings, raw| small(raw, 1..=65_536, "MiB").map(|mib| settings.index_cache_bytes = mib * MIB),
        show: |settings| number((settings.index_cache_bytes / MIB) as u64),
    },
    Key {
        name: "quota",
        unit: "MiB",
        help: "The most that the store may take: trees, index and cached content, not your files. \
               Default (0): a tenth of the disk, at least 1 and at most 64 GiB.",
        set: |settings, raw| {
            raw.integer(0..=1 << 40, "MiB").map(|mib| settings.quota_bytes = mib.saturating_mul(MIB as u64))
        },
        show: |settings| number(settings.quota_bytes / MIB as u64),
    },
    Key {
        name: "encrypt",
        unit: "true or false",
        help: "Encrypt what the store keeps: cached content, trees, names and paths; not your files. Counts when the store is \
               made; one that is there stays what it is. The passphrase comes from the file that SHOAL_PASSPHRASE_FILE \
               names, from SHOAL_PASSPHRASE, or from the terminal.",
        set: |settings, raw| raw.boolean().map(|on| settings.encrypt = on),
        show: |settings| settings.encrypt.into(),
    },
    Key {
        name: "scrub_rate",
        unit: "MiB per second",
        help: "How fast a daemon reads everything again, now and then, in search of what rotted. 0: never.",
        set: |settings, raw| {
            let rate = raw.integer(0..=65_536, "MiB per second")?;
            settings.scrub_bytes_per_second = rate * MIB as u64;
            Ok(())
        },
        show: |settings| number(settings.scrub_bytes_per_second / MIB as u64),
    },
    Key {
        name: "scrub_every",
        unit: "time, as in \"30d\" or \"12h\"",
        help: "How often a daemon does so.",
        set: |settings, raw| {
            let seconds = period::period(&raw.text()?)?;
            settings.scrub_every = Duration::from_secs(seconds);
            Ok(())
        },
        show: |settings| period::shown(settings.scrub_every.as_secs()).into(),
    },
    Key {
        name: "import_threads",
        unit: "count",
        help: "Threads that read and hash while a path is shared. Default: one for each core, at most 16.",
        set: |settings, raw| small(raw, 1..=256, "").map(|count| settings.import_threads = count),
        show: |settings| number(settings.import_threads as u64),
    },
    Key {
        name: "worker_threads",
        unit: "count",
        help: "Threads that do network and scheduling work. Default: one for every two cores; what hashes, reads and writes has its own.",
        set: |settings, raw| small(raw, 1..=256, "").map(|count| settings.worker_threads = count),
        show: |settings| number(settings.worker_threads as u64),
    },
];

fn small(raw: &Raw<'_>, range: std::ops::RangeInclusive<u64>, unit: &str) -> Result<usize, String> {
    raw.integer(range, unit).and_then(|value| usize::try_from(value).map_err(|error| error.to_string()))
}

fn number(value: u64) -> toml::Value {
    toml::Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn list(addrs: &[Multiaddr]) -> toml::Value {
    toml::Value::Array(addrs.iter().map(|addr| addr.to_string().into()).collect())
}

fn listen_addr(addr: &Multiaddr) -> Result<(), String> {
    match shoal_net::from_multiaddr(addr) {
        Some((_, None)) => Ok(()),
        _ => {
            Err("cannot be listened on; use /ip4/<address>/udp/<port>/quic-v1 or /ip6/…, with port 0 for any"
                .to_owned())
        }
    }
}

fn peer_addr(addr: &Multiaddr) -> Result<(), String> {
    match shoal_net::from_multiaddr(addr) {
        Some((_, Some(_))) => Ok(()),
        _ => Err("does not name a peer; use /ip4/<address>/udp/<port>/quic-v1/p2p/<peer id>, as `shoal id` prints it"
            .to_owned()),
    }
}
