//! The libp2p behaviours of one peer, and the swarm that runs them over the shared port.

use crate::{DhtConfig, DhtError, observed::Observed, store::Providers};
use libp2p::{
    PeerId, StreamProtocol, Swarm, SwarmBuilder, autonat, connection_limits,
    connection_limits::ConnectionLimits,
    dcutr, identify,
    identity::{Keypair, PublicKey},
    kad, mdns, noise, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    yamux,
};
use shoal_net::Libp2pTransport;

/// Names us and our version to other peers.
pub(crate) const AGENT: &str = concat!("shoal/", env!("CARGO_PKG_VERSION"));
/// Longest message of Kademlia, bytes: a query's answer of 20 peers with 8 addresses each fits.
const KAD_MESSAGE_BYTES: usize = 16 << 10;

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    /// First, so that it refuses before others prepare.
    limits: connection_limits::Behaviour,
    pub(crate) kad: kad::Behaviour<Providers>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) observed: Observed,
    autonat_client: autonat::v2::client::Behaviour,
    autonat_server: autonat::v2::server::Behaviour,
    relay_client: relay::client::Behaviour,
    relay_server: Toggle<relay::Behaviour>,
    dcutr: dcutr::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// Builds the swarm. Must be called within a tokio runtime.
pub(crate) fn swarm(
    keypair: Keypair,
    transport: Libp2pTransport,
    config: &DhtConfig,
) -> Result<Swarm<Behaviour>, DhtError> {
    let protocol = StreamProtocol::try_from_owned(config.kad_protocol.clone())
        .map_err(|_| DhtError::ProtocolName { name: config.kad_protocol.clone() })?;
    let mdns = match config.mdns {
        true => Some(mdns(keypair.public().to_peer_id())?),
        false => None,
    };
    let failed = |error: &dyn std::fmt::Display| DhtError::Start { reason: error.to_string() };
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .map_err(|e| failed(&e))?
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(|e| failed(&e))?
        .with_behaviour(|keypair, relay_client| behaviour(keypair.public(), protocol, relay_client, mdns, config))
        .map_err(|e| failed(&e))?
        .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(config.limits.idle_connection))
        .build();
    Ok(swarm)
}

fn mdns(us: PeerId) -> Result<mdns::tokio::Behaviour, DhtError> {
    mdns::tokio::Behaviour::new(mdns::Config::default(), us).map_err(|source| DhtError::Mdns { source })
}

fn behaviour(
    public: PublicKey,
    protocol: StreamProtocol,
    relay_client: relay::client::Behaviour,
    mdns: Option<mdns::tokio::Behaviour>,
    config: &DhtConfig,
) -> Behaviour {
    let us = public.to_peer_id();
    let limits = &config.limits;
    let mut kademlia = kad::Config::new(protocol);
    kademlia
        .set_query_timeout(limits.query_timeout)
        .set_max_packet_size(KAD_MESSAGE_BYTES)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        // Values are not used here; neither are their jobs.
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_provider_publication_interval(Some(config.reprovide_interval))
        .set_provider_record_ttl(Some(config.provider_ttl))
        // The actor refreshes the table.
        .set_periodic_bootstrap_interval(None);
    let mut kad = kad::Behaviour::with_config(us, Providers::new(us, limits.clone()), kademlia);
    kad.set_mode(Some(if config.server_mode { kad::Mode::Server } else { kad::Mode::Client }));
    let connections = ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.pending))
        .with_max_pending_outgoing(Some(limits.pending))
        .with_max_established_incoming(Some(limits.inbound))
        .with_max_established_outgoing(Some(limits.outbound))
        .with_max_established_per_peer(Some(limits.per_peer));
    Behaviour {
        limits: connection_limits::Behaviour::new(connections),
        kad,
        identify: identify::Behaviour::new(
            identify::Config::new(AGENT.to_owned(), public)
                .with_agent_version(AGENT.to_owned())
                .with_push_listen_addr_updates(true),
        ),
        ping: ping::Behaviour::default(),
        observed: Observed::default(),
        autonat_client: autonat::v2::client::Behaviour::default(),
        autonat_server: autonat::v2::server::Behaviour::default(),
        relay_client,
        relay_server: config.relay_server.then(|| relay::Behaviour::new(us, relay::Config::default())).into(),
        dcutr: dcutr::Behaviour::new(us),
        mdns: mdns.into(),
    }
}
