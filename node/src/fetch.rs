//! Fetching: the transfer does it; here it gets its peers, from the link at once and from the DHT for as long as they are
//! few, and its events become those that people and programs read.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use shoal_content::{Cid, RelPath, ShoalLink};
use shoal_net::Multiaddr;
use shoal_store::{CheckoutError, StoreError};
use shoal_transfer::{FetchError, FetchEvent, FetchInto, FetchReport, FetchRequest, PeerAddr};

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::{
    Class, Done, Event, Failure, Node, Progress, Root, Share,
    announce::Change,
    blame::{self, Shortage},
    discovery::{Discovery, Found},
    node::BUSY_FOR,
    operation::Sink,
    rate::{Rate, per_second},
    roots::{Claim, Rank, Taken},
    share::now_unix,
};

/// Pause before another look at a destination that an earlier fetch is just leaving.
const TRY_AGAIN: Duration = Duration::from_millis(50);

impl Node {
    /// [`crate::Request::Fetch`].
    pub(crate) async fn fetch(&self, sink: Sink, wish: Wish) -> Result<(), Failure> {
        Ok(self.try_fetch(sink, wish).await?)
    }

    /// The same, and why it ended.
    pub(crate) async fn try_fetch(&self, sink: Sink, wish: Wish) -> Result<(), Stop> {
        let again = Wish { rank: Rank::Resumed, stay: false, ..wish.clone() };
        let Wish { link, paths, dir, symlinks, stay, into, ttl_seconds, rank } = wish;
        let link: ShoalLink = link.parse().map_err(|error| blame::link(&error))?;
        let paths = selected(&link, &paths)?;
        let via = peers_of(&link);
        let root = link.root;
        let request = FetchRequest {
            root,
            paths,
            dir,
            name: link.name.clone(),
            peers: via,
            symlinks,
            into,
            expires_unix: ttl_seconds.map(|seconds| now_unix().saturating_add(seconds)),
            give_up_after: Some(self.config().settings().give_up_after),
        };
        let claim = self.claim(&sink, root, rank).await?;
        let begun = Instant::now();
        let done = loop {
            match self.fetch_once(&sink, &link, request.clone(), rank).await {
                Ok(done) => break done,
                // An earlier fetch of it was cancelled and is still putting its things away.
                Err(Stop::Transfer(FetchError::Busy(_) | FetchError::Checkout(CheckoutError::Busy { .. })))
                    if begun.elapsed() < BUSY_FOR && !sink.is_cancelled() =>
                {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(Stop::Transfer(error)) => {
                    if let Some(shortage) =
                        blame::shortage(&error).filter(|_| rank == Rank::Command && self.is_daemon())
                    {
                        // Whoever asked hears of it now; the fetch goes on when there is what it lacked.
                        self.resume_fetch(again, Some(shortage));
                    }
                    return Err(error.into());
                }
                Err(stop) => return Err(stop),
            }
        };
        drop(claim);
        self.roots().set_serving(root, true);
        sink.event(Event::Done(done)).await?;
        if stay || self.is_daemon() {
            self.announce(root, Change::AnnounceSoon).await;
        }
        match stay {
            true => Ok(self.stay(&sink).await?),
            false => Ok(()),
        }
    }

    /// Takes the root. What the daemon resumed by itself makes way for a command.
    async fn claim(&self, sink: &Sink, root: Cid, rank: Rank) -> Result<Claim, Failure> {
        let begun = Instant::now();
        loop {
            match self.roots().claim(root, rank, sink.token()) {
                Ok(claim) => return Ok(claim),
                Err(Taken::ByCommand(failure)) => return Err(failure),
                Err(Taken::MakesWay(failure)) if begun.elapsed() > BUSY_FOR => return Err(failure),
                Err(Taken::MakesWay(_)) => tokio::time::sleep(TRY_AGAIN).await,
            }
        }
    }

    /// One fetch by the transfer, with peers from the DHT, to its end.
    async fn fetch_once(&self, sink: &Sink, link: &ShoalLink, request: FetchRequest, rank: Rank) -> Result<Done, Stop> {
        let (root, via) = (request.root, request.peers.clone());
        // One that a daemon goes on with is pinned or not as its owner left it.
        let pins = request.into == FetchInto::Dir && rank == Rank::Command;
        let again = Again::new(link, request.symlinks, pins);
        let alone = via.is_empty();
        let mut fetch = self.transfer().fetch(request).await?;
        let mut discovery = Discovery::new(self.dht().clone(), &root, self.endpoint().peer_id(), via);
        let mut state = State::new(root, again);
        sink.progress(Event::Searching { root: Root(root), providers: 0 });
        loop {
            tokio::select! {
                biased;
                () = sink.cancelled() => return Err(Failure::interrupted().into()),
                event = fetch.next() => match event {
                    Some(FetchEvent::Done(report)) => {
                        state.pinned().await;
                        self.pin_late(&state).await?;
                        return Ok(state.done(link, &report, &discovery));
                    }
                    Some(FetchEvent::Failed(error)) => return Err(error.into()),
                    Some(event) => {
                        if let FetchEvent::Progress { bytes_done, peers, .. } = &event {
                            discovery.goes_on(*peers, *bytes_done);
                        }
                        self.tell(sink, &mut state, event).await?;
                    }
                    None => return Err(Failure::internal("a fetch ended without a report").into()),
                },
                found = discovery.next() => match found {
                    Found::Provider(provider) => {
                        let addrs = provider.addrs;
                        self.transfer().add_peers(root, vec![PeerAddr { peer: provider.peer, addrs }]).await;
                        if discovery.found() > state.found {
                            state.found = discovery.found();
                            sink.progress(Event::Searching { root: Root(root), providers: state.found });
                        }
                    }
                    Found::Nobody if alone && state.rate.is_none() => return Err(nobody(root).into()),
                    Found::Nobody => {}
                },
            }
        }
    }

    /// Pins a root that had no record when its fetch began: it was forgotten, and its files were in place.
    async fn pin_late(&self, state: &State) -> Result<(), Stop> {
        if !state.again.pins {
            return Ok(());
        }
        let (store, root) = (self.roots().store.clone(), state.root);
        let pin = move || match store.root(&root)?.is_some_and(|record| !record.pinned) {
            true => store.set_pinned(&root, true),
            false => Ok(false),
        };
        let pinned = tokio::task::spawn_blocking(pin).await;
        let pinned = pinned.map_err(|error| Failure::internal(format!("work on the disk was lost: {error}")))?;
        pinned.map(drop).map_err(|error| FetchError::from(error).into())
    }

    /// Passes on what the transfer says.
    async fn tell(&self, sink: &Sink, state: &mut State, event: FetchEvent) -> Result<(), Failure> {
        let root = state.root;
        match event {
            FetchEvent::Manifest { bytes_total, files, .. } => {
                state.files = files;
                sink.event(Event::Manifest { root: Root(root), bytes: bytes_total, files }).await
            }
            FetchEvent::Started { bytes_total, bytes_resumed, bytes_local } => {
                state.rate = Some(Rate::new(Instant::now(), bytes_resumed + bytes_local));
                // What was fetched is kept. Its record is there from now on.
                let (store, resume, pin) = (self.roots().store.clone(), state.again.text(), state.again.pins);
                state.pinning = Some(tokio::task::spawn_blocking(move || {
                    store.update_root(&root, |record| {
                        record.pinned |= pin;
                        record.resume = resume.filter(|_| !record.complete);
                    })?;
                    Ok(store.root(&root)?.map_or(0, |record| record.files))
                }));
                sink.event(Event::Started { bytes_total, bytes_resumed, bytes_local }).await
            }
            FetchEvent::Progress { bytes_done, bytes_total, peers } => {
                let rate = state.rate.get_or_insert_with(|| Rate::new(Instant::now(), bytes_done));
                if rate.update(Instant::now(), bytes_done) {
                    sink.progress(Event::Progress(Progress {
                        bytes_done,
                        bytes_total,
                        peers,
                        bytes_per_second: rate.per_second(),
                        eta_seconds: rate.eta_seconds(bytes_total.saturating_sub(bytes_done)),
                    }));
                }
                Ok(())
            }
            FetchEvent::PeerDropped { peer, why } => {
                sink.event(Event::PeerDropped { peer: peer.to_string(), why }).await
            }
            other => {
                tracing::debug!(?other, "an event of the transfer that is not shown");
                Ok(())
            }
        }
    }
}

/// What to fetch and where to.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) link: String,
    pub(crate) paths: Vec<String>,
    pub(crate) dir: PathBuf,
    pub(crate) symlinks: bool,
    pub(crate) stay: bool,
    pub(crate) into: FetchInto,
    pub(crate) ttl_seconds: Option<u64>,
    pub(crate) rank: Rank,
}

/// What takes an unfinished fetch up again, as its record keeps it. Paths are in the record itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Again {
    /// The link, with the peers that it names.
    pub(crate) link: String,
    pub(crate) symlinks: bool,
    /// Whether its root is pinned.
    #[serde(skip)]
    pins: bool,
}

impl Again {
    fn new(link: &ShoalLink, symlinks: bool, pins: bool) -> Self {
        let link = ShoalLink { path: None, ..link.clone() }.to_string();
        Again { link, symlinks, pins }
    }

    fn text(&self) -> Option<String> {
        serde_json::to_string(self).inspect_err(|error| tracing::warn!(%error, "a fetch cannot be remembered")).ok()
    }
}

/// Why one try of a fetch ended without its content.
pub(crate) enum Stop {
    Transfer(FetchError),
    Failed(Failure),
}

impl From<FetchError> for Stop {
    fn from(error: FetchError) -> Self {
        Stop::Transfer(error)
    }
}

impl Stop {
    /// What was lacking and may be there again.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        match self {
            Stop::Transfer(error) => blame::shortage(error),
            Stop::Failed(_) => None,
        }
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Transfer(error) => blame::fetch(&error),
            Stop::Failed(failure) => failure,
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

/// What is known of a fetch under way.
struct State {
    root: Cid,
    files: u64,
    found: usize,
    rate: Option<Rate>,
    /// For the record: how to go on after a restart.
    again: Again,
    /// Pins the record, and says how many files it is about.
    pinning: Option<JoinHandle<Result<u64, StoreError>>>,
}

impl State {
    fn new(root: Cid, again: Again) -> Self {
        State { root, files: 0, found: 0, rate: None, again, pinning: None }
    }

    /// Waits for the pin, which began with the fetch.
    async fn pinned(&mut self) {
        match self.pinning.take() {
            Some(pinning) => match pinning.await {
                Ok(Ok(files)) => self.files = files,
                Ok(Err(error)) => tracing::warn!(%error, "what was fetched is not pinned"),
                Err(error) => tracing::error!(%error, "what was fetched is not pinned"),
            },
            None => tracing::debug!("a fetch that never began to ask is not pinned"),
        }
    }

    fn done(&self, link: &ShoalLink, report: &FetchReport, discovery: &Discovery) -> Done {
        let paths: Vec<String> = report.paths.iter().map(|path| path.display().to_string()).collect();
        Done {
            path: paths.first().cloned().unwrap_or_default(),
            paths,
            root: Root(self.root),
            name: link.name.clone().unwrap_or_else(|| self.root.to_string()),
            bytes: report.bytes,
            files: self.files,
            bytes_fetched: report.bytes_fetched,
            bytes_moved: report.bytes_moved,
            bytes_saved: report.bytes.saturating_sub(report.bytes_moved),
            bytes_resumed: report.bytes_resumed,
            bytes_local: report.bytes_local,
            bytes_duplicate: report.bytes_duplicate,
            seconds: report.elapsed.as_secs_f64(),
            first_byte_seconds: report.first_leaf.map(|first| first.as_secs_f64()),
            bytes_per_second: per_second(report.bytes_fetched, report.elapsed),
            providers_found: discovery.found(),
            first_provider_seconds: discovery.first().map(|first: Duration| first.as_secs_f64()),
            skipped: report.skipped.clone(),
            peers: report
                .peers
                .iter()
                .map(|share| Share {
                    peer: share.peer.to_string(),
                    bytes: share.bytes,
                    chunks: share.leaves,
                    dropped: share.dropped.clone(),
                })
                .collect(),
        }
    }
}

/// The paths inside the root: those given, below the one that the link names.
pub(crate) fn selected(link: &ShoalLink, paths: &[String]) -> Result<Vec<RelPath>, Failure> {
    let base = link.path.clone().unwrap_or_default();
    if paths.is_empty() {
        return Ok(link.path.iter().filter(|path| !path.is_root()).cloned().collect());
    }
    let read = |path: &String| {
        let whole = if base.is_root() { path.clone() } else { format!("{}/{path}", base.as_str()) };
        whole.trim_end_matches('/').parse::<RelPath>().map_err(|error| {
            let message = format!("\"{}\" cannot be a path in what is fetched: {error}", path.escape_debug());
            Failure::new(Class::Usage, message, "give paths relative to the root, as `shoal stat` lists them")
        })
    };
    paths.iter().map(read).collect()
}

/// The peers that a link names. What cannot be dialled is left out: the DHT may know better.
pub(crate) fn peers_of(link: &ShoalLink) -> Vec<PeerAddr> {
    let mut peers = BTreeMap::<_, PeerAddr>::new();
    for via in &link.via {
        let addr = via.parse::<Multiaddr>().ok().and_then(|addr| shoal_net::from_multiaddr(&addr));
        let Some((addr, Some(peer))) = addr else {
            tracing::debug!(via, "an address of the link cannot be used");
            continue;
        };
        let known = peers.entry(peer).or_insert_with(|| PeerAddr { peer, addrs: Vec::new() });
        known.addrs.push(addr);
    }
    peers.into_values().collect()
}

pub(crate) fn nobody(root: Cid) -> Failure {
    Failure::new(
        Class::NoProvider,
        format!("nobody to ask for {root}: no peer of the network is known, and none answers on the local network"),
        "use the whole link with its via= addresses, or name a peer with --bootstrap MULTIADDR",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    #[test]
    fn paths_are_taken_below_the_one_of_the_link() {
        let link: ShoalLink = format!("{CID}/a/b").parse().unwrap();
        let texts = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
            selected(&link, &paths).map(|paths| paths.iter().map(|path| path.as_str().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(texts(&[]).unwrap(), ["a/b"]);
        assert_eq!(texts(&["c", "d/e/"]).unwrap(), ["a/b/c", "a/b/d/e"]);
        assert_eq!(texts(&["../x"]).unwrap_err().class, Class::Usage);
        assert!(selected(&CID.parse().unwrap(), &[]).unwrap().is_empty());
    }

    #[test]
    fn addresses_of_one_peer_come_together_and_nonsense_is_left_out() {
        let (a, b) = (shoal_net::PeerId::random(), shoal_net::PeerId::random());
        let mut link = ShoalLink::new(CID.parse().unwrap());
        link.via = vec![
            format!("/ip4/10.0.0.1/udp/1/quic-v1/p2p/{a}"),
            "nonsense".to_owned(),
            "/ip4/10.0.0.1/udp/1/quic-v1".to_owned(),
            format!("/ip4/10.0.0.2/udp/2/quic-v1/p2p/{b}"),
            format!("/ip6/::1/udp/3/quic-v1/p2p/{a}"),
        ];
        let mut peers = peers_of(&link);
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.addrs.len()));
        assert_eq!(peers.iter().map(|peer| peer.addrs.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(peers[0].peer, a);
    }
}
