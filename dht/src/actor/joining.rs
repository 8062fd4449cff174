//! Joining the network: bootstrap peers are dialled, dialled again when they are lost, and left alone while there are
//! enough other peers. And when the routing table is refreshed.

use super::{Actor, now, without_peer};
use crate::backoff::Backoff;
use libp2p::{
    Multiaddr, PeerId,
    kad::{QueryId, QueryInfo},
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use shoal_net::to_multiaddr;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// With so many peers, a lost bootstrap peer is not missed.
const ENOUGH_PEERS: usize = 8;
/// How long then until we look again.
const NOT_MISSED: Duration = Duration::from_secs(60);

/// The routing table is refreshed for the first time after so long, and again after so long while nobody is known.
const FIRST_REFRESH: Duration = Duration::from_secs(60);
/// libp2p begins a bootstrap half a second after a new peer came into a small table; so long after that it is looked for.
const BOOTSTRAP_BEGINS: Duration = Duration::from_millis(510);

/// When the routing table is refreshed, by lookups of ourselves and of a key in each bucket. libp2p would do so after each
/// new peer of a small table too. Where a crowd comes together, each of it would ask, and first connect with, twenty
/// others several times within its first seconds, which are those of its fetch. So what libp2p begins is ended.
#[derive(Debug)]
pub(super) struct Refresh {
    due: Instant,
    ours: Option<QueryId>,
    /// libp2p may have begun one by then.
    look_at: Option<Instant>,
}

impl Refresh {
    pub(super) fn new(now: Instant) -> Self {
        Refresh { due: now + FIRST_REFRESH, ours: None, look_at: None }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.look_at.map_or(self.due, |look_at| look_at.min(self.due))
    }

    /// A new peer is in the table.
    pub(super) fn peer_came(&mut self, now: Instant) {
        self.look_at = Some(now + BOOTSTRAP_BEGINS);
    }
}

/// A bootstrap peer.
pub(super) struct Seed {
    pub(super) addr: Multiaddr,
    pub(super) peer: Option<PeerId>,
    pub(super) backoff: Backoff,
    pub(super) state: SeedState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SeedState {
    Waiting(Instant),
    Dialing(ConnectionId),
    Connected(PeerId),
    /// It is ourselves.
    Never,
}

impl Actor {
    /// Refreshes the table if that is due, and ends what is not due.
    pub(super) fn refresh(&mut self, now: Instant) {
        if self.refresh.due <= now {
            // an error says that nobody is known
            self.refresh.ours = self.kad().bootstrap().ok();
            let again = self.refresh.ours.map_or(FIRST_REFRESH, |_| self.config.bootstrap_interval);
            self.refresh.due = now + again;
        }
        self.refresh.look_at.take_if(|look_at| *look_at <= now);
        let ours = self.refresh.ours;
        let kad = self.kad();
        let begun = kad.iter_queries().filter(|q| matches!(q.info(), QueryInfo::Bootstrap { .. })).map(|q| q.id());
        let others: Vec<QueryId> = begun.filter(|id| Some(*id) != ours).collect();
        for id in others {
            if let Some(mut query) = kad.query_mut(&id) {
                query.finish();
            }
        }
    }

    pub(super) fn dial_known(&mut self, peer: PeerId, addrs: &[SocketAddr]) {
        if peer == self.us {
            return;
        }
        let opts = DialOpts::peer_id(peer)
            .addresses(addrs.iter().map(|addr| to_multiaddr(*addr)).collect())
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .build();
        if let Err(error) = self.swarm.dial(opts) {
            tracing::debug!(%peer, ?addrs, %error, "not dialled");
        }
    }

    pub(super) fn dial_seeds(&mut self, now: Instant) {
        let enough = self.book.len() >= ENOUGH_PEERS;
        for seed in &mut self.seeds {
            let SeedState::Waiting(at) = seed.state else { continue };
            if at > now {
                continue;
            }
            if enough {
                seed.state = SeedState::Waiting(now + NOT_MISSED);
                continue;
            }
            let opts = match seed.peer {
                Some(peer) => DialOpts::peer_id(peer)
                    .addresses(vec![seed.addr.clone()])
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .build(),
                None => DialOpts::unknown_peer_id().address(seed.addr.clone()).build(),
            };
            let id = opts.connection_id();
            seed.state = match self.swarm.dial(opts) {
                Ok(()) => SeedState::Dialing(id),
                Err(DialError::LocalPeerId { .. }) => SeedState::Never,
                Err(DialError::DialPeerConditionFalse(_))
                    if seed.peer.is_some_and(|peer| self.swarm.is_connected(&peer)) =>
                {
                    SeedState::Connected(seed.peer.unwrap_or(self.us))
                }
                Err(error) => {
                    tracing::debug!(addr = %seed.addr, %error, "bootstrap peer not dialled");
                    SeedState::Waiting(now + seed.backoff.next(&mut self.random))
                }
            };
        }
    }

    pub(super) fn seed_failed(&mut self, id: ConnectionId, error: &DialError) {
        let at = now();
        for seed in self.seeds.iter_mut().filter(|seed| seed.state == SeedState::Dialing(id)) {
            if matches!(error, DialError::LocalPeerId { .. }) {
                seed.state = SeedState::Never;
                continue;
            }
            let delay = seed.backoff.next(&mut self.random);
            tracing::info!(addr = %seed.addr, %error, ?delay, "bootstrap peer not reached; trying again");
            seed.state = SeedState::Waiting(at + delay);
        }
    }

    pub(super) fn seed_connected(&mut self, peer: PeerId, id: ConnectionId) {
        let mut joined = Vec::new();
        for seed in &mut self.seeds {
            let same = seed.state == SeedState::Dialing(id) || seed.peer == Some(peer);
            if same && seed.state != SeedState::Connected(peer) {
                seed.state = SeedState::Connected(peer);
                seed.backoff.reset();
                joined.push(seed.addr.clone());
            }
        }
        let any = !joined.is_empty();
        for addr in joined {
            self.kad().add_address(&peer, without_peer(addr));
        }
        if any {
            // Our own neighbours first; Kademlia refreshes the rest of its table by itself a moment later.
            let us = self.us;
            self.kad().get_closest_peers(us);
        }
    }

    pub(super) fn seed_lost(&mut self, peer: PeerId) {
        let at = now();
        for seed in self.seeds.iter_mut().filter(|seed| seed.state == SeedState::Connected(peer)) {
            seed.state = SeedState::Waiting(at + seed.backoff.next(&mut self.random));
        }
    }
}
