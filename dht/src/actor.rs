//! The one task that owns the swarm: commands in, events handled, deadlines kept. What is decided without the swarm
//! lives in the modules beside it.

mod joining;
mod reach;

use self::{
    joining::{Refresh, Seed, SeedState},
    reach::{MAX_RELAYS, PRIVATE_AFTER, is_global},
};
use crate::{
    DhtConfig, DhtError, PeerInfo, Provider,
    backoff::Backoff,
    behaviour::{Behaviour, BehaviourEvent},
    book::Book,
    neighbours::Neighbours,
    publish::Publish,
    scope::{Scope, dialable, keep},
    search::{SearchId, Searches},
};
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, autonat,
    core::{Endpoint, transport::ListenerId},
    identify,
    kad::{
        self, GetClosestPeersOk, GetProvidersOk, InboundRequest, QueryId, QueryResult, RecordKey, store::RecordStore,
    },
    mdns,
    multiaddr::Protocol,
    relay,
    swarm::{
        ConnectionId, DialError, NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use rand::{SeedableRng, rngs::StdRng, rngs::SysRng};
use shoal_net::to_multiaddr;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// After the first new peer, so long more are awaited before untold keys are announced: one query then serves all.
const TELL_DELAY: Duration = Duration::from_millis(200);
/// How often expired records are dropped.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(600);

/// What the handle asks for.
pub(crate) enum Command {
    Provide { key: Vec<u8>, reply: oneshot::Sender<Result<(), DhtError>> },
    StopProviding { key: Vec<u8>, reply: oneshot::Sender<()> },
    FindProviders { key: Vec<u8>, reply: oneshot::Sender<Result<mpsc::Receiver<Provider>, DhtError>> },
    Peers { reply: oneshot::Sender<Vec<PeerInfo>> },
    ListenAddrs { reply: oneshot::Sender<Vec<Multiaddr>> },
    ExternalAddrs { reply: oneshot::Sender<Vec<Multiaddr>> },
    AddAddress { peer: PeerId, addr: SocketAddr, reply: oneshot::Sender<()> },
    Shutdown { reply: oneshot::Sender<()> },
}

pub(crate) struct Actor {
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    config: DhtConfig,
    us: PeerId,
    book: Book,
    publish: Publish,
    searches: Searches,
    seeds: Vec<Seed>,
    refresh: Refresh,
    neighbours: Neighbours,
    random: StdRng,
    /// Listen addresses on local networks, which need no test to be told to others.
    claimed: BTreeSet<Multiaddr>,
    tell_at: Option<Instant>,
    expire_at: Instant,
    failed_tests: u32,
    relays: Vec<(ListenerId, PeerId)>,
}

impl Actor {
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        commands: mpsc::Receiver<Command>,
        config: DhtConfig,
    ) -> Result<Self, DhtError> {
        let now = now();
        let seed = |addr: &Multiaddr| {
            let (_, peer, _) = dialable(addr).ok_or_else(|| DhtError::Bootstrap { addr: addr.clone() })?;
            let state = SeedState::Waiting(now);
            Ok(Seed { addr: addr.clone(), peer, backoff: Backoff::default(), state })
        };
        let seeds = config.bootstrap.iter().map(seed).collect::<Result<_, DhtError>>()?;
        let random = StdRng::try_from_rng(&mut SysRng).map_err(|e| DhtError::Start { reason: e.to_string() })?;
        Ok(Actor {
            us: *swarm.local_peer_id(),
            neighbours: Neighbours::new(*swarm.local_peer_id()),
            swarm,
            commands,
            book: Book::default(),
            publish: Publish::new(config.limits.publishing),
            searches: Searches::new(config.limits.clone()),
            seeds,
            refresh: Refresh::new(now),
            random,
            claimed: BTreeSet::new(),
            tell_at: None,
            expire_at: now + EXPIRE_INTERVAL,
            failed_tests: 0,
            relays: Vec::new(),
            config,
        })
    }

    pub(crate) async fn run(mut self) {
        let reply = loop {
            self.on_deadlines(now());
            let deadline = self.next_deadline().into();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown { reply }) => break Some(reply),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                () = tokio::time::sleep_until(deadline) => {}
            }
        };
        self.close().await;
        if let Some(reply) = reply {
            reply.send(()).ok(); // who asked may have stopped waiting
        }
    }

    /// Says goodbye to all, a bounded time.
    async fn close(mut self) {
        self.commands.close();
        // Searches and waiting callers end with their channels.
        self.searches = Searches::new(self.config.limits.clone());
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error only says that it is gone already.
            self.swarm.disconnect_peer_id(peer).ok();
        }
        let closing = async {
            while self.swarm.network_info().connection_counters().num_established() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        if tokio::time::timeout(self.config.limits.shutdown_grace, closing).await.is_err() {
            tracing::debug!("some libp2p connections were cut");
        }
    }

    fn on_command(&mut self, command: Command) {
        // A caller that stopped waiting needs no answer.
        match command {
            Command::Provide { key, reply } => self.provide(&RecordKey::new(&key), reply),
            Command::StopProviding { key, reply } => {
                let key = RecordKey::new(&key);
                self.publish.remove(&key);
                self.kad().stop_providing(&key);
                reply.send(()).ok();
            }
            Command::FindProviders { key, reply } => {
                reply.send(self.find_providers(RecordKey::new(&key))).ok();
            }
            Command::Peers { reply } => {
                reply.send(self.book.infos()).ok();
            }
            Command::ListenAddrs { reply } => {
                reply.send(self.swarm.listeners().cloned().collect()).ok();
            }
            Command::ExternalAddrs { reply } => {
                reply.send(self.swarm.external_addresses().cloned().collect()).ok();
            }
            Command::AddAddress { peer, addr, reply } => {
                self.dial_known(peer, &[addr]);
                reply.send(()).ok();
            }
            Command::Shutdown { .. } => unreachable!("handled by the loop"),
        }
    }

    fn kad(&mut self) -> &mut kad::Behaviour<crate::store::Providers> {
        &mut self.swarm.behaviour_mut().kad
    }

    fn is_alone(&mut self) -> bool {
        self.kad().kbuckets().next().is_none()
    }

    // Providing

    fn provide(&mut self, key: &RecordKey, reply: oneshot::Sender<Result<(), DhtError>>) {
        let us = self.us;
        let record = kad::ProviderRecord::new(key.clone(), us, Vec::new());
        if self.kad().store_mut().add_provider(record).is_err() {
            // who asked may have stopped waiting
            reply.send(Err(DhtError::TooManyKeys { max: self.config.limits.own_keys })).ok();
            return;
        }
        let alone = self.is_alone();
        self.publish.add(key.clone(), alone, now() + self.config.limits.provide_timeout, reply);
        self.publish_next();
    }

    fn publish_next(&mut self) {
        while let Some(key) = self.publish.next() {
            match self.kad().start_providing(key.clone()) {
                Ok(query) => self.publish.started(query, key),
                Err(error) => {
                    tracing::warn!(?error, "a key is not provided");
                    self.publish.failed(&key);
                }
            }
        }
    }

    // Searching

    fn find_providers(&mut self, key: RecordKey) -> Result<mpsc::Receiver<Provider>, DhtError> {
        let until = now() + self.config.limits.join_timeout;
        self.reap_searches();
        let Some((id, receiver)) = self.searches.add(key.clone(), until) else {
            return Err(DhtError::TooManySearches { max: self.config.limits.searches });
        };
        let joining = !self.seeds.is_empty()
            || self.config.mdns
            || self.swarm.network_info().connection_counters().num_pending_outgoing() > 0;
        if !(self.is_alone() && joining) {
            self.start_search(id, key);
        }
        Ok(receiver)
    }

    fn start_search(&mut self, id: SearchId, key: RecordKey) {
        let query = self.kad().get_providers(key);
        self.searches.started(id, query);
    }

    fn reap_searches(&mut self) {
        for query in self.searches.reap() {
            if let Some(mut query) = self.kad().query_mut(&query) {
                query.finish();
            }
        }
    }

    fn on_providers(&mut self, query: QueryId, providers: impl IntoIterator<Item = PeerId>) {
        let Some((id, key)) = self.searches.by_query(query) else { return };
        for peer in providers {
            if peer == self.us || !self.searches.is_new(id, peer) {
                continue;
            }
            let addrs = self.addrs_of(peer, &key);
            if !addrs.is_empty() {
                self.searches.deliver(id, peer, addrs);
            } else if self.searches.resolve(id, peer, now() + self.config.limits.resolve_timeout) {
                self.reach(peer);
            }
        }
        self.reap_searches();
    }

    /// Where a provider can be dialled, by all that is known at this moment.
    fn addrs_of(&mut self, peer: PeerId, key: &RecordKey) -> Vec<SocketAddr> {
        let mut addrs = self.book.addrs(&peer);
        let nearest = self.nearest_believed();
        let max = self.config.limits.addrs_per_peer;
        let mut told: Vec<Multiaddr> = Vec::new();
        for record in self.kad().store_mut().providers(key) {
            if record.provider == peer {
                told.extend(record.addresses);
            }
        }
        // Kademlia does not report the addresses that come with providers; it keeps them while the query runs, for the
        // dials of this very query. Asking for them as a dial would has no side effect.
        let asked = self.kad().handle_pending_outbound_connection(
            ConnectionId::new_unchecked(usize::MAX),
            Some(peer),
            &[],
            Endpoint::Dialer,
        );
        told.extend(asked.unwrap_or_default());
        for addr in keep(&told, peer, nearest, max) {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        addrs.truncate(max);
        addrs
    }

    /// What strangers say of addresses is believed down to this scope: local ones only where we are on a local network
    /// ourselves, those of this machine only where our peers are on it.
    fn nearest_believed(&self) -> Scope {
        let listen = self.swarm.listeners().filter_map(dialable).map(|(_, _, scope)| scope);
        // Every machine has a loopback address; it counts only where there is nothing else.
        let (mut own, mut loopback) = (None::<Scope>, false);
        for scope in listen {
            if scope == Scope::Loopback {
                loopback = true;
            } else {
                own = Some(own.map_or(scope, |own| own.min(scope)));
            }
        }
        let own = own.unwrap_or(if loopback { Scope::Loopback } else { Scope::Global });
        self.book.nearest().map_or(own, |near| own.min(near))
    }

    /// Connects with a provider that came without a usable address: through a relay and a punched hole, or else by
    /// looking it up.
    fn reach(&mut self, peer: PeerId) {
        let opts = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
        match self.swarm.dial(opts) {
            // Connected through a relay, or being dialled: a direct connection may follow.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(_) => self.look_up(peer),
        }
    }

    fn look_up(&mut self, peer: PeerId) {
        if self.searches.may_look_up(&peer) {
            let query = self.kad().get_closest_peers(peer);
            self.searches.looking_up(peer, query);
        } else {
            self.searches.resolved(peer, &[]);
        }
    }

    fn on_looked_up(&mut self, query: QueryId, found: &[kad::PeerInfo]) {
        let Some(peer) = self.searches.looked_up(query) else { return };
        let told = found.iter().filter(|info| info.peer_id == peer).flat_map(|info| &info.addrs);
        let addrs = keep(told, peer, self.nearest_believed(), self.config.limits.addrs_per_peer);
        self.searches.resolved(peer, &addrs);
    }

    // Deadlines

    fn next_deadline(&self) -> Instant {
        let seeds = self.seeds.iter().filter_map(|seed| match seed.state {
            SeedState::Waiting(at) => Some(at),
            _ => None,
        });
        let others = [
            self.tell_at,
            self.searches.next_deadline(),
            self.publish.next_deadline(),
            self.neighbours.next_deadline(),
        ];
        let others = others.into_iter().flatten().chain([self.refresh.next_deadline()]);
        seeds.chain(others).fold(self.expire_at, Instant::min)
    }

    fn on_deadlines(&mut self, now: Instant) {
        self.dial_seeds(now);
        self.refresh(now);
        // on a busy machine a handshake takes longer than the next neighbour to be found
        let dialled = self.swarm.network_info().connection_counters().num_pending_outgoing() as usize;
        for (peer, addrs) in self.neighbours.due(now, self.book.len() + dialled) {
            self.dial_known(peer, &addrs);
        }
        self.searches.expire(now);
        self.publish.expire(now);
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_at = None;
            self.publish.tell_untold();
            self.publish_next();
        }
        if self.expire_at <= now {
            self.expire_at = now + EXPIRE_INTERVAL;
            // by the clock that libp2p dates records with, which tests cannot pause
            self.kad().store_mut().expire(std::time::Instant::now());
        }
    }

    // Events

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.book.connected(peer_id, connection_id, &endpoint);
                self.neighbours.forget(&peer_id);
                self.seed_connected(peer_id, connection_id);
                if self.searches.is_resolving(&peer_id) && self.book.is_direct(&peer_id) {
                    let addrs = self.book.addrs(&peer_id);
                    self.searches.resolved(peer_id, &addrs);
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::trace!(peer = %peer_id, ?cause, "connection closed");
                if self.book.closed(peer_id, connection_id).is_some() {
                    self.seed_lost(peer_id);
                    self.relays.retain(|(_, relay)| *relay != peer_id);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error } => {
                self.seed_failed(connection_id, &error);
                if let Some(peer) = peer_id
                    && self.searches.is_resolving(&peer)
                    && !self.swarm.is_connected(&peer)
                {
                    self.look_up(peer);
                }
            }
            SwarmEvent::NewListenAddr { .. } => self.claim(),
            SwarmEvent::ExpiredListenAddr { .. } => self.claim(),
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                self.relays.retain(|(id, _)| *id != listener_id);
                self.claim();
            }
            SwarmEvent::ExternalAddrConfirmed { address } if is_global(&address) => self.reachable(),
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, &info);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, addr) in found {
                    if let Some((socket, _, _)) = dialable(&addr)
                        && !self.swarm.is_connected(&peer)
                    {
                        self.neighbours.found(now(), peer, socket);
                    }
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Expired(gone)) => {
                gone.iter().for_each(|(peer, _)| self.neighbours.forget(peer));
            }
            BehaviourEvent::AutonatClient(autonat::v2::client::Event { tested_addr, result, .. }) => {
                tracing::debug!(addr = %tested_addr, ok = result.is_ok(), "our address was tested");
                if result.is_err() {
                    self.failed_tests = self.failed_tests.saturating_add(1);
                    if self.failed_tests == PRIVATE_AFTER {
                        self.unreachable();
                    }
                }
            }
            _ => {}
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, stats } => {
                match result {
                    QueryResult::StartProviding(_) => {
                        self.publish.finished(id, stats.num_successes() > 0);
                        self.publish_next();
                    }
                    QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                        self.on_providers(id, providers);
                    }
                    QueryResult::GetClosestPeers(Ok(GetClosestPeersOk { peers, .. })) => self.on_looked_up(id, &peers),
                    QueryResult::GetClosestPeers(Err(kad::GetClosestPeersError::Timeout { peers, .. })) => {
                        self.on_looked_up(id, &peers);
                    }
                    _ => {}
                }
                if step.last {
                    self.searches.query_ended(id);
                }
            }
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => {
                self.refresh.peer_came(now());
                for (id, key) in self.searches.held() {
                    self.start_search(id, key);
                }
                if self.publish.has_untold() && self.tell_at.is_none() {
                    self.tell_at = Some(now() + TELL_DELAY);
                }
            }
            kad::Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                self.on_foreign_record(record);
            }
            _ => {}
        }
    }

    /// A peer announces itself as a provider. Its addresses are filtered and completed by what we see of it.
    fn on_foreign_record(&mut self, mut record: kad::ProviderRecord) {
        let max = self.config.limits.addrs_per_peer;
        let told = keep(&record.addresses, record.provider, self.book.nearness(&record.provider), max);
        let mut addrs = self.book.addrs(&record.provider);
        for addr in told {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        addrs.truncate(max);
        // Circuits lead to a peer that has no address of its own.
        let relayed = record.addresses.iter().filter(|addr| is_circuit(addr)).take(MAX_RELAYS).cloned();
        let addresses: Vec<_> = addrs.into_iter().map(to_multiaddr).chain(relayed).take(max).collect();
        record.addresses = addresses;
        if let Err(error) = self.kad().store_mut().add_provider(record) {
            tracing::debug!(?error, "a provider record was not stored");
        }
    }

    fn on_identified(&mut self, peer: PeerId, info: &identify::Info) {
        let max = self.config.limits.addrs_per_peer;
        let told = keep(&info.listen_addrs, peer, self.book.nearness(&peer), max);
        let relays = info.protocols.contains(&relay::HOP_PROTOCOL_NAME);
        let before = self.book.identified(peer, told.clone(), &info.agent_version, relays);
        let ours = self.config.kad_protocol.as_str();
        if info.protocols.iter().any(|protocol| protocol.as_ref() == ours) {
            for addr in before.iter().filter(|addr| !told.contains(addr)) {
                self.kad().remove_address(&peer, &to_multiaddr(*addr));
            }
            // Also where it dialled us: it sends from its one port.
            for addr in self.book.addrs(&peer).into_iter().take(max) {
                self.kad().add_address(&peer, to_multiaddr(addr));
            }
        }
        let seen = without_peer(info.observed_addr.clone());
        let known = self.swarm.listeners().chain(self.swarm.external_addresses()).any(|addr| *addr == seen);
        if !known && dialable(&seen).is_some() {
            self.swarm.behaviour_mut().observed.report(seen);
        }
        if self.failed_tests >= PRIVATE_AFTER {
            self.use_relays();
        }
    }
}

/// tokio's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn is_circuit(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}

fn without_peer(mut addr: Multiaddr) -> Multiaddr {
    if let Some(Protocol::P2p(_)) = addr.iter().last() {
        addr.pop();
    }
    addr
}
