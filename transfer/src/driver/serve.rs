//! Answers request streams: nodes and leaves of the roots that are served, hashed when read, in bounded memory.
//! It knows neither peers nor swarms.

use super::{
    Served,
    link::{self, LinkShared},
    throttle::{PIECE_BYTES, Throttle, Way},
};
use crate::{
    api::TransferLimits,
    wire::{LeafHead, LeafSet, MAX_FRAME_BYTES, Request, code, encode_leaf_head},
};
use bytes::Bytes;
use shoal_content::{Cid, Manifest};
use shoal_net::{
    Connection,
    quinn::{RecvStream, SendStream},
};
use shoal_store::{ReadError, Store};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

/// A request head must be here within this time after its stream was opened.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Leaves are read in groups of about this many bytes: one step of disk work, few wake-ups.
const GROUP_BYTES: usize = 512 << 10;
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
    limits: TransferLimits,
}

/// A request that cannot be answered: the code its streams are reset with.
struct Refusal(u32);

impl Server {
    pub(super) fn new(
        store: Store,
        served: watch::Receiver<Served>,
        throttle: Arc<Throttle>,
        limits: TransferLimits,
    ) -> Self {
        let permits = (limits.serve_bytes / PERMIT_BYTES).max(2 * GROUP_BYTES / PERMIT_BYTES);
        let wide = Arc::new(Semaphore::new(limits.wide_connections));
        let budget = Arc::new(Semaphore::new(permits));
        Server { store, served, budget, budget_permits: permits as u32, wide, throttle, limits }
    }

    /// Lets more be in flight on a connection whose path is long.
    pub(super) fn widen(&self, connection: &Connection, shared: &LinkShared) {
        link::widen(connection, shared, &self.wide);
    }

    /// Answers until the connection ends. Dropping it stops all answers of the connection.
    pub(super) async fn answer_all(self: &Arc<Self>, connection: &Connection, shared: &Arc<LinkShared>) -> String {
        let mut answers = JoinSet::new();
        let turns = Arc::new(Semaphore::new(self.limits.answers_per_connection));
        loop {
            tokio::select! {
                stream = connection.quinn().accept_bi(), if answers.len() < self.limits.requests_per_connection => {
                    let (send, recv) = match stream {
                        Ok(stream) => stream,
                        Err(error) => return format!("connection lost: {error}"),
                    };
                    self.widen(connection, shared);
                    let (server, shared, turns) = (self.clone(), shared.clone(), turns.clone());
                    answers.spawn(async move { server.answer(send, recv, &shared, &turns).await });
                }
                Some(ended) = answers.join_next(), if !answers.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "an answer panicked");
                    }
                }
            }
        }
    }

    async fn answer(&self, mut send: SendStream, mut recv: RecvStream, shared: &LinkShared, turns: &Semaphore) {
        if let Err(Refusal(code)) = self.try_answer(&mut send, &mut recv, shared, turns).await {
            // fails only where the requester has already stopped the stream
            let _stopped = send.reset(code.into());
        }
    }

    async fn try_answer(
        &self,
        send: &mut SendStream,
        recv: &mut RecvStream,
        shared: &LinkShared,
        turns: &Semaphore,
    ) -> Result<(), Refusal> {
        let head = tokio::time::timeout(HEAD_TIMEOUT, recv.read_to_end(MAX_FRAME_BYTES)).await;
        let Ok(Ok(head)) = head else { return Err(Refusal(code::PROTOCOL)) };
        let request = Request::decode(&head).map_err(|_| Refusal(code::PROTOCOL))?;
        let _turn = turns.acquire().await.map_err(|_| Refusal(code::FAILED))?;
        match request {
            Request::Nodes { root, skip } => {
                let manifest = self.manifest(&root)?;
                let nodes = manifest.nodes().get(skip as usize..).unwrap_or_default().to_vec();
                self.send_nodes(send, nodes, shared).await
            }
            Request::Leaves { root, leaves } => {
                let manifest = self.manifest(&root)?;
                self.send_leaves(send, &manifest, &leaves, shared).await
            }
        }?;
        send.finish().map_err(|_| Refusal(code::CANCELLED))
    }

    fn manifest(&self, root: &Cid) -> Result<Arc<Manifest>, Refusal> {
        self.served.borrow().get(root).cloned().ok_or(Refusal(code::UNKNOWN_ROOT))
    }

    async fn send_nodes(&self, send: &mut SendStream, nodes: Vec<Cid>, shared: &LinkShared) -> Result<(), Refusal> {
        let mut rest = nodes.into_iter();
        loop {
            let permit = self.permit(GROUP_BYTES).await?;
            let store = self.store.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut group = Vec::with_capacity(GROUP_BYTES);
                // a node is at most 2 MiB, a group therefore at most GROUP_BYTES and one node more
                while group.len() < GROUP_BYTES {
                    let Some(cid) = rest.next() else { break };
                    let bytes = store.read(&cid).map_err(|_| Refusal(code::FAILED))?;
                    group.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                    group.extend_from_slice(&bytes);
                }
                Ok::<_, Refusal>((group, rest))
            });
            let group;
            (group, rest) = read.await.map_err(|_| Refusal(code::FAILED))??;
            if group.is_empty() {
                return Ok(());
            }
            self.write(send, vec![group.into()], shared).await?;
            drop(permit);
        }
    }

    /// While one group is written, the next is read.
    async fn send_leaves(
        &self,
        send: &mut SendStream,
        manifest: &Arc<Manifest>,
        leaves: &LeafSet,
        shared: &LinkShared,
    ) -> Result<(), Refusal> {
        let ranges = leaves.ranges();
        let known = manifest.leaves().len() as u32;
        if ranges.last().is_some_and(|r| r.end > known) {
            return Err(Refusal(code::PROTOCOL));
        }
        let mut rest = ranges.into_iter().flatten().peekable();
        let mut ready = None;
        loop {
            let mut group = vec![];
            let mut bytes = 0;
            while let Some(leaf) = rest.next_if(|_| bytes < GROUP_BYTES) {
                let leaf = manifest.leaves()[leaf as usize];
                bytes += leaf.len as usize;
                group.push(leaf.cid);
            }
            let reading = if group.is_empty() {
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
                let store = self.store.clone();
                Some((tokio::task::spawn_blocking(move || read_group(&store, &group)), permit))
            };
            if let Some((group, permit)) = ready.take() {
                self.write(send, group, shared).await?;
                drop(permit);
            }
            let Some((reading, permit)) = reading else { return Ok(()) };
            let group = reading.await.map_err(|_| Refusal(code::FAILED))??;
            ready = Some((group, permit));
        }
    }

    fn permits(&self, bytes: usize) -> u32 {
        (bytes.div_ceil(PERMIT_BYTES) as u32).clamp(1, self.budget_permits)
    }

    async fn permit(&self, bytes: usize) -> Result<tokio::sync::OwnedSemaphorePermit, Refusal> {
        self.budget.clone().acquire_many_owned(self.permits(bytes)).await.map_err(|_| Refusal(code::FAILED))
    }

    /// Hands buffers to QUIC without copying them. Gives up when the requester takes nothing for too long.
    async fn write(&self, send: &mut SendStream, mut group: Vec<Bytes>, shared: &LinkShared) -> Result<(), Refusal> {
        if self.throttle.limits(Way::Up) {
            return self.write_limited(send, group, shared).await;
        }
        let mut left = &mut group[..];
        while !left.is_empty() {
            let before: usize = left.iter().map(Bytes::len).sum();
            let written = tokio::time::timeout(self.limits.idle_answer, send.write_chunks(left)).await;
            let Ok(Ok(written)) = written else { return Err(Refusal(code::CANCELLED)) };
            left = &mut left[written.chunks..];
            let after: usize = left.iter().map(Bytes::len).sum();
            shared.bytes_out.fetch_add((before - after) as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The same in small pieces, each after its turn.
    async fn write_limited(
        &self,
        send: &mut SendStream,
        group: Vec<Bytes>,
        shared: &LinkShared,
    ) -> Result<(), Refusal> {
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
        Ok(())
    }
}

/// Reads and verifies leaves: head and bytes for each, in order.
fn read_group(store: &Store, group: &[Cid]) -> Result<Vec<Bytes>, Refusal> {
    let mut out = Vec::with_capacity(group.len() * 2);
    for cid in group {
        match store.read(cid) {
            Ok(bytes) => {
                out.push(Bytes::copy_from_slice(&encode_leaf_head(LeafHead::Data(bytes.len() as u32))));
                out.push(bytes);
            }
            Err(ReadError::Missing { .. } | ReadError::Damaged { .. }) => {
                out.push(Bytes::copy_from_slice(&encode_leaf_head(LeafHead::DontHave)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read a block that is to be served");
                return Err(Refusal(code::FAILED));
            }
        }
    }
    Ok(out)
}
