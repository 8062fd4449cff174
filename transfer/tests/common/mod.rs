//! Peers for tests: real endpoints on loopback, real stores in temporary directories; and a raw peer that speaks the
//! protocol by hand, to misbehave with.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use shoal_content::{Cid, Profile, SHOAL_V1};
use shoal_net::{
    Connection, Endpoint, Incoming, Keypair, NetConfig, PeerId,
    quinn::{RecvStream, SendStream},
};
use shoal_store::{ImportOptions, Options, Store};
use shoal_transfer::{
    Fetch, FetchError, FetchEvent, FetchReport, FetchRequest, PeerAddr, Transfer, TransferConfig,
    wire::{Decoder, LeafSet, Message, PackHead, PackKind, Packing, Request, feature},
};
use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Nothing in these tests may take longer.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn profile() -> &'static Profile {
    &SHOAL_V1
}

pub fn bind() -> (Endpoint, Incoming) {
    let config = NetConfig { listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()], ..NetConfig::default() };
    let (endpoint, _libp2p, incoming) = shoal_net::bind(&Keypair::generate_ed25519(), config).unwrap();
    (endpoint, incoming)
}

pub fn addr(endpoint: &Endpoint) -> PeerAddr {
    PeerAddr { peer: endpoint.peer_id(), addrs: vec![endpoint.local_addr()] }
}

/// Bytes that do not compress and depend on `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

pub struct Peer {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub endpoint: Endpoint,
    pub transfer: Transfer,
}

impl Peer {
    pub fn start() -> Peer {
        Peer::with(TransferConfig { agent: "test".into(), ..TransferConfig::default() })
    }

    pub fn with(config: TransferConfig) -> Peer {
        Peer::on(config, Options::default())
    }

    pub fn on(config: TransferConfig, options: Options) -> Peer {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), options).unwrap();
        let (endpoint, incoming) = bind();
        let transfer = Transfer::start(endpoint.clone(), incoming, store.clone(), config);
        Peer { dir, store, endpoint, transfer }
    }

    pub fn addr(&self) -> PeerAddr {
        addr(&self.endpoint)
    }

    pub fn id(&self) -> PeerId {
        self.endpoint.peer_id()
    }

    /// Imports and serves a path.
    pub async fn share(&self, path: &Path) -> Cid {
        let (store, path) = (self.store.clone(), path.to_owned());
        let root = tokio::task::spawn_blocking(move || {
            let stop = AtomicBool::new(false);
            shoal_store::import(&store, &path, profile(), &ImportOptions::default(), &|_| {}, &stop).unwrap().root
        })
        .await
        .unwrap();
        self.transfer.seed(root).await.unwrap();
        root
    }

    /// Writes bytes into a file of this peer's and shares it.
    pub async fn share_bytes(&self, name: &str, bytes: &[u8]) -> (Cid, PathBuf) {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (self.share(&path).await, path)
    }

    pub fn request(&self, root: Cid, name: &str, peers: Vec<PeerAddr>) -> FetchRequest {
        FetchRequest {
            root,
            paths: vec![],
            dir: self.dir.path().join("out"),
            name: Some(name.into()),
            peers,
            symlinks: true,
            into: shoal_transfer::FetchInto::Dir,
            expires_unix: None,
            give_up_after: Some(Duration::from_secs(20)),
        }
    }

    pub async fn fetch(&self, root: Cid, name: &str, peers: Vec<PeerAddr>) -> Result<FetchReport, FetchError> {
        finish(self.transfer.fetch(self.request(root, name, peers)).await.unwrap()).await
    }

    pub async fn stop(self) {
        self.transfer.shutdown().await;
        self.endpoint.shutdown().await;
    }
}

/// Waits for the end of a fetch.
pub async fn finish(mut fetch: Fetch) -> Result<FetchReport, FetchError> {
    let end = async {
        while let Some(event) = fetch.next().await {
            match event {
                FetchEvent::Done(report) => return Ok(*report),
                FetchEvent::Failed(error) => return Err(error),
                _ => {}
            }
        }
        panic!("a fetch ended without saying how")
    };
    tokio::time::timeout(LIMIT, end).await.expect("a fetch takes too long")
}

/// A peer that joins a root's swarm, says that it has every leaf, and answers requests as a closure says.
pub struct RawPeer {
    pub endpoint: Endpoint,
    dialled: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<()>,
}

/// Seed and length of the [noise] that [`Manner::Mixes`] has.
pub const MIXED_FILE: (u64, usize) = (21, 24 << 20);

/// What a raw peer does with a request for leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Bytes of the right length and the wrong content.
    Lies,
    /// Not a byte, for ever.
    Stalls,
    /// The stream ends before its first leaf.
    HangsUp,
    /// It says that it has leaves that do not exist.
    Boasts,
    /// The first control frame is garbage.
    Babbles,
    /// Every leaf is announced and begun, and none is ended.
    Dangles,
    /// Four requests are answered at once, a piece of each in turn, until the requester reads no more of them.
    Mixes,
    /// Compressed packs that unpack to more than they say.
    Bombs,
}

impl RawPeer {
    pub fn start(root: Cid, sizes: Vec<u32>, manner: Manner) -> RawPeer {
        let (endpoint, mut incoming) = bind();
        let mut tasks = tokio::task::JoinSet::new();
        let dialled = Arc::new(AtomicUsize::new(0));
        let count = dialled.clone();
        tasks.spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Some(connection) = incoming.next().await {
                count.fetch_add(1, Ordering::Relaxed);
                open.spawn(misbehave(connection, root, sizes.clone(), manner));
            }
        });
        RawPeer { endpoint, dialled, tasks }
    }

    /// How often it was dialled.
    pub fn dialled(&self) -> usize {
        self.dialled.load(Ordering::Relaxed)
    }

    pub fn addr(&self) -> PeerAddr {
        addr(&self.endpoint)
    }

    pub fn id(&self) -> PeerId {
        self.endpoint.peer_id()
    }

    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn misbehave(connection: Connection, root: Cid, sizes: Vec<u32>, manner: Manner) {
    // made before anything is asked for, or others are faster
    let bomb = zstd::bulk::compress(&noise(1, 8 << 10).repeat(512), 1).unwrap();
    let mut control = connection.quinn().open_uni().await.unwrap();
    let mut bytes = vec![];
    if manner == Manner::Babbles {
        bytes = vec![0xff; 100];
    } else {
        let count = sizes.len() as u32;
        let end = if manner == Manner::Boasts { count + 1 } else { count };
        let hello = shoal_transfer::wire::Hello { version: 1, features: 0, agent: "raw".into(), addrs: vec![] };
        Message::Hello(hello).encode(&mut bytes);
        // it does not say that it knows the tree: nodes are not what it misbehaves with
        Message::Join { channel: 7, root, leaves: 0, answer: true }.encode(&mut bytes);
        let leaves = LeafSet::Ranges(std::iter::once(0..end).collect());
        Message::Have { channel: 7, leaves }.encode(&mut bytes);
    }
    control.write_all(&bytes).await.unwrap();
    let mut held = vec![];
    let mut mixed = vec![];
    while let Ok((mut send, mut recv)) = connection.quinn().accept_bi().await {
        let Ok(head) = recv.read_to_end(1 << 16).await else { continue };
        let Ok(Request::Leaves { leaves, .. }) = Request::decode(&head) else { continue };
        match manner {
            Manner::Lies => {
                for leaf in leaves.ranges().into_iter().flatten() {
                    let len = sizes[leaf as usize];
                    let mut record = plain_head(len);
                    record.extend(noise(u64::from(leaf) + 99, len as usize));
                    if send.write_all(&record).await.is_err() {
                        break;
                    }
                }
                let _gone = send.finish();
            }
            Manner::Bombs => {
                for leaf in leaves.ranges().into_iter().flatten() {
                    let plain = sizes[leaf as usize];
                    let head = PackHead { kind: PackKind::Zstd, items: 1, plain, wire: bomb.len() as u32 };
                    let _gone = send.write_all(&[&head.encode()[..], &bomb].concat()).await;
                }
                let _gone = send.finish();
            }
            Manner::HangsUp => {
                let _gone = send.finish();
            }
            Manner::Dangles => {
                let first = leaves.ranges()[0].start;
                let mut record = plain_head(sizes[first as usize]);
                record.push(0);
                let _gone = send.write_all(&record).await;
                held.push((send, recv));
            }
            Manner::Mixes => {
                mixed.push((send, leaves));
                if mixed.len() == 4 {
                    mix(&sizes, std::mem::take(&mut mixed)).await;
                }
            }
            _ => held.push((send, recv)),
        }
    }
}

/// The answer of a peer that has the leaves of [`MIXED_FILE`], in pieces, in turn with other answers.
async fn mix(sizes: &[u32], mut answers: Vec<(SendStream, LeafSet)>) {
    let content = noise(MIXED_FILE.0, MIXED_FILE.1);
    let mut rest: Vec<Vec<u8>> = (answers.iter())
        .map(|(_, leaves)| {
            let mut answer = vec![];
            for leaf in leaves.ranges().into_iter().flatten().map(|l| l as usize) {
                let start: usize = sizes[..leaf].iter().map(|s| *s as usize).sum();
                answer.extend(plain_head(sizes[leaf]));
                answer.extend_from_slice(&content[start..start + sizes[leaf] as usize]);
            }
            answer
        })
        .collect();
    while rest.iter().any(|r| !r.is_empty()) {
        for ((send, _), rest) in answers.iter_mut().zip(&mut rest) {
            let piece: Vec<u8> = rest.drain(..rest.len().min(4096)).collect();
            if send.write_all(&piece).await.is_err() {
                return;
            }
        }
    }
    for (send, _) in &mut answers {
        let _gone = send.finish();
    }
}

/// The head of a pack of one leaf.
fn plain_head(len: u32) -> Vec<u8> {
    PackHead { kind: PackKind::Plain, items: 1, plain: len, wire: len }.encode().to_vec()
}

/// A peer that joins a root's swarm and writes down which leaves it was told of.
pub struct Listener {
    pub connection: Connection,
    control: RecvStream,
    /// What it says. Kept open: its end would be the connection's.
    pub said: SendStream,
    decoder: Decoder,
    pub told: BTreeSet<u32>,
    /// How often a leaf was said to be there, and to be gone.
    pub haves: u64,
    pub dont_haves: u64,
    /// Whether the peer said that it knows a seeder, or knows none, last.
    pub reaches: Option<bool>,
    _endpoint: Endpoint,
}

impl Listener {
    pub async fn join(peer: &PeerAddr, root: Cid) -> Listener {
        let (endpoint, _incoming) = bind();
        let connection = endpoint.connect(peer.addrs[0], peer.peer).await.unwrap();
        let mut said = connection.quinn().open_uni().await.unwrap();
        let mut bytes = vec![];
        let (agent, addrs) = ("listener".into(), vec![]);
        let hello = shoal_transfer::wire::Hello { version: 1, features: feature::REACH, agent, addrs };
        Message::Hello(hello).encode(&mut bytes);
        Message::Join { channel: 3, root, leaves: 0, answer: true }.encode(&mut bytes);
        said.write_all(&bytes).await.unwrap();
        let control = connection.quinn().accept_uni().await.unwrap();
        let (told, decoder) = (BTreeSet::new(), Decoder::default());
        let (haves, dont_haves, reaches) = (0, 0, None);
        Listener { connection, control, said, decoder, told, haves, dont_haves, reaches, _endpoint: endpoint }
    }

    /// Reads what comes until what was told is like this.
    pub async fn until(&mut self, what: &str, like: impl Fn(&BTreeSet<u32>) -> bool) {
        self.listen(what, |listener| like(&listener.told)).await;
    }

    /// Reads what comes until it was said last that the peer knows a seeder, or knows none.
    pub async fn until_reach(&mut self, what: &str, yes: bool) {
        self.listen(what, |listener| listener.reaches == Some(yes)).await;
    }

    async fn listen(&mut self, what: &str, like: impl Fn(&Listener) -> bool) {
        let heard = async {
            while !like(self) {
                let chunk = self.control.read_chunk(1 << 16, true).await.unwrap().expect("the control stream ended");
                self.decoder.push(&chunk.bytes);
                while let Some(message) = self.decoder.poll().unwrap() {
                    self.hear(message);
                }
            }
        };
        if tokio::time::timeout(LIMIT, heard).await.is_err() {
            panic!("never told that {what}: {:?}", self.told);
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Have { leaves, .. } => {
                for leaf in leaves.ranges().into_iter().flatten() {
                    self.told.insert(leaf);
                    self.haves += 1;
                }
            }
            Message::DontHave { leaves, .. } => {
                for leaf in leaves.ranges().into_iter().flatten() {
                    self.told.remove(&leaf);
                    self.dont_haves += 1;
                }
            }
            Message::Reach { yes, .. } => self.reaches = Some(yes),
            _ => {}
        }
    }

    /// Asks for leaves; gives how many bytes came of each, or that it is missing.
    pub async fn ask(&self, root: Cid, sizes: &[u32], leaves: Range<u32>) -> Vec<Option<u32>> {
        let got = self.ask_bytes(root, sizes, leaves).await;
        got.into_iter().map(|bytes| bytes.map(|bytes| bytes.len() as u32)).collect()
    }

    /// Asks for leaves; gives the bytes of each, or that it is missing.
    pub async fn ask_bytes(&self, root: Cid, sizes: &[u32], leaves: Range<u32>) -> Vec<Option<Vec<u8>>> {
        let (mut send, mut recv) = self.connection.quinn().open_bi().await.unwrap();
        let set = LeafSet::Ranges(std::iter::once(leaves.clone()).collect());
        send.write_all(&Request::Leaves { root, packing: Packing::Off, leaves: set }.encode()).await.unwrap();
        send.finish().unwrap();
        let answer = tokio::time::timeout(LIMIT, recv.read_to_end(1 << 28)).await.unwrap().unwrap();
        let mut rest = &answer[..];
        let mut left = leaves;
        let mut got = vec![];
        while let Some((head, body)) = rest.split_first_chunk() {
            let head = PackHead::decode(head).unwrap();
            let mut pack = &body[..head.wire as usize];
            rest = &body[head.wire as usize..];
            for leaf in left.by_ref().take(head.items.into()) {
                got.push((head.kind == PackKind::Plain).then(|| {
                    let (bytes, later) = pack.split_at(sizes[leaf as usize] as usize);
                    pack = later;
                    bytes.to_vec()
                }));
            }
        }
        assert_eq!(left.len(), 0, "the answer ends early");
        got
    }
}
