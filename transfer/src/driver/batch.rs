//! Runs one request for leaves: asks, reads the packs of the answer, hands their leaves to a blocking thread that unpacks,
//! verifies and writes them to their places. It decides nothing; what happened goes to the hub.

use super::{
    Input,
    lane::Lane,
    link::{self, LinkShared},
    recent::Recent,
    throttle::{Throttle, Way},
};
use crate::{
    swarm::{BatchId, PeerIx},
    wire::{self, LeafSet, PACK_HEAD_BYTES, PackHead, PackKind, Packing, Request, code},
};
use bytes::Bytes;
use fixedbitset::FixedBitSet;
use shoal_content::{Cid, Manifest};
use shoal_net::{
    Connection,
    quinn::{ReadError, ReadExactError, RecvStream},
};
use shoal_store::{Checkout, CheckoutError};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

/// Leaves are verified and written in groups of about this many bytes: they and what is written of them fit a core's cache.
const GROUP_BYTES: usize = 128 << 10;
/// The hub hears of arriving bytes after this many or this long, whichever comes first.
const NEWS_BYTES: u64 = 256 << 10;
const NEWS_EVERY: Duration = Duration::from_millis(50);
/// A permit of the verification budget stands for this many bytes.
const PERMIT_BYTES: usize = 1024;
/// Buffers that are kept for the next leaves, and how large each may be: fresh ones cost the faults of their pages.
const SPARE_BUFFERS: usize = 8;
const SPARE_BYTES: usize = 512 << 10;

/// What the hub hears of a request.
#[derive(Debug)]
pub(super) enum BatchEvent {
    /// So many more bytes are here.
    Bytes(u64),
    /// Leaves were dealt with.
    Leaves(Vec<(u32, Outcome)>),
    /// The disk refused.
    WriteFailed(CheckoutError),
    /// Nothing more comes.
    Ended(End),
}

/// What became of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Verified and in place.
    Written,
    /// Not what its CID says.
    Corrupt,
    /// Another request brought it first.
    Duplicate,
    /// The peer does not have it.
    Refused,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// All of it was answered.
    Complete,
    /// Turned down: choked, unknown root, a fault of the peer's disk.
    TurnedDown,
    /// The connection is going.
    Lost,
    /// The peer broke the protocol.
    Fault(String),
}

/// Which leaves some request has brought: the first one to claim a leaf writes it.
struct Claims(Box<[AtomicU64]>);

impl Claims {
    /// Room for `leaves` leaves, none claimed.
    fn new(leaves: usize) -> Self {
        Claims((0..leaves.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn claim(&self, leaf: u32) -> bool {
        let bit = 1 << (leaf % 64);
        self.0[leaf as usize / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    fn give_back(&self, leaf: u32) {
        self.0[leaf as usize / 64].fetch_and(!(1 << (leaf % 64)), Ordering::AcqRel);
    }
}

/// Leaves that are not written but handed from memory to readers.
struct Passing {
    leaves: FixedBitSet,
    /// Those of them that are here, until no reader is about to need them; the readers' windows bound it.
    held: BTreeMap<u32, Bytes>,
}

/// What a fetch's requests share.
pub(super) struct Sink {
    pub(super) root: Cid,
    pub(super) fetch: u64,
    pub(super) manifest: Arc<Manifest>,
    pub(super) checkout: Arc<Checkout>,
    claims: Claims,
    passing: Mutex<Passing>,
    budget: Arc<Semaphore>,
    budget_permits: u32,
    throttle: Arc<Throttle>,
    inbox: mpsc::Sender<Input>,
    /// How leaves may be sent.
    packing: Packing,
    /// Bytes that came, before they were unpacked.
    pub(super) bytes_in: AtomicU64,
    /// Empty buffers.
    spare: Mutex<Vec<Vec<u8>>>,
    recent: Arc<Recent>,
    lane: Arc<Lane>,
    /// Others fetch the same.
    crowd: AtomicBool,
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.recent.forget(self.fetch);
    }
}

impl Sink {
    /// Room for `verify_bytes` on the way through the blocking threads. A leaf that is larger takes all of it. On demand,
    /// no leaf is written before [`keep`](Self::keep).
    pub(super) fn new(
        (root, fetch): (Cid, u64),
        manifest: Arc<Manifest>,
        (checkout, on_demand): (Arc<Checkout>, bool),
        verify_bytes: usize,
        packing: Packing,
        (throttle, recent): (Arc<Throttle>, Arc<Recent>),
        inbox: mpsc::Sender<Input>,
    ) -> Self {
        let permits = (verify_bytes / PERMIT_BYTES).max(1);
        let mut leaves = FixedBitSet::with_capacity(manifest.leaves().len());
        if on_demand {
            leaves.insert_range(..);
        }
        Sink {
            root,
            fetch,
            claims: Claims::new(manifest.leaves().len()),
            manifest,
            checkout,
            passing: Mutex::new(Passing { leaves, held: BTreeMap::new() }),
            budget: Arc::new(Semaphore::new(permits)),
            budget_permits: permits as u32,
            throttle,
            inbox,
            packing,
            bytes_in: AtomicU64::new(0),
            spare: Mutex::default(),
            recent,
            lane: Lane::new(),
            crowd: AtomicBool::new(false),
        }
    }

    /// Whether others fetch the same, and will ask for what comes.
    pub(super) fn note_crowd(&self, crowd: bool) {
        self.crowd.store(crowd, Ordering::Relaxed);
    }

    /// Keeps what was written of `leaves`, which lie one behind the other in `bytes`, for others, if there are any.
    fn remember(&self, outcomes: &[(u32, Outcome)], bytes: Vec<u8>) {
        if !self.crowd.load(Ordering::Relaxed) {
            return self.take_back(bytes);
        }
        let (size, mut bytes) = (bytes.capacity(), Bytes::from(bytes));
        let leaves = outcomes.iter().filter_map(|(leaf, outcome)| {
            let known = self.manifest.leaves()[*leaf as usize];
            let one = bytes.split_to(known.len as usize);
            (*outcome == Outcome::Written).then_some((known.cid, one))
        });
        self.recent.keep(self.fetch, leaves.collect(), size);
    }

    /// Held for moments.
    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // a panic elsewhere leaves whole buffers
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty buffer with room for `len` bytes.
    fn buffer(&self, len: usize) -> Vec<u8> {
        if self.crowd.load(Ordering::Relaxed) {
            // what comes plain will be kept
            return Vec::with_capacity(len);
        }
        let mut spare = self.spare();
        match spare.iter().position(|buffer| buffer.capacity() >= len) {
            Some(at) => spare.swap_remove(at),
            // a little more, so that it serves for others
            None => Vec::with_capacity(if len <= SPARE_BYTES { len.next_power_of_two() } else { len }),
        }
    }

    /// Takes a buffer back that is not needed any more; of too many the smallest goes.
    fn take_back(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() > SPARE_BYTES {
            return;
        }
        buffer.clear();
        let mut spare = self.spare();
        spare.push(buffer);
        if spare.len() > SPARE_BUFFERS
            && let Some((at, _)) = spare.iter().enumerate().min_by_key(|(_, buffer)| buffer.capacity())
        {
            spare.swap_remove(at);
        }
    }

    /// Held for moments.
    fn pass(&self) -> MutexGuard<'_, Passing> {
        // a panic elsewhere leaves at worst a leaf that is asked for again
        self.passing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These leaves are, or will be, in the store.
    pub(super) fn keep(&self, leaves: &[u32]) {
        let mut passing = self.pass();
        leaves.iter().for_each(|leaf| passing.leaves.set(*leaf as usize, false));
    }

    /// Whether every leaf is, or will be, in the store.
    pub(super) fn keeps_all(&self) -> bool {
        self.pass().leaves.is_clear()
    }

    /// Whether a leaf is handed on from memory only.
    pub(super) fn passes(&self, leaf: u32) -> bool {
        self.pass().leaves.contains(leaf as usize)
    }

    /// A leaf that is in memory.
    pub(super) fn passing(&self, leaf: u32) -> Option<Bytes> {
        self.pass().held.get(&leaf).cloned()
    }

    /// Lets go of a leaf that is in memory only; false if it is not there.
    pub(super) fn forget(&self, leaf: u32) -> bool {
        let there = self.pass().held.remove(&leaf).is_some();
        if there {
            self.claims.give_back(leaf);
        }
        there
    }

    /// A leaf that was in the store cannot be read: when it comes again, it is handed on from memory.
    pub(super) fn lose(&self, leaf: u32) {
        let mut passing = self.pass();
        if passing.held.contains_key(&leaf) {
            return;
        }
        passing.leaves.insert(leaf as usize);
        self.claims.give_back(leaf);
    }

    /// Puts leaves, which are verified and lie one behind the other in `bytes`, where they belong.
    fn put(&self, leaves: &[u32], mut bytes: &[u8]) -> Result<(), CheckoutError> {
        if leaves.iter().all(|leaf| !self.passes(*leaf)) {
            return self.checkout.write_run(leaves, bytes);
        }
        for leaf in leaves {
            let (one, rest) = bytes.split_at(self.manifest.leaves()[*leaf as usize].len as usize);
            bytes = rest;
            if self.passes(*leaf) {
                self.pass().held.insert(*leaf, Bytes::copy_from_slice(one));
            } else {
                self.checkout.write_run(std::slice::from_ref(leaf), one)?;
            }
        }
        Ok(())
    }
}

/// A request on its way. Dropping its future cancels it; leaves that a blocking thread already has are still written and
/// reported.
pub(super) struct BatchRun {
    pub(super) sink: Arc<Sink>,
    pub(super) connection: Connection,
    pub(super) shared: Arc<LinkShared>,
    pub(super) peer: PeerIx,
    pub(super) batch: BatchId,
    pub(super) leaves: Vec<u32>,
}

impl BatchRun {
    pub(super) async fn run(self) {
        let end = self.answers().await.unwrap_or_else(|end| end);
        self.tell(BatchEvent::Ended(end)).await;
    }

    fn input(&self, event: BatchEvent) -> Input {
        Input::Batch { root: self.sink.root, fetch: self.sink.fetch, peer: self.peer, batch: self.batch, event }
    }

    async fn tell(&self, event: BatchEvent) {
        // a hub that is gone is shutting down
        let _gone = self.sink.inbox.send(self.input(event)).await;
    }

    async fn answers(&self) -> Result<End, End> {
        let (mut send, mut recv) = self.connection.quinn().open_bi().await.map_err(|_| End::Lost)?;
        send.set_priority(link::REQUESTS).map_err(|_| End::Lost)?;
        let leaves = LeafSet::pack(self.leaves.iter().copied());
        let [leaves] = &leaves[..] else {
            // the scheduler's limits keep a request inside one set
            return Err(End::Fault("a request does not fit a message".into()));
        };
        let packing = self.sink.packing;
        let head = Request::Leaves { root: self.sink.root, packing, leaves: leaves.clone() }.encode();
        send.write_all(&head).await.map_err(|_| End::TurnedDown)?;
        send.finish().map_err(|_| End::Lost)?;
        let mut group = Group::default();
        let mut refused = vec![];
        let mut news = News { bytes: 0, wire: 0, at: Instant::now() };
        let mut rest = &self.leaves[..];
        while !rest.is_empty() {
            let mut head = [0; PACK_HEAD_BYTES];
            read_exact(&mut recv, &mut head).await?;
            news.wire += PACK_HEAD_BYTES as u64;
            let head = PackHead::decode(&head).map_err(|e| End::Fault(e.to_string()))?;
            let Some((leaves, later)) = rest.split_at_checked(head.items.into()) else {
                return Err(End::Fault(format!("sent {} leaves where {} were asked for", head.items, rest.len())));
            };
            rest = later;
            if head.kind == PackKind::Missing {
                refused.extend(leaves.iter().map(|leaf| (*leaf, Outcome::Refused)));
                continue;
            }
            let expected: u64 = leaves.iter().map(|leaf| self.len(*leaf) as u64).sum();
            if expected != u64::from(head.plain) {
                let (first, count, plain) = (leaves[0], leaves.len(), head.plain);
                return Err(End::Fault(format!(
                    "{count} leaves from {first} on came with {plain} bytes, not {expected}"
                )));
            }
            match head.kind {
                PackKind::Zstd if packing == Packing::Off => {
                    return Err(End::Fault("compressed what was to come plain".into()));
                }
                PackKind::Zstd => {
                    self.write(&mut group);
                    let frame = self.read(&mut recv, head.wire as usize, head.plain, &mut news).await?;
                    self.take_room(&mut group, head.plain as usize).await?;
                    group.leaves.extend_from_slice(leaves);
                    group.bytes = frame;
                    group.packed = Some(head);
                    self.write(&mut group);
                }
                _ => self.read_plain(&mut recv, leaves, &mut group, &mut news).await?,
            }
        }
        self.write(&mut group);
        self.tell_news(&mut news).await;
        if !refused.is_empty() {
            self.tell(BatchEvent::Leaves(refused)).await;
        }
        Ok(End::Complete)
    }

    fn len(&self, leaf: u32) -> usize {
        self.sink.manifest.leaves()[leaf as usize].len as usize
    }

    /// Reads leaves that come plain, in stretches of about a group.
    async fn read_plain(
        &self,
        recv: &mut RecvStream,
        mut leaves: &[u32],
        group: &mut Group,
        news: &mut News,
    ) -> Result<(), End> {
        while !leaves.is_empty() {
            let (mut count, mut bytes) = (0, 0);
            for leaf in leaves {
                let len = self.len(*leaf);
                if count > 0 && bytes + len > GROUP_BYTES {
                    break;
                }
                bytes += len;
                count += 1;
            }
            let (now, later) = leaves.split_at(count);
            let read = self.read(recv, bytes, bytes as u32, news).await?;
            self.take_room(group, bytes).await?;
            group.leaves.extend_from_slice(now);
            if group.bytes.is_empty() {
                group.bytes = read;
            } else {
                group.bytes.extend_from_slice(&read);
                self.sink.take_back(read);
            }
            if group.bytes.len() >= GROUP_BYTES {
                self.write(group);
            }
            leaves = later;
        }
        Ok(())
    }

    /// Waits for room for leaves that are whole, in the budget of all requests. What holds some of it already goes on its
    /// way first, so that two requests never wait for each other.
    async fn take_room(&self, group: &mut Group, len: usize) -> Result<(), End> {
        let want = (len.div_ceil(PERMIT_BYTES).max(1) as u32).min(self.sink.budget_permits);
        let budget = &self.sink.budget;
        let permit = match budget.clone().try_acquire_many_owned(want) {
            Ok(permit) => permit,
            Err(_) => {
                self.write(group);
                self.sink.lane.wait(budget.clone().acquire_many_owned(want)).await.map_err(|_| End::Lost)?
            }
        };
        match &mut group.room {
            Some(all) => all.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }

    /// Reads `len` bytes that stand for `plain` bytes of leaves.
    async fn read(&self, recv: &mut RecvStream, len: usize, plain: u32, news: &mut News) -> Result<Vec<u8>, End> {
        // so that a peer's unfinished leaves are few, and take nothing from those of others
        let _reading = self.shared.reading.acquire().await.map_err(|_| End::Lost)?;
        // `len` is held against the verified tree, or is less than what is
        let mut bytes = self.sink.buffer(len);
        while bytes.len() < len {
            let chunk = recv.read_chunk(len - bytes.len(), true).await.map_err(|e| lost(&e))?;
            let chunk = chunk.ok_or(End::Fault("the answer ends inside a leaf".into()))?;
            bytes.extend_from_slice(&chunk.bytes);
            let came = chunk.bytes.len() as u64;
            news.wire += came;
            // what the swarm counts is leaves, not what they travelled as
            news.bytes += came * u64::from(plain) / len as u64;
            self.sink.throttle.pass(Way::Down, &self.shared.buckets, chunk.bytes.len()).await;
            if news.bytes >= NEWS_BYTES || news.at.elapsed() >= NEWS_EVERY {
                self.tell_news(news).await;
            }
        }
        Ok(bytes)
    }

    async fn tell_news(&self, news: &mut News) {
        self.shared.bytes_in.fetch_add(news.wire, Ordering::Relaxed);
        self.sink.bytes_in.fetch_add(news.wire, Ordering::Relaxed);
        let bytes = news.bytes;
        *news = News { bytes: 0, wire: 0, at: Instant::now() };
        if bytes > 0 {
            self.tell(BatchEvent::Bytes(bytes)).await;
        }
    }

    /// Gives the group to a blocking thread, which reports what became of it.
    fn write(&self, group: &mut Group) {
        if group.leaves.is_empty() {
            return;
        }
        let group = std::mem::take(group);
        let (sink, peer, batch) = (self.sink.clone(), self.peer, self.batch);
        self.sink.lane.run(move || {
            let event = unpack_and_write(&sink, &group.leaves, group.bytes, group.packed);
            // the room is free once the bytes are, or are kept in room of their own
            drop(group.room);
            let input = Input::Batch { root: sink.root, fetch: sink.fetch, peer, batch, event };
            // a hub that is gone is shutting down
            let _gone = sink.inbox.blocking_send(input);
        });
    }
}

/// Leaves that are whole and go to a blocking thread together, with the room that they take.
#[derive(Default)]
struct Group {
    leaves: Vec<u32>,
    /// One leaf behind the other.
    bytes: Vec<u8>,
    /// Where `bytes` is a zstd frame: the head that came before it.
    packed: Option<PackHead>,
    room: Option<OwnedSemaphorePermit>,
}

fn unpack_and_write(sink: &Sink, leaves: &[u32], mut bytes: Vec<u8>, packed: Option<PackHead>) -> BatchEvent {
    if let Some(head) = packed {
        match wire::decompress(&head, &bytes) {
            Ok(plain) => sink.take_back(std::mem::replace(&mut bytes, plain)),
            Err(error) => return BatchEvent::Ended(End::Fault(error.to_string())),
        }
    }
    let event = verify_and_write(sink, leaves, &bytes);
    match &event {
        BatchEvent::Leaves(outcomes) => sink.remember(outcomes, bytes),
        _ => sink.take_back(bytes),
    }
    event
}

fn verify_and_write(sink: &Sink, leaves: &[u32], bytes: &[u8]) -> BatchEvent {
    let mut outcomes = Vec::with_capacity(leaves.len());
    // Good leaves since the last one that was not, where they begin among `leaves` and in `bytes`.
    let (mut first, mut from, mut at) = (0, 0, 0);
    for (index, &leaf) in leaves.iter().enumerate() {
        let known = sink.manifest.leaves()[leaf as usize];
        let end = at + known.len as usize;
        let outcome = if !sink.claims.claim(leaf) {
            Outcome::Duplicate
        } else if !known.cid.verify(&bytes[at..end]) {
            sink.claims.give_back(leaf);
            Outcome::Corrupt
        } else {
            Outcome::Written
        };
        outcomes.push((leaf, outcome));
        if outcome != Outcome::Written {
            if let Err(error) = sink.put(&leaves[first..index], &bytes[from..at]) {
                return BatchEvent::WriteFailed(error);
            }
            (first, from) = (index + 1, end);
        }
        at = end;
    }
    match sink.put(&leaves[first..], &bytes[from..at]) {
        Ok(()) => BatchEvent::Leaves(outcomes),
        Err(error) => BatchEvent::WriteFailed(error),
    }
}

struct News {
    /// Of leaves.
    bytes: u64,
    /// As they came.
    wire: u64,
    at: Instant,
}

async fn read_exact(recv: &mut RecvStream, buffer: &mut [u8]) -> Result<(), End> {
    recv.read_exact(buffer).await.map_err(|e| match e {
        ReadExactError::FinishedEarly(_) => End::Fault("the answer ends before its last leaf".into()),
        ReadExactError::ReadError(e) => lost(&e),
    })
}

fn lost(error: &ReadError) -> End {
    match error {
        ReadError::Reset(c) if *c == code::PROTOCOL.into() => End::Fault("refused the request as malformed".into()),
        ReadError::Reset(_) => End::TurnedDown,
        _ => End::Lost,
    }
}
