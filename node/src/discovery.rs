//! Finding providers of one root in the DHT, again and again while a fetch needs more. Moves nothing itself.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use shoal_content::Cid;
use shoal_dht::{Dht, Provider};
use shoal_net::PeerId;
use shoal_transfer::PeerAddr;
use tokio::sync::mpsc;

/// With so many known providers more are asked for only now and then; not at all while so many peers of the swarm are
/// connected and bring something.
const ENOUGH: usize = 16;
/// Pause after the first query; it doubles up to [`LONGEST_PAUSE`] while providers are few.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two queries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// So long a peer that the link names may take to answer,
const ANSWER_PAUSE: Duration = Duration::from_secs(1);
/// and if one does, so long we wait for those that it tells of. A crowd that comes by one link would otherwise begin with
/// each of it connecting with twenty others to search for what all of them have at hand.
const INTRODUCED_PAUSE: Duration = Duration::from_secs(3);
/// Longest pause while nobody is known at all: peers of the local network show up within a second or two.
const PAUSE_ALONE: Duration = Duration::from_secs(1);
/// With nobody to ask for this long, the search is hopeless.
const ALONE_FOR: Duration = Duration::from_secs(10);

/// A search for providers that goes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Discovery {
    dht: Dht,
    key: Vec<u8>,
    us: PeerId,
    begun: Instant,
    /// Whom the link names.
    named: BTreeSet<PeerId>,
    phase: Phase,
    pause: Duration,
    found: BTreeSet<PeerId>,
    /// Peers that the fetch is connected with.
    met: usize,
    /// Bytes that are in place, now and when this was last looked at.
    done: u64,
    done_before: u64,
    first: Option<Duration>,
    hopeless_told: bool,
}

#[derive(Debug)]
enum Phase {
    /// Tells the DHT of peers that are known already, so that the network can be joined through them.
    Joining(Vec<(PeerId, SocketAddr)>),
    /// Waits for one of the named peers.
    Knocking(Instant),
    Ask,
    Asking(mpsc::Receiver<Provider>),
    Pausing(Instant),
}

/// What a search says.
#[derive(Debug)]
pub(crate) enum Found {
    /// A provider; the same one may come again, with other addresses.
    Provider(Provider),
    /// No peer of the DHT is known, and none has been for a while. Said once.
    Nobody,
}

impl Discovery {
    /// A search that begins with the first call of [`Discovery::next`]. `known` may be ways into the network.
    pub(crate) fn new(dht: Dht, root: &Cid, us: PeerId, known: Vec<PeerAddr>) -> Self {
        let known = known.into_iter().flat_map(|known| known.addrs.into_iter().map(move |addr| (known.peer, addr)));
        let known: Vec<_> = known.collect();
        Discovery {
            dht,
            key: root.multihash(),
            us,
            begun: Instant::now(),
            named: known.iter().map(|(peer, _)| *peer).collect(),
            phase: Phase::Joining(known),
            pause: FIRST_PAUSE,
            found: BTreeSet::new(),
            met: 0,
            done: 0,
            done_before: 0,
            first: None,
            hopeless_told: false,
        }
    }

    /// The next thing there is to say. Never ends. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Found {
        loop {
            match &mut self.phase {
                Phase::Joining(known) => match known.last() {
                    Some(&(peer, addr)) => {
                        if let Err(error) = self.dht.add_address(peer, addr).await {
                            tracing::debug!(%error, "the DHT was not told of a peer of the link");
                        }
                        known.pop();
                    }
                    None if self.named.is_empty() => self.phase = Phase::Ask,
                    None => self.phase = Phase::Knocking(after(ANSWER_PAUSE)),
                },
                Phase::Knocking(until) => {
                    tokio::time::sleep_until((*until).into()).await;
                    let peers = self.dht.peers().await.unwrap_or_default();
                    let answered = peers.iter().any(|info| self.named.contains(&info.peer));
                    if answered {
                        self.pause = INTRODUCED_PAUSE;
                        self.rest();
                    } else {
                        self.phase = Phase::Ask;
                    }
                }
                Phase::Ask => match self.dht.find_providers(self.key.clone()).await {
                    Ok(providers) => self.phase = Phase::Asking(providers),
                    Err(error) => {
                        tracing::debug!(%error, "not searching now");
                        self.rest();
                    }
                },
                Phase::Asking(providers) => match providers.recv().await {
                    Some(provider) if provider.peer == self.us => {}
                    Some(provider) => {
                        self.first.get_or_insert_with(|| self.begun.elapsed());
                        self.found.insert(provider.peer);
                        return Found::Provider(provider);
                    }
                    None => self.rest(),
                },
                Phase::Pausing(until) => {
                    tokio::time::sleep_until((*until).into()).await;
                    let goes_on = self.done > self.done_before;
                    self.done_before = self.done;
                    if self.met >= ENOUGH && goes_on {
                        self.pause = LONGEST_PAUSE;
                        self.rest();
                        continue;
                    }
                    let alone = self.found.is_empty() && self.dht.peers().await.is_ok_and(|peers| peers.is_empty());
                    self.pause = match (alone, self.found.len() < ENOUGH) {
                        (true, _) => PAUSE_ALONE,
                        (false, true) => (self.pause * 2).min(LONGEST_PAUSE),
                        (false, false) => LONGEST_PAUSE,
                    };
                    self.phase = Phase::Ask;
                    if alone && !self.hopeless_told && self.begun.elapsed() >= ALONE_FOR {
                        self.hopeless_told = true;
                        return Found::Nobody;
                    }
                }
            }
        }
    }

    /// The fetch is connected with so many peers now, however it came by them, and has so many bytes.
    pub(crate) fn goes_on(&mut self, peers: usize, done: u64) {
        self.met = peers;
        self.done = done;
    }

    /// Distinct providers found so far.
    pub(crate) fn found(&self) -> usize {
        self.found.len()
    }

    /// How long the first one took.
    pub(crate) fn first(&self) -> Option<Duration> {
        self.first
    }

    fn rest(&mut self) {
        self.phase = Phase::Pausing(after(self.pause));
    }
}

/// In so long, give or take a quarter: a crowd that began together is not to ask together.
fn after(pause: Duration) -> Instant {
    Instant::now() + pause.mul_f64(0.75 + rand::random::<f64>() / 2.0)
}
