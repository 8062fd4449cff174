//! What a caller chooses about the DHT, and the one table of what strangers may cost it.

use shoal_net::Multiaddr;
use std::time::Duration;

/// Configuration of [`Dht::start`](crate::Dht::start).
#[derive(Clone, Debug)]
pub struct DhtConfig {
    /// Kademlia's protocol name. Peers with another name are another network.
    pub kad_protocol: String,
    /// Peers to begin with: `/ip4|ip6/…/udp/…/quic-v1[/p2p/<peer>]`. They are dialled again whenever they are lost.
    pub bootstrap: Vec<Multiaddr>,
    /// Find peers on the LAN by multicast DNS, and be found. Without effect while only loopback is listened on.
    pub mdns: bool,
    /// Relay connections of peers that nobody can dial, within libp2p's default limits (2 minutes, 128 KiB each).
    pub relay_server: bool,
    /// Answer other peers' queries and be in their routing tables. Off for a peer known to be unreachable.
    pub server_mode: bool,
    /// How often our provider records are put anew: records are lost with the peers that hold them.
    pub reprovide_interval: Duration,
    /// How long a record of a stranger is kept. Several of `reprovide_interval`, so that one missed turn does no harm.
    pub provider_ttl: Duration,
    /// How often the routing table is refreshed by looking up ourselves and random keys.
    pub bootstrap_interval: Duration,
    /// What strangers may cost.
    pub limits: DhtLimits,
}

impl Default for DhtConfig {
    fn default() -> Self {
        DhtConfig {
            kad_protocol: "/shoal/kad/1.0.0".to_owned(),
            bootstrap: Vec::new(),
            mdns: true,
            relay_server: true,
            server_mode: true,
            reprovide_interval: Duration::from_secs(2 * 3600),
            provider_ttl: Duration::from_secs(6 * 3600),
            bootstrap_interval: Duration::from_secs(300),
            limits: DhtLimits::default(),
        }
    }
}

/// Every limit of the DHT. `DhtLimits::default()` is the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhtLimits {
    /// Keys that we provide.
    pub own_keys: usize,
    /// Provider records kept for others, about 500 bytes each. Past it, new ones are refused.
    pub foreign_records: usize,
    /// Of these, records of one provider.
    pub records_per_provider: usize,
    /// Of these, records for one key: Kademlia's k.
    pub records_per_key: usize,
    /// Length of a key, bytes.
    pub key_bytes: usize,
    /// Addresses kept for one peer.
    pub addrs_per_peer: usize,
    /// Searches by [`Dht::find_providers`](crate::Dht::find_providers) at once; further ones are refused.
    pub searches: usize,
    /// Providers that one search delivers; then it ends.
    pub providers_per_search: usize,
    /// Records being put at once; further ones wait.
    pub publishing: usize,
    /// A search or a put takes no longer than this.
    pub query_timeout: Duration,
    /// [`Dht::provide`](crate::Dht::provide) returns after this at the latest; the telling goes on.
    pub provide_timeout: Duration,
    /// Finding a way to a provider that came without a usable address takes no longer than this.
    pub resolve_timeout: Duration,
    /// A search that begins before any peer is known waits this long for the first one.
    pub join_timeout: Duration,
    /// A libp2p connection without use is closed after this.
    pub idle_connection: Duration,
    /// Inbound libp2p connections.
    pub inbound: u32,
    /// Outbound libp2p connections.
    pub outbound: u32,
    /// libp2p dials and handshakes at once, each direction.
    pub pending: u32,
    /// libp2p connections with one peer: relayed, direct, and one more while both sides dial.
    pub per_peer: u32,
    /// Commands of the handle that wait for the task.
    pub commands: usize,
    /// How long shutdown waits for the connections to close.
    pub shutdown_grace: Duration,
}

impl Default for DhtLimits {
    fn default() -> Self {
        DhtLimits {
            own_keys: 65_536,
            foreign_records: 65_536,
            records_per_provider: 8_192,
            records_per_key: 20,
            key_bytes: 128,
            addrs_per_peer: 8,
            searches: 256,
            providers_per_search: 128,
            publishing: 32,
            query_timeout: Duration::from_secs(20),
            provide_timeout: Duration::from_secs(2),
            resolve_timeout: Duration::from_secs(10),
            join_timeout: Duration::from_secs(5),
            idle_connection: Duration::from_secs(300),
            inbound: 384,
            outbound: 256,
            pending: 64,
            per_peer: 4,
            commands: 256,
            shutdown_grace: Duration::from_secs(2),
        }
    }
}
