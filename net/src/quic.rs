//! QUIC's settings: from our limits and tuning to quinn's configurations, per protocol and per route.

use crate::{AlpnLimits, BindError, Limits, NetConfig, PeerId, congestion, tls::Tls};
use quinn::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

/// The largest UDP payload QUIC knows (RFC 9000, 18.2), bytes.
pub(crate) const MAX_UDP_PAYLOAD: u16 = 65_527;
/// Every path must carry this (RFC 9000, 14.1), bytes. Connections begin here: starting larger loses handshakes.
pub(crate) const MIN_UDP_PAYLOAD: u16 = 1_200;
/// A route that takes more than this, bytes, is the loopback: no Ethernet does. There the first probe is the bound
/// itself. A binary search would take nine large probes, whose padding the remote parses byte by byte: 1.5 ms of CPU for
/// each connection.
const LOOPBACK_ABOVE: u16 = 10_000;
/// Where the search for another path's MTU stops, bytes.
const SEARCH_STEP: u16 = 20;
/// How long after a finished search the next one begins: the path may have become better.
const SEARCH_INTERVAL: Duration = Duration::from_secs(300);
/// The same on loopback, where only a full socket buffer can lose the one probe.
const LOOPBACK_SEARCH_INTERVAL: Duration = Duration::from_secs(5);
/// How long to stay at 1,200 bytes after losses that look like an MTU that has fallen. quinn's minute is long for a
/// burst of losses that had another reason.
const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(10);
/// Configurations kept by route MTU. A machine has a few interfaces; past this they are built for each connection.
const MAX_CACHED: usize = 16;

/// The two protocols of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alpn {
    Libp2p,
    Shoal,
}

impl Alpn {
    pub(crate) const fn name(self) -> &'static [u8] {
        match self {
            Alpn::Libp2p => crate::ALPN_LIBP2P,
            Alpn::Shoal => crate::ALPN_SHOAL,
        }
    }

    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        [Alpn::Libp2p, Alpn::Shoal].into_iter().find(|alpn| alpn.name() == name)
    }

    pub(crate) fn limits(self, limits: &Limits) -> &AlpnLimits {
        match self {
            Alpn::Libp2p => &limits.libp2p,
            Alpn::Shoal => &limits.shoal,
        }
    }
}

/// What an inbound connection may hold before its ALPN is known: what both protocols allow, and one unidirectional stream.
/// Our control stream would wait a round trip for it otherwise. libp2p opens none; who opens it all the same finds nobody
/// who reads it, within the window that bounds the whole connection.
fn before_alpn(limits: &Limits) -> AlpnLimits {
    let (a, b) = (&limits.libp2p, &limits.shoal);
    AlpnLimits {
        bidi_streams: a.bidi_streams.min(b.bidi_streams),
        uni_streams: a.uni_streams.max(b.uni_streams).min(1),
        receive_window_bytes: a.receive_window_bytes.min(b.receive_window_bytes),
        send_window_bytes: a.send_window_bytes.min(b.send_window_bytes),
    }
}

/// Builds and keeps the configurations.
pub(crate) struct Configs {
    tls: Tls,
    config: NetConfig,
    flow: Arc<congestion::EndpointFlow>,
    clients: Mutex<BTreeMap<(Alpn, u16), Arc<TransportConfig>>>,
    servers: Mutex<BTreeMap<u16, Arc<ServerConfig>>>,
}

impl Configs {
    pub(crate) fn new(tls: Tls, config: NetConfig) -> Result<Self, BindError> {
        check(&config)?;
        Ok(Configs { tls, config, flow: Arc::default(), clients: Mutex::default(), servers: Mutex::default() })
    }

    /// What the endpoint announces before any connection exists.
    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let mut endpoint = EndpointConfig::default();
        endpoint.supported_versions(vec![1]);
        if endpoint.max_udp_payload_size(MAX_UDP_PAYLOAD).is_err() {
            tracing::error!("quinn refuses the largest UDP payload; large datagrams are off");
        }
        endpoint
    }

    /// For a connection that came over a route with this payload. Its ALPN is not known yet, so it begins with
    /// [`before_alpn`]; [`Configs::admit`] then gives each its own.
    pub(crate) fn server(&self, payload: u16) -> Arc<ServerConfig> {
        cached(&self.servers, payload, || {
            let early = before_alpn(&self.config.limits);
            let mut server = ServerConfig::with_crypto(self.tls.server.clone());
            server.transport_config(Arc::new(self.transport(&early, payload)));
            // libp2p cannot follow a peer that changes its address.
            server.migration(false);
            server.max_incoming(self.config.limits.queued_handshakes);
            server.incoming_buffer_size_total(self.config.limits.queued_handshake_bytes);
            server
        })
    }

    /// For one dial over a route with this payload.
    pub(crate) fn client(
        &self,
        alpn: Alpn,
        expected: Option<PeerId>,
        payload: u16,
    ) -> Result<(ClientConfig, Arc<OnceLock<PeerId>>), rustls::Error> {
        let (crypto, proved) = self.tls.client(alpn.name(), expected)?;
        let mut client = ClientConfig::new(crypto);
        client.transport_config(cached(&self.clients, (alpn, payload), || {
            self.transport(alpn.limits(&self.config.limits), payload)
        }));
        Ok((client, proved))
    }

    /// The identity that the remote of a handshaken connection proved.
    pub(crate) fn peer_of(&self, connection: &quinn::Connection) -> Option<PeerId> {
        self.tls.peer_of(connection)
    }

    /// Lets the last packets of all connections pass their congestion controllers.
    pub(crate) fn let_all_go(&self) {
        self.flow.yields.store(true, Relaxed);
    }

    /// What all connections carry.
    pub(crate) fn flight(&self) -> &congestion::Flight {
        &self.flow.flight
    }

    /// Gives an inbound connection what its protocol allows.
    pub(crate) fn admit(&self, alpn: Alpn, connection: &quinn::Connection) {
        let limits = alpn.limits(&self.config.limits);
        connection.set_max_concurrent_bi_streams(limits.bidi_streams.into());
        connection.set_max_concurrent_uni_streams(limits.uni_streams.into());
        connection.set_receive_window(limits.receive_window_bytes.into());
        connection.set_send_window(limits.send_window_bytes);
    }

    fn transport(&self, alpn: &AlpnLimits, payload: u16) -> TransportConfig {
        let NetConfig { limits, congestion, max_mtu, segmentation_offload, ack_every, .. } = &self.config;
        let mut t = TransportConfig::default();
        t.max_concurrent_bidi_streams(alpn.bidi_streams.into());
        t.max_concurrent_uni_streams(alpn.uni_streams.into());
        t.stream_receive_window(limits.stream_window_bytes.into());
        t.receive_window(alpn.receive_window_bytes.into());
        t.send_window(alpn.send_window_bytes);
        // Strictly by priority, packet by packet: without it a stream that has begun is sent to its end first, whatever
        // waits with a higher one.
        t.send_fairness(true);
        t.datagram_receive_buffer_size(None);
        t.max_idle_timeout(limits.idle_timeout.try_into().ok());
        t.keep_alive_interval(Some(limits.keep_alive));
        t.allow_spin(false);
        t.enable_segmentation_offload(*segmentation_offload);
        t.initial_mtu(MIN_UDP_PAYLOAD);
        let bound = payload.min(*max_mtu).max(MIN_UDP_PAYLOAD);
        t.mtu_discovery_config((bound > MIN_UDP_PAYLOAD).then(|| {
            let mut search = MtuDiscoveryConfig::default();
            search.upper_bound(bound);
            if bound > LOOPBACK_ABOVE {
                // quinn probes the bound at once when half the range is less than the least change worth a probe.
                search.minimum_change(bound - MIN_UDP_PAYLOAD);
                search.interval(LOOPBACK_SEARCH_INTERVAL);
            } else {
                search.minimum_change(SEARCH_STEP);
                search.interval(SEARCH_INTERVAL);
            }
            search.black_hole_cooldown(BLACK_HOLE_COOLDOWN);
            search
        }));
        t.congestion_controller_factory(congestion::Factory::new(*congestion, bound, self.flow.clone()));
        if let Some(packets) = ack_every {
            let mut ack = AckFrequencyConfig::default();
            ack.ack_eliciting_threshold(VarInt::from_u32(packets.saturating_sub(1)));
            t.ack_frequency_config(Some(ack));
        }
        t
    }
}

/// Refuses settings that cannot work.
fn check(config: &NetConfig) -> Result<(), BindError> {
    let limits = &config.limits;
    let fail = |name, value, why| Err(BindError::Setting { name, value, why });
    if config.max_mtu < MIN_UDP_PAYLOAD {
        return fail("max_mtu", config.max_mtu.into(), "QUIC needs at least 1200 bytes");
    }
    if limits.pending_handshakes == 0 {
        return fail("pending_handshakes", 0, "at least 1, or nobody can connect");
    }
    if limits.pending_dials == 0 {
        return fail("pending_dials", 0, "at least 1, or we can connect to nobody");
    }
    if limits.backlog == 0 {
        return fail("backlog", 0, "at least 1, or every connection is refused");
    }
    if limits.idle_timeout.is_zero() || VarInt::try_from(limits.idle_timeout.as_millis()).is_err() {
        let millis = u64::try_from(limits.idle_timeout.as_millis()).unwrap_or(u64::MAX);
        return fail("idle_timeout", millis, "more than 0 and less than 2^62 milliseconds");
    }
    Ok(())
}

fn cached<K: Ord + Copy, V>(cache: &Mutex<BTreeMap<K, Arc<V>>>, key: K, make: impl FnOnce() -> V) -> Arc<V> {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = cache.get(&key) {
        return found.clone();
    }
    let made = Arc::new(make());
    if cache.len() < MAX_CACHED {
        cache.insert(key, made.clone());
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_before_the_alpn_is_known_suits_both_protocols() {
        let limits = Limits::default();
        let early = before_alpn(&limits);
        for alpn in [&limits.libp2p, &limits.shoal] {
            assert!(early.bidi_streams <= alpn.bidi_streams);
            assert!(early.receive_window_bytes <= alpn.receive_window_bytes);
            assert!(early.send_window_bytes <= alpn.send_window_bytes);
        }
        assert_eq!(early.uni_streams, 1, "the control stream must not wait for another round trip");
    }
}
