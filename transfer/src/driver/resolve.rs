//! Gets a root's nodes: first from the store, then from peers, one after another, until the walk is through. What one
//! peer brought is kept when the next one goes on.

use super::Input;
use crate::{
    api::FetchError,
    wire::{Request, code},
};
use bytes::Bytes;
use shoal_content::{Cid, Manifest, Walk, WalkLimits};
use shoal_net::{
    Connection, PeerId,
    quinn::{self, ReadExactError, RecvStream},
};
use shoal_store::{Hold, ReadError, Store};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// A peer that is asked for nodes and sends nothing for so long loses its turn.
const STALL: Duration = Duration::from_secs(4);
/// Between two rounds through peers that did not deliver.
const PAUSE: Duration = Duration::from_millis(500);
/// Nodes are put into the store in groups of about this many bytes.
const GROUP_BYTES: usize = 512 << 10;
/// Peers that wait for their turn.
pub(super) const MAX_OFFERS: usize = 64;

/// A peer that says it knows the tree, or that was dialled because somebody said so.
pub(super) type Offer = (PeerId, Connection);

/// The tree of a root, its nodes in the store.
pub(super) struct Resolved {
    pub(super) manifest: Arc<Manifest>,
}

/// How a peer's turn ended.
enum Turn {
    /// Nothing more came, or nothing for too long.
    Over,
    /// It does not know the tree. Once it does it says so, which is a new offer.
    Unknown,
    /// It sent what it must not.
    Lied(String),
}

/// One root's resolution. `run` ends when the tree is known or the offers are closed.
pub(super) struct Resolver {
    pub(super) root: Cid,
    pub(super) fetch: u64,
    pub(super) store: Store,
    /// On every node that is found or put.
    pub(super) hold: Arc<Hold>,
    pub(super) offers: mpsc::Receiver<Offer>,
    pub(super) inbox: mpsc::Sender<Input>,
}

impl Resolver {
    /// Sends [`Input::Resolved`] at its end.
    pub(super) async fn run(mut self) {
        let result = self.resolve().await;
        let input = Input::Resolved(self.root, self.fetch, result);
        // a hub that is gone is shutting down
        let _gone = self.inbox.send(input).await;
    }

    async fn resolve(&mut self) -> Result<Resolved, FetchError> {
        let mut walk = Walk::new(self.root, WalkLimits::default());
        let mut known = 0;
        let mut peers: VecDeque<Offer> = VecDeque::new();
        loop {
            (walk, known) = self.walk_store(walk, known).await?;
            if walk.next_needed().is_none() {
                let manifest = walk.finish().map_err(|source| FetchError::BadContent { root: self.root, source })?;
                return Ok(Resolved { manifest: Arc::new(manifest) });
            }
            if peers.is_empty() {
                peers.push_back(self.offers.recv().await.ok_or(FetchError::Cancelled)?);
            }
            let Some((peer, connection)) = peers.pop_front() else { continue };
            if connection.quinn().close_reason().is_some() {
                continue;
            }
            let before = known;
            match self.walk_peer(&mut walk, &mut known, &connection).await? {
                Turn::Over => {}
                Turn::Unknown => continue,
                Turn::Lied(why) => {
                    let _gone = self.inbox.send(Input::Liar(self.root, self.fetch, peer, why)).await;
                    continue;
                }
            }
            if known == before && walk.next_needed().is_some() {
                // wait for someone new, but not for ever: this one may have what is missing by then
                match tokio::time::timeout(PAUSE, self.offers.recv()).await {
                    Ok(Some(offer)) => peers.push_back(offer),
                    Ok(None) => return Err(FetchError::Cancelled),
                    Err(_) => {}
                }
            }
            while peers.len() < MAX_OFFERS
                && let Ok(offer) = self.offers.try_recv()
            {
                peers.push_back(offer);
            }
            peers.push_back((peer, connection));
        }
    }

    /// Walks over the nodes that are here already.
    async fn walk_store(&self, mut walk: Walk, mut known: u32) -> Result<(Walk, u32), FetchError> {
        let (store, hold, root) = (self.store.clone(), self.hold.clone(), self.root);
        let walked = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![];
            while let Some(cid) = walk.next_needed() {
                hold.keep(&cid);
                match store.read_into(&cid, &mut buffer) {
                    Ok(()) => walk.insert(&cid, &buffer).map_err(|source| FetchError::BadContent { root, source })?,
                    Err(ReadError::Missing { .. } | ReadError::Damaged { .. }) => break,
                    Err(error) => return Err(error.into()),
                }
                known += 1;
            }
            Ok((walk, known))
        });
        walked.await.map_err(|_| FetchError::ShuttingDown)?
    }

    async fn walk_peer(&self, walk: &mut Walk, known: &mut u32, from: &Connection) -> Result<Turn, FetchError> {
        let Ok((mut send, mut recv)) = from.quinn().open_bi().await else { return Ok(Turn::Over) };
        let head = Request::Nodes { root: self.root, skip: *known }.encode();
        if send.write_all(&head).await.is_err() || send.finish().is_err() {
            return Ok(Turn::Over);
        }
        let mut group: Vec<(Cid, Bytes)> = vec![];
        let mut group_bytes = 0;
        let turn = loop {
            let bytes = match tokio::time::timeout(STALL, read_node(&mut recv)).await {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Err(turn)) => break turn,
                Ok(Ok(None)) | Err(_) => break Turn::Over,
            };
            let Some(cid) = walk.next_needed() else { break Turn::Lied("sent more nodes than there are".into()) };
            if let Err(source) = walk.insert(&cid, &bytes) {
                if source.is_sender_fault() {
                    break Turn::Lied("sent a wrong node".into());
                }
                return Err(FetchError::BadContent { root: self.root, source });
            }
            *known += 1;
            group_bytes += bytes.len();
            group.push((cid, bytes.into()));
            if group_bytes >= GROUP_BYTES {
                group_bytes = 0;
                self.put(std::mem::take(&mut group)).await?;
            }
        };
        self.put(group).await?;
        Ok(turn)
    }

    async fn put(&self, group: Vec<(Cid, Bytes)>) -> Result<(), FetchError> {
        let (store, hold) = (self.store.clone(), self.hold.clone());
        let put = tokio::task::spawn_blocking(move || {
            group.iter().try_for_each(|(cid, bytes)| {
                hold.keep(cid);
                store.put(cid, bytes)
            })
        });
        Ok(put.await.map_err(|_| FetchError::ShuttingDown)??)
    }
}

/// One node record; `Ok(None)` at the end of the stream, `Err` when the turn is over.
async fn read_node(recv: &mut RecvStream) -> Result<Option<Vec<u8>>, Turn> {
    let mut head = [0; 4];
    if recv.read(&mut head[..1]).await.map_err(broken)?.is_none() {
        return Ok(None);
    }
    recv.read_exact(&mut head[1..]).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(_) => Turn::Over,
        ReadExactError::ReadError(error) => broken(error),
    })?;
    let len = u32::from_be_bytes(head) as usize;
    if len > shoal_store::MAX_BLOCK_BYTES {
        return Err(Turn::Lied(format!("sent a node of {len} bytes")));
    }
    // grows with what arrives, not with what was claimed
    let mut bytes = vec![];
    while bytes.len() < len {
        let chunk = recv.read_chunk(len - bytes.len(), true).await.map_err(broken)?.ok_or(Turn::Over)?;
        bytes.extend_from_slice(&chunk.bytes);
    }
    Ok(Some(bytes))
}

fn broken(error: quinn::ReadError) -> Turn {
    match error {
        quinn::ReadError::Reset(reset) if reset == code::UNKNOWN_ROOT.into() => Turn::Unknown,
        _ => Turn::Over,
    }
}
