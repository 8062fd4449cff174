//! Gets a root's nodes: first from the store, then from peers, one after another, until the walk is through. What one
//! peer brought is kept when the next one goes on. Where other content is here, a peer is asked for the names of all nodes
//! first, so that a next version moves only nodes that are new.

use super::{Input, link};
use crate::{
    api::{Compression, FetchError},
    wire::{self, LeafSet, PACK_HEAD_BYTES, PackHead, PackKind, Request, code},
};
use shoal_content::{Cid, Manifest, Walk, WalkError, WalkLimits};
use shoal_net::{
    Connection, PeerId,
    quinn::{self, ReadExactError, RecvStream},
};
use shoal_store::{Hold, ReadError, Store};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// A peer that is asked for nodes and sends nothing for so long loses its turn.
const STALL: Duration = Duration::from_secs(4);
/// A list of names is there within this time: a million nodes are 34 MB.
const LIST_TIME: Duration = Duration::from_secs(30);
/// Between two rounds through peers that did not deliver.
const PAUSE: Duration = Duration::from_millis(500);
/// Peers that wait for their turn.
pub(super) const MAX_OFFERS: usize = 64;

/// A peer that says it knows the tree, or that was dialled because somebody said so.
pub(super) type Offer = (PeerId, Connection);

/// The tree of a root, its nodes in the store.
pub(super) struct Resolved {
    pub(super) manifest: Arc<Manifest>,
    /// What came from peers, in bytes.
    pub(super) bytes_in: u64,
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
    pub(super) compression: Compression,
    /// What came from peers so far.
    pub(super) bytes_in: u64,
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
                return Ok(Resolved { manifest: Arc::new(manifest), bytes_in: self.bytes_in });
            }
            if peers.is_empty() {
                peers.push_back(self.offers.recv().await.ok_or(FetchError::Cancelled)?);
            }
            let Some((peer, connection)) = peers.pop_front() else { continue };
            if connection.quinn().close_reason().is_some() {
                continue;
            }
            let before = known;
            let turn;
            (walk, known, turn) = self.walk_peer(walk, known, &connection).await?;
            match turn {
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

    /// One turn of a peer: the walk goes as far as what it sends and what is here reach.
    async fn walk_peer(
        &mut self,
        mut walk: Walk,
        mut known: u32,
        from: &Connection,
    ) -> Result<(Walk, u32, Turn), FetchError> {
        let (mut recv, list) = match self.ask(known, from).await? {
            Asked::Answer(recv, list) => (recv, list),
            Asked::Nothing(turn) => return Ok((walk, known, turn)),
        };
        loop {
            let records = match tokio::time::timeout(STALL, self.read_pack(&mut recv)).await {
                Ok(Ok(Some(records))) => records,
                Ok(Err(turn)) => return Ok((walk, known, turn)),
                Ok(Ok(None)) | Err(_) => return Ok((walk, known, Turn::Over)),
            };
            let (store, hold) = (self.store.clone(), self.hold.clone());
            let (root, list) = (self.root, list.clone());
            let taken = tokio::task::spawn_blocking(move || {
                let lied = take(&mut walk, &mut known, &list, &records, &store, &hold);
                (walk, known, lied)
            });
            let taken = taken.await.map_err(|_| FetchError::ShuttingDown)?;
            (walk, known) = (taken.0, taken.1);
            match taken.2 {
                Ok(()) => {}
                Err(Fault::Own) => return Ok((walk, known, Turn::Over)),
                Err(Fault::Peer(why)) => return Ok((walk, known, Turn::Lied(why))),
                Err(Fault::Content(source)) => return Err(FetchError::BadContent { root, source }),
                Err(Fault::Store(error)) => return Err(error),
            }
        }
    }

    /// Asks a peer for the nodes that are missing, as far as that is known.
    async fn ask(&mut self, known: u32, from: &Connection) -> Result<Asked, FetchError> {
        let others = self.others_are_here().await?;
        let packing = self.compression.packing(others);
        if !others {
            let all = Request::Nodes { root: self.root, packing, skip: known };
            return Ok(Asked::by(request(from, &all).await, [].into()));
        }
        let Some(mut recv) = request(from, &Request::NodeList { root: self.root }).await else {
            return Ok(Asked::Nothing(Turn::Over));
        };
        let names = match tokio::time::timeout(LIST_TIME, read_list(&mut recv)).await {
            Ok(Ok(names)) => names,
            Ok(Err(turn)) => return Ok(Asked::Nothing(turn)),
            Err(_) => return Ok(Asked::Nothing(Turn::Over)),
        };
        self.bytes_in += (names.len() * Cid::KEY_LEN) as u64;
        let store = self.store.clone();
        let list = tokio::task::spawn_blocking(move || {
            let here = store.has_many(&names)?;
            Ok::<List, FetchError>(names.into_iter().zip(here).collect())
        });
        let list = list.await.map_err(|_| FetchError::ShuttingDown)??;
        let missing = (known..).zip(list.iter().skip(known as usize)).filter(|(_, (_, here))| !here);
        // What does not fit into one request is asked for in the next turn.
        let Some(nodes) = LeafSet::pack(missing.map(|(index, _)| index)).into_iter().next() else {
            return Ok(Asked::Nothing(Turn::Over));
        };
        let some = Request::SomeNodes { root: self.root, packing, nodes };
        Ok(Asked::by(request(from, &some).await, list))
    }

    /// Whether there is other content here that may have nodes in common with this.
    async fn others_are_here(&self) -> Result<bool, FetchError> {
        let (store, root) = (self.store.clone(), self.root);
        let roots = tokio::task::spawn_blocking(move || store.roots());
        let roots = roots.await.map_err(|_| FetchError::ShuttingDown)??;
        Ok(roots.iter().any(|record| record.root != root))
    }

    /// The records of one pack; `Ok(None)` at the end of the stream, `Err` when the turn is over.
    async fn read_pack(&mut self, recv: &mut RecvStream) -> Result<Option<Vec<u8>>, Turn> {
        let mut head = [0; PACK_HEAD_BYTES];
        if recv.read(&mut head[..1]).await.map_err(broken)?.is_none() {
            return Ok(None);
        }
        recv.read_exact(&mut head[1..]).await.map_err(|error| match error {
            ReadExactError::FinishedEarly(_) => Turn::Over,
            ReadExactError::ReadError(error) => broken(error),
        })?;
        let head = PackHead::decode(&head).map_err(|error| Turn::Lied(error.to_string()))?;
        // grows with what arrives, not with what was claimed
        let mut bytes = vec![];
        while bytes.len() < head.wire as usize {
            let rest = head.wire as usize - bytes.len();
            let chunk = recv.read_chunk(rest, true).await.map_err(broken)?.ok_or(Turn::Over)?;
            bytes.extend_from_slice(&chunk.bytes);
        }
        self.bytes_in += (PACK_HEAD_BYTES + bytes.len()) as u64;
        match head.kind {
            PackKind::Plain => Ok(Some(bytes)),
            PackKind::Missing => Err(Turn::Over),
            PackKind::Zstd if self.compression == Compression::Off => {
                Err(Turn::Lied("compressed what was to come plain".into()))
            }
            PackKind::Zstd => {
                let plain = tokio::task::spawn_blocking(move || wire::decompress(&head, &bytes));
                let plain = plain.await.map_err(|_| Turn::Over)?;
                plain.map(Some).map_err(|error| Turn::Lied(error.to_string()))
            }
        }
    }
}

/// What a peer says are the nodes of a root, in the order of the walk, and whether each is here. Empty: nobody was asked.
type List = Arc<[(Cid, bool)]>;

/// What came of asking.
enum Asked {
    Answer(RecvStream, List),
    Nothing(Turn),
}

impl Asked {
    fn by(answer: Option<RecvStream>, list: List) -> Self {
        answer.map_or(Self::Nothing(Turn::Over), |answer| Self::Answer(answer, list))
    }
}

/// Why nodes were not taken.
enum Fault {
    /// A node that was here is not any more: another turn asks for it.
    Own,
    Peer(String),
    Content(WalkError),
    Store(FetchError),
}

/// Goes on with the walk, over the nodes of `records` and those that are here. Blocking.
fn take(
    walk: &mut Walk,
    known: &mut u32,
    list: &[(Cid, bool)],
    mut records: &[u8],
    store: &Store,
    hold: &Hold,
) -> Result<(), Fault> {
    let mut buffer = vec![];
    while let Some(cid) = walk.next_needed() {
        let listed = list.get(*known as usize);
        if !list.is_empty() && listed.is_none_or(|(name, _)| *name != cid) {
            return Err(Fault::Peer("lists other nodes than there are".into()));
        }
        let own = listed.is_some_and(|(_, here)| *here);
        hold.keep(&cid);
        if own {
            match store.read_into(&cid, &mut buffer) {
                Ok(()) => {}
                Err(ReadError::Missing(_) | ReadError::Damaged { .. }) => return Err(Fault::Own),
                Err(error) => return Err(Fault::Store(error.into())),
            }
        }
        let bytes = if own {
            &buffer[..]
        } else if records.is_empty() {
            return Ok(());
        } else {
            let sent = records.split_first_chunk::<4>().and_then(|(len, rest)| {
                let (node, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
                records = rest;
                Some(node)
            });
            sent.ok_or_else(|| Fault::Peer("sent a node that ends inside".into()))?
        };
        match walk.insert(&cid, bytes) {
            Ok(()) => {}
            Err(source) if source.is_sender_fault() => return Err(Fault::Peer("sent a wrong node".into())),
            Err(source) => return Err(Fault::Content(source)),
        }
        *known += 1;
        if !own {
            store.put(&cid, bytes).map_err(|error| Fault::Store(error.into()))?;
        }
    }
    if records.is_empty() { Ok(()) } else { Err(Fault::Peer("sent more nodes than there are".into())) }
}

/// Opens a request; `None` where the connection does not take it.
async fn request(from: &Connection, request: &Request) -> Option<RecvStream> {
    let (mut send, recv) = from.quinn().open_bi().await.ok()?;
    send.set_priority(link::REQUESTS).ok()?;
    send.write_all(&request.encode()).await.ok()?;
    send.finish().ok()?;
    Some(recv)
}

/// The names of a root's nodes; `Err` when the turn is over.
async fn read_list(recv: &mut RecvStream) -> Result<Vec<Cid>, Turn> {
    let limit = WalkLimits::default().nodes;
    let (mut list, mut rest) = (vec![], vec![]);
    while let Some(chunk) = recv.read_chunk(64 << 10, true).await.map_err(broken)? {
        rest.extend_from_slice(&chunk.bytes);
        let whole = rest.len() - rest.len() % Cid::KEY_LEN;
        for key in rest[..whole].chunks_exact(Cid::KEY_LEN) {
            list.push(Cid::from_key(key).ok_or_else(|| Turn::Lied("lists names that are none".into()))?);
        }
        rest.drain(..whole);
        if list.len() > limit {
            return Err(Turn::Lied(format!("lists more than {limit} nodes")));
        }
    }
    if rest.is_empty() { Ok(list) } else { Err(Turn::Lied("lists a name that ends inside".into())) }
}

fn broken(error: quinn::ReadError) -> Turn {
    match error {
        quinn::ReadError::Reset(reset) if reset == code::UNKNOWN_ROOT.into() => Turn::Unknown,
        _ => Turn::Over,
    }
}
