//! Answers request streams: nodes and leaves of the roots that are served, hashed when they were read or when they came, in
//! bounded memory. It knows neither peers nor swarms.

use super::{
    Input, Served,
    lane::{Lane, Pending},
    link::{self, LinkShared},
    recent::Recent,
    throttle::{PIECE_BYTES, Throttle, Way},
    uplink::{Turn, Uplink},
};
use crate::{
    api::{Compression, TransferConfig, TransferLimits},
    wire::{self, LeafSet, MAX_FRAME_BYTES, PACK_HEAD_BYTES, PackHead, PackKind, Packing, Request, code, feature},
};
use bytes::Bytes;
use shoal_content::{Cid, Leaf, Manifest};
use shoal_net::{
    Connection, Endpoint,
    quinn::{ConnectionError, RecvStream, SendStream},
};
use shoal_store::Store;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::{JoinError, JoinSet},
};

/// A request head must be here within this time after its stream was opened.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Leaves are read in groups of about this many bytes: one step of disk work, few wake-ups.
const GROUP_BYTES: usize = 512 << 10;
/// What is compressed is read in groups of about this many: twice as long would save 1 % more.
const PACKED_GROUP_BYTES: usize = 1 << 20;
/// So much of a pack is compressed to see whether it is worth it.
const SAMPLE_BYTES: usize = 8 << 10;
/// Buffers below this are copied together: QUIC handles few long ones faster than many short ones.
const SHORT_BYTES: usize = 32 << 10;
/// Names of nodes that are sent at once.
const NAMES_AT_ONCE: usize = 4096;
/// A permit of the byte budget stands for this many bytes.
const PERMIT_BYTES: usize = 1024;

/// Answers requests for all connections.
pub(super) struct Server {
    store: Store,
    served: watch::Receiver<Served>,
    budget: Arc<Semaphore>,
    budget_permits: u32,
    /// Places for connections with wide windows, in both directions.
    wide: Arc<Semaphore>,
    throttle: Arc<Throttle>,
    recent: Arc<Recent>,
    lane: Arc<Lane>,
    uplink: Uplink,
    limits: TransferLimits,
    compress: bool,
    inbox: mpsc::Sender<Input>,
}

/// A request that cannot be answered: the code its streams are reset with.
struct Refusal(u32);

impl Server {
    pub(super) fn new(
        endpoint: &Endpoint,
        store: &Store,
        served: watch::Receiver<Served>,
        (throttle, recent): (Arc<Throttle>, Arc<Recent>),
        config: &TransferConfig,
        inbox: mpsc::Sender<Input>,
    ) -> Self {
        let (limits, compress) = (config.limits.clone(), config.compression != Compression::Off);
        let permits = (limits.serve_bytes / PERMIT_BYTES).max(2 * GROUP_BYTES / PERMIT_BYTES);
        let wide = Arc::new(Semaphore::new(limits.wide_connections));
        let budget = Arc::new(Semaphore::new(permits));
        let (store, uplink, budget_permits) = (store.clone(), Uplink::new(endpoint.clone()), permits as u32);
        Server {
            store,
            served,
            budget,
            budget_permits,
            wide,
            throttle,
            recent,
            lane: Lane::new(),
            uplink,
            limits,
            compress,
            inbox,
        }
    }

    /// Lets more be in flight on a connection whose path is long.
    pub(super) fn widen(&self, connection: &Connection, shared: &LinkShared) {
        link::widen(connection, shared, &self.wide);
    }

    /// How long a request made now would wait, as far as that is known.
    pub(super) fn backlog(&self) -> Option<Duration> {
        self.uplink.backlog()
    }

    /// Lets answers begin when the uplink has room. Runs until it is dropped.
    pub(super) async fn take_turns(&self) {
        self.uplink.run().await;
    }

    /// Answers until the connection ends, and tells why. Dropping it stops all answers of the connection.
    pub(super) async fn answer_all(
        self: &Arc<Self>,
        connection: &Connection,
        shared: &Arc<LinkShared>,
    ) -> ConnectionError {
        let mut answers = JoinSet::new();
        let places = Arc::new(Semaphore::new(self.limits.answers_per_connection));
        loop {
            // ends of answers are looked at when something else is to be done
            while let Some(ended) = answers.try_join_next() {
                note_panic(ended);
            }
            if answers.len() >= self.limits.requests_per_connection
                && let Some(ended) = answers.join_next().await
            {
                note_panic(ended);
                continue;
            }
            let (send, recv) = match connection.quinn().accept_bi().await {
                Ok(stream) => stream,
                Err(error) => return error,
            };
            self.widen(connection, shared);
            let (server, shared, places) = (self.clone(), shared.clone(), places.clone());
            answers.spawn(async move { server.answer(send, recv, &shared, &places).await });
        }
    }

    async fn answer(&self, mut send: SendStream, mut recv: RecvStream, shared: &LinkShared, places: &Semaphore) {
        if let Err(Refusal(code)) = self.try_answer(&mut send, &mut recv, shared, places).await {
            // fails only where the requester has already stopped the stream
            let _stopped = send.reset(code.into());
        }
    }

    async fn try_answer(
        &self,
        send: &mut SendStream,
        recv: &mut RecvStream,
        shared: &LinkShared,
        places: &Semaphore,
    ) -> Result<(), Refusal> {
        let head = tokio::time::timeout(HEAD_TIMEOUT, recv.read_to_end(MAX_FRAME_BYTES)).await;
        let Ok(Ok(head)) = head else { return Err(Refusal(code::PROTOCOL)) };
        let request = Request::decode(&head).map_err(|_| Refusal(code::PROTOCOL))?;
        let place = places.acquire().await.map_err(|_| Refusal(code::FAILED))?;
        send.set_priority(shared.answers.next()).map_err(|_| Refusal(code::CANCELLED))?;
        match request {
            Request::Nodes { root, packing, skip } => {
                let manifest = self.manifest(&root)?;
                let nodes = manifest.nodes().get(skip as usize..).unwrap_or_default().to_vec();
                self.send_nodes(send, nodes, self.allowed(packing, shared), shared).await
            }
            Request::NodeList { root } => {
                let manifest = self.manifest(&root)?;
                for cids in manifest.nodes().chunks(NAMES_AT_ONCE) {
                    let keys: Vec<u8> = cids.iter().flat_map(Cid::key).collect();
                    self.write(send, vec![keys.into()], shared).await?;
                }
                Ok(())
            }
            Request::SomeNodes { root, packing, nodes } => {
                let manifest = self.manifest(&root)?;
                let all = manifest.nodes();
                let ranges = nodes.ranges();
                if ranges.last().is_some_and(|r| r.end as usize > all.len()) {
                    return Err(Refusal(code::PROTOCOL));
                }
                let nodes = ranges.into_iter().flatten().map(|i| all[i as usize]).collect();
                self.send_nodes(send, nodes, self.allowed(packing, shared), shared).await
            }
            Request::Leaves { root, packing, leaves } => {
                let manifest = self.manifest(&root)?;
                let packing = self.allowed(packing, shared);
                let (bytes, keys) = looks(&root, &manifest, &leaves)?;
                let turn = tokio::select! {
                    turn = self.uplink.turn(shared.peer, bytes, keys) => turn,
                    _ = send.stopped() => return Err(Refusal(code::CANCELLED)),
                };
                self.send_leaves(send, &manifest, &leaves, packing, shared, &turn).await?;
                send.finish().map_err(|_| Refusal(code::CANCELLED))?;
                drop(place);
                // until it has arrived, or nobody wants it any more, or its reader takes nothing
                let _over = tokio::time::timeout(self.limits.idle_answer, send.stopped()).await;
                return Ok(());
            }
        }?;
        send.finish().map_err(|_| Refusal(code::CANCELLED))
    }

    fn manifest(&self, root: &Cid) -> Result<Arc<Manifest>, Refusal> {
        self.served.borrow().get(root).cloned().ok_or(Refusal(code::UNKNOWN_ROOT))
    }

    /// What was asked for, as far as both sides do it.
    fn allowed(&self, asked: Packing, shared: &LinkShared) -> Packing {
        if self.compress && shared.can(feature::ZSTD) { asked } else { Packing::Off }
    }

    async fn send_nodes(
        &self,
        send: &mut SendStream,
        nodes: Vec<Cid>,
        packing: Packing,
        shared: &LinkShared,
    ) -> Result<(), Refusal> {
        let mut rest = nodes.into_iter().peekable();
        while rest.peek().is_some() {
            let permit = self.permit(GROUP_BYTES).await?;
            let store = self.store.clone();
            let level = shared.level(packing);
            let read = self.lane.begin(move || {
                let mut records = Vec::with_capacity(GROUP_BYTES);
                let mut items = 0;
                while records.len() < GROUP_BYTES && items < u16::MAX {
                    let Some(cid) = rest.peek() else { break };
                    let bytes = store.read(cid).map_err(|_| Refusal(code::FAILED))?;
                    if items > 0 && records.len() + bytes.len() > GROUP_BYTES {
                        break;
                    }
                    records.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                    records.extend_from_slice(&bytes);
                    items += 1;
                    rest.next();
                }
                Ok::<_, Refusal>((pack(items, vec![records.into()], level), rest, permit))
            });
            let (packed, permit);
            (packed, rest, permit) = read.wait().await.ok_or(Refusal(code::FAILED))??;
            shared.note(&packed);
            self.write(send, packed.out, shared).await?;
            drop(permit);
        }
        Ok(())
    }

    /// While one group is written, the next is read, unless it is in memory.
    async fn send_leaves(
        &self,
        send: &mut SendStream,
        manifest: &Arc<Manifest>,
        leaves: &LeafSet,
        packing: Packing,
        shared: &LinkShared,
        turn: &Turn<'_>,
    ) -> Result<(), Refusal> {
        let mut rest = leaves.ranges().into_iter().flatten().peekable();
        let mut ready = None;
        loop {
            let level = shared.level(packing);
            let most = if level.is_some() { PACKED_GROUP_BYTES } else { GROUP_BYTES };
            let mut group = vec![];
            let mut bytes = 0;
            while let Some(leaf) =
                rest.next_if(|leaf| bytes == 0 || bytes + manifest.leaves()[*leaf as usize].len as usize <= most)
            {
                bytes += manifest.leaves()[leaf as usize].len as usize;
                group.push(leaf);
            }
            let next = if group.is_empty() {
                None
            } else {
                if shared.choked.load(Ordering::Relaxed) {
                    return Err(Refusal(code::CHOKED));
                }
                // waiting for budget while holding some could deadlock: hand over what is ready first
                if self.budget.available_permits() < self.permits(bytes) as usize
                    && let Some((group, permit)) = ready.take()
                {
                    self.write(send, group, shared).await?;
                    drop(permit);
                }
                let permit = self.permit(bytes).await?;
                let cids = group.iter().map(|leaf| &manifest.leaves()[*leaf as usize].cid);
                let here = if level.is_none() { self.recent.get(cids) } else { None };
                Some(if let Some(leaves) = here {
                    // a request is for no more than 4,096 leaves
                    Next::Here(pack(group.len() as u16, leaves, None), permit)
                } else {
                    let (store, manifest) = (self.store.clone(), manifest.clone());
                    // what waits to be read keeps its room, whether or not somebody still waits for it
                    Next::Read(self.lane.begin(move || (read_group(&store, &manifest, &group, level), permit)))
                })
            };
            if let Some((group, permit)) = ready.take() {
                self.write(send, group, shared).await?;
                turn.is_sent();
                drop(permit);
            }
            let Some(next) = next else { return Ok(()) };
            let (packs, permit) = match next {
                Next::Here(packed, permit) => (vec![packed], permit),
                Next::Read(reading) => {
                    let (read, permit) = reading.wait().await.ok_or(Refusal(code::FAILED))?;
                    let Group { packs, missing, unread } = read;
                    let unread = unread.map(|leaves| Input::Unread(manifest.root(), leaves));
                    for news in missing.then_some(Input::Lost).into_iter().chain(unread) {
                        // a hub that is gone is shutting down
                        let _gone = self.inbox.send(news).await;
                    }
                    (packs, permit)
                }
            };
            packs.iter().for_each(|packed| shared.note(packed));
            ready = Some((packs.into_iter().flat_map(|packed| packed.out).collect(), permit));
        }
    }

    fn permits(&self, bytes: usize) -> u32 {
        (bytes.div_ceil(PERMIT_BYTES) as u32).clamp(1, self.budget_permits)
    }

    async fn permit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        self.budget.clone().acquire_many_owned(self.permits(bytes)).await.map_err(|_| Refusal(code::FAILED))
    }

    /// Hands buffers to QUIC without copying them. Gives up when the requester takes nothing for too long.
    async fn write(&self, send: &mut SendStream, mut group: Vec<Bytes>, shared: &LinkShared) -> Result<(), Refusal> {
        if self.throttle.limits(Way::Up) {
            return self.write_limited(send, group, shared).await;
        }
        let (began, all) = (Instant::now(), group.iter().map(Bytes::len).sum());
        let mut left = &mut group[..];
        while !left.is_empty() {
            let before: usize = left.iter().map(Bytes::len).sum();
            let written = tokio::time::timeout(self.limits.idle_answer, send.write_chunks(left)).await;
            let Ok(Ok(written)) = written else { return Err(Refusal(code::CANCELLED)) };
            left = &mut left[written.chunks..];
            let after: usize = left.iter().map(Bytes::len).sum();
            shared.bytes_out.fetch_add((before - after) as u64, Ordering::Relaxed);
        }
        shared.thrift().sent(all, began.elapsed());
        Ok(())
    }

    /// The same in small pieces, each after its turn.
    async fn write_limited(
        &self,
        send: &mut SendStream,
        group: Vec<Bytes>,
        shared: &LinkShared,
    ) -> Result<(), Refusal> {
        let (began, all) = (Instant::now(), group.iter().map(Bytes::len).sum());
        for mut bytes in group {
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
                let len = piece.len();
                self.throttle.pass(Way::Up, &shared.buckets, len).await;
                let written = tokio::time::timeout(self.limits.idle_answer, send.write_chunk(piece)).await;
                let Ok(Ok(())) = written else { return Err(Refusal(code::CANCELLED)) };
                shared.bytes_out.fetch_add(len as u64, Ordering::Relaxed);
            }
        }
        shared.thrift().sent(all, began.elapsed());
        Ok(())
    }
}

fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "an answer panicked");
    }
}

/// What the uplink is told of an answer: its bytes, and numbers that tell its leaves apart from those of other roots.
fn looks(root: &Cid, manifest: &Manifest, leaves: &LeafSet) -> Result<(u64, impl Iterator<Item = u64>), Refusal> {
    let ranges = leaves.ranges();
    let lens =
        ranges.iter().cloned().flatten().map(|leaf| manifest.leaves().get(leaf as usize).map(|l| u64::from(l.len)));
    let bytes = lens.sum::<Option<u64>>().ok_or(Refusal(code::PROTOCOL))?;
    // a digest's end is as good as random
    let tag = root.key().rchunks_exact(8).next().and_then(|c| c.try_into().ok()).map_or(0, u64::from_le_bytes);
    Ok((bytes, ranges.into_iter().flatten().map(move |leaf| tag.wrapping_add(leaf.into()))))
}

/// What is sent of some items, and what came of the attempt to make it smaller.
pub(super) struct Packed {
    out: Vec<Bytes>,
    pub(super) attempt: Attempt,
}

/// What came of an attempt to compress a pack.
pub(super) enum Attempt {
    /// There was none.
    None,
    /// So many bytes became fewer, in this time.
    GaveWay(usize, Duration),
    /// They did not, or not by enough.
    Resisted,
}

/// The leaves of an answer that go out next, with their room in the budget.
enum Next {
    /// They are in memory.
    Here(Packed, OwnedSemaphorePermit),
    /// They are being read.
    Read(Pending<(Group, OwnedSemaphorePermit)>),
}

/// What was read of some leaves.
struct Group {
    packs: Vec<Packed>,
    /// Some are not here.
    missing: bool,
    /// Some could not be read now.
    unread: Option<Vec<u32>>,
}

/// Reads and verifies leaves, and packs those that can be read. The others are answered as missing, and take none with
/// them.
fn read_group(store: &Store, manifest: &Manifest, group: &[u32], level: Option<i32>) -> Group {
    let leaves: Vec<Leaf> = group.iter().map(|leaf| manifest.leaves()[*leaf as usize]).collect();
    let mut out = Vec::new();
    let (mut items, mut bytes) = (0, Vec::new());
    let (mut at, mut missing, mut unread) = (0, false, None);
    for run in store.read_runs(&leaves) {
        let first = group[at];
        at += run.blocks;
        if let Some(some) = run.bytes {
            // a request is for no more than 4,096 leaves
            items += run.blocks as u16;
            bytes.push(some);
            continue;
        }
        if items > 0 {
            out.push(pack(items, std::mem::take(&mut bytes), level));
            items = 0;
        }
        let head = PackHead { kind: PackKind::Missing, items: 1, plain: 0, wire: 0 };
        out.push(Packed { out: vec![head.encode().to_vec().into()], attempt: Attempt::None });
        match run.refused {
            true => unread.get_or_insert_with(Vec::new).push(first),
            false => missing = true,
        }
    }
    if items > 0 {
        out.push(pack(items, bytes, level));
    }
    Group { packs: out, missing, unread }
}

/// Packs items, compressed if there is a level and it is worth it.
fn pack(items: u16, bytes: Vec<Bytes>, level: Option<i32>) -> Packed {
    let plain = bytes.iter().map(Bytes::len).sum::<usize>();
    let head = PackHead { kind: PackKind::Plain, items, plain: plain as u32, wire: plain as u32 };
    let mut attempt = Attempt::None;
    if let Some(level) = level {
        let began = Instant::now();
        let all = bytes.concat();
        let middle = all.len().saturating_sub(SAMPLE_BYTES) / 2;
        let sample = &all[middle..all.len().min(middle + SAMPLE_BYTES)];
        let frame = wire::compress(sample, 1).and_then(|_| wire::compress(&all, level));
        if let Some(frame) = frame {
            let head = PackHead { kind: PackKind::Zstd, wire: frame.len() as u32, ..head };
            let attempt = Attempt::GaveWay(plain, began.elapsed());
            return Packed { out: vec![head.encode().to_vec().into(), frame.into()], attempt };
        }
        attempt = Attempt::Resisted;
    }
    let mut out: Vec<Bytes> = Vec::with_capacity(2);
    let mut short = Vec::with_capacity(PACK_HEAD_BYTES);
    short.extend_from_slice(&head.encode());
    for bytes in bytes {
        if bytes.len() < SHORT_BYTES {
            short.extend_from_slice(&bytes);
        } else {
            if !short.is_empty() {
                out.push(std::mem::take(&mut short).into());
            }
            out.push(bytes);
        }
    }
    if !short.is_empty() {
        out.push(short.into());
    }
    Packed { out, attempt }
}
