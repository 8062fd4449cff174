//! Reading a file while it comes: its bytes in order, as an operation's events. The transfer does it; here it gets its
//! peers, and only when something is not here.

use std::time::Duration;

use bytes::Bytes;
use shoal_content::{Cid, RelPath, ShoalLink};
use shoal_transfer::{FetchError, PeerAddr, ReadEvent, ReadReport, ReadRequest};

use crate::{
    Class, Event, Failure, Node, Read, Root,
    announce::Change,
    blame,
    discovery::{Discovery, Found},
    fetch::{nobody, peers_of, selected},
    operation::Sink,
    roots::blocking,
};

/// Bytes of one event: what waits for a slow reader is so much for each event that waits.
const PIECE_BYTES: usize = 128 << 10;
/// Content that seemed to be here is looked for elsewhere when nothing comes for so long.
const PATIENCE: Duration = Duration::from_millis(500);

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct ReadWish {
    pub(crate) what: String,
    pub(crate) path: Option<String>,
    pub(crate) offset: u64,
    pub(crate) length: Option<u64>,
}

impl Node {
    /// [`crate::Request::Read`].
    pub(crate) async fn read(&self, sink: Sink, wish: ReadWish) -> Result<(), Failure> {
        let ReadWish { what, path, offset, length } = wish;
        let link = self.link_to(what).await?;
        let path = selected(&link, path.as_slice())?.pop().unwrap_or_default();
        let (root, via) = (link.root, peers_of(&link));
        let request = ReadRequest {
            root,
            path: path.clone(),
            offset,
            length,
            name: link.name.clone(),
            peers: via.clone(),
            keep: true,
            give_up_after: Some(self.config().settings().give_up_after),
        };
        let mut reading = self.transfer().read(request).await.map_err(|error| blame::fetch(&error))?;
        let mut search = Search { node: self.clone(), root, via, discovery: None };
        let mut opened = false;
        loop {
            tokio::select! {
                biased;
                () = sink.cancelled() => return Err(stopped()),
                event = reading.next() => match event {
                    Some(ReadEvent::Absent) => {
                        search.begin().await;
                        sink.progress(Event::Searching { root: Root(root), providers: 0 });
                    }
                    Some(ReadEvent::Opened { size, bytes, missing, kept }) => {
                        opened = true;
                        if missing > 0 {
                            search.begin().await;
                        }
                        let path = path.as_str().to_owned();
                        sink.event(Event::Opened { root: Root(root), path, size, bytes, missing, kept }).await?;
                    }
                    Some(ReadEvent::Bytes(bytes)) => send(&sink, bytes).await?,
                    Some(ReadEvent::PeerDropped { peer, why }) => {
                        sink.event(Event::PeerDropped { peer: peer.to_string(), why }).await?;
                    }
                    Some(ReadEvent::End(report)) => {
                        self.serve_read(root).await;
                        return sink.event(Event::Read(done(root, &report))).await;
                    }
                    Some(ReadEvent::Failed(error)) => return Err(failure(&error, &path)),
                    Some(other) => tracing::debug!(?other, "an event of the transfer that is not shown"),
                    None => return Err(Failure::internal("a reading ended without a report")),
                },
                found = search.next() => match found {
                    Some(Found::Provider(provider)) => {
                        let peers = vec![PeerAddr { peer: provider.peer, addrs: provider.addrs }];
                        self.transfer().add_peers(root, peers).await;
                    }
                    Some(Found::Nobody) if search.via.is_empty() && !opened => return Err(nobody(root)),
                    Some(Found::Nobody) => {}
                    None => search.begin().await,
                },
            }
        }
    }

    /// The link that people mean: a link or CID, or what `shoal ls` calls it.
    async fn link_to(&self, what: String) -> Result<ShoalLink, Failure> {
        let error = match what.parse::<ShoalLink>() {
            Ok(link) => return Ok(link),
            Err(error) if what.contains(':') => return Err(blame::link(&error)),
            Err(error) => error,
        };
        let roots = self.roots().clone();
        let found = blocking(move || roots.find(&what)).await;
        let record = found.map_err(|failure| match failure.class {
            Class::NotFound => failure.or_hint(error.to_string()),
            _ => failure,
        })?;
        Ok(ShoalLink { name: Some(record.name), ..ShoalLink::new(record.root) })
    }

    /// A root that was read until all of it was here is served like one that was fetched.
    async fn serve_read(&self, root: Cid) {
        let store = self.roots().store.clone();
        let complete = blocking(move || {
            Ok(store.root(&root).map_err(|error| blame::store(&error))?.is_some_and(|record| record.complete))
        });
        if complete.await.unwrap_or(false) && self.roots().set_serving(root, true) && self.is_daemon() {
            self.announce(root, Change::Announce).await;
        }
    }
}

/// Looking for peers, once there is a reason to.
struct Search {
    node: Node,
    root: Cid,
    /// The peers that the link names.
    via: Vec<PeerAddr>,
    discovery: Option<Discovery>,
}

impl Search {
    async fn begin(&mut self) {
        if self.discovery.is_none() {
            let (node, via) = (&self.node, self.via.clone());
            node.transfer().add_peers(self.root, via.clone()).await;
            self.discovery = Some(Discovery::new(node.dht().clone(), &self.root, node.endpoint().peer_id(), via));
        }
    }

    /// What was found; `None` if nobody is looked for and nothing has come for a while. Cancel-safe.
    async fn next(&mut self) -> Option<Found> {
        match &mut self.discovery {
            Some(discovery) => Some(discovery.next().await),
            None => {
                tokio::time::sleep(PATIENCE).await;
                None
            }
        }
    }
}

/// Hands bytes on in pieces, as fast as they are taken.
async fn send(sink: &Sink, mut bytes: Bytes) -> Result<(), Failure> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        sink.event(Event::Bytes(piece)).await.map_err(|_| stopped())?;
    }
    Ok(())
}

fn done(root: Cid, report: &ReadReport) -> Read {
    Read {
        root: Root(root),
        bytes: report.bytes,
        bytes_moved: report.bytes_moved,
        seconds: report.elapsed.as_secs_f64(),
        first_byte_seconds: report.first_byte.map(|first| first.as_secs_f64()),
        kept: report.kept,
    }
}

fn stopped() -> Failure {
    Failure::new(Class::Interrupted, "interrupted", "what came so far is kept as far as the quota allows")
}

fn failure(error: &FetchError, path: &RelPath) -> Failure {
    match error {
        FetchError::NotAFile { .. } => {
            let example = if path.is_root() { "PATH" } else { "ITS/PATH" };
            let hint = format!("name a file in it, as in `shoal cat LINK {example}`; `shoal fetch` takes directories");
            Failure::from_error(Class::Usage, error).or_hint(hint)
        }
        FetchError::BeyondEnd { .. } => Failure::from_error(Class::Usage, error).or_hint("give a smaller --offset"),
        other => blame::fetch(other),
    }
}
