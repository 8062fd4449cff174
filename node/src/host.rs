//! Where a command runs: in the process that has the home open already, else in a node of its own, else (where no
//! network is needed) on the store alone. The command does not see the difference.

use std::time::{Duration, Instant};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Class, Client, Config, Event, Failure, Hello, Home, Id, Node, Operation, Request, Role,
    node::{self, BUSY_FOR, StartError},
    roots::{Nowhere, Roots},
};

/// Pause between two looks at a home that another process is opening or closing.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where requests run.
#[derive(Debug)]
pub enum Host {
    /// The process that has the home open.
    Other(Client),
    /// A node in this process.
    Node(Node),
    /// The store alone, in this process.
    Store(StoreHost),
}

/// An open store without a node.
#[derive(Debug)]
pub struct StoreHost {
    home: Home,
    peer: String,
    roots: Roots,
    threads: usize,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Host {
    /// Finds or opens what `request` needs. Waits for a process that is just opening or closing the home, up to ten
    /// seconds.
    ///
    /// # Errors
    /// [`Class::Home`] if the home stays locked by a process that does not answer, and as for [`Node::start`].
    pub async fn open(home: &Home, config: &Config, request: &Request) -> Result<Host, Failure> {
        let begun = Instant::now();
        loop {
            if let Some(client) = Client::connect(home).await? {
                return Ok(Host::Other(client));
            }
            let opened = match request {
                Request::Share { stay, .. } | Request::Fetch { stay, .. } => {
                    let role = if *stay { Role::Command } else { Role::Guest };
                    Node::try_start(home.clone(), config.clone(), role).await.map(Host::Node)
                }
                Request::Verify { repair: true, .. } | Request::Read { .. } => {
                    Node::try_start(home.clone(), config.clone(), Role::Guest).await.map(Host::Node)
                }
                Request::Peers => return Err(nobody(home, "there are no peers", "start one with `shoal daemon`")),
                Request::Limit(_) => {
                    let hint =
                        "start one with `shoal daemon`; limits to begin with are settings (`shoal config --help`)";
                    return Err(nobody(home, "there is nothing to limit", hint));
                }
                _ => StoreHost::open(home, config).await.map(Host::Store),
            };
            match opened {
                Err(StartError::Locked(_)) if begun.elapsed() < BUSY_FOR => tokio::time::sleep(LOOK_AGAIN).await,
                other => return Ok(other?),
            }
        }
    }

    /// The process that answers, if it is another one.
    pub fn other(&self) -> Option<&Hello> {
        match self {
            Host::Other(client) => Some(client.hello()),
            Host::Node(_) | Host::Store(_) => None,
        }
    }

    /// Starts the request. A node or store in this process is given back: it outlives the operation.
    ///
    /// # Errors
    /// [`Class::Home`] when the other process went.
    pub async fn run(self, request: Request) -> Result<(Operation, Option<Node>), Failure> {
        match self {
            Host::Other(client) => Ok((client.run(request).await?, None)),
            Host::Node(node) => Ok((node.run(request), Some(node))),
            Host::Store(store) => Ok((store.run(request), None)),
        }
    }
}

fn nobody(home: &Home, so: &str, hint: &str) -> Failure {
    Failure::new(Class::NotFound, format!("no shoal runs on {}, so {so}", home.dir().display()), hint)
}

impl StoreHost {
    async fn open(home: &Home, config: &Config) -> Result<StoreHost, StartError> {
        let settings = config.settings();
        let (keypair, store) = node::open(home, config).await?;
        Ok(StoreHost {
            home: home.clone(),
            peer: keypair.public().to_peer_id().to_string(),
            roots: Roots::new(store, std::sync::Arc::new(Nowhere)),
            threads: settings.import_threads,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    fn run(&self, request: Request) -> Operation {
        let (roots, threads, home) = (self.roots.clone(), self.threads, self.home.clone());
        let id = Id {
            peer: self.peer.clone(),
            addrs: Vec::new(),
            home: self.home.dir().display().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: None,
        };
        Operation::spawn(&self.tasks, &self.stop, move |sink| async move {
            match request {
                Request::List => roots.list(sink).await,
                Request::Stat { what } => roots.stat(sink, what).await,
                Request::Pin { what, for_seconds } => roots.pin(sink, what, true, for_seconds).await,
                Request::Unpin { what } => roots.pin(sink, what, false, None).await,
                Request::Collect => roots.collect_for(sink).await.map(drop),
                Request::Space => roots.space(sink, home.last_scrub()).await,
                Request::Verify { what, .. } => roots.verify(sink, what, threads).await,
                Request::Id => sink.event(Event::Id(id)).await,
                Request::Unshare { what, forget } => {
                    let record = roots.unshare(what, forget).await?;
                    let (root, name) = (crate::Root(record.root), record.name);
                    sink.event(Event::Unshared { root, name, forgotten: forget }).await
                }
                Request::Share { .. }
                | Request::Fetch { .. }
                | Request::Read { .. }
                | Request::Peers
                | Request::Limit(_) => Err(Failure::internal("a request that needs a network came to a store")),
            }
        })
    }
}
