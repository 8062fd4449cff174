//! The node: store, network, DHT and transfer of one home, joined and owned. Starting, serving, shutting down in order.
//! What it does on request is in `share`, `fetch`, `roots` and `verify`.

use std::{sync::Arc, time::Duration};

use shoal_content::Cid;
use shoal_dht::{Dht, DhtConfig};
use shoal_net::{BindError, Endpoint, Incoming, Keypair, Libp2pTransport, Limits, Multiaddr, NetConfig};
use shoal_store::{OpenError, Options, RootKind, RootRecord, Store};
use shoal_transfer::{Counters, Transfer, TransferConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    CONTROL_VERSION, Config, Failure, Hello, Home, Id, Listening, Operation, PeerInfo, Request, Root,
    announce::Announcer,
    blame,
    control::{Run, Server},
    fetch::Wish,
    operation::Sink,
    roots::{Rank, Roots, Via, blocking},
};

/// Addresses in a link: enough for a machine with several networks, few enough to paste.
const MAX_LINK_ADDRS: usize = 8;
/// Unfinished fetches that a daemon takes up at the same time.
const RESUMED_AT_ONCE: usize = 4;

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs until it is told to stop.
    Daemon,
    /// Runs for one command, and for the commands that others hand to it meanwhile.
    Command,
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

/// A running node. Clones are handles on the same one. Call [`Node::shutdown`] at the end: dropping the last handle
/// stops everything too, but waits for nothing.
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
        let (keypair, store) = open(&home, settings.index_cache_bytes).await?;
        let (endpoint, transport, incoming, listen) = bind(&home, &keypair, &config)?;
        let dht_config = DhtConfig {
            kad_protocol: settings.kad_protocol.clone(),
            bootstrap: settings.bootstrap.clone(),
            mdns: settings.mdns,
            relay_server: settings.relay_server,
            ..DhtConfig::default()
        };
        let dht = Dht::start(keypair, transport, listen, dht_config)
            .map_err(|error| Failure::from_error(crate::Class::Network, &error))?;
        let transfer_config = TransferConfig { agent: agent(), ..TransferConfig::default() };
        let transfer = Transfer::start(endpoint.clone(), incoming, store.clone(), transfer_config);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let announcer = Announcer::start(dht.clone(), &tasks, stop.clone());
        let roots = Roots::new(store, Arc::new(Addresses(endpoint.clone())));
        let hello = Hello {
            control: CONTROL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer: endpoint.peer_id().to_string(),
            pid: std::process::id(),
            daemon: role == Role::Daemon,
        };
        let inner = Arc::new_cyclic(|weak| {
            let control = match Server::start(&home, hello, Runner(weak.clone())) {
                Ok(server) => Some(server),
                Err(error) => {
                    // Everything works but handing over, so other commands will say that the home is in use.
                    tracing::warn!(%error, "no control socket");
                    None
                }
            };
            Inner { home, config, roots, endpoint, dht, transfer, announcer, tasks, stop, control, role }
        });
        Ok(Node { inner })
    }

    /// Starts an operation.
    pub fn run(&self, request: Request) -> Operation {
        let inner = &self.inner;
        let (node, roots) = (self.clone(), inner.roots.clone());
        let threads = inner.config.settings().import_threads;
        Operation::spawn(&inner.tasks, &inner.stop, move |sink| async move {
            match request {
                Request::Share { paths, stay } => node.share(sink, paths, stay).await,
                Request::Unshare { what } => node.unshare(sink, what).await,
                Request::Fetch { link, paths, dir, symlinks, stay } => {
                    node.fetch(sink, Wish { link, paths, dir: dir.0, symlinks, stay, rank: Rank::Command }).await
                }
                Request::List => roots.list(sink).await,
                Request::Stat { what } => roots.stat(sink, what).await,
                Request::Peers => node.peers(sink).await,
                Request::Pin { what } => roots.pin(sink, what, true).await,
                Request::Unpin { what } => roots.pin(sink, what, false).await,
                Request::Verify { what } => roots.verify(sink, what, threads).await,
                Request::Id => sink.event(crate::Event::Id(node.id())).await,
            }
        })
    }

    /// Serves and announces, in the background, every complete root that this home is to provide.
    pub fn serve_known(&self) {
        let node = self.clone();
        self.in_background(async move { node.serve_all().await });
    }

    /// Takes up, in the background, every fetch that is not complete.
    pub fn resume_fetches(&self) {
        let node = self.clone();
        self.in_background(async move { node.resume_all().await });
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
        inner.transfer.shutdown().await;
        inner.dht.shutdown().await;
        inner.endpoint.shutdown().await;
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

    pub(crate) fn id(&self) -> Id {
        Id {
            peer: self.inner.endpoint.peer_id().to_string(),
            addrs: self.inner.roots.addrs(),
            home: self.inner.home.dir().display().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: Some(std::process::id()),
        }
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

    /// Announces a root that is served, if that is wanted.
    pub(crate) async fn announce(&self, root: Cid) {
        if self.inner.config.settings().provide {
            self.inner.announcer.set(root, true).await;
        }
    }

    /// Announces a root no longer.
    pub(crate) async fn withdraw(&self, root: Cid) {
        self.inner.announcer.set(root, false).await;
    }

    /// Work of the node's own, ended at shutdown.
    fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    async fn serve_all(&self) {
        let roots = self.inner.roots.clone();
        let records = match blocking(move || roots.records()).await {
            Ok(records) => records,
            Err(failure) => return tracing::error!(%failure, "cannot list the roots to serve"),
        };
        for record in records.iter().filter(|record| record.complete && record.provide) {
            if !self.inner.roots.set_serving(record.root, true) {
                continue;
            }
            match self.inner.transfer.seed(record.root).await {
                Ok(()) => self.announce(record.root).await,
                Err(error) => {
                    self.inner.roots.set_serving(record.root, false);
                    tracing::warn!(root = %record.root, name = ?record.name, %error, "not served");
                }
            }
        }
    }

    async fn resume_all(&self) {
        let roots = self.inner.roots.clone();
        let records = match blocking(move || roots.records()).await {
            Ok(records) => records,
            Err(failure) => return tracing::error!(%failure, "cannot list the fetches to resume"),
        };
        let unfinished = records.iter().filter(|record| !record.complete && record.kind == RootKind::Fetched);
        let resumed = unfinished.filter_map(fetch_again).map(|wish| async move {
            let (node, tasks, stop) = (self.clone(), &self.inner.tasks, &self.inner.stop);
            let mut operation = Operation::spawn(tasks, stop, move |sink| async move { node.fetch(sink, wish).await });
            loop {
                match operation.next().await {
                    Ok(Some(event)) => tracing::debug!(?event, "resumed fetch"),
                    Ok(None) => return,
                    Err(failure) => return tracing::warn!(%failure, "a resumed fetch ended"),
                }
            }
        });
        let resumed: Vec<_> = resumed.collect();
        futures::StreamExt::for_each_concurrent(futures::stream::iter(resumed), RESUMED_AT_ONCE, |fetch| fetch).await;
    }

    async fn peers(&self, sink: Sink) -> Result<(), Failure> {
        let mut peers = std::collections::BTreeMap::<String, PeerInfo>::new();
        for report in self.inner.transfer.peers().await {
            let peer = report.peer.to_string();
            let info = PeerInfo {
                peer: peer.clone(),
                addrs: vec![shoal_net::to_multiaddr(report.addr).to_string()],
                agent: report.agent,
                planes: vec!["data".to_owned()],
                bytes_in: report.bytes_in,
                bytes_out: report.bytes_out,
                rtt_ms: Some(report.rtt.as_secs_f64() * 1e3),
                roots: report.roots.into_iter().map(Root).collect(),
            };
            peers.insert(peer, info);
        }
        for known in self.inner.dht.peers().await.unwrap_or_default() {
            let peer = known.peer.to_string();
            let addrs: Vec<String> =
                known.addrs.iter().map(|addr| shoal_net::to_multiaddr(*addr).to_string()).collect();
            let info = peers.entry(peer.clone()).or_insert_with(|| PeerInfo {
                peer,
                addrs: Vec::new(),
                agent: known.agent.clone(),
                planes: Vec::new(),
                bytes_in: 0,
                bytes_out: 0,
                rtt_ms: None,
                roots: Vec::new(),
            });
            info.planes.push("dht".to_owned());
            for addr in addrs {
                if !info.addrs.contains(&addr) {
                    info.addrs.push(addr);
                }
            }
        }
        for info in peers.into_values() {
            sink.event(crate::Event::Peer(info)).await?;
        }
        let counters = self.inner.transfer.counters().await;
        sink.event(crate::Event::Counters {
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            peers: counters.peers,
            roots: counters.roots,
        })
        .await
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

/// Opens a home and its store.
pub(crate) async fn open(home: &Home, cache_bytes: usize) -> Result<(Keypair, Store), StartError> {
    let home = home.clone();
    let opened = tokio::task::spawn_blocking(move || {
        home.open()?;
        let store = Store::open(&home.store_dir(), Options { cache_bytes, ..Options::default() }).map_err(|error| {
            let failure = blame::open(&error);
            if matches!(error, OpenError::Locked { .. }) { StartError::Locked(failure) } else { failure.into() }
        })?;
        Ok::<_, StartError>((home.identity()?, store))
    });
    opened.await.map_err(|error| Failure::internal(format!("opening the home directory was lost: {error}")))?
}

/// A bound port and what it was asked to listen on.
type Bound = (Endpoint, Libp2pTransport, Incoming, Vec<Multiaddr>);

/// Binds the port: the one that was asked for, else the last one on all interfaces, else a free one.
fn bind(home: &Home, keypair: &Keypair, config: &Config) -> Result<Bound, Failure> {
    let settings = config.settings();
    let limits = Limits {
        connections: settings.connections,
        reserved_for_dials: Limits::default().reserved_for_dials.min(settings.connections / 4),
        ..Limits::default()
    };
    let bind = |listen: Vec<Multiaddr>| {
        let config = NetConfig {
            listen: listen.clone(),
            limits: limits.clone(),
            congestion: settings.congestion,
            ..NetConfig::default()
        };
        shoal_net::bind(keypair, config).map(|(endpoint, transport, incoming)| (endpoint, transport, incoming, listen))
    };
    if !settings.listen.is_empty() {
        return bind(settings.listen.clone()).map_err(|error| blame::bind(&error));
    }
    let all = |port: u16| -> Vec<Multiaddr> {
        [std::net::IpAddr::from([0u8; 4]), std::net::IpAddr::from([0u16; 8])]
            .map(|ip| shoal_net::to_multiaddr((ip, port).into()))
            .to_vec()
    };
    // If somebody else has the last port now, any other is as good, and links name the new one.
    let bound = match home.last_port().map(|port| bind(all(port))) {
        Some(Ok(bound)) => Ok(bound),
        Some(Err(_)) | None => match bind(all(0)) {
            // A machine without IPv6.
            Err(BindError::Socket { .. } | BindError::AddrNotAvailable { .. }) => bind(all(0)[..1].to_vec()),
            other => other,
        },
    };
    let bound = bound.map_err(|error| blame::bind(&error))?;
    if let Err(error) = home.remember_port(bound.0.local_addr().port()) {
        tracing::debug!(%error, "the port could not be remembered");
    }
    Ok(bound)
}

/// What a fetch was started with, from its record. Whether symlinks were asked for is not in there.
fn fetch_again(record: &RootRecord) -> Option<Wish> {
    let several = record.selection.as_ref().is_some_and(|paths| paths.len() > 1);
    let dir = if several { record.path.as_path() } else { record.path.parent()? };
    let mut link = shoal_content::ShoalLink::new(record.root);
    if record.selection.is_none() {
        link.name = Some(record.name.clone());
    }
    Some(Wish {
        link: link.to_string(),
        paths: record.selection.clone().unwrap_or_default(),
        dir: dir.to_owned(),
        symlinks: false,
        stay: false,
        rank: Rank::Resumed,
    })
}

/// How long a command waits for another process on the same home to start or to stop.
pub(crate) const BUSY_FOR: Duration = Duration::from_secs(10);
