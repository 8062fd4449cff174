//! The shared endpoint as a libp2p `Transport`. Listening opens nothing: the port is bound; it only says which of its
//! addresses the swarm may announce.

use crate::{
    Multiaddr, PeerId, TransportIoError,
    accept::InboundLibp2p,
    addr,
    endpoint::{Shared, dial_libp2p, is_link_local_v6},
    from_multiaddr,
    muxer::Muxer,
    to_multiaddr,
};
use futures::{FutureExt, future::BoxFuture};
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p_core::{
    Endpoint as Role, Transport,
    transport::{DialOpts, ListenerId, TransportError, TransportEvent},
};
use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio::sync::mpsc;

type Upgrade = BoxFuture<'static, Result<(PeerId, Muxer), TransportIoError>>;
type Event = TransportEvent<Upgrade, TransportIoError>;

/// libp2p over the shared port: `/ip4|ip6/…/udp/…/quic-v1`.
pub struct Libp2pTransport {
    shared: Arc<Shared>,
    inbound: mpsc::Receiver<InboundLibp2p>,
    listeners: Vec<Listener>,
    /// Watches the interfaces while a wildcard is listened on.
    watcher: Option<IfWatcher>,
    up: BTreeSet<IpAddr>,
    /// At most a few per interface change; drained by each poll.
    events: VecDeque<Event>,
    waker: Option<Waker>,
}

/// One `listen_on`.
struct Listener {
    id: ListenerId,
    ip: IpAddr,
}

impl Listener {
    /// A wildcard announces the interfaces of its own family.
    fn is_wildcard_of(&self, ip: IpAddr) -> bool {
        self.ip.is_unspecified() && self.ip.is_ipv4() == ip.is_ipv4()
    }
}

impl fmt::Debug for Libp2pTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Libp2pTransport({} on {})", self.shared.peer, self.shared.local)
    }
}

impl Libp2pTransport {
    pub(crate) fn new(shared: Arc<Shared>, inbound: mpsc::Receiver<InboundLibp2p>) -> Self {
        Libp2pTransport {
            shared,
            inbound,
            listeners: Vec::new(),
            watcher: None,
            up: BTreeSet::new(),
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// The identity behind the port.
    pub fn peer_id(&self) -> PeerId {
        self.shared.peer
    }

    fn announced(&self, ip: IpAddr) -> Multiaddr {
        to_multiaddr((ip, self.shared.local.port()).into())
    }

    fn push(&mut self, event: Event) {
        self.events.push_back(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_interfaces(&mut self, cx: &mut Context<'_>) {
        while let Some(watcher) = &mut self.watcher {
            match watcher.poll_if_event(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(IfEvent::Up(net))) => self.interface_up(net.addr()),
                Poll::Ready(Ok(IfEvent::Down(net))) => self.interface_down(net.addr()),
                Poll::Ready(Err(error)) => {
                    // A watcher that failed once fails for ever; what it told stays announced.
                    tracing::warn!(%error, "interfaces are no longer watched");
                    self.watcher = None;
                }
            }
        }
    }

    fn interface_up(&mut self, ip: IpAddr) {
        if is_link_local_v6(ip) || !self.up.insert(ip) {
            return;
        }
        let listen_addr = self.announced(ip);
        for listener in self.listeners.iter().filter(|l| l.is_wildcard_of(ip)) {
            self.events
                .push_back(TransportEvent::NewAddress { listener_id: listener.id, listen_addr: listen_addr.clone() });
        }
    }

    fn interface_down(&mut self, ip: IpAddr) {
        if !self.up.remove(&ip) {
            return;
        }
        let listen_addr = self.announced(ip);
        for listener in self.listeners.iter().filter(|l| l.is_wildcard_of(ip)) {
            self.events.push_back(TransportEvent::AddressExpired {
                listener_id: listener.id,
                listen_addr: listen_addr.clone(),
            });
        }
    }

    /// The event for an inbound connection; `None` when nobody listens, which closes it.
    fn incoming(&self, inbound: InboundLibp2p) -> Option<Event> {
        let InboundLibp2p { peer, muxer, from } = inbound;
        let local = muxer.connection().local_ip().map_or(self.shared.local.ip(), |ip| ip.to_canonical());
        let listener = self
            .listeners
            .iter()
            .find(|l| l.ip == local || l.is_wildcard_of(local))
            .or_else(|| self.listeners.iter().find(|l| l.ip.is_ipv4() == from.is_ipv4()))
            .or(self.listeners.first())?;
        Some(TransportEvent::Incoming {
            listener_id: listener.id,
            upgrade: std::future::ready(Ok((peer, muxer))).boxed(),
            local_addr: self.announced(local),
            send_back_addr: to_multiaddr(from),
        })
    }
}

impl Transport for Libp2pTransport {
    type Output = (PeerId, Muxer);
    type Error = TransportIoError;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    /// Accepts addresses that the bound socket serves; port 0 stands for the bound one.
    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<TransportIoError>> {
        let bound = self.shared.local;
        let served = |want: &SocketAddr| {
            (want.port() == 0 || want.port() == bound.port())
                && self.shared.serves(want.ip())
                && (bound.ip().is_unspecified() || want.ip().is_unspecified() || want.ip() == bound.ip().to_canonical())
        };
        let Some((want, None)) = from_multiaddr(&addr).filter(|(want, _)| served(want)) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        let ip = if bound.ip().is_unspecified() { want.ip() } else { bound.ip().to_canonical() };
        if ip.is_unspecified() {
            if self.watcher.is_none() {
                self.watcher = Some(IfWatcher::new().map_err(|e| TransportError::Other(e.into()))?);
                self.up.clear();
            }
            let listener = Listener { id, ip };
            let known: Vec<_> = self.up.iter().copied().filter(|ip| listener.is_wildcard_of(*ip)).collect();
            for ip in known {
                let listen_addr = self.announced(ip);
                self.push(TransportEvent::NewAddress { listener_id: id, listen_addr });
            }
        } else {
            let listen_addr = self.announced(ip);
            self.push(TransportEvent::NewAddress { listener_id: id, listen_addr });
        }
        self.listeners.push(Listener { id, ip });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    /// The endpoint stays: the data plane uses it.
    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|l| l.id != id);
        let found = self.listeners.len() != before;
        if found {
            self.push(TransportEvent::ListenerClosed { listener_id: id, reason: Ok(()) });
        }
        if !self.listeners.iter().any(|l| l.ip.is_unspecified()) {
            self.watcher = None;
        }
        found
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Upgrade, TransportError<TransportIoError>> {
        let destination = from_multiaddr(&addr)
            .map(|(socket, _)| socket)
            .filter(|s| s.port() != 0 && !s.ip().is_unspecified() && self.shared.serves(s.ip()));
        let Some(socket_addr) = destination else { return Err(TransportError::MultiaddrNotSupported(addr)) };
        let shared = self.shared.clone();
        Ok(match opts.role {
            Role::Dialer => dial_libp2p(shared, socket_addr, opts.port_use).boxed(),
            // Both sides "dial" to punch a hole; this one only opens its NAT and waits for the other's connection.
            Role::Listener => async move {
                let Some(to) = addr::for_socket(socket_addr, shared.local.is_ipv6()) else {
                    return Err(TransportIoError::Punch { addr: socket_addr, why: "we listen on the other IP family" });
                };
                let timeout = shared.limits.handshake_timeout;
                shared.punches.punch(&*shared.socket, socket_addr, to, timeout).await.map(|punched| *punched)
            }
            .boxed(),
        })
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        let this = &mut *self;
        this.poll_interfaces(cx);
        if let Some(event) = this.events.pop_front() {
            return Poll::Ready(event);
        }
        while let Poll::Ready(Some(inbound)) = this.inbound.poll_recv(cx) {
            if let Some(event) = this.incoming(inbound) {
                return Poll::Ready(event);
            }
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
