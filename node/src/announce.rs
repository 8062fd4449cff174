//! Telling the DHT what is served: one task that hands over roots, a few at a time. The DHT itself tries again, repeats,
//! and waits for peers; here is only the way in, so that nothing else waits for the network.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shoal_content::Cid;
use shoal_dht::{Dht, DhtError};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Announcements at once: each is a query of some seconds to the peers nearest to the key.
const AT_ONCE: usize = 16;
/// Changes that wait; whoever announces more waits.
const QUEUED: usize = 64;
/// What was just fetched is announced after so long, to twice as long. The peers of its swarm know of it; and each of a
/// crowd that has finished would connect with twenty others, while the last of it still fetch.
const SOON: Duration = Duration::from_secs(4);

/// What becomes of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is announced from now on.
    Announce,
    /// It is announced in a moment.
    AnnounceSoon,
    /// It is not announced any more.
    Withdraw,
}

/// The way to the announcing task.
#[derive(Clone, Debug)]
pub(crate) struct Announcer {
    changes: mpsc::Sender<(Cid, Change)>,
}

impl Announcer {
    /// Starts the task; it ends with `stop`.
    pub(crate) fn start(dht: Dht, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (changes, receiver) = mpsc::channel(QUEUED);
        tasks.spawn(async move {
            tokio::select! {
                () = announce(dht, receiver) => {}
                () = stop.cancelled() => {}
            }
        });
        Announcer { changes }
    }

    /// Says what becomes of a root.
    pub(crate) async fn set(&self, root: Cid, change: Change) {
        if self.changes.send((root, change)).await.is_err() {
            tracing::debug!(%root, "not announced: shutting down");
        }
    }
}

async fn announce(dht: Dht, mut changes: mpsc::Receiver<(Cid, Change)>) {
    let mut announced = BTreeSet::new();
    let mut soon = BTreeMap::<Cid, Instant>::new();
    let mut running = JoinSet::<(Cid, Result<(), DhtError>)>::new();
    loop {
        let room = running.len() < AT_ONCE;
        let next = soon.iter().min_by_key(|(_, at)| **at).map(|(root, at)| (*root, *at));
        let due = async {
            match next {
                Some((root, at)) => {
                    tokio::time::sleep_until(at).await;
                    root
                }
                None => std::future::pending().await,
            }
        };
        let root = tokio::select! {
            change = changes.recv(), if room => match change {
                Some((root, Change::Announce)) => root,
                Some((root, Change::AnnounceSoon)) => {
                    let after = SOON.mul_f64(1.0 + rand::random::<f64>());
                    soon.entry(root).or_insert(Instant::now() + after);
                    continue;
                }
                Some((root, Change::Withdraw)) => {
                    soon.remove(&root);
                    announced.remove(&root);
                    if let Err(error) = dht.stop_providing(root.multihash()).await {
                        tracing::warn!(%root, %error, "not withdrawn");
                    }
                    continue;
                }
                None => return,
            },
            root = due, if room => root,
            Some(outcome) = running.join_next() => {
                match outcome {
                    Ok((root, Ok(()))) => tracing::info!(%root, "announced"),
                    Ok((root, Err(error))) => {
                        announced.remove(&root);
                        tracing::warn!(%root, %error, "not announced");
                    }
                    Err(error) => tracing::error!(%error, "an announcement was lost"),
                }
                continue;
            }
        };
        soon.remove(&root);
        if announced.insert(root) {
            let dht = dht.clone();
            running.spawn(async move { (root, dht.provide(root.multihash()).await) });
        }
    }
}
