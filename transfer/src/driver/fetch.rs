//! The life of one fetch: resolving, preparing, running, finishing. State and the blocking steps between the stages; the
//! hub moves it on.

use super::{batch::Sink, read::ReaderState, resolve};
use crate::{
    api::{FetchError, FetchEvent, FetchInto, FetchReport, FetchRequest, PeerShare, ReadEvent},
    swarm::{BatchId, PeerAccount, PeerIx, ReaderIx, Swarm},
};
use fixedbitset::FixedBitSet;
use shoal_content::Manifest;
use shoal_net::PeerId;
use shoal_store::{Checkout, CheckoutOptions, Hold, RootKind, Store};
use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, task::AbortHandle};

/// Events that wait for a slow reader; progress is never among them.
const MAX_BACKLOG: usize = 1024;
/// A fetch on demand waits so long for another reader: players open one place of a file after the other.
const LINGER: Duration = Duration::from_secs(20);
/// Peers that are named in the report. Of more, those that gave least are summed up.
const MAX_SHARES: usize = 1024;
/// A root of more leaves is not looked up as a whole when somebody begins to read in it: 16 GiB, some 50 ms.
const MOST_LOOKED_UP: u32 = 1 << 16;

/// The destination is ready.
pub(super) struct Prepared {
    pub(super) checkout: Arc<Checkout>,
    pub(super) bytes_resumed: u64,
    pub(super) bytes_local: u64,
    /// On demand: leaves that are here.
    pub(super) here: Vec<u32>,
}

/// Everything is in place.
pub(super) struct Landed {
    pub(super) paths: Vec<PathBuf>,
    pub(super) skipped: Vec<String>,
}

/// Leaves are coming in.
pub(super) struct Running {
    pub(super) swarm: Swarm,
    pub(super) sink: Arc<Sink>,
    pub(super) batches: BTreeMap<BatchId, (PeerIx, AbortHandle)>,
    pub(super) bytes_resumed: u64,
    pub(super) bytes_local: u64,
    /// Something was written since the last commit began.
    pub(super) dirty: bool,
    pub(super) committing: bool,
    pub(super) last_commit: Duration,
}

/// Where a fetch is.
pub(super) enum Stage {
    Resolving(mpsc::Sender<resolve::Offer>),
    Preparing,
    Running(Box<Running>),
    Finishing(Box<Running>),
}

/// A fetch.
pub(super) struct FetchState {
    pub(super) id: u64,
    pub(super) request: FetchRequest,
    /// It is there for its readers alone, and ends with the last of them.
    pub(super) on_demand: bool,
    pub(super) readers: BTreeMap<ReaderIx, ReaderState>,
    /// When the last reader went.
    pub(super) last_reader: Duration,
    pub(super) stage: Stage,
    /// Ends blocking steps early.
    pub(super) cancel: Arc<AtomicBool>,
    pub(super) started: Duration,
    /// When something last arrived, or somebody offered something.
    pub(super) last_news: Duration,
    pub(super) last_told: Duration,
    pub(super) first_leaf: Option<Duration>,
    /// On the tree, until the root has a record.
    _hold: Arc<Hold>,
    /// Bytes that came while the tree was resolved.
    pub(super) bytes_of_nodes: u64,
    shares: BTreeMap<PeerId, PeerShare>,
    /// Verified bytes of those who are not named any more.
    bytes_of_others: u64,
    events: mpsc::Sender<FetchEvent>,
    backlog: VecDeque<FetchEvent>,
}

impl FetchState {
    pub(super) fn new(
        id: u64,
        now: Duration,
        request: FetchRequest,
        events: mpsc::Sender<FetchEvent>,
        offers: mpsc::Sender<resolve::Offer>,
        hold: Arc<Hold>,
    ) -> Self {
        FetchState {
            id,
            request,
            on_demand: false,
            readers: BTreeMap::new(),
            last_reader: now,
            stage: Stage::Resolving(offers),
            cancel: Arc::default(),
            started: now,
            last_news: now,
            last_told: now,
            first_leaf: None,
            _hold: hold,
            bytes_of_nodes: 0,
            shares: BTreeMap::new(),
            bytes_of_others: 0,
            events,
            backlog: VecDeque::new(),
        }
    }

    pub(super) fn running(&mut self) -> Option<&mut Running> {
        match &mut self.stage {
            Stage::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Whether nobody listens any more.
    pub(super) fn is_abandoned(&self, now: Duration) -> bool {
        match self.on_demand {
            true => self.readers.is_empty() && now >= self.last_reader + LINGER,
            false => self.events.is_closed(),
        }
    }

    /// Tells the reader something that must not get lost.
    pub(super) fn tell(&mut self, event: FetchEvent) {
        if self.backlog.len() < MAX_BACKLOG {
            self.backlog.push_back(event);
        }
        self.flush();
    }

    /// Hands on what waited.
    pub(super) fn flush(&mut self) {
        while let Some(event) = self.backlog.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => return self.backlog.push_front(event),
                // the reader is gone, which cancels the fetch at the next tick
                Err(mpsc::error::TrySendError::Closed(_)) => return self.backlog.clear(),
            }
        }
    }

    /// Tells the reader how far it is, if there is room.
    pub(super) fn tell_progress(&mut self, now: Duration, peers: usize) {
        self.flush();
        let Stage::Running(running) = &self.stage else { return };
        let p = running.swarm.progress();
        self.last_told = now;
        let event = FetchEvent::Progress { bytes_done: p.bytes_done, bytes_total: p.bytes_wanted, peers };
        // progress is worth nothing once the next one is there
        let _full = self.events.try_send(event);
    }

    /// The last event; it waits for room in a task of its own.
    pub(super) fn end(self, last: FetchEvent) -> impl Future<Output = ()> + Send + 'static {
        self.cancel.store(true, Ordering::Relaxed);
        async move {
            for event in self.backlog.into_iter().chain([last]) {
                if self.events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Adds what a peer gave on a connection that ends now, or at the end of the fetch.
    pub(super) fn credit(&mut self, peer: PeerId, account: Option<PeerAccount>) {
        let Some(account) = account else { return };
        let share = self.share(peer);
        share.bytes += account.bytes;
        share.leaves += account.leaves;
        let idle = account.leaves == 0 && account.overtaken > 0;
        if (account.stalled || idle) && share.dropped.is_none() {
            share.dropped = Some("stalled: it was asked and sent nothing, so that others had to".into());
        }
    }

    /// Notes why a peer was let go; the first reason stays.
    pub(super) fn blame(&mut self, peer: PeerId, why: String) {
        let share = self.share(peer);
        if share.dropped.is_none() {
            share.dropped = Some(why.clone());
        }
        for reader in self.readers.values() {
            // whoever does not listen misses it
            let _full = reader.news.try_send((0, ReadEvent::PeerDropped { peer, why: why.clone() }));
        }
        self.tell(FetchEvent::PeerDropped { peer, why });
    }

    fn share(&mut self, peer: PeerId) -> &mut PeerShare {
        if self.shares.len() >= MAX_SHARES
            && !self.shares.contains_key(&peer)
            && let Some((least, bytes)) =
                self.shares.values().map(|s| (s.peer, s.bytes)).min_by_key(|(_, bytes)| *bytes)
        {
            self.shares.remove(&least);
            self.bytes_of_others += bytes;
        }
        self.shares.entry(peer).or_insert(PeerShare { peer, bytes: 0, leaves: 0, dropped: None })
    }

    /// The report of a fetch that has landed.
    pub(super) fn report(&self, now: Duration, running: &Running, landed: Landed) -> FetchReport {
        let progress = running.swarm.progress();
        let mut peers: Vec<PeerShare> = self.shares.values().cloned().collect();
        peers.retain(|s| s.bytes > 0 || s.dropped.is_some());
        peers.sort_by_key(|s| std::cmp::Reverse(s.bytes));
        FetchReport {
            root: self.request.root,
            paths: landed.paths,
            bytes: progress.bytes_wanted,
            // all that was not here: what peers gave before they were let go is in no account
            bytes_fetched: progress.bytes_wanted.saturating_sub(running.bytes_resumed + running.bytes_local),
            bytes_moved: self.bytes_of_nodes + running.sink.bytes_in.load(Ordering::Relaxed),
            bytes_resumed: running.bytes_resumed,
            bytes_local: running.bytes_local,
            bytes_duplicate: progress.bytes_duplicate,
            elapsed: now.saturating_sub(self.started),
            first_leaf: self.first_leaf.map(|t| t.saturating_sub(self.started)),
            skipped: landed.skipped,
            peers,
        }
    }
}

impl Running {
    pub(super) fn new(swarm: Swarm, sink: Sink, bytes_resumed: u64, bytes_local: u64) -> Self {
        Running {
            swarm,
            sink: Arc::new(sink),
            batches: BTreeMap::new(),
            bytes_resumed,
            bytes_local,
            dirty: false,
            committing: false,
            last_commit: Duration::ZERO,
        }
    }

    /// Stops every request.
    pub(super) fn abort_all(&mut self) {
        for (_, (_, task)) in std::mem::take(&mut self.batches) {
            task.abort();
        }
    }
}

/// Makes the destination ready and takes what is here already. Blocking.
pub(super) fn prepare(
    store: &Store,
    manifest: Arc<Manifest>,
    request: &FetchRequest,
    on_demand: bool,
    cancel: Arc<AtomicBool>,
) -> Result<Prepared, FetchError> {
    let name = request.name.clone().unwrap_or_else(|| request.root.to_string());
    // the store reads no clock; a clock before 1970 gives no time
    let created_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let options = CheckoutOptions {
        symlinks: request.symlinks,
        created_unix,
        provide: true,
        expires_unix: request.expires_unix,
        cancel,
        ..CheckoutOptions::default()
    };
    if on_demand {
        let leaves = manifest.leaves().len() as u32;
        let checkout = Arc::new(Checkout::begin_on_demand(store, manifest, &name, options)?);
        let all: Vec<u32> = if leaves <= MOST_LOOKED_UP { (0..leaves).collect() } else { vec![] };
        let (here, _) = checkout.admit(&all, false)?;
        return Ok(Prepared { checkout, bytes_resumed: 0, bytes_local: 0, here });
    }
    let checkout = match request.into {
        FetchInto::Dir => Checkout::begin(store, manifest, &request.paths, &request.dir, &name, options)?,
        FetchInto::Cache => Checkout::begin_cached(store, manifest, &request.paths, &name, options)?,
        FetchInto::Repair => Checkout::begin_repair(store, manifest, &request.paths, options)?,
    };
    let bytes_resumed = checkout.resumed().bytes;
    let bytes_local = checkout.fill_local()?.bytes;
    Ok(Prepared { checkout: Arc::new(checkout), bytes_resumed, bytes_local, here: vec![] })
}

/// Makes everything durable and moves it to its place. Blocking.
pub(super) fn finish(checkout: &Checkout) -> Result<Landed, FetchError> {
    let finished = checkout.finish()?;
    let skipped = (finished.skipped_symlinks.iter())
        .map(|s| format!("symlink {} to {}: {}", s.path, s.target.escape_debug(), s.reason))
        .collect();
    Ok(Landed { paths: finished.paths, skipped })
}

/// The same for what was read until all of it is here: what was found elsewhere is taken from there first. Nothing is to
/// be done for a root that is no cached content. Blocking.
pub(super) fn finish_on_demand(store: &Store, checkout: &Checkout) -> Result<Landed, FetchError> {
    let record = store.root(&checkout.manifest().root())?;
    if record.is_none_or(|record| record.kind != RootKind::Cached || record.complete) {
        return Ok(Landed { paths: vec![], skipped: vec![] });
    }
    checkout.fill_local()?;
    finish(checkout)
}

/// The leaves that are in place, as a set over all leaves of the root.
pub(super) fn in_place(checkout: &Checkout, leaves: usize) -> (FixedBitSet, FixedBitSet) {
    let mut wanted = FixedBitSet::with_capacity(leaves);
    checkout.wanted().iter().for_each(|leaf| wanted.insert(*leaf as usize));
    let mut have = FixedBitSet::with_capacity(leaves);
    checkout.have().iter().for_each(|leaf| have.insert(*leaf as usize));
    (wanted, have)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Peers that come, are blamed and go, one identity after another, are not remembered one by one for ever.
    #[test]
    fn those_who_are_named_in_the_report_are_bounded_and_their_bytes_are_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let request = FetchRequest {
            root: shoal_content::Cid::of(shoal_content::Codec::Raw, shoal_content::HashKind::Blake3, b"x"),
            paths: vec![],
            dir: "out".into(),
            name: None,
            peers: vec![],
            symlinks: false,
            into: FetchInto::Dir,
            expires_unix: None,
            give_up_after: None,
        };
        let ((events, _reader), (offers, _)) = (mpsc::channel(1), mpsc::channel(1));
        let mut f = FetchState::new(1, Duration::ZERO, request, events, offers, Arc::new(store.hold()));
        let giver = PeerId::random();
        f.credit(giver, Some(PeerAccount { bytes: 1000, leaves: 1, ..PeerAccount::default() }));
        for n in 0..3 * MAX_SHARES as u64 {
            let peer = PeerId::random();
            f.blame(peer, "sent wrong bytes".into());
            f.credit(peer, Some(PeerAccount { bytes: n % 2, ..PeerAccount::default() }));
        }
        assert!(f.shares.len() <= MAX_SHARES && f.backlog.len() <= MAX_BACKLOG);
        assert!(f.shares.contains_key(&giver), "those who gave most stay named");
        let bytes = f.bytes_of_others + f.shares.values().map(|s| s.bytes).sum::<u64>();
        assert_eq!(bytes, 1000 + 3 * MAX_SHARES as u64 / 2);
    }
}
