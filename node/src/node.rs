//! The node: store, network, DHT and transfer of one home, joined and owned. Starting, serving, shutting down in order.
//! What it does on request is in `share`, `fetch`, `read`, `peers`, `roots` and `verify`;
//! what it does by itself, in `background` and `announce`.

use std::{sync::Arc, time::Duration};

use shoal_content::Cid;
use shoal_dht::{Dht, DhtConfig};
use shoal_net::{Endpoint, Keypair};
use shoal_store::{OpenError, Options, Store};
use shoal_transfer::{Counters, FetchInto, Transfer, TransferConfig};
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    CONTROL_VERSION, Config, Failure, Hello, Home, Id, Listening, Operation, Request, Warnings,
    announce::{Announcer, Change},
    background, blame,
    control::{Run, Server},
    fetch::Wish,
    operation::Sink,
    port,
    read::ReadWish,
    roots::{Rank, Roots, Via, blocking},
};

/// Addresses in a link: enough for a machine with several networks, few enough to paste.
const MAX_LINK_ADDRS: usize = 8;
/// How long a command waits for another process on the same home to start or to stop.
pub(crate) const BUSY_FOR: Duration = Duration::from_secs(10);

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs until it is told to stop.
    Daemon,
    /// Runs for one command that stays, and for the commands that others hand to it meanwhile.
    Command,
    /// Runs for a command that ends soon. It uses the DHT without being part of it: others would go on asking a peer that
    /// has left, and wait for each time-out.
    Guest,
}

/// Why a node does not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// Another process has the home open.
    Locked(Failure),
    /// Anything else.
    Failed(Failure),
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        StartError::Failed(failure)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Locked(failure) | StartError::Failed(failure) => failure,
        }
    }
}

/// A running node. Clones are handles on the same one. It runs until [`Node::shutdown`], or until its runtime ends:
/// work in the background holds handles of its own, so dropping one stops nothing.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    home: Home,
    config: Config,
    roots: Roots,
    endpoint: Endpoint,
    dht: Dht,
    transfer: Transfer,
    announcer: Announcer,
    warnings: broadcast::Sender<String>,
    tasks: TaskTracker,
    stop: CancellationToken,
    control: Option<Server>,
    role: Role,
}

impl Node {
    /// Opens the home and joins the network: identity, store, port, DHT, transfer, control socket. Takes some tens of
    /// milliseconds; nothing waits for the network.
    ///
    /// # Errors
    /// [`Class::Home`] (locked, newer format, broken key), [`Class::Network`] (port in use), [`Class::Disk`].
    ///
    /// [`Class::Home`]: crate::Class::Home
    /// [`Class::Network`]: crate::Class::Network
    /// [`Class::Disk`]: crate::Class::Disk
    pub async fn start(home: Home, config: Config, role: Role) -> Result<Node, Failure> {
        Ok(Self::try_start(home, config, role).await?)
    }

    pub(crate) async fn try_start(home: Home, config: Config, role: Role) -> Result<Node, StartError> {
        let settings = config.settings().clone();
        let (keypair, store) = open(&home, &config).await?;
        tracing::debug!("the store is open");
        let (endpoint, transport, incoming, listen) = port::bind(&home, &keypair, &config)?;
        let dht_config = DhtConfig {
            kad_protocol: settings.kad_protocol.clone(),
            bootstrap: settings.bootstrap.clone(),
            mdns: settings.mdns,
            relay_server: settings.relay_server && role != Role::Guest,
            server_mode: role != Role::Guest,
            ..DhtConfig::default()
        };
        let dht = Dht::start(keypair, transport, listen, dht_config)
            .map_err(|error| Failure::from_error(crate::Class::Network, &error))?;
        let transfer_config = TransferConfig {
            agent: agent(),
            rates: settings.rates(),
            compression: settings.compression,
            uplink: settings.uplink,
            ..TransferConfig::default()
        };
        let transfer = Transfer::start(endpoint.clone(), incoming, store.clone(), transfer_config);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let announcer = Announcer::start(dht.clone(), &tasks, stop.clone());
        let warnings = broadcast::Sender::new(background::QUEUED_WARNINGS);
        tasks.spawn(background::watch_damage(store.clone(), warnings.clone(), stop.clone()));
        let roots = Roots::new(store, Arc::new(Addresses(endpoint.clone())));
        let hello = Hello {
            control: CONTROL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer: endpoint.peer_id().to_string(),
            pid: std::process::id(),
            daemon: role == Role::Daemon,
        };
        tracing::debug!("store, port, DHT and transfer are up");
        let node = Node {
            inner: Arc::new_cyclic(|weak| {
                let control = match Server::start(&home, hello, Runner(weak.clone())) {
                    Ok(server) => Some(server),
                    Err(error) => {
                        // Everything works but handing over, so other commands will say that the home is in use.
                        tracing::warn!(%error, "no control socket");
                        None
                    }
                };
                Inner { home, config, roots, endpoint, dht, transfer, announcer, warnings, tasks, stop, control, role }
            }),
        };
        node.in_background(background::collect_now_and_then(node.clone()));
        if role == Role::Daemon {
            node.in_background(background::scrub_now_and_then(node.clone()));
        }
        Ok(node)
    }

    /// Starts an operation.
    pub fn run(&self, request: Request) -> Operation {
        let inner = &self.inner;
        let (node, roots) = (self.clone(), inner.roots.clone());
        let threads = inner.config.settings().import_threads;
        self.operation(move |sink| async move {
            if !request.promises()
                && let Some(message) = background::read_only(&roots.store)
            {
                sink.event(crate::Event::Warning { message }).await?;
            }
            match request {
                Request::Share { paths, stay, ttl_seconds, read_all } => {
                    node.share(sink, paths, stay, ttl_seconds, read_all).await
                }
                Request::Unshare { what, forget } => node.unshare(sink, what, forget).await,
                Request::Fetch { link, paths, dir, symlinks, stay, cached, ttl_seconds } => {
                    let (dir, rank) = (dir.0, Rank::Command);
                    let into = if cached { FetchInto::Cache } else { FetchInto::Dir };
                    node.fetch(sink, Wish { link, paths, dir, symlinks, stay, into, ttl_seconds, rank }).await
                }
                Request::Read { what, path, offset, length } => {
                    node.read(sink, ReadWish { what, path, offset, length }).await
                }
                Request::List => roots.list(sink).await,
                Request::Stat { what } => roots.stat(sink, what).await,
                Request::Peers => node.peers(sink).await,
                Request::Limit(change) => node.limit(sink, change).await,
                Request::Pin { what, for_seconds } => roots.pin(sink, what, true, for_seconds).await,
                Request::Unpin { what } => roots.pin(sink, what, false, None).await,
                Request::Collect => {
                    let gone = roots.collect_for(sink).await?;
                    node.stop_serving(gone).await;
                    Ok(())
                }
                Request::Space => roots.space(sink, node.home().last_scrub()).await,
                Request::Verify { what, repair: false } => roots.verify(sink, what, threads).await,
                Request::Verify { what, repair: true } => node.repair(sink, what, threads).await,
                Request::Id => sink.event(crate::Event::Id(node.id())).await,
            }
        })
    }

    /// Who this is and how it is reached.
    pub fn listening(&self) -> Listening {
        Listening {
            peer: self.inner.endpoint.peer_id().to_string(),
            addrs: self.inner.roots.addrs(),
            roots: self.inner.roots.serving().len() as u64,
            home: self.inner.home.dir().display().to_string(),
            pid: std::process::id(),
        }
    }

    /// What goes wrong while it serves, as sentences for people.
    pub fn warnings(&self) -> Warnings {
        Warnings::new(self.inner.warnings.subscribe())
    }

    /// Takes no more commands from others and waits until those under way are done. Cancel-safe.
    pub async fn linger(&self) {
        if let Some(control) = &self.inner.control {
            control.finish().await;
        }
    }

    /// Stops in order: operations, commands of others, transfer, DHT, port, store. What was promised is durable. Later
    /// calls do nothing.
    ///
    /// # Errors
    /// [`Class::Disk`](crate::Class::Disk) when the store cannot commit; what was promised before stays promised.
    pub async fn shutdown(&self) -> Result<(), Failure> {
        let inner = &self.inner;
        inner.stop.cancel();
        self.linger().await;
        inner.tasks.close();
        inner.tasks.wait().await;
        tracing::debug!("operations have ended");
        inner.transfer.shutdown().await;
        tracing::debug!("transfer has ended");
        inner.dht.shutdown().await;
        tracing::debug!("DHT has ended");
        inner.endpoint.shutdown().await;
        tracing::debug!("the port is closed");
        let store = inner.roots.store.clone();
        blocking(move || store.commit().map_err(|error| blame::store(&error))).await
    }

    /// Whether it runs until it is told to stop.
    pub(crate) fn is_daemon(&self) -> bool {
        self.inner.role == Role::Daemon
    }

    /// Sums of the data plane since the start.
    pub async fn counters(&self) -> Counters {
        self.inner.transfer.counters().await
    }

    /// Work of the node's own, ended at shutdown.
    pub(crate) fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Work for somebody, whose events can be read.
    pub(crate) fn operation<F, Fut>(&self, work: F) -> Operation
    where
        F: FnOnce(Sink) -> Fut,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Operation::spawn(&self.inner.tasks, &self.inner.stop, work)
    }

    pub(crate) fn id(&self) -> Id {
        Id {
            peer: self.inner.endpoint.peer_id().to_string(),
            addrs: self.inner.roots.addrs(),
            home: self.inner.home.dir().display().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: Some(std::process::id()),
        }
    }

    pub(crate) fn home(&self) -> &Home {
        &self.inner.home
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn roots(&self) -> &Roots {
        &self.inner.roots
    }

    pub(crate) fn dht(&self) -> &Dht {
        &self.inner.dht
    }

    pub(crate) fn transfer(&self) -> &Transfer {
        &self.inner.transfer
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Announces a root that is served, if that is wanted: [`Change::Announce`] or [`Change::AnnounceSoon`].
    pub(crate) async fn announce(&self, root: Cid, change: Change) {
        if self.inner.config.settings().provide {
            self.inner.announcer.set(root, change).await;
        }
    }

    /// Announces a root no longer.
    pub(crate) async fn withdraw(&self, root: Cid) {
        self.inner.announcer.set(root, Change::Withdraw).await;
    }
}

/// What the control socket runs requests on. Weak, so that the server does not keep the node alive.
#[derive(Clone)]
struct Runner(std::sync::Weak<Inner>);

impl Run for Runner {
    fn run(&self, request: Request) -> Operation {
        match self.0.upgrade() {
            Some(inner) => Node { inner }.run(request),
            None => Operation::failed(Failure::interrupted()),
        }
    }
}

/// The addresses of links.
#[derive(Debug)]
struct Addresses(Endpoint);

impl Via for Addresses {
    fn addrs(&self) -> Vec<String> {
        self.0.listen_multiaddrs().iter().take(MAX_LINK_ADDRS).map(ToString::to_string).collect()
    }
}

/// What is said to other peers about this program.
pub(crate) fn agent() -> String {
    concat!("shoal/", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Opens a home and its store. Whoever must be asked for a passphrase is asked only if the store wants one, and when it is
/// known that no other process has it open.
pub(crate) async fn open(home: &Home, config: &Config) -> Result<(Keypair, Store), StartError> {
    let (home, settings, passphrases) = (home.clone(), config.settings(), config.passphrases().clone());
    let (cache_bytes, quota, encrypt) = (settings.index_cache_bytes, settings.quota_bytes, settings.encrypt);
    let opened = tokio::task::spawn_blocking(move || {
        home.open()?;
        let quota_bytes = if quota > 0 { quota } else { home.default_quota() };
        let (dir, options) = (home.store_dir(), Options { cache_bytes, quota_bytes, encrypt, ..Options::default() });
        let opened = match Store::open(&dir, options.clone()) {
            Err(OpenError::NeedsPassphrase { new, .. }) => {
                let passphrase = passphrases.get(&dir, new)?;
                Store::open(&dir, Options { passphrase, ..options })
            }
            opened => opened,
        };
        let store = opened.map_err(|error| {
            let failure = blame::open(&error);
            if matches!(error, OpenError::Locked { .. }) { StartError::Locked(failure) } else { failure.into() }
        })?;
        Ok::<_, StartError>((home.identity()?, store))
    });
    opened.await.map_err(|error| Failure::internal(format!("opening the home directory was lost: {error}")))?
}
