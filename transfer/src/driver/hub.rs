//! The hub: one task that owns every root, every connection and every fetch. It takes [`Input`]s one by one, moves the
//! cores on and starts the tasks that do the work. It never waits for a peer or a disk.

use super::{
    FetchEvent, Input, LinkId, Served,
    batch::{BatchEvent, BatchRun, End, Outcome},
    fetch::{self, FetchState, Prepared, Running, Stage},
    link::{self, LinkShared},
    resolve::{self, Resolver},
    root::{Member, Root},
    serve::Server,
};
use crate::{
    api::{Counters, FetchError, FetchRequest, PeerAddr, PeerReport, SeedError, TransferConfig},
    choke::{Choker, Verdict},
    swarm::{Action, BatchId, PeerIx, Swarm},
    wire::{LeafSet, MAX_PEER_HINTS, Message, PeerHint},
};
use bytes::Bytes;
use fixedbitset::FixedBitSet;
use shoal_content::{Cid, Manifest};
use shoal_net::{Connection, Endpoint, PeerId, from_multiaddr};
use shoal_store::Store;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

/// How often progress is told, peers are dialled again and abandoned fetches are noticed.
const TICK: Duration = Duration::from_millis(100);
/// What is in place is committed this often.
const COMMIT_EVERY: Duration = Duration::from_secs(2);
/// Inputs handled before haves are told and actions taken.
const INPUTS_AT_ONCE: usize = 64;
/// Dials under way at the same time.
const MAX_DIALS: usize = 32;
/// The peer with the larger id waits this long before it dials a peer it was told of, so that two do not dial each other
/// at once.
const POLITE_PAUSE: Duration = Duration::from_millis(400);
/// How long tasks may take to end at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// A connection as the hub knows it.
struct Link {
    connection: Connection,
    shared: Arc<LinkShared>,
    out: mpsc::Sender<Bytes>,
    /// Messages that wait for the writer.
    outbox: Vec<u8>,
    /// Our numbers for roots, and theirs.
    ours: BTreeMap<Cid, u32>,
    theirs: BTreeMap<u32, Cid>,
    agent: String,
    addrs: Vec<SocketAddr>,
}

impl Link {
    fn say(&mut self, message: &Message) {
        message.encode(&mut self.outbox);
    }
}

pub(super) struct Hub {
    endpoint: Endpoint,
    store: Store,
    config: TransferConfig,
    me: PeerId,
    origin: Instant,
    inbox: mpsc::Sender<Input>,
    tasks: JoinSet<()>,
    links: BTreeMap<LinkId, Link>,
    by_peer: BTreeMap<PeerId, LinkId>,
    roots: BTreeMap<Cid, Root>,
    choker: Choker<LinkId>,
    served: watch::Sender<Served>,
    server: Arc<Server>,
    dials: usize,
    next_number: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Roots with actions to take or haves to tell.
    touched: BTreeSet<Cid>,
}

/// A peer's tag for striping: the same for all who know it.
fn tag(peer: &PeerId) -> u64 {
    let bytes = peer.to_bytes();
    // the tail of an ed25519 id is its public key, which is as good as random
    bytes.rchunks_exact(8).take(4).filter_map(|c| c.try_into().ok()).fold(0, |t, c| t ^ u64::from_le_bytes(c))
}

impl Hub {
    pub(super) fn new(endpoint: Endpoint, store: Store, config: TransferConfig, inbox: mpsc::Sender<Input>) -> Self {
        let (served, watching) = watch::channel(Served::default());
        let server = Arc::new(Server::new(store.clone(), watching, config.limits.clone()));
        Hub {
            me: endpoint.peer_id(),
            endpoint,
            store,
            origin: Instant::now(),
            inbox,
            tasks: JoinSet::new(),
            links: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            roots: BTreeMap::new(),
            choker: Choker::new(config.limits.upload_slots),
            config,
            served,
            server,
            dials: 0,
            next_number: 0,
            bytes_in: 0,
            bytes_out: 0,
            touched: BTreeSet::new(),
        }
    }

    /// Runs until [`Input::Shutdown`], then drains its tasks.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Input>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut inputs = Vec::with_capacity(INPUTS_AT_ONCE);
        loop {
            let busy = self.roots.values().any(|r| r.fetch.is_some()) || self.choker.poll_timeout().is_some();
            let stall = self.next_stall();
            tokio::select! {
                // several at once: haves of one round travel in one message
                n = inbox.recv_many(&mut inputs, INPUTS_AT_ONCE) => if n == 0 { break },
                _ = tick.tick(), if busy => self.tick(),
                () = sleep_until(stall.map(|t| self.origin + t)) => self.stalls(),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a task of the hub panicked");
                    }
                }
            }
            for input in inputs.drain(..) {
                if matches!(input, Input::Shutdown) {
                    return self.shutdown(inbox).await;
                }
                self.handle(input);
            }
            self.settle();
        }
        self.shutdown(inbox).await;
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Seed(root, reply) => self.seed(root, reply),
            Input::Seeding(root, manifest, reply) => {
                let result = manifest.map(|m| self.seeding(root, m));
                // who asked may rightly have gone
                let _gone = reply.send(result);
            }
            Input::Unseed(root, reply) => {
                self.unseed(root);
                let _gone = reply.send(());
            }
            Input::Fetch(request, events) => self.fetch(*request, events),
            Input::AddPeers(root, peers) => self.add_peers(root, peers, Duration::ZERO),
            Input::Peers(reply) => {
                let _gone = reply.send(self.peers());
            }
            Input::Counters(reply) => {
                let _gone = reply.send(self.counters());
            }
            Input::Connected(connection) => self.connected(connection),
            Input::DialFailed(root, peer, why) => {
                tracing::debug!(%peer, why, "cannot reach a peer");
                self.dials -= 1;
                let now = self.now();
                if let Some(r) = self.roots.get_mut(&root) {
                    r.failed(peer, now);
                }
            }
            Input::Message(link, message) => self.message(link, message),
            Input::Closed(link, why) => self.closed(link, &why),
            Input::Liar(root, fetch, peer, why) => {
                if let Some(f) = self.fetch_mut(&root, fetch) {
                    f.blame(peer, why.clone());
                    self.ban(root, peer);
                    self.let_go(&peer, &why);
                }
            }
            Input::Resolved(root, fetch, result) => self.resolved(root, fetch, result),
            Input::Prepared(root, fetch, result) => self.prepared(root, fetch, result),
            Input::Batch { root, fetch, peer, batch, event } => self.batch(root, fetch, peer, batch, event),
            Input::Committed(root, fetch, result) => {
                let now = self.now();
                let Some(running) = self.fetch_mut(&root, fetch).and_then(|f| f.running()) else { return };
                running.committing = false;
                running.last_commit = now;
                if let Err(error) = result {
                    self.fail(root, error);
                }
            }
            Input::Finished(root, fetch, result) => self.finished(root, fetch, result),
            Input::Shutdown => {}
        }
    }

    // ---- roots ----

    fn seed(&mut self, root: Cid, reply: oneshot::Sender<Result<(), SeedError>>) {
        let (store, inbox) = (self.store.clone(), self.inbox.clone());
        self.tasks.spawn(async move {
            let read = tokio::task::spawn_blocking(move || store.manifest(&root)).await;
            let manifest = match read {
                Ok(manifest) => manifest.map(Arc::new).map_err(SeedError::from),
                Err(_) => Err(SeedError::ShuttingDown),
            };
            // a hub that is gone is shutting down
            let _gone = inbox.send(Input::Seeding(root, manifest, reply)).await;
        });
    }

    fn seeding(&mut self, root: Cid, manifest: Arc<Manifest>) {
        let leaves = manifest.leaves().len();
        let r = self.roots.entry(root).or_default();
        if r.fetch.is_none() {
            r.have = FixedBitSet::with_capacity(leaves);
            r.have.insert_range(..);
            r.manifest = Some(manifest);
        }
        r.seeding = true;
        self.publish();
    }

    fn unseed(&mut self, root: Cid) {
        let Some(r) = self.roots.get_mut(&root) else { return };
        r.seeding = false;
        if r.fetch.is_none() {
            self.forget(root);
        }
    }

    /// Leaves the swarm of a root.
    fn forget(&mut self, root: Cid) {
        self.roots.remove(&root);
        for link in self.links.values_mut() {
            if let Some(channel) = link.ours.remove(&root) {
                link.say(&Message::Leave { channel });
            }
        }
        self.publish();
    }

    /// Tells the answers what is served.
    fn publish(&mut self) {
        let served = self.roots.iter().filter_map(|(cid, r)| Some((*cid, r.manifest.clone()?))).collect();
        self.served.send_replace(Arc::new(served));
    }

    fn peers(&self) -> Vec<PeerReport> {
        let report = |link: &Link| PeerReport {
            peer: link.connection.peer(),
            addr: link.connection.remote_addr(),
            agent: link.agent.clone(),
            dialer: link.connection.is_dialer(),
            bytes_in: link.shared.bytes_in.load(Ordering::Relaxed),
            bytes_out: link.shared.bytes_out.load(Ordering::Relaxed),
            rtt: link.connection.quinn().rtt(),
            roots: link.theirs.values().filter(|r| link.ours.contains_key(r)).copied().collect(),
        };
        self.links.values().map(report).collect()
    }

    fn counters(&self) -> Counters {
        let live = self.links.values().map(|l| &l.shared);
        let (bytes_in, bytes_out) = live.fold((self.bytes_in, self.bytes_out), |(i, o), s| {
            (i + s.bytes_in.load(Ordering::Relaxed), o + s.bytes_out.load(Ordering::Relaxed))
        });
        Counters { bytes_in, bytes_out, peers: self.links.len(), roots: self.roots.len() }
    }

    // ---- finding peers ----

    fn add_peers(&mut self, root: Cid, peers: Vec<PeerAddr>, pause: Duration) {
        let (me, limit, not_before) = (self.me, self.config.limits.known_peers_per_root, self.now() + pause);
        let Some(r) = self.roots.get_mut(&root) else { return };
        for hint in peers.into_iter().filter(|h| h.peer != me) {
            r.learn(hint, limit, not_before);
        }
        self.dial(root);
    }

    /// Dials who is due, as far as the limits go; joins those who are connected for another root.
    fn dial(&mut self, root: Cid) {
        let now = self.now();
        let Some(r) = self.roots.get(&root) else { return };
        if r.fetch.is_none() {
            return;
        }
        let (due, mut members) = (r.due(now), r.members.len());
        for peer in due {
            if let Some(id) = self.by_peer.get(&peer).copied() {
                self.join(id, root, true);
                continue;
            }
            if self.dials >= MAX_DIALS || members >= self.config.limits.peers_per_root {
                return;
            }
            let Some(known) = self.roots.get_mut(&root).and_then(|r| r.book.get_mut(&peer)) else { continue };
            known.dialing = true;
            self.dials += 1;
            members += 1;
            let (endpoint, inbox, addrs) = (self.endpoint.clone(), self.inbox.clone(), known.addrs.clone());
            self.tasks.spawn(async move {
                let mut why = String::from("no address");
                for addr in addrs {
                    match endpoint.connect(addr, peer).await {
                        Ok(connection) => {
                            let _gone = inbox.send(Input::Connected(connection)).await;
                            return;
                        }
                        Err(error) => why = error.to_string(),
                    }
                }
                let _gone = inbox.send(Input::DialFailed(root, peer, why)).await;
            });
        }
    }

    // ---- connections ----

    fn connected(&mut self, connection: Connection) {
        let peer = connection.peer();
        if connection.is_dialer() {
            self.dials = self.dials.saturating_sub(1);
        }
        self.roots.values_mut().for_each(|r| r.reached(&peer));
        if let Some(old) = self.by_peer.get(&peer).copied() {
            // both sides keep the one that the peer with the smaller id dialled; of two by one dialler, the newer
            let dialer = |c: &Connection| if c.is_dialer() { self.me } else { peer };
            let stays = self.links.get(&old).is_some_and(|l| {
                dialer(&l.connection) < dialer(&connection) && l.connection.quinn().close_reason().is_none()
            });
            if stays {
                return connection.quinn().close(0u32.into(), b"duplicate");
            }
            self.closed(old, "duplicate");
        }
        let id = LinkId(self.number());
        let shared = Arc::new(LinkShared::default());
        let out = link::start(
            &mut self.tasks,
            id,
            connection.clone(),
            shared.clone(),
            self.server.clone(),
            self.inbox.clone(),
        );
        let mut link = Link {
            connection,
            shared,
            out,
            outbox: vec![],
            ours: BTreeMap::new(),
            theirs: BTreeMap::new(),
            agent: String::new(),
            addrs: vec![],
        };
        let addrs = self.endpoint.listen_multiaddrs();
        link.say(&link::hello(&self.config.agent, addrs.iter().filter_map(from_multiaddr).map(|a| a.0).collect()));
        self.links.insert(id, link);
        self.by_peer.insert(peer, id);
        let fetched: Vec<Cid> = self.roots.iter().filter(|(_, r)| r.fetch.is_some()).map(|(c, _)| *c).collect();
        for root in fetched {
            self.join(id, root, true);
        }
    }

    /// Takes part in a root's swarm on a connection: says so, and what is here.
    fn join(&mut self, id: LinkId, root: Cid, answer: bool) {
        let (Some(link), Some(r)) = (self.links.get_mut(&id), self.roots.get(&root)) else { return };
        if link.ours.contains_key(&root) && answer {
            return;
        }
        if link.ours.len() >= self.config.limits.roots_per_connection {
            return;
        }
        let next = link.ours.values().max().map_or(0, |c| c + 1);
        let channel = *link.ours.entry(root).or_insert(next);
        let leaves = r.manifest.as_ref().map_or(0, |m| m.leaves().len() as u32);
        link.say(&Message::Join { channel, root, leaves, answer });
        for leaves in LeafSet::pack(r.have.ones().map(|l| l as u32)) {
            link.say(&Message::Have { channel, leaves });
        }
    }

    /// A connection is gone, whoever ended it.
    fn closed(&mut self, id: LinkId, why: &str) {
        let Some(link) = self.links.remove(&id) else { return };
        let peer = link.connection.peer();
        tracing::debug!(%peer, why, "connection closed");
        link.connection.quinn().close(0u32.into(), why.as_bytes());
        self.bytes_in += link.shared.bytes_in.load(Ordering::Relaxed);
        self.bytes_out += link.shared.bytes_out.load(Ordering::Relaxed);
        if self.by_peer.get(&peer) == Some(&id) {
            self.by_peer.remove(&peer);
        }
        let now = self.now();
        let verdicts = self.choker.handle_gone(now, id);
        self.choke(verdicts);
        let member_of: Vec<Cid> = self
            .roots
            .iter()
            .filter(|(_, r)| r.members.get(&peer).is_some_and(|m| m.link == id))
            .map(|(c, _)| *c)
            .collect();
        for root in member_of {
            self.member_gone(root, peer, Some(why));
        }
        for r in self.roots.values_mut() {
            r.failed(peer, now);
        }
    }

    /// Ends a connection for a reason that the peer should hear.
    fn let_go(&mut self, peer: &PeerId, why: &str) {
        let Some(id) = self.by_peer.get(peer).copied() else { return };
        if let Some(link) = self.links.get_mut(&id) {
            link.say(&Message::Goodbye { reason: why.to_owned() });
        }
        self.flush(id);
        self.closed(id, why);
    }

    /// A peer that told lies is not dialled again for this root.
    fn ban(&mut self, root: Cid, peer: PeerId) {
        if let Some(r) = self.roots.get_mut(&root) {
            r.book.remove(&peer);
        }
    }

    fn member_gone(&mut self, root: Cid, peer: PeerId, why: Option<&str>) {
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(member) = r.members.remove(&peer) else { return };
        let Some(f) = &mut r.fetch else { return };
        if let Some(running) = f.running() {
            let account = running.swarm.account(member.ix);
            running.swarm.handle_gone(now, member.ix);
            let ended: Vec<BatchId> =
                running.batches.iter().filter(|(_, (ix, _))| *ix == member.ix).map(|(b, _)| *b).collect();
            for batch in ended {
                if let Some((_, task)) = running.batches.remove(&batch) {
                    task.abort();
                }
            }
            f.credit(peer, account);
        }
        // the two ends of a double dial and polite leave-takings are nobody's fault
        if let Some(why) = why
            && why != "duplicate"
            && !matches!(f.stage, Stage::Finishing(_))
        {
            f.blame(peer, why.to_owned());
        }
        self.touched.insert(root);
    }

    fn message(&mut self, id: LinkId, message: Message) {
        let now = self.now();
        let Some(link) = self.links.get_mut(&id) else { return };
        let peer = link.connection.peer();
        let root_of = |link: &Link, channel: &u32| link.theirs.get(channel).copied();
        match message {
            Message::Hello(hello) => {
                link.agent = hello.agent;
                link.addrs = hello.addrs;
            }
            Message::Join { channel, root, leaves, answer } => {
                if !link.theirs.contains_key(&channel) && link.theirs.len() >= self.config.limits.roots_per_connection {
                    return self.let_go(&peer, "protocol fault: too many roots on one connection");
                }
                link.theirs.insert(channel, root);
                self.joined(id, peer, root, leaves, answer);
            }
            Message::Leave { channel } => {
                let Some(root) = link.theirs.remove(&channel) else { return };
                self.member_gone(root, peer, None);
            }
            Message::Have { channel, leaves } => {
                let Some(root) = root_of(link, &channel) else { return };
                self.they_have(root, peer, leaves.ranges());
            }
            Message::DontHave { channel, leaves } => {
                let Some(root) = root_of(link, &channel) else { return };
                if let Some((swarm, ix)) = self.swarm_of(&root, &peer) {
                    swarm.handle_dont_have(now, ix, &leaves.ranges());
                    self.touched.insert(root);
                }
            }
            Message::Interested { channel, yes } => {
                // slots are dealt per connection: a peer that wants anything of any root takes one
                if root_of(link, &channel).is_some() {
                    let verdicts = self.choker.handle_interested(now, id, yes);
                    self.choke(verdicts);
                }
            }
            Message::Choke { channel, yes } => {
                let Some(root) = root_of(link, &channel) else { return };
                if let Some((swarm, ix)) = self.swarm_of(&root, &peer) {
                    swarm.handle_choke(now, ix, yes);
                    self.touched.insert(root);
                }
            }
            Message::Peers { channel, peers } => {
                let Some(root) = root_of(link, &channel) else { return };
                let (polite, eager): (Vec<_>, Vec<_>) = peers
                    .into_iter()
                    .map(|h| PeerAddr { peer: h.peer, addrs: h.addrs })
                    .partition(|h| h.peer < self.me);
                self.add_peers(root, eager, Duration::ZERO);
                self.add_peers(root, polite, POLITE_PAUSE);
            }
            // the link's task ends the connection
            Message::Goodbye { .. } => {}
        }
    }

    /// A peer takes part in a root.
    fn joined(&mut self, id: LinkId, peer: PeerId, root: Cid, leaves: u32, answer: bool) {
        let ix = PeerIx(self.number() as u32);
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        if let Some(manifest) = &r.manifest
            && leaves != 0
            && leaves as usize != manifest.leaves().len()
        {
            return self.let_go(&peer, "protocol fault: counts other leaves than there are");
        }
        if r.members.len() >= self.config.limits.peers_per_root && !r.members.contains_key(&peer) {
            return;
        }
        let newcomer = !r.members.contains_key(&peer);
        if newcomer {
            r.members.insert(peer, Member { ix, link: id, early: vec![] });
            if let Some(f) = &mut r.fetch {
                f.last_news = now;
            }
        }
        let rtt = self.links.get(&id).map(|l| l.connection.quinn().rtt()).unwrap_or_default();
        if newcomer && let Some((swarm, ix)) = self.swarm_of(&root, &peer) {
            swarm.handle_peer(now, ix, tag(&peer), rtt);
            self.touched.insert(root);
        }
        if answer {
            self.join(id, root, false);
        } else {
            self.join(id, root, true);
        }
        if leaves > 0 {
            self.offer(root, peer, id);
        }
        if newcomer {
            self.introduce(root, peer, id);
        }
    }

    /// Offers a peer that knows the tree to the resolution that waits for one.
    fn offer(&mut self, root: Cid, peer: PeerId, id: LinkId) {
        let (Some(r), Some(link)) = (self.roots.get_mut(&root), self.links.get(&id)) else { return };
        if let Some(f) = &mut r.fetch
            && let Stage::Resolving(offers) = &f.stage
        {
            // full: enough others wait for their turn
            let _full = offers.try_send((peer, link.connection.clone()));
        }
    }

    /// Tells a newcomer of the others, and the others of it.
    fn introduce(&mut self, root: Cid, newcomer: PeerId, id: LinkId) {
        let Some(r) = self.roots.get(&root) else { return };
        let others: Vec<(PeerId, LinkId)> =
            r.members.iter().map(|(p, m)| (*p, m.link)).filter(|(p, _)| *p != newcomer).collect();
        let hint = |links: &BTreeMap<LinkId, Link>, peer: PeerId, id: &LinkId| -> Option<PeerHint> {
            let link = links.get(id)?;
            // where it was seen comes first: one port serves both directions
            let mut addrs = vec![link.connection.remote_addr()];
            addrs.extend(link.addrs.iter().copied().filter(|a| *a != link.connection.remote_addr()));
            addrs.truncate(crate::wire::MAX_ADDRS);
            Some(PeerHint { peer, addrs })
        };
        let known: Vec<PeerHint> =
            others.iter().filter_map(|(p, l)| hint(&self.links, *p, l)).take(MAX_PEER_HINTS).collect();
        let Some(news) = hint(&self.links, newcomer, &id) else { return };
        if known.is_empty() {
            return;
        }
        if let Some(link) = self.links.get_mut(&id)
            && let Some(channel) = link.ours.get(&root).copied()
        {
            link.say(&Message::Peers { channel, peers: known });
        }
        for (_, other) in others {
            if let Some(link) = self.links.get_mut(&other)
                && let Some(channel) = link.ours.get(&root).copied()
            {
                link.say(&Message::Peers { channel, peers: vec![news.clone()] });
            }
        }
    }

    fn they_have(&mut self, root: Cid, peer: PeerId, ranges: Vec<Range<u32>>) {
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(member) = r.members.get_mut(&peer) else { return };
        let Some(f) = &mut r.fetch else { return };
        match &mut f.stage {
            Stage::Resolving(_) | Stage::Preparing => member.note_early(ranges),
            Stage::Running(running) => {
                f.last_news = now;
                if !running.swarm.handle_have(now, member.ix, &ranges) {
                    return self.let_go(&peer, "protocol fault: has leaves that do not exist");
                }
                self.touched.insert(root);
            }
            Stage::Finishing(_) => {}
        }
    }

    fn swarm_of(&mut self, root: &Cid, peer: &PeerId) -> Option<(&mut Swarm, PeerIx)> {
        let r = self.roots.get_mut(root)?;
        let ix = r.members.get(peer)?.ix;
        Some((&mut r.fetch.as_mut()?.running()?.swarm, ix))
    }

    fn choke(&mut self, verdicts: Vec<Verdict<LinkId>>) {
        for Verdict { peer, choke } in verdicts {
            let Some(link) = self.links.get_mut(&peer) else { continue };
            link.shared.choked.store(choke, Ordering::Relaxed);
            let channels: Vec<u32> = link.ours.values().copied().collect();
            for channel in channels {
                link.say(&Message::Choke { channel, yes: choke });
            }
        }
    }

    // ---- fetches ----

    fn fetch_mut(&mut self, root: &Cid, fetch: u64) -> Option<&mut FetchState> {
        self.roots.get_mut(root)?.fetch.as_deref_mut().filter(|f| f.id == fetch)
    }

    fn fetch(&mut self, request: FetchRequest, events: mpsc::Sender<FetchEvent>) {
        let (root, now, id) = (request.root, self.now(), self.number());
        let r = self.roots.entry(root).or_default();
        if r.fetch.is_some() {
            let (offers, _) = mpsc::channel(1);
            let refused = FetchState::new(id, now, request, events, offers);
            self.tasks.spawn(refused.end(FetchEvent::Failed(FetchError::Busy(root))));
            return;
        }
        let peers = request.peers.clone();
        let (offers, waiting) = mpsc::channel(resolve::MAX_OFFERS);
        r.fetch = Some(Box::new(FetchState::new(id, now, request, events, offers)));
        let (store, inbox) = (self.store.clone(), self.inbox.clone());
        self.tasks.spawn(Resolver { root, fetch: id, store, offers: waiting, inbox }.run());
        let connected: Vec<LinkId> = self.links.keys().copied().collect();
        for link in connected {
            self.join(link, root, true);
        }
        self.add_peers(root, peers, Duration::ZERO);
    }

    fn resolved(&mut self, root: Cid, id: u64, result: Result<resolve::Resolved, FetchError>) {
        let manifest = match result {
            Ok(resolved) => resolved.manifest,
            Err(error) => return self.fail_if(root, id, error),
        };
        let (store, inbox) = (self.store.clone(), self.inbox.clone());
        let Some(f) = self.fetch_mut(&root, id) else { return };
        f.stage = Stage::Preparing;
        f.tell(FetchEvent::Manifest {
            bytes_total: manifest.total_bytes(),
            files: manifest.file_count() as u64,
            leaves: manifest.leaves().len() as u32,
        });
        let (request, cancel) = (f.request.clone(), f.cancel.clone());
        if let Some(r) = self.roots.get_mut(&root) {
            r.manifest = Some(manifest.clone());
        }
        self.tasks.spawn(async move {
            let prepared =
                tokio::task::spawn_blocking(move || fetch::prepare(&store, manifest, &request, cancel)).await;
            let result = prepared.unwrap_or(Err(FetchError::ShuttingDown));
            let _gone = inbox.send(Input::Prepared(root, id, result)).await;
        });
    }

    fn prepared(&mut self, root: Cid, id: u64, result: Result<Prepared, FetchError>) {
        let prepared = match result {
            Ok(prepared) => prepared,
            Err(error) => return self.fail_if(root, id, error),
        };
        let now = self.now();
        let (me, inbox, config) = (tag(&self.me), self.inbox.clone(), self.config.clone());
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(f) = r.fetch.as_deref_mut().filter(|f| f.id == id) else { return };
        let Some(manifest) = r.manifest.clone() else { return };
        let sizes: Arc<[u32]> = manifest.leaves().iter().map(|l| l.len).collect();
        let (wanted, have) = fetch::in_place(&prepared.checkout, sizes.len());
        let mut swarm = Swarm::new(config.swarm, me, sizes, &wanted, &have);
        let mut liars = vec![];
        for (peer, member) in &mut r.members {
            let rtt = self.links.get(&member.link).map(|l| l.connection.quinn().rtt()).unwrap_or_default();
            swarm.handle_peer(now, member.ix, tag(peer), rtt);
            if !swarm.handle_have(now, member.ix, &std::mem::take(&mut member.early)) {
                liars.push(*peer);
            }
        }
        f.tell(FetchEvent::Started {
            bytes_total: swarm.progress().bytes_wanted,
            bytes_resumed: prepared.bytes_resumed,
            bytes_local: prepared.bytes_local,
        });
        f.last_news = now;
        let running = Running::new(swarm, root, id, manifest, prepared, config.limits.verify_bytes, inbox);
        f.stage = Stage::Running(Box::new(running));
        if !r.seeding {
            r.have = have;
        }
        self.publish();
        let joined: Vec<LinkId> =
            self.links.iter().filter(|(_, l)| l.ours.contains_key(&root)).map(|(id, _)| *id).collect();
        for id in joined {
            self.join(id, root, false);
        }
        for liar in liars {
            self.let_go(&liar, "protocol fault: has leaves that do not exist");
        }
        self.touched.insert(root);
    }

    fn batch(&mut self, root: Cid, id: u64, peer: PeerIx, batch: BatchId, event: BatchEvent) {
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(f) = r.fetch.as_deref_mut().filter(|f| f.id == id) else { return };
        let (Some(who), started) =
            (r.members.iter().find(|(_, m)| m.ix == peer).map(|(p, _)| *p).or(Some(self.me)), f.started)
        else {
            return;
        };
        let Stage::Running(running) = &mut f.stage else { return };
        self.touched.insert(root);
        match event {
            BatchEvent::Bytes(n) => {
                running.swarm.handle_bytes(now, peer, n);
                f.last_news = now;
            }
            BatchEvent::Leaves(outcomes) => {
                for (leaf, outcome) in outcomes {
                    match outcome {
                        Outcome::Written => {
                            // a late copy of what was taken back counts all the same: it is in place
                            let _wanted = running.swarm.handle_arrived(now, peer, batch, leaf);
                            running.swarm.handle_verified(now, peer, leaf);
                            running.dirty = true;
                            f.first_leaf.get_or_insert(now.max(started));
                            if !r.have.put(leaf as usize) {
                                r.fresh.push(leaf);
                            }
                        }
                        Outcome::Duplicate => running.swarm.handle_duplicate(now, peer, batch, leaf),
                        Outcome::Refused => running.swarm.handle_refused(now, peer, batch, leaf),
                        Outcome::Corrupt => {
                            let _wanted = running.swarm.handle_arrived(now, peer, batch, leaf);
                            running.swarm.handle_corrupt(now, peer, leaf);
                        }
                    }
                }
            }
            BatchEvent::WriteFailed(error) => self.fail(root, error.into()),
            BatchEvent::Ended(end) => {
                running.batches.remove(&batch);
                match end {
                    // its leaves are on their way through the blocking threads
                    End::Complete => {}
                    End::TurnedDown => running.swarm.handle_ended(now, peer, batch, true),
                    End::Lost => running.swarm.handle_ended(now, peer, batch, false),
                    End::Fault(why) => {
                        running.swarm.handle_ended(now, peer, batch, false);
                        f.blame(who, format!("protocol fault: {why}"));
                        self.ban(root, who);
                        self.let_go(&who, &why);
                    }
                }
            }
        }
    }

    fn finished(&mut self, root: Cid, id: u64, result: Result<fetch::Landed, FetchError>) {
        let landed = match result {
            Ok(landed) => landed,
            Err(error) => return self.fail_if(root, id, error),
        };
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(mut f) = r.fetch.take_if(|f| f.id == id) else { return };
        r.seeding = true;
        let members: Vec<(PeerId, PeerIx)> = r.members.iter().map(|(p, m)| (*p, m.ix)).collect();
        let stage = std::mem::replace(&mut f.stage, Stage::Preparing);
        if let Stage::Finishing(running) = stage {
            for (peer, ix) in members {
                f.credit(peer, running.swarm.account(ix));
            }
            let report = f.report(now, &running, landed);
            self.tasks.spawn(f.end(FetchEvent::Done(Box::new(report))));
        }
    }

    fn fail_if(&mut self, root: Cid, id: u64, error: FetchError) {
        if self.fetch_mut(&root, id).is_some() {
            self.fail(root, error);
        }
    }

    /// Ends a fetch without its content. What is in place is committed and stays.
    fn fail(&mut self, root: Cid, error: FetchError) {
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(mut f) = r.fetch.take() else { return };
        let seeding = r.seeding;
        let stage = std::mem::replace(&mut f.stage, Stage::Preparing);
        let ended = f.end(FetchEvent::Failed(error));
        let checkout = match stage {
            Stage::Running(mut running) | Stage::Finishing(mut running) => {
                running.abort_all();
                Some(running.sink.checkout.clone())
            }
            _ => None,
        };
        self.tasks.spawn(async move {
            if let Some(checkout) = checkout {
                // the error that is told is the one that ended the fetch; what could not be committed is found again
                // by its hash
                let _failed = tokio::task::spawn_blocking(move || checkout.commit()).await;
            }
            ended.await;
        });
        if !seeding {
            self.forget(root);
        }
    }

    /// Carries out what the cores decided, and passes on what waits.
    fn settle(&mut self) {
        // dropping a peer can touch further roots
        while let Some(root) = self.touched.pop_first() {
            self.act(root);
            self.announce(root);
        }
        let links: Vec<LinkId> = self.links.iter().filter(|(_, l)| !l.outbox.is_empty()).map(|(id, _)| *id).collect();
        for id in links {
            self.flush(id);
        }
    }

    fn act(&mut self, root: Cid) {
        loop {
            let now = self.now();
            let Some(r) = self.roots.get_mut(&root) else { return };
            let Some(f) = &mut r.fetch else { return };
            let Some(running) = f.running() else { return };
            let Some(action) = running.swarm.poll_action(now) else { break };
            let who = |ix: PeerIx| r.members.iter().find(|(_, m)| m.ix == ix).map(|(p, m)| (*p, m.link));
            match action {
                Action::Request { peer, batch, leaves } => {
                    let link = who(peer).and_then(|(_, link)| self.links.get(&link));
                    let Some(link) = link else {
                        running.swarm.handle_gone(now, peer);
                        continue;
                    };
                    let run = BatchRun {
                        sink: running.sink.clone(),
                        connection: link.connection.clone(),
                        shared: link.shared.clone(),
                        peer,
                        batch,
                        leaves,
                    };
                    running.batches.insert(batch, (peer, self.tasks.spawn(run.run())));
                }
                Action::Cancel { batch, .. } => {
                    if let Some((_, task)) = running.batches.remove(&batch) {
                        task.abort();
                    }
                }
                Action::Interested { peer, yes } => {
                    if let Some((_, link)) = who(peer)
                        && let Some(link) = self.links.get_mut(&link)
                        && let Some(channel) = link.ours.get(&root).copied()
                    {
                        link.say(&Message::Interested { channel, yes });
                    }
                }
                Action::Drop { peer, reason } => {
                    let Some((peer, _)) = who(peer) else { continue };
                    f.blame(peer, reason.sentence());
                    self.ban(root, peer);
                    self.let_go(&peer, &reason.sentence());
                }
            }
        }
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(f) = &mut r.fetch else { return };
        if f.running().is_some_and(|running| running.swarm.is_complete()) {
            self.complete(root);
        }
    }

    /// Every wanted leaf is in place: the last step may begin.
    fn complete(&mut self, root: Cid) {
        let Some(f) = self.roots.get_mut(&root).and_then(|r| r.fetch.as_deref_mut()) else { return };
        let id = f.id;
        f.stage = match std::mem::replace(&mut f.stage, Stage::Preparing) {
            Stage::Running(mut running) => {
                running.abort_all();
                let (checkout, inbox) = (running.sink.checkout.clone(), self.inbox.clone());
                self.tasks.spawn(async move {
                    let landed = tokio::task::spawn_blocking(move || fetch::finish(&checkout)).await;
                    let result = landed.unwrap_or(Err(FetchError::ShuttingDown));
                    let _gone = inbox.send(Input::Finished(root, id, result)).await;
                });
                Stage::Finishing(running)
            }
            other => other,
        };
    }

    /// Tells members of new leaves.
    fn announce(&mut self, root: Cid) {
        let Some(r) = self.roots.get_mut(&root) else { return };
        if r.fresh.is_empty() {
            return;
        }
        let mut fresh = std::mem::take(&mut r.fresh);
        fresh.sort_unstable();
        let sets = LeafSet::pack(fresh);
        for member in r.members.values() {
            if let Some(link) = self.links.get_mut(&member.link)
                && let Some(channel) = link.ours.get(&root).copied()
            {
                for leaves in &sets {
                    link.say(&Message::Have { channel, leaves: leaves.clone() });
                }
            }
        }
    }

    /// Gives a connection's messages to its writer.
    fn flush(&mut self, id: LinkId) {
        let limit = self.config.limits.outbox_bytes;
        let Some(link) = self.links.get_mut(&id) else { return };
        let queued = match link.out.try_reserve() {
            Ok(slot) => {
                slot.send(std::mem::take(&mut link.outbox).into());
                true
            }
            Err(_) => link.outbox.len() <= limit,
        };
        if !queued {
            self.closed(id, "does not read its control stream");
        }
    }

    // ---- time ----

    fn next_stall(&self) -> Option<Duration> {
        let swarms = self.roots.values().filter_map(|r| match &r.fetch.as_ref()?.stage {
            Stage::Running(running) => running.swarm.poll_timeout(),
            _ => None,
        });
        swarms.chain(self.choker.poll_timeout()).min()
    }

    fn stalls(&mut self) {
        let now = self.now();
        for (cid, r) in &mut self.roots {
            if let Some(running) = r.fetch.as_mut().and_then(|f| f.running()) {
                running.swarm.handle_timeout(now);
                self.touched.insert(*cid);
            }
        }
        if self.choker.poll_timeout().is_some_and(|t| t <= now) {
            let verdicts = self.choker.handle_timeout(now);
            self.choke(verdicts);
        }
    }

    fn tick(&mut self) {
        let now = self.now();
        let fetched: Vec<Cid> = self.roots.iter().filter(|(_, r)| r.fetch.is_some()).map(|(c, _)| *c).collect();
        for root in fetched {
            self.dial(root);
            let Some(r) = self.roots.get_mut(&root) else { continue };
            let peers = r.members.len();
            let Some(f) = r.fetch.as_deref_mut() else { continue };
            if f.is_abandoned() {
                self.fail(root, FetchError::Cancelled);
                continue;
            }
            f.tell_progress(now, peers);
            let waited = now.saturating_sub(f.last_news);
            let given_up = f.request.give_up_after.is_some_and(|limit| waited >= limit);
            let id = f.id;
            match &mut f.stage {
                Stage::Resolving(_) if given_up => self.fail(root, FetchError::NoProviders { root, waited }),
                Stage::Running(running) if given_up => {
                    let progress = running.swarm.progress();
                    let missing = progress.bytes_wanted - progress.bytes_done;
                    self.fail(root, FetchError::Stalled { waited, missing });
                }
                Stage::Running(running)
                    if running.dirty && !running.committing && now >= running.last_commit + COMMIT_EVERY =>
                {
                    running.committing = true;
                    running.dirty = false;
                    let (checkout, inbox) = (running.sink.checkout.clone(), self.inbox.clone());
                    self.tasks.spawn(async move {
                        let committed = tokio::task::spawn_blocking(move || checkout.commit()).await;
                        let result = committed.map_or(Err(FetchError::ShuttingDown), |r| r.map_err(FetchError::from));
                        let _gone = inbox.send(Input::Committed(root, id, result)).await;
                    });
                }
                _ => {}
            }
        }
    }

    /// Ends every fetch, says goodbye and waits for the tasks.
    async fn shutdown(mut self, mut inbox: mpsc::Receiver<Input>) {
        let roots: Vec<Cid> = self.roots.keys().copied().collect();
        for root in roots {
            self.fail(root, FetchError::ShuttingDown);
        }
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for id in links {
            if let Some(link) = self.links.get_mut(&id) {
                link.say(&Message::Goodbye { reason: "shutting down".into() });
            }
            self.flush(id);
        }
        // without its sender a link's writer sends what it has and ends, and the link with it
        self.links.clear();
        let drained = async {
            loop {
                tokio::select! {
                    ended = self.tasks.join_next() => if ended.is_none() { return },
                    // inputs that nobody handles any more must not hold up the tasks that send them
                    Some(_) = inbox.recv() => {}
                }
            }
        };
        if tokio::time::timeout(SHUTDOWN_GRACE, drained).await.is_err() {
            tracing::debug!("tasks did not end in time and are stopped");
        }
        self.tasks.shutdown().await;
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
