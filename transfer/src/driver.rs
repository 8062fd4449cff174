//! The driver: tasks that run the cores over `net` and `store`. Thin where it can be: decisions live in `swarm`,
//! `choke` and `turns`, formats in `wire`.
//!
//! `hub` is one task that owns all state; everything else sends it [`Input`]s. `link` is a connection's three tasks,
//! `serve` answers requests, in turns by `uplink`, `batch` runs one, `resolve` gets a root's nodes, `fetch` is the life of
//! one fetch, `read` that of one reader, `stock` finds out which leaves are here, `recent` keeps the last that came,
//! `lane` has blocking threads do what hashes or touches the disk.

mod bans;
mod batch;
mod fetch;
mod hub;
mod lane;
mod link;
mod read;
mod recent;
mod resolve;
mod root;
mod serve;
mod stock;
mod thrift;
mod throttle;
mod uplink;

use crate::{
    api::{
        Counters, FetchError, FetchEvent, FetchRequest, PeerAddr, PeerReport, ReadRequest, SeedError, TransferConfig,
    },
    rate::{RateChange, Rates},
    swarm::{BatchId, PeerIx, ReaderIx},
    wire::Message,
};
use shoal_content::{Cid, Manifest};
use shoal_net::{Connection, Endpoint, Incoming, PeerId};
use shoal_store::Store;
use std::{collections::BTreeMap, sync::Arc};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// Inputs that may wait for the hub. Senders wait when it is full.
const INBOX: usize = 1024;
/// Events that may wait for the reader of a fetch. Progress is dropped when it is full, other events wait in the hub.
const FETCH_EVENTS: usize = 256;

/// A connection's number; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct LinkId(u64);

/// Roots whose leaves can be served, by CID. A snapshot that the hub publishes and answers read.
type Served = Arc<BTreeMap<Cid, Arc<Manifest>>>;

/// What the hub hears.
enum Input {
    Seed(Cid, oneshot::Sender<Result<(), SeedError>>),
    Seeding(Cid, Result<Arc<Manifest>, SeedError>, oneshot::Sender<Result<(), SeedError>>),
    Unseed(Cid, oneshot::Sender<()>),
    Fetch(Box<FetchRequest>, mpsc::Sender<FetchEvent>),
    Read(Box<ReadRequest>, read::Port),
    AddPeers(Cid, Vec<PeerAddr>),
    Peers(oneshot::Sender<Vec<PeerReport>>),
    Counters(oneshot::Sender<Counters>),
    Limit(RateChange, oneshot::Sender<Rates>),
    Connected(Connection),
    DialFailed(Cid, PeerId, String),
    Message(LinkId, Message),
    Closed(LinkId, String),
    Resolved(Cid, u64, Result<resolve::Resolved, FetchError>),
    /// A peer told lies while the nodes were fetched.
    Liar(Cid, u64, PeerId, String),
    Prepared(Cid, u64, Result<fetch::Prepared, FetchError>),
    Batch {
        root: Cid,
        fetch: u64,
        peer: PeerIx,
        batch: BatchId,
        event: batch::BatchEvent,
    },
    Committed(Cid, u64, Result<(), FetchError>),
    Finished(Cid, u64, Result<fetch::Landed, FetchError>),
    /// A request met blocks that are gone.
    Lost,
    /// A request met leaves that cannot be read now.
    Unread(Cid, Vec<u32>),
    /// What was looked for in the store.
    Looked(Vec<(Cid, stock::Found)>),
    ReadJoin(ReaderIx, Box<read::ReaderState>),
    Admitted(Cid, u64, ReaderIx, Result<read::Admitted, FetchError>),
    /// A reader took everything before this place in its order.
    ReadTook(Cid, ReaderIx, usize),
    ReadSeek(Cid, ReaderIx, usize),
    /// A leaf that was in place could not be read.
    ReadLost(Cid, ReaderIx, u32),
    ReadEnded(Cid, ReaderIx),
    Shutdown,
}

/// The data plane of one peer. Clones are handles to the same hub; [`shutdown`](Self::shutdown) ends it.
#[derive(Clone)]
pub struct Transfer {
    inbox: mpsc::Sender<Input>,
    tasks: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").finish_non_exhaustive()
    }
}

impl Transfer {
    /// Starts the hub. Nothing is served or fetched until it is asked to. Must be called inside a tokio runtime.
    pub fn start(endpoint: Endpoint, incoming: Incoming, store: Store, config: TransferConfig) -> Transfer {
        let (inbox, rx) = mpsc::channel(INBOX);
        let mut tasks = JoinSet::new();
        tasks.spawn(hub::Hub::new(endpoint, store, config, inbox.clone()).run(rx));
        tasks.spawn(accept(incoming, inbox.clone()));
        Transfer { inbox, tasks: Arc::new(tokio::sync::Mutex::new(tasks)) }
    }

    /// Serves `root`, whose nodes are in the store, from now on. Cancelling may leave it served.
    ///
    /// # Errors
    /// [`SeedError::Manifest`] when a node is missing.
    pub async fn seed(&self, root: Cid) -> Result<(), SeedError> {
        self.ask(|reply| Input::Seed(root, reply)).await.ok_or(SeedError::ShuttingDown)?
    }

    /// Stops serving `root`. Answers that are under way run to their end.
    pub async fn unseed(&self, root: Cid) {
        self.ask(|reply| Input::Unseed(root, reply)).await.unwrap_or(())
    }

    /// Begins a fetch. Its events come from [`Fetch::next`]; dropping the [`Fetch`] cancels it.
    ///
    /// # Errors
    /// [`FetchError::ShuttingDown`] only; everything else is an event.
    pub async fn fetch(&self, request: FetchRequest) -> Result<Fetch, FetchError> {
        let (tx, events) = mpsc::channel(FETCH_EVENTS);
        let input = Input::Fetch(Box::new(request), tx);
        self.inbox.send(input).await.map_err(|_| FetchError::ShuttingDown)?;
        Ok(Fetch { events })
    }

    /// Begins to read a file while it comes: joins the fetch of its root that runs, or begins one that asks for nothing but
    /// what readers are about to need. Dropping the [`Reading`] ends it. Fetches of the root that begin or end meanwhile
    /// change nothing for whoever reads.
    ///
    /// # Errors
    /// [`FetchError::ShuttingDown`] only; everything else is an event.
    pub async fn read(&self, request: ReadRequest) -> Result<Reading, FetchError> {
        let (reading, port) = read::start(&request);
        let input = Input::Read(Box::new(request), port);
        self.inbox.send(input).await.map_err(|_| FetchError::ShuttingDown)?;
        Ok(reading)
    }

    /// Tells of peers that may have `root`. They are dialled as far as limits allow; ignored for a root that is neither
    /// fetched nor served.
    pub async fn add_peers(&self, root: Cid, peers: Vec<PeerAddr>) {
        // a hub that is gone needs no peers
        let _gone = self.inbox.send(Input::AddPeers(root, peers)).await;
    }

    /// Who is connected.
    pub async fn peers(&self) -> Vec<PeerReport> {
        self.ask(Input::Peers).await.unwrap_or_default()
    }

    /// Sums since the start.
    pub async fn counters(&self) -> Counters {
        self.ask(Input::Counters).await.unwrap_or_default()
    }

    /// Limits rates from now on, also of what is under way, and tells what holds then. `None` when shutting down.
    pub async fn limit(&self, change: RateChange) -> Option<Rates> {
        self.ask(|reply| Input::Limit(change, reply)).await
    }

    /// Says goodbye to every peer, ends all fetches (what is in place is committed) and waits for every task.
    pub async fn shutdown(&self) {
        // a hub that is gone already needs no telling; its tasks are awaited all the same
        let _gone = self.inbox.send(Input::Shutdown).await;
        let mut tasks = self.tasks.lock().await;
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a task of the transfer panicked");
            }
        }
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let (tx, rx) = oneshot::channel();
        self.inbox.send(input(tx)).await.ok()?;
        rx.await.ok()
    }
}

pub use read::Reading;

/// A fetch that runs: a stream of events, the last of which is `Done` or `Failed`.
#[derive(Debug)]
pub struct Fetch {
    events: mpsc::Receiver<FetchEvent>,
}

impl Fetch {
    /// The next event; `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<FetchEvent> {
        self.events.recv().await
    }
}

/// Hands inbound connections to the hub until one of them closes.
async fn accept(mut incoming: Incoming, inbox: mpsc::Sender<Input>) {
    loop {
        tokio::select! {
            connection = incoming.next() => match connection {
                Some(c) => if inbox.send(Input::Connected(c)).await.is_err() { return },
                None => return,
            },
            () = inbox.closed() => return,
        }
    }
}
