//! Runs one request for leaves: asks, reads the answer, hands each leaf to a blocking thread that verifies it and writes
//! it to its place. It decides nothing; what happened goes to the hub.

use super::{
    Input,
    link::LinkShared,
    throttle::{Throttle, Way},
};
use crate::{
    swarm::{BatchId, PeerIx},
    wire::{LeafHead, LeafSet, MAX_HEAD_BYTES, Request, code, decode_leaf_head},
};
use shoal_content::{Cid, Manifest};
use shoal_net::{
    Connection,
    quinn::{ReadError, ReadExactError, RecvStream},
};
use shoal_store::{Checkout, CheckoutError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

/// Leaves are verified and written in groups of about this many bytes.
const GROUP_BYTES: usize = 256 << 10;
/// The hub hears of arriving bytes after this many or this long, whichever comes first.
const NEWS_BYTES: u64 = 256 << 10;
const NEWS_EVERY: Duration = Duration::from_millis(50);
/// A permit of the verification budget stands for this many bytes.
const PERMIT_BYTES: usize = 1024;

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

/// What a fetch's requests share.
pub(super) struct Sink {
    pub(super) root: Cid,
    pub(super) fetch: u64,
    pub(super) manifest: Arc<Manifest>,
    pub(super) checkout: Arc<Checkout>,
    claims: Claims,
    budget: Arc<Semaphore>,
    budget_permits: u32,
    throttle: Arc<Throttle>,
    inbox: mpsc::Sender<Input>,
}

impl Sink {
    /// Room for `verify_bytes` on the way through the blocking threads. A leaf that is larger takes all of it.
    pub(super) fn new(
        (root, fetch): (Cid, u64),
        manifest: Arc<Manifest>,
        checkout: Arc<Checkout>,
        verify_bytes: usize,
        throttle: Arc<Throttle>,
        inbox: mpsc::Sender<Input>,
    ) -> Self {
        let permits = (verify_bytes / PERMIT_BYTES).max(1);
        Sink {
            root,
            fetch,
            claims: Claims::new(manifest.leaves().len()),
            manifest,
            checkout,
            budget: Arc::new(Semaphore::new(permits)),
            budget_permits: permits as u32,
            throttle,
            inbox,
        }
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
        let leaves = LeafSet::pack(self.leaves.iter().copied());
        let [leaves] = &leaves[..] else {
            // the scheduler's limits keep a request inside one set
            return Err(End::Fault("a request does not fit a message".into()));
        };
        let head = Request::Leaves { root: self.sink.root, leaves: leaves.clone() }.encode();
        send.write_all(&head).await.map_err(|_| End::TurnedDown)?;
        send.finish().map_err(|_| End::Lost)?;
        let mut group = Group::default();
        let mut refused = vec![];
        let mut news = News { bytes: 0, at: Instant::now() };
        for leaf in &self.leaves {
            let mut head = [0; MAX_HEAD_BYTES];
            read_exact(&mut recv, &mut head).await?;
            match decode_leaf_head(head).map_err(|e| End::Fault(e.to_string()))? {
                LeafHead::DontHave => refused.push((*leaf, Outcome::Refused)),
                LeafHead::Data(len) => {
                    let expected = self.sink.manifest.leaves()[*leaf as usize].len;
                    if len != expected {
                        return Err(End::Fault(format!("leaf {leaf} came with {len} bytes instead of {expected}")));
                    }
                    let bytes = {
                        // so that a peer's unfinished leaves are few, and take nothing from those of others
                        let _reading = self.shared.reading.acquire().await.map_err(|_| End::Lost)?;
                        self.read_leaf(&mut recv, len as usize, &mut news).await?
                    };
                    self.take_room(&mut group, bytes.len()).await?;
                    group.bytes += bytes.len();
                    group.leaves.push((*leaf, bytes));
                    if group.bytes >= GROUP_BYTES {
                        self.write(&mut group);
                    }
                }
            }
        }
        self.write(&mut group);
        if news.bytes > 0 {
            self.tell(BatchEvent::Bytes(news.bytes)).await;
        }
        if !refused.is_empty() {
            self.tell(BatchEvent::Leaves(refused)).await;
        }
        Ok(End::Complete)
    }

    /// Waits for room for a leaf that is whole, in the budget of all requests. What holds some of it already goes on its
    /// way first, so that two requests never wait for each other.
    async fn take_room(&self, group: &mut Group, len: usize) -> Result<(), End> {
        let want = (len.div_ceil(PERMIT_BYTES).max(1) as u32).min(self.sink.budget_permits);
        let budget = &self.sink.budget;
        let permit = match budget.clone().try_acquire_many_owned(want) {
            Ok(permit) => permit,
            Err(_) => {
                self.write(group);
                budget.clone().acquire_many_owned(want).await.map_err(|_| End::Lost)?
            }
        };
        match &mut group.room {
            Some(all) => all.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }

    async fn read_leaf(&self, recv: &mut RecvStream, len: usize, news: &mut News) -> Result<Vec<u8>, End> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let chunk = recv.read_chunk(len - bytes.len(), true).await.map_err(|e| lost(&e))?;
            let chunk = chunk.ok_or(End::Fault("the answer ends inside a leaf".into()))?;
            bytes.extend_from_slice(&chunk.bytes);
            news.bytes += chunk.bytes.len() as u64;
            self.sink.throttle.pass(Way::Down, &self.shared.buckets, chunk.bytes.len()).await;
            if news.bytes >= NEWS_BYTES || news.at.elapsed() >= NEWS_EVERY {
                self.shared.bytes_in.fetch_add(news.bytes, Ordering::Relaxed);
                self.tell(BatchEvent::Bytes(news.bytes)).await;
                *news = News { bytes: 0, at: Instant::now() };
            }
        }
        Ok(bytes)
    }

    /// Gives the group to a blocking thread, which reports what became of it.
    fn write(&self, group: &mut Group) {
        if group.leaves.is_empty() {
            return;
        }
        let group = std::mem::take(group);
        let (sink, peer, batch) = (self.sink.clone(), self.peer, self.batch);
        // the handle is not needed: the closure reports, and the room it holds says when it is over
        drop(tokio::task::spawn_blocking(move || {
            let event = verify_and_write(&sink, &group.leaves);
            drop(group);
            let input = Input::Batch { root: sink.root, fetch: sink.fetch, peer, batch, event };
            // a hub that is gone is shutting down
            let _gone = sink.inbox.blocking_send(input);
        }));
    }
}

/// Leaves that are whole and go to a blocking thread together, with the room that they take.
#[derive(Default)]
struct Group {
    leaves: Vec<(u32, Vec<u8>)>,
    bytes: usize,
    room: Option<OwnedSemaphorePermit>,
}

fn verify_and_write(sink: &Sink, group: &[(u32, Vec<u8>)]) -> BatchEvent {
    let mut outcomes = Vec::with_capacity(group.len());
    for (leaf, bytes) in group {
        let outcome = if !sink.claims.claim(*leaf) {
            Outcome::Duplicate
        } else if !sink.manifest.leaves()[*leaf as usize].cid.verify(bytes) {
            sink.claims.give_back(*leaf);
            Outcome::Corrupt
        } else if let Err(error) = sink.checkout.write(*leaf, bytes) {
            return BatchEvent::WriteFailed(error);
        } else {
            Outcome::Written
        };
        outcomes.push((*leaf, outcome));
    }
    BatchEvent::Leaves(outcomes)
}

struct News {
    bytes: u64,
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
