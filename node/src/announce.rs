//! Telling the DHT what is served: one task that hands over roots, a few at a time. The DHT itself tries again, repeats,
//! and waits for peers; here is only the way in, so that nothing else waits for the network.

use std::collections::BTreeSet;

use shoal_content::Cid;
use shoal_dht::{Dht, DhtError};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Announcements at once: each is a query of some seconds to the peers nearest to the key.
const AT_ONCE: usize = 16;
/// Changes that wait; whoever announces more waits.
const QUEUED: usize = 64;

/// The way to the announcing task.
#[derive(Clone, Debug)]
pub(crate) struct Announcer {
    changes: mpsc::Sender<(Cid, bool)>,
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

    /// Announces a root from now on, or no longer.
    pub(crate) async fn set(&self, root: Cid, on: bool) {
        if self.changes.send((root, on)).await.is_err() {
            tracing::debug!(%root, "not announced: shutting down");
        }
    }
}

async fn announce(dht: Dht, mut changes: mpsc::Receiver<(Cid, bool)>) {
    let mut announced = BTreeSet::new();
    let mut running = JoinSet::<(Cid, Result<(), DhtError>)>::new();
    loop {
        tokio::select! {
            change = changes.recv(), if running.len() < AT_ONCE => match change {
                Some((root, true)) => {
                    if announced.insert(root) {
                        let dht = dht.clone();
                        running.spawn(async move { (root, dht.provide(root.multihash()).await) });
                    }
                }
                Some((root, false)) => {
                    announced.remove(&root);
                    if let Err(error) = dht.stop_providing(root.multihash()).await {
                        tracing::warn!(%root, %error, "not withdrawn");
                    }
                }
                None => return,
            },
            Some(outcome) = running.join_next() => match outcome {
                Ok((root, Ok(()))) => tracing::info!(%root, "announced"),
                Ok((root, Err(error))) => {
                    announced.remove(&root);
                    tracing::warn!(%root, %error, "not announced");
                }
                Err(error) => tracing::error!(%error, "an announcement was lost"),
            },
        }
    }
}
