//! The one table of what a stranger may make this endpoint spend: connections, handshakes, streams, memory, time.
//!
//! Every number has a unit in its name or its documentation, and a reason. Nothing here is enforced in this file; each
//! field says who enforces it.

use std::time::Duration;

/// What one connection may hold, by its application protocol. Applied as soon as the ALPN is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlpnLimits {
    /// Bidirectional streams the remote may have open at once.
    pub bidi_streams: u32,
    /// Unidirectional streams the remote may have open at once.
    pub uni_streams: u32,
    /// Bytes the remote may have sent on all streams together before we have read them. This is the memory one
    /// connection can pin; `Connection::set_receive_window` changes it for a peer that earned it.
    pub receive_window_bytes: u32,
    /// Bytes of ours, sent or queued, that the remote has not acknowledged yet. Bounds what a slow reader can make us
    /// hold, and the speed to one peer at (this / RTT).
    pub send_window_bytes: u64,
}

/// Every limit of the endpoint, with its default. `Limits::default()` is the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, both protocols, both directions. An idle one costs about 64 KiB, 140 KiB with the libp2p
    /// stack on it, so the default is some 100 MiB at worst. Past it a new handshake is refused.
    pub connections: usize,
    /// The part of `connections` that only our own dials may use, so that strangers cannot keep us from dialling.
    pub reserved_for_dials: usize,
    /// Inbound connections and handshakes from one IPv4 address or one IPv6 /64 network. Enough for an office behind
    /// one address; a single host cannot take the whole table.
    pub per_ip: usize,
    /// Whether `per_ip` also counts loopback addresses. Off: only this machine's own processes have them.
    pub per_ip_on_loopback: bool,
    /// Inbound handshakes at once. A permit is taken before a handshake is taken up; the rest wait in
    /// `queued_handshakes`. A handshake costs about 1 ms of CPU and 64 KiB.
    pub pending_handshakes: usize,
    /// Above this many pending handshakes, a client must first prove its address (QUIC Retry), which costs it one round
    /// trip and stops floods with forged sources.
    pub retry_above: usize,
    /// First packets that wait for a permit; quinn refuses further ones.
    pub queued_handshakes: usize,
    /// Bytes buffered for all handshakes that wait for a permit.
    pub queued_handshake_bytes: u64,
    /// Our own dials at once; further ones wait, inside their time-out.
    pub pending_dials: usize,
    /// Hole punches at once. Each sends a small packet every 10 to 200 ms until `handshake_timeout`.
    pub pending_punches: usize,
    /// From the first packet of an inbound connection, or of a dial by libp2p, to its end.
    pub handshake_timeout: Duration,
    /// From `Endpoint::connect` to a finished handshake.
    pub connect_timeout: Duration,
    /// A connection on which nothing arrives for this long is dead. Three keep-alives fit in.
    pub idle_timeout: Duration,
    /// How often a silent connection sends a ping. UDP mappings of home routers live for 30 s or more.
    pub keep_alive: Duration,
    /// Bytes one stream may have in flight. At most 2.9 MiB: quinn-proto closes a connection that has 1,024 gaps in
    /// one stream, and 2.9 MiB of 1,452-byte packets with every other one lost is what stays below.
    pub stream_window_bytes: u32,
    /// Limits of a connection with ALPN `libp2p`: small messages, and circuits when we relay.
    pub libp2p: AlpnLimits,
    /// Limits of a connection with ALPN `shoal/1`: bulk data.
    pub shoal: AlpnLimits,
    /// Handshaken connections that wait for the libp2p swarm or for [`Incoming::next`](crate::Incoming::next). Past it
    /// no permit is returned, so the accept loop slows down.
    pub backlog: usize,
    /// How long `Endpoint::shutdown` waits for the goodbyes to leave.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1_024,
            reserved_for_dials: 128,
            per_ip: 64,
            per_ip_on_loopback: false,
            pending_handshakes: 128,
            retry_above: 32,
            queued_handshakes: 1_024,
            queued_handshake_bytes: 8 << 20,
            pending_dials: 128,
            pending_punches: 32,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(9),
            stream_window_bytes: 2 << 20,
            libp2p: AlpnLimits {
                bidi_streams: 256,
                uni_streams: 0,
                receive_window_bytes: 8 << 20,
                send_window_bytes: 8 << 20,
            },
            shoal: AlpnLimits {
                bidi_streams: 256,
                uni_streams: 16,
                receive_window_bytes: 1 << 20,
                send_window_bytes: 6 << 20,
            },
            backlog: 64,
            shutdown_grace: Duration::from_secs(2),
        }
    }
}
