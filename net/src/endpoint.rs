//! Binding the port, dialling the data plane, listing addresses, shutting down.

use crate::{
    BindError, CLOSE_NORMAL, CLOSE_WRONG_PEER, Carried, ConnectError, Connection, Incoming, Kernel, Keypair,
    Libp2pTransport, Limits, Multiaddr, NetConfig, NetStats, PeerId, Underlay,
    accept::{self, Counters},
    addr::{self, SocketPlan},
    muxer::Muxer,
    punch::Punches,
    quic::{Alpn, Configs},
    table::{Slot, Table},
    tls::{self, Tls},
    to_multiaddr,
};
use libp2p_core::transport::PortUse;
use quinn::{ConnectionError, TransportErrorCode};
use std::{
    fmt,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// TLS alert "no application protocol" (RFC 7301) as QUIC carries it (RFC 9001, 4.8).
const NO_APPLICATION_PROTOCOL: u8 = 120;
/// A system without IPv6 cannot open an IPv6 socket: EAFNOSUPPORT on Linux.
#[cfg(target_os = "linux")]
const NO_SUCH_FAMILY: i32 = 97;
#[cfg(not(target_os = "linux"))]
const NO_SUCH_FAMILY: i32 = 47;

/// Opens the one UDP port on the operating system's network. Must be called within a tokio runtime.
pub fn bind(keypair: &Keypair, config: NetConfig) -> Result<(Endpoint, Libp2pTransport, Incoming), BindError> {
    bind_on(keypair, config, Arc::new(Kernel))
}

/// Like [`bind`], on another [`Underlay`].
pub fn bind_on(
    keypair: &Keypair,
    config: NetConfig,
    underlay: Arc<dyn Underlay>,
) -> Result<(Endpoint, Libp2pTransport, Incoming), BindError> {
    let mut plan = addr::plan(&config.listen)?;
    let configs = Configs::new(Tls::new(keypair)?, config.clone())?;
    let limits = config.limits;
    let mut opened = underlay.open(plan.addr, plan.dual_stack);
    if plan.dual_stack && opened.as_ref().is_err_and(|e| e.raw_os_error() == Some(NO_SUCH_FAMILY)) {
        tracing::warn!("this system has no IPv6; listening on IPv4 alone");
        plan = SocketPlan { addr: (Ipv4Addr::UNSPECIFIED, plan.addr.port()).into(), dual_stack: false };
        opened = underlay.open(plan.addr, false);
    }
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::AddrInUse => BindError::AddrInUse { addr: plan.addr },
        ErrorKind::AddrNotAvailable => BindError::AddrNotAvailable { addr: plan.addr },
        ErrorKind::PermissionDenied => BindError::PermissionDenied { addr: plan.addr },
        _ => BindError::Socket { addr: plan.addr, source },
    };
    let socket = opened.map_err(failed)?;
    let local = socket.local_addr().map_err(failed)?;
    let server = configs.server(crate::quic::MIN_UDP_PAYLOAD);
    let quinn = quinn::Endpoint::new_with_abstract_socket(
        configs.endpoint(),
        Some((*server).clone()),
        socket.clone(),
        underlay.runtime(),
    )
    .map_err(failed)?;

    let shared = Arc::new(Shared {
        peer: keypair.public().to_peer_id(),
        local,
        dual_stack: plan.dual_stack,
        quinn,
        configs,
        table: Table::new(&limits),
        punches: Arc::new(Punches::new(limits.pending_punches)),
        dials: Semaphore::new(limits.pending_dials),
        counters: Counters::default(),
        cancel: CancellationToken::new(),
        socket,
        underlay,
        limits,
    });
    let (to_libp2p, from_libp2p) = mpsc::channel(shared.limits.backlog);
    let (to_shoal, from_shoal) = mpsc::channel(shared.limits.backlog);
    let mut tasks = JoinSet::new();
    tasks.spawn(accept::run(shared.clone(), to_libp2p, to_shoal));
    let owner = Arc::new(Owner { shared: shared.clone(), tasks: Mutex::new(tasks) });
    Ok((Endpoint { shared: shared.clone(), owner }, Libp2pTransport::new(shared, from_libp2p), Incoming(from_shoal)))
}

/// What the endpoint's parts share. Holds no task.
pub(crate) struct Shared {
    pub(crate) peer: PeerId,
    /// As the socket spells it.
    pub(crate) local: SocketAddr,
    pub(crate) dual_stack: bool,
    pub(crate) quinn: quinn::Endpoint,
    pub(crate) configs: Configs,
    pub(crate) limits: Limits,
    pub(crate) table: Arc<Table>,
    pub(crate) punches: Arc<Punches>,
    pub(crate) counters: Counters,
    pub(crate) cancel: CancellationToken,
    pub(crate) socket: Arc<dyn quinn::AsyncUdpSocket>,
    pub(crate) underlay: Arc<dyn Underlay>,
    dials: Semaphore,
}

/// The accept loop's owner: dropping the last [`Endpoint`] ends it and closes every connection, without waiting.
struct Owner {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        self.shared.configs.let_all_go();
        self.shared.quinn.close(CLOSE_NORMAL, b"");
    }
}

/// A handle on the port. Clones share it.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
    owner: Arc<Owner>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} on {})", self.shared.peer, self.shared.local)
    }
}

impl Endpoint {
    /// Our identity.
    pub fn peer_id(&self) -> PeerId {
        self.shared.peer
    }

    /// The bound address, with the port that was taken for 0. `[::]` when dual-stack.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local
    }

    /// Counters since [`bind`].
    pub fn stats(&self) -> NetStats {
        self.shared.counters.snapshot(self.shared.table.open())
    }

    /// What the uplink carried since [`bind`], and carries.
    pub fn carried(&self) -> Carried {
        self.shared.configs.flight().carried()
    }

    /// Waits until less than `rate` bytes per second are carried, over all connections. For one task at a time: another one
    /// that waits may not hear of it. Cancel safe.
    pub async fn room(&self, rate: u64) {
        self.shared.configs.flight().room(rate).await;
    }

    /// Opens a data-plane connection to a peer at an address, from the shared port. Someone else answering there is an
    /// error before a byte of ours is readable to them.
    ///
    /// TLS 1.3 lets a client finish before the server has judged it: where the remote does not want us (its limits, a
    /// certificate it cannot read), this succeeds and the connection closes an instant later. So count a peer as
    /// reached only when it has said something.
    ///
    /// Cancel safe: dropping the future gives the dial up.
    pub async fn connect(&self, addr: SocketAddr, peer: PeerId) -> Result<Connection, ConnectError> {
        let addr = addr::canonical(addr);
        let after = self.shared.limits.connect_timeout;
        let work = async {
            let _permit = self.shared.dials.acquire().await.map_err(|_| ConnectError::Closed)?;
            let (quinn, peer, slot) = self.shared.dial(addr, Alpn::Shoal, Some(peer), PortUse::Reuse).await?;
            Ok(Connection::new(quinn, peer, true, slot))
        };
        tokio::select! {
            biased;
            () = self.shared.cancel.cancelled() => Err(ConnectError::Closed),
            result = tokio::time::timeout(after, work) => result.unwrap_or(Err(ConnectError::Timeout { addr, after })),
        }
    }

    /// Addresses that others can dial, each with `/p2p/<us>`. Wildcards are expanded to the addresses of the interfaces
    /// that are up; loopback ones are left out when there are others. What a NAT in front of us shows is not known
    /// here.
    pub fn listen_multiaddrs(&self) -> Vec<Multiaddr> {
        let shared = &self.shared;
        let port = shared.local.port();
        let ips = if shared.local.ip().is_unspecified() {
            let interfaces = shared.underlay.interfaces().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot list the interfaces");
                Vec::new()
            });
            reachable(interfaces, |ip| shared.serves(ip))
        } else {
            vec![shared.local.ip()]
        };
        ips.into_iter().map(|ip| to_multiaddr((ip, port).into()).with(multiaddr::Protocol::P2p(shared.peer))).collect()
    }

    /// Stops accepting, closes every connection of both protocols, and waits for the handshakes to end and the goodbyes
    /// to leave, at most [`Limits::shutdown_grace`]. Later calls return at once. The port is free when the other
    /// handles (connections, the transport) are dropped too. Dropping the future ends the wait and what it waited for.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        let mut tasks = std::mem::take(&mut *self.owner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(done) = tasks.join_next().await {
            if let Err(error) = done
                && error.is_panic()
            {
                tracing::error!(%error, "the accept loop panicked");
            }
        }
        self.shared.configs.let_all_go();
        self.shared.quinn.close(CLOSE_NORMAL, b"shutdown");
        if tokio::time::timeout(self.shared.limits.shutdown_grace, self.shared.quinn.wait_idle()).await.is_err() {
            tracing::debug!("some remotes did not hear our goodbye");
        }
    }
}

/// Interface addresses worth telling others.
fn reachable(interfaces: Vec<IpAddr>, serves: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
    let (loopback, others): (Vec<_>, Vec<_>) =
        interfaces.into_iter().filter(|ip| serves(*ip) && !is_link_local_v6(*ip)).partition(IpAddr::is_loopback);
    if others.is_empty() { loopback } else { others }
}

/// `fe80::/10` needs an interface's name to be dialled, which a multiaddr here does not carry.
pub(crate) fn is_link_local_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

impl Shared {
    /// Whether the socket serves this family.
    pub(crate) fn serves(&self, ip: IpAddr) -> bool {
        self.dual_stack || ip.is_ipv4() == self.local.is_ipv4()
    }

    /// One dial of either protocol. `addr` is canonical. Bounded in time by the caller.
    pub(crate) async fn dial(
        &self,
        addr: SocketAddr,
        alpn: Alpn,
        expected: Option<PeerId>,
        port: PortUse,
    ) -> Result<(quinn::Connection, PeerId, Slot), ConnectError> {
        if self.cancel.is_cancelled() {
            return Err(ConnectError::Closed);
        }
        let unreachable = |reason: String| ConnectError::Unreachable { addr, reason };
        let slot = self.table.outbound().map_err(|_| ConnectError::TooMany { max: self.limits.connections })?;
        if addr.port() == 0 || addr.ip().is_unspecified() || !self.serves(addr.ip()) {
            let why =
                if self.serves(addr.ip()) { "no such destination" } else { "we listen on the other IP family only" };
            return Err(unreachable(why.to_owned()));
        }
        let payload = self.underlay.max_payload(addr).map_err(|e| unreachable(e.to_string()))?;
        let (config, proved) = self.configs.client(alpn, expected, payload).map_err(|e| unreachable(e.to_string()))?;
        let connecting = match port {
            PortUse::Reuse => {
                let to = addr::for_socket(addr, self.local.is_ipv6())
                    .ok_or_else(|| unreachable("we listen on the other IP family only".to_owned()))?;
                self.quinn.connect_with(config, to, tls::SERVER_NAME)
            }
            // The one exception to the one port: to find out whether we can be dialled out of the blue, a peer must
            // call back from a port that no mapping of ours knows.
            PortUse::New => self.throw_away(addr).map_err(|e| unreachable(e.to_string()))?.connect_with(
                config,
                addr,
                tls::SERVER_NAME,
            ),
        }
        .map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => ConnectError::Closed,
            other => unreachable(other.to_string()),
        })?;
        let connection = connecting
            .await
            .map_err(|e| connect_error(e, addr, alpn, expected, proved.get(), self.limits.idle_timeout))?;
        match (proved.get().copied(), expected) {
            (Some(got), Some(expected)) if got != expected => {
                connection.close(CLOSE_WRONG_PEER, b"wrong peer");
                Err(ConnectError::WrongPeer { addr, expected, got })
            }
            (Some(got), _) => Ok((connection, got, slot)),
            (None, _) => {
                connection.close(CLOSE_WRONG_PEER, b"no identity");
                Err(ConnectError::Handshake { addr, reason: "no libp2p certificate".to_owned() })
            }
        }
    }

    fn throw_away(&self, towards: SocketAddr) -> std::io::Result<quinn::Endpoint> {
        let ip: IpAddr = match (self.local.ip().is_unspecified(), towards) {
            (false, _) => self.local.ip(),
            (true, SocketAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (true, SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.underlay.open((ip, 0).into(), false)?;
        quinn::Endpoint::new_with_abstract_socket(self.configs.endpoint(), None, socket, self.underlay.runtime())
    }
}

/// Puts quinn's error in our words.
fn connect_error(
    error: ConnectionError,
    addr: SocketAddr,
    alpn: Alpn,
    expected: Option<PeerId>,
    proved: Option<&PeerId>,
    idle: Duration,
) -> ConnectError {
    if let (Some(expected), Some(&got)) = (expected, proved)
        && expected != got
    {
        return ConnectError::WrongPeer { addr, expected, got };
    }
    let no_protocol =
        || ConnectError::NoCommonProtocol { addr, wanted: String::from_utf8_lossy(alpn.name()).into_owned() };
    match error {
        ConnectionError::TimedOut => ConnectError::Timeout { addr, after: idle },
        ConnectionError::LocallyClosed => ConnectError::Closed,
        ConnectionError::VersionMismatch => no_protocol(),
        ConnectionError::ConnectionClosed(close) => {
            if close.error_code == TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL) {
                no_protocol()
            } else if close.error_code == TransportErrorCode::CONNECTION_REFUSED {
                ConnectError::Refused { addr, reason: "it takes no more connections".to_owned() }
            } else {
                ConnectError::Handshake { addr, reason: close.to_string() }
            }
        }
        ConnectionError::ApplicationClosed(close) => ConnectError::Refused { addr, reason: close.to_string() },
        ConnectionError::Reset => ConnectError::Refused { addr, reason: "it was restarted".to_owned() },
        other => ConnectError::Handshake { addr, reason: other.to_string() },
    }
}

/// A libp2p dial for the transport.
pub(crate) async fn dial_libp2p(
    shared: Arc<Shared>,
    addr: SocketAddr,
    port: PortUse,
) -> Result<(PeerId, Muxer), crate::TransportIoError> {
    let after = shared.limits.handshake_timeout;
    // The swarm checks the peer itself and reports which one it found instead.
    let dial = shared.dial(addr, Alpn::Libp2p, None, port);
    let (connection, peer, slot) =
        tokio::time::timeout(after, dial).await.unwrap_or(Err(ConnectError::Timeout { addr, after }))?;
    Ok((peer, Muxer::new(connection, slot)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_only_when_there_is_nothing_else() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let all = vec![ip("127.0.0.1"), ip("10.0.0.7"), ip("::1"), ip("fe80::1"), ip("2001:db8::7")];
        assert_eq!(reachable(all.clone(), |_| true), [ip("10.0.0.7"), ip("2001:db8::7")]);
        assert_eq!(reachable(all, |ip| ip.is_ipv4()), [ip("10.0.0.7")]);
        assert_eq!(reachable(vec![ip("127.0.0.1"), ip("fe80::1")], |_| true), [ip("127.0.0.1")]);
    }
}
