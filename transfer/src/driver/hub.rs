//! The hub: one task that owns every root, every connection and every fetch. It takes [`Input`]s one by one, moves the
//! cores on and starts the tasks that do the work. It never waits for a peer or a disk.

mod fetching;
mod peers;
mod reading;
mod stocks;

use super::{
    FetchEvent, Input, LinkId, Served,
    bans::Bans,
    batch::{BatchEvent, BatchRun, End, Outcome, Sink},
    fetch::{self, FetchState, Prepared, Running, Stage},
    link::{self, LinkShared},
    recent::Recent,
    resolve::{self, Resolver},
    root::{Member, Root},
    serve::Server,
    stock::{self, Agenda, Found},
    throttle::Throttle,
};
use crate::{
    api::{Compression, Counters, FetchError, FetchRequest, PeerAddr, PeerReport, SeedError, TransferConfig},
    choke::{Account, Choker, Policy, Verdict},
    rate::Rates,
    swarm::{Action, BatchId, DropReason, PeerIx, Swarm},
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
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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

/// Work that a peer makes by coming, going and saying what it has, in leaves looked at.
#[derive(Debug, Default)]
struct Toll {
    work: u64,
    /// As of when.
    at: Duration,
}

/// A connection as the hub knows it.
struct Link {
    connection: Connection,
    shared: Arc<LinkShared>,
    out: mpsc::Sender<Bytes>,
    /// Messages that wait for the writer, and the hub's note that some do, on any connection.
    outbox: Vec<u8>,
    said: Arc<AtomicBool>,
    /// Our numbers for roots, and theirs.
    ours: BTreeMap<Cid, u32>,
    theirs: BTreeMap<u32, Cid>,
    agent: String,
    addrs: Vec<SocketAddr>,
    /// Bytes of leaves that it announced, for each root that is known here. No more than the root has, however often it
    /// says so.
    announced: BTreeMap<Cid, u64>,
    /// What it made this side do, for each root that is known here.
    tolls: BTreeMap<Cid, Toll>,
    /// It turned a request down, or choked us, since it last gave something.
    refuses: bool,
}

impl Link {
    fn say(&mut self, message: &Message) {
        message.encode(&mut self.outbox);
        self.said.store(true, Ordering::Relaxed);
    }

    /// Says something of `root`, if this side takes part in it here; `message` is given its channel.
    fn say_of(&mut self, root: &Cid, message: impl FnOnce(u32) -> Message) {
        if let Some(channel) = self.ours.get(root).copied() {
            self.say(&message(channel));
        }
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
    /// Messages wait for a writer.
    said: Arc<AtomicBool>,
    by_peer: BTreeMap<PeerId, LinkId>,
    roots: BTreeMap<Cid, Root>,
    choker: Choker<LinkId>,
    served: watch::Sender<Served>,
    server: Arc<Server>,
    throttle: Arc<Throttle>,
    recent: Arc<Recent>,
    rates: Rates,
    dials: usize,
    next_number: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Roots with actions to take or haves to tell.
    touched: BTreeSet<Cid>,
    agenda: Agenda,
    bans: Bans,
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
        let rates = config.rates;
        let throttle = Arc::new(Throttle::new(rates));
        let recent = Arc::new(Recent::new(config.limits.recent_bytes));
        let server =
            Server::new(&endpoint, &store, watching, (throttle.clone(), recent.clone()), &config, inbox.clone());
        let server = Arc::new(server);
        Hub {
            me: endpoint.peer_id(),
            endpoint,
            store,
            origin: Instant::now(),
            inbox,
            tasks: JoinSet::new(),
            links: BTreeMap::new(),
            said: Arc::default(),
            by_peer: BTreeMap::new(),
            roots: BTreeMap::new(),
            choker: Choker::new(config.limits.upload_slots, config.uplink),
            bans: Bans::new(config.limits.banned_peers),
            config,
            served,
            server,
            throttle,
            recent,
            rates,
            dials: 0,
            next_number: 0,
            bytes_in: 0,
            bytes_out: 0,
            touched: BTreeSet::new(),
            agenda: Agenda::default(),
        }
    }

    /// Runs until [`Input::Shutdown`], then drains its tasks.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Input>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(stock::LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut inputs = Vec::with_capacity(INPUTS_AT_ONCE);
        let server = self.server.clone();
        let turns = self.tasks.spawn(async move { server.take_turns().await });
        'run: loop {
            let busy = self.roots.values().any(|r| r.fetch.is_some())
                || self.choker.poll_timeout().is_some()
                || self.choker.policy() == Policy::Reciprocal && !self.links.is_empty();
            let stall = self.next_stall();
            tokio::select! {
                // several at once: haves of one round travel in one message
                n = inbox.recv_many(&mut inputs, INPUTS_AT_ONCE) => if n == 0 { break 'run },
                _ = tick.tick(), if busy => self.tick(),
                _ = look.tick(), if !self.roots.is_empty() => self.look_for_losses(),
                () = sleep_until(stall.map(|t| self.origin + t)) => self.stalls(),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a task of the hub panicked");
                    }
                }
            }
            for input in inputs.drain(..) {
                if matches!(input, Input::Shutdown) {
                    break 'run;
                }
                self.handle(input);
            }
            self.settle();
        }
        turns.abort();
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
            Input::Read(request, port) => self.read(*request, port),
            Input::AddPeers(root, peers) => self.add_peers(root, peers, Duration::ZERO),
            Input::Peers(reply) => {
                let _gone = reply.send(self.peers());
            }
            Input::Counters(reply) => {
                let _gone = reply.send(self.counters());
            }
            Input::Limit(change, reply) => {
                self.rates.change(change);
                self.throttle.set(self.rates);
                let _gone = reply.send(self.rates);
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
                    self.ban(peer);
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
            Input::Lost => self.look_for_losses(),
            Input::Unread(root, leaves) => self.unread(root, leaves),
            Input::Looked(found) => self.looked(found),
            Input::ReadJoin(ix, reader) => self.read_join(ix, *reader),
            Input::Admitted(root, fetch, ix, result) => self.admitted(root, fetch, ix, result),
            Input::ReadTook(root, ix, to) => self.read_took(root, ix, to),
            Input::ReadSeek(root, ix, to) => self.read_seek(root, ix, to),
            Input::ReadLost(root, ix, leaf) => self.read_lost(root, ix, leaf),
            Input::ReadEnded(root, ix) => self.read_ended(root, ix),
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
        if r.fetch.is_none() && r.manifest.is_none() {
            // what is here is looked up next
            r.have = FixedBitSet::with_capacity(leaves);
            r.manifest = Some(manifest);
        }
        r.seeding = true;
        self.publish();
        self.agenda.note_root(root);
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
            link.tolls.remove(&root);
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

    /// Carries out what the cores decided, and passes on what waits.
    fn settle(&mut self) {
        // dropping a peer can touch further roots
        while let Some(root) = self.touched.pop_first() {
            self.act(root);
            self.announce(root);
        }
        self.look();
        if !self.said.swap(false, Ordering::Relaxed) {
            return;
        }
        let links: Vec<LinkId> = self.links.iter().filter(|(_, l)| !l.outbox.is_empty()).map(|(id, _)| *id).collect();
        for id in links {
            self.flush(id);
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
            Err(_) => {
                self.said.store(true, Ordering::Relaxed);
                link.outbox.len() <= limit
            }
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
        let haves = self.roots.values().filter_map(|r| r.tell_at(|| self.server.backlog()));
        swarms.chain(haves).chain(self.choker.poll_timeout()).chain(self.agenda.poll_timeout()).min()
    }

    fn stalls(&mut self) {
        let now = self.now();
        for (cid, r) in &mut self.roots {
            if let Some(running) = r.fetch.as_mut().and_then(|f| f.running()) {
                running.swarm.handle_timeout(now);
                self.touched.insert(*cid);
            }
            if r.tell_at(|| self.server.backlog()).is_some_and(|at| at <= now) {
                self.touched.insert(*cid);
            }
        }
        if self.choker.poll_timeout().is_some_and(|t| t <= now) {
            let verdicts = self.choker.handle_timeout(now);
            self.choke(verdicts);
        }
    }

    /// Brings the accounts of the links up to date, where they matter.
    fn book(&mut self) {
        if self.choker.policy() == Policy::Cooperative {
            return;
        }
        let now = self.now();
        let mut verdicts = vec![];
        for (id, link) in &self.links {
            let account = Account {
                taken: link.shared.bytes_out.load(Ordering::Relaxed),
                given: link.shared.bytes_in.load(Ordering::Relaxed),
                announced: link.announced.values().copied().fold(0, u64::saturating_add),
                refuses: link.refuses,
            };
            verdicts.extend(self.choker.handle_account(now, *id, account));
        }
        self.choke(verdicts);
    }

    fn tick(&mut self) {
        self.book();
        let now = self.now();
        let fetched: Vec<Cid> = self.roots.iter().filter(|(_, r)| r.fetch.is_some()).map(|(c, _)| *c).collect();
        for root in fetched {
            self.dial(root);
            let Some(r) = self.roots.get_mut(&root) else { continue };
            let peers = r.members.len();
            let Some(f) = r.fetch.as_deref_mut() else { continue };
            if f.is_abandoned(now) {
                self.fail(root, FetchError::Cancelled);
                continue;
            }
            if f.on_demand && f.running().is_some_and(|running| running.swarm.is_idle()) {
                // readers take their time
                f.last_news = now;
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

/// Until then; for ever, where there is no such time.
pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
