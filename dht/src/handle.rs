//! The handle that the rest of the program holds, its commands, and its errors.

use crate::{
    DhtConfig, Keypair, Multiaddr, PeerId,
    actor::{Actor, Command},
    behaviour,
};
use shoal_net::Libp2pTransport;
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// Why the DHT could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DhtError {
    /// The protocol name is not one.
    #[error("the Kademlia protocol name {name:?} must begin with a slash, such as /shoal/kad/1.0.0")]
    ProtocolName {
        /// The name as given.
        name: String,
    },
    /// An address cannot be listened on.
    #[error("libp2p cannot listen on {addr}: {reason}")]
    Listen {
        /// The address as given.
        addr: Multiaddr,
        /// What the transport said.
        reason: String,
    },
    /// A bootstrap address is not one of ours.
    #[error(
        "bootstrap address {addr} is not usable; it should look like /ip4/192.0.2.1/udp/4001/quic-v1/p2p/<peer id>"
    )]
    Bootstrap {
        /// The address as given.
        addr: Multiaddr,
    },
    /// Multicast DNS cannot be used on this machine.
    #[error("discovery on the local network failed: {source}; switch mDNS off to go without it")]
    Mdns {
        /// What the system said.
        source: io::Error,
    },
    /// The swarm could not be built.
    #[error("libp2p could not be started: {reason}")]
    Start {
        /// In libp2p's words.
        reason: String,
    },
    /// The key is longer than the limit.
    #[error("a key of {len} bytes is too long; at most {max} are served")]
    KeyTooLong {
        /// Its length.
        len: usize,
        /// The limit `key_bytes`.
        max: usize,
    },
    /// So many keys are provided already.
    #[error("{max} keys are provided already; stop providing some, or raise the limit own_keys")]
    TooManyKeys {
        /// The limit `own_keys`.
        max: usize,
    },
    /// So many searches are under way.
    #[error("{max} searches are under way already; wait for one to end")]
    TooManySearches {
        /// The limit `searches`.
        max: usize,
    },
    /// The DHT was shut down.
    #[error("the DHT is shut down")]
    Closed,
}

/// A peer that provides a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Who.
    pub peer: PeerId,
    /// Where it can be dialled by QUIC over UDP; never empty, most promising first: an address at which we are
    /// connected with it comes before addresses that were told.
    pub addrs: Vec<SocketAddr>,
}

/// A peer that we are connected with by libp2p.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Who.
    pub peer: PeerId,
    /// Where it can be dialled: the addresses of direct connections first, then what it told. Empty while the only way
    /// is a relay.
    pub addrs: Vec<SocketAddr>,
    /// What it calls itself, at most 64 characters of what it sent; empty until known.
    pub agent: String,
    /// Whether a direct connection exists, not only one through a relay.
    pub direct: bool,
}

/// A handle on the running DHT. Clones share it. When the last one is dropped, the task ends; call
/// [`Dht::shutdown`] to end it in order.
#[derive(Clone)]
pub struct Dht {
    commands: mpsc::Sender<Command>,
    task: Arc<Mutex<JoinSet<()>>>,
    us: PeerId,
    key_bytes: usize,
}

impl fmt::Debug for Dht {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dht({})", self.us)
    }
}

impl Dht {
    /// Starts the swarm on the shared port. `listen` are the addresses given to [`shoal_net::bind`]; port 0 stands for
    /// the bound one. Must be called within a tokio runtime.
    pub fn start(
        keypair: Keypair,
        transport: Libp2pTransport,
        listen: Vec<Multiaddr>,
        config: DhtConfig,
    ) -> Result<Dht, DhtError> {
        let us = keypair.public().to_peer_id();
        let key_bytes = config.limits.key_bytes;
        // whoever listens on loopback only has nothing to tell the LAN, and must not talk to it
        let lan = listen.iter().filter_map(shoal_net::from_multiaddr).any(|(addr, _)| !addr.ip().is_loopback());
        let config = DhtConfig { mdns: config.mdns && lan, ..config };
        let mut swarm = behaviour::swarm(keypair, transport, &config)?;
        for addr in listen {
            swarm.listen_on(addr.clone()).map_err(|e| DhtError::Listen { addr, reason: e.to_string() })?;
        }
        let (commands, receiver) = mpsc::channel(config.limits.commands);
        let actor = Actor::new(swarm, receiver, config)?;
        let mut task = JoinSet::new();
        task.spawn(actor.run());
        Ok(Dht { commands, task: Arc::new(Mutex::new(task)), us, key_bytes })
    }

    /// Our identity.
    pub fn peer_id(&self) -> PeerId {
        self.us
    }

    /// Announces that we have what `key` (a multihash) names, and does so again every
    /// [`reprovide_interval`](DhtConfig::reprovide_interval) until [`Dht::stop_providing`]. Returns when peers were told;
    /// at once when no peer is known, and they are told as soon as there are any. Never waits longer than
    /// [`provide_timeout`](crate::DhtLimits::provide_timeout); the telling then goes on.
    ///
    /// Cancel safe: what was begun goes on.
    pub async fn provide(&self, key: Vec<u8>) -> Result<(), DhtError> {
        self.check(&key)?;
        self.ask(|reply| Command::Provide { key, reply }).await?
    }

    /// Announces it no more. What others were told they forget after their
    /// [`provider_ttl`](DhtConfig::provider_ttl): Kademlia has no message to take it back.
    pub async fn stop_providing(&self, key: Vec<u8>) -> Result<(), DhtError> {
        self.ask(|reply| Command::StopProviding { key, reply }).await
    }

    /// Searches for peers that provide `key`. They come as they are found, each once, never ourselves; the channel
    /// closes when the search has ended. Dropping the receiver ends the search. A search that begins before any peer is
    /// known waits for the first one, at most [`join_timeout`](crate::DhtLimits::join_timeout).
    pub async fn find_providers(&self, key: Vec<u8>) -> Result<mpsc::Receiver<Provider>, DhtError> {
        self.check(&key)?;
        self.ask(|reply| Command::FindProviders { key, reply }).await?
    }

    /// The peers we are connected with.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, DhtError> {
        self.ask(|reply| Command::Peers { reply }).await
    }

    /// The addresses that libp2p listens on, wildcards expanded, without `/p2p`.
    pub async fn listen_addrs(&self) -> Result<Vec<Multiaddr>, DhtError> {
        self.ask(|reply| Command::ListenAddrs { reply }).await
    }

    /// The addresses under which others are told to find us: those that AutoNAT confirmed, our own on local networks,
    /// and circuits through relays.
    pub async fn external_addrs(&self) -> Result<Vec<Multiaddr>, DhtError> {
        self.ask(|reply| Command::ExternalAddrs { reply }).await
    }

    /// Tells of a peer, from a link for instance, and dials it, so that the network can be joined through it.
    pub async fn add_address(&self, peer: PeerId, addr: SocketAddr) -> Result<(), DhtError> {
        self.ask(|reply| Command::AddAddress { peer, addr, reply }).await
    }

    /// Ends searches, closes the connections, and waits for the task, a bounded time. Later calls return at once.
    /// Dropping the future ends the task without waiting.
    pub async fn shutdown(&self) {
        let told = self.ask(|reply| Command::Shutdown { reply }).await;
        let mut task = std::mem::take(&mut *self.task.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(done) = task.join_next().await {
            if let Err(error) = done {
                tracing::error!(%error, "the DHT's task ended badly");
            }
        }
        tracing::debug!(first = told.is_ok(), "the DHT is shut down");
    }

    fn check(&self, key: &[u8]) -> Result<(), DhtError> {
        if key.len() > self.key_bytes {
            return Err(DhtError::KeyTooLong { len: key.len(), max: self.key_bytes });
        }
        Ok(())
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, DhtError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| DhtError::Closed)?;
        answer.await.map_err(|_| DhtError::Closed)
    }
}
