//! The peers we are connected with: where they are, and what they told of themselves. Entries live as long as a
//! connection, so their number is that of the connection limits; peers without one are Kademlia's to remember.

use crate::{
    PeerInfo,
    scope::{Scope, dialable},
};
use libp2p::{PeerId, core::ConnectedPoint, swarm::ConnectionId};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

/// Longest agent string kept, characters.
const MAX_AGENT: usize = 64;

/// One connected peer.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The remote's address of each connection; `None` through a relay.
    connections: BTreeMap<ConnectionId, Option<(SocketAddr, Scope)>>,
    /// Listen addresses that it told, filtered and bounded.
    pub(crate) told: Vec<SocketAddr>,
    agent: String,
    /// Whether it relays.
    pub(crate) relays: bool,
}

/// All connected peers.
#[derive(Debug, Default)]
pub(crate) struct Book {
    peers: HashMap<PeerId, Known>,
}

impl Book {
    pub(crate) fn connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let direct = if endpoint.is_relayed() {
            None
        } else {
            dialable(endpoint.get_remote_address()).map(|(socket, _, scope)| (socket, scope))
        };
        self.peers.entry(peer).or_default().connections.insert(id, direct);
    }

    /// Gives what the peer had told when this was the last connection with it.
    pub(crate) fn closed(&mut self, peer: PeerId, id: ConnectionId) -> Option<Known> {
        let known = self.peers.get_mut(&peer)?;
        known.connections.remove(&id);
        if known.connections.is_empty() { self.peers.remove(&peer) } else { None }
    }

    /// Replaces what the peer told, and gives back what it had told before.
    pub(crate) fn identified(
        &mut self,
        peer: PeerId,
        told: Vec<SocketAddr>,
        agent: &str,
        relays: bool,
    ) -> Vec<SocketAddr> {
        let Some(known) = self.peers.get_mut(&peer) else { return Vec::new() };
        known.agent = agent.chars().take(MAX_AGENT).collect();
        known.relays = relays;
        std::mem::replace(&mut known.told, told)
    }

    /// Where to dial the peer: at the addresses of direct connections first. The port is the remote's one port also
    /// where it dialled us.
    pub(crate) fn addrs(&self, peer: &PeerId) -> Vec<SocketAddr> {
        let Some(known) = self.peers.get(peer) else { return Vec::new() };
        let mut addrs = Vec::new();
        for socket in known.connections.values().flatten().map(|(socket, _)| *socket).chain(known.told.iter().copied())
        {
            if !addrs.contains(&socket) {
                addrs.push(socket);
            }
        }
        addrs
    }

    /// Whether there is a connection without a relay.
    pub(crate) fn is_direct(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|known| known.connections.values().any(Option::is_some))
    }

    /// How near the peer is; what it tells of its addresses is believed down to this scope.
    pub(crate) fn nearness(&self, peer: &PeerId) -> Scope {
        let scopes = self.peers.get(peer).map(|known| known.connections.values().flatten().map(|(_, scope)| *scope));
        scopes.and_then(Iterator::min).unwrap_or(Scope::Global)
    }

    /// The nearest peer's scope.
    pub(crate) fn nearest(&self) -> Option<Scope> {
        self.peers.values().flat_map(|known| known.connections.values().flatten()).map(|(_, scope)| *scope).min()
    }

    /// Connected peers that relay, with an address.
    pub(crate) fn relays(&self) -> impl Iterator<Item = (PeerId, SocketAddr)> + '_ {
        self.peers.iter().filter(|(_, known)| known.relays).filter_map(|(peer, known)| {
            let (socket, _) = known.connections.values().flatten().next()?;
            Some((*peer, *socket))
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Everything, for the user's eyes, by id.
    pub(crate) fn infos(&self) -> Vec<PeerInfo> {
        let mut infos: Vec<_> = self
            .peers
            .iter()
            .map(|(peer, known)| PeerInfo {
                peer: *peer,
                addrs: self.addrs(peer),
                agent: known.agent.clone(),
                direct: self.is_direct(peer),
            })
            .collect();
        infos.sort_by_key(|info| info.peer);
        infos
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::core::{Endpoint, transport::PortUse};

    fn at(addr: &str) -> ConnectedPoint {
        ConnectedPoint::Dialer {
            address: addr.parse().unwrap(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        }
    }

    #[test]
    fn connected_addresses_come_first_and_entries_die_with_the_last_connection() {
        let mut book = Book::default();
        let (peer, relay) = (PeerId::random(), PeerId::random());
        let (one, two) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        book.connected(peer, one, &at(&format!("/ip4/9.9.9.9/udp/1/quic-v1/p2p/{relay}/p2p-circuit")));
        assert!(!book.is_direct(&peer));
        assert_eq!(book.nearness(&peer), Scope::Global, "a relay says nothing of where it is");
        book.connected(peer, two, &at("/ip4/10.0.0.1/udp/2/quic-v1"));
        let told: SocketAddr = "9.9.9.8:2".parse().unwrap();
        book.identified(peer, vec![told, "10.0.0.1:2".parse().unwrap()], &"x".repeat(1_000), true);
        assert_eq!(book.addrs(&peer), ["10.0.0.1:2".parse().unwrap(), told]);
        assert_eq!((book.nearness(&peer), book.nearest()), (Scope::Private, Some(Scope::Private)));
        assert_eq!(book.infos()[0].agent.len(), MAX_AGENT);
        assert_eq!(book.relays().count(), 1);
        assert!(book.closed(peer, two).is_none());
        assert!(!book.is_direct(&peer));
        assert_eq!(book.closed(peer, one).unwrap().told.len(), 2);
        assert_eq!(book.len(), 0);
        assert!(book.closed(peer, one).is_none());
    }
}
