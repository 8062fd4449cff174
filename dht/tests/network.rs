//! Whole networks of DHT peers in one process, over real sockets on loopback with ephemeral ports. No multicast.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use shoal_dht::{Dht, DhtConfig, DhtError, DhtLimits, Keypair, Multiaddr, PeerId, Provider};
use shoal_net::{Endpoint, Incoming, NetConfig, bind, to_multiaddr};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

struct Peer {
    dht: Dht,
    endpoint: Endpoint,
    _incoming: Incoming,
}

impl Peer {
    fn start(bootstrap: Vec<Multiaddr>) -> Self {
        Self::with(DhtConfig { bootstrap, ..config() })
    }

    fn with(config: DhtConfig) -> Self {
        let keypair = Keypair::generate_ed25519();
        let listen: Vec<Multiaddr> = vec![LOOPBACK.parse().unwrap()];
        let net = NetConfig { listen: listen.clone(), ..NetConfig::default() };
        let (endpoint, transport, incoming) = bind(&keypair, net).unwrap();
        let dht = Dht::start(keypair, transport, listen, config).unwrap();
        Peer { dht, endpoint, _incoming: incoming }
    }

    fn id(&self) -> PeerId {
        self.endpoint.peer_id()
    }

    fn addr(&self) -> Multiaddr {
        self.endpoint.listen_multiaddrs().remove(0)
    }

    async fn joined(&self) {
        until(async || !self.dht.peers().await.unwrap().iter().all(|p| p.agent.is_empty())).await;
    }
}

fn config() -> DhtConfig {
    DhtConfig { mdns: false, ..DhtConfig::default() }
}

fn key(n: u8) -> Vec<u8> {
    [&[0x1e, 32][..], &[n; 32]].concat()
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("the test waits in vain")
}

/// Waits for a state that no event tells of.
async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let mut poll = tokio::time::interval(Duration::from_millis(5));
    within(async {
        while !condition().await {
            poll.tick().await;
        }
    })
    .await;
}

async fn all(mut found: mpsc::Receiver<Provider>) -> Vec<Provider> {
    let mut providers = Vec::new();
    while let Some(provider) = within(found.recv()).await {
        providers.push(provider);
    }
    providers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_peers_that_know_one_find_a_provider_and_can_dial_it() {
    let first = Peer::start(Vec::new());
    let mut peers: Vec<_> = (1..20).map(|_| Peer::start(vec![first.addr()])).collect();
    for peer in &peers {
        peer.joined().await;
    }
    let provider = peers.remove(7);
    let began = Instant::now();
    within(provider.dht.provide(key(1))).await.unwrap();
    println!("provide: {:?}", began.elapsed());

    let mut times = Vec::new();
    for peer in peers.iter().chain([&first]) {
        let began = Instant::now();
        let mut found = peer.dht.find_providers(key(1)).await.unwrap();
        let answer = within(found.recv()).await.expect("nobody was found");
        times.push(began.elapsed());
        assert_eq!(answer.peer, provider.id());
        assert!(answer.addrs.contains(&provider.endpoint.local_addr()), "{answer:?}");
        let connection = peer.endpoint.connect(answer.addrs[0], answer.peer).await.unwrap();
        assert_eq!(connection.peer(), provider.id());
        assert!(all(found).await.is_empty(), "each provider comes once");
    }
    times.sort();
    println!("time to first provider: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);

    // Among so few, everybody holds the record. One who comes anew holds nothing: it must join and ask.
    let began = Instant::now();
    let newcomer = Peer::start(vec![first.addr()]);
    let answer = within(newcomer.dht.find_providers(key(1)).await.unwrap().recv()).await.expect("nobody was found");
    println!("newcomer, from start to first provider: {:?}", began.elapsed());
    assert_eq!((answer.peer, answer.addrs[0]), (provider.id(), provider.endpoint.local_addr()));

    // The provider itself finds nobody else.
    assert_eq!(all(provider.dht.find_providers(key(1)).await.unwrap()).await, []);
    assert_eq!(all(peers[0].dht.find_providers(key(2)).await.unwrap()).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_provider_of_a_key_is_found_and_never_ourselves() {
    let first = Peer::start(Vec::new());
    let peers: Vec<_> = (0..6).map(|_| Peer::start(vec![first.addr()])).collect();
    for peer in &peers {
        peer.joined().await;
        within(peer.dht.provide(key(1))).await.unwrap();
    }
    let mut ids: Vec<_> =
        all(peers[0].dht.find_providers(key(1)).await.unwrap()).await.iter().map(|p| p.peer).collect();
    let mut want: Vec<_> = peers[1..].iter().map(Peer::id).collect();
    ids.sort();
    want.sort();
    assert_eq!(ids, want);
}

/// Half a second after a new peer libp2p looks itself up, and connects with all whom it hears of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_comes_by_one_peer_does_not_connect_with_all_of_it() {
    const CROWD: usize = 16;
    let first = Peer::start(Vec::new());
    let crowd: Vec<_> = (0..CROWD).map(|_| Peer::start(Vec::new())).collect();
    for peer in &crowd {
        within(peer.dht.add_address(first.id(), first.endpoint.local_addr())).await.unwrap();
    }
    for peer in &crowd {
        peer.joined().await;
    }
    // nothing tells of what does not happen
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut connections = 0;
    for peer in &crowd {
        connections += peer.dht.peers().await.unwrap().len();
    }
    println!("{connections} ends of connections; all with all would be {}", CROWD * CROWD);
    assert!((CROWD..CROWD * CROWD / 2).contains(&connections), "{connections} ends of connections");
    // who is known all the same is found
    within(crowd[3].dht.provide(key(1))).await.unwrap();
    let found = all(crowd[11].dht.find_providers(key(1)).await.unwrap()).await;
    assert_eq!(found.iter().map(|p| p.peer).collect::<Vec<_>>(), [crowd[3].id()]);
}

#[tokio::test]
async fn what_is_provided_alone_is_told_to_the_first_who_comes() {
    let alone = Peer::start(Vec::new());
    within(alone.dht.provide(key(1))).await.unwrap();
    let middle = Peer::start(vec![alone.addr()]);
    let late = Peer::start(vec![middle.addr()]);
    // A search that begins before anybody is known waits for the first.
    within(async {
        loop {
            let found = all(late.dht.find_providers(key(1)).await.unwrap()).await;
            if let Some(provider) = found.first() {
                assert_eq!(provider.peer, alone.id());
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_search_before_joining_waits_for_the_first_peer() {
    let provider = Peer::start(Vec::new());
    within(provider.dht.provide(key(1))).await.unwrap();
    let seeker = Peer::start(vec![provider.addr()]);
    let found = all(seeker.dht.find_providers(key(1)).await.unwrap()).await;
    assert_eq!(found.iter().map(|p| p.peer).collect::<Vec<_>>(), [provider.id()]);
    assert_eq!(found[0].addrs[0], provider.endpoint.local_addr());
}

#[tokio::test]
async fn who_stops_providing_says_so_no_more() {
    let provider = Peer::start(Vec::new());
    provider.dht.provide(key(1)).await.unwrap();
    provider.dht.provide(key(2)).await.unwrap();
    provider.dht.stop_providing(key(1)).await.unwrap();
    let seeker = Peer::start(vec![provider.addr()]);
    assert_eq!(all(seeker.dht.find_providers(key(2)).await.unwrap()).await.len(), 1);
    assert_eq!(all(seeker.dht.find_providers(key(1)).await.unwrap()).await, []);
}

#[tokio::test]
async fn a_dead_bootstrap_peer_delays_nothing_and_is_found_when_it_lives() {
    // Reserves a port where nobody answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = to_multiaddr(silent.local_addr().unwrap());
    let alive = Peer::start(Vec::new());
    alive.dht.provide(key(1)).await.unwrap();
    let seeker = Peer::start(vec![dead, alive.addr()]);
    let began = Instant::now();
    assert_eq!(all(seeker.dht.find_providers(key(1)).await.unwrap()).await.len(), 1);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    // A bootstrap peer that starts later than we do is found by trying again.
    let port = silent.local_addr().unwrap();
    let early = Peer::start(vec![to_multiaddr(port)]);
    drop(silent);
    let keypair = Keypair::generate_ed25519();
    let net = NetConfig { listen: vec![to_multiaddr(port)], ..NetConfig::default() };
    let (endpoint, transport, _incoming) = bind(&keypair, net).unwrap();
    let _late = Dht::start(keypair, transport, vec![to_multiaddr(port)], config()).unwrap();
    until(async || early.dht.peers().await.unwrap().iter().any(|p| p.peer == endpoint.peer_id())).await;
}

#[tokio::test]
async fn a_search_without_any_peer_ends() {
    let limits = DhtLimits { join_timeout: Duration::from_millis(100), ..DhtLimits::default() };
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let bootstrap = vec![to_multiaddr(silent.local_addr().unwrap())];
    let lonely = Peer::with(DhtConfig { bootstrap, limits, ..config() });
    assert_eq!(all(lonely.dht.find_providers(key(1)).await.unwrap()).await, []);
    let nobody = Peer::start(Vec::new());
    assert_eq!(all(nobody.dht.find_providers(key(1)).await.unwrap()).await, []);
}

#[tokio::test]
async fn two_networks_on_one_machine_do_not_mix() {
    let ours = Peer::start(Vec::new());
    ours.dht.provide(key(1)).await.unwrap();
    let bootstrap = vec![ours.addr()];
    let limits = DhtLimits { join_timeout: Duration::from_millis(500), ..DhtLimits::default() };
    let other = Peer::with(DhtConfig { kad_protocol: "/other/kad/1.0.0".to_owned(), bootstrap, limits, ..config() });
    other.joined().await;
    assert_eq!(all(other.dht.find_providers(key(1)).await.unwrap()).await, []);
}

#[tokio::test]
async fn peers_and_addresses_are_told() {
    let a = Peer::start(Vec::new());
    let b = Peer::start(Vec::new());
    b.dht.add_address(a.id(), a.endpoint.local_addr()).await.unwrap();
    b.joined().await;
    a.joined().await;
    let infos = b.dht.peers().await.unwrap();
    assert_eq!((infos.len(), infos[0].peer, infos[0].direct), (1, a.id(), true));
    assert_eq!(infos[0].addrs, [a.endpoint.local_addr()]);
    assert_eq!(infos[0].agent, concat!("shoal/", env!("CARGO_PKG_VERSION")));
    // The dialled side knows the dialler by its one port.
    assert_eq!(a.dht.peers().await.unwrap()[0].addrs, [b.endpoint.local_addr()]);
    let listen = [to_multiaddr(a.endpoint.local_addr())];
    assert_eq!(a.dht.listen_addrs().await.unwrap(), listen);
    assert_eq!(a.dht.external_addrs().await.unwrap(), listen);
}

#[tokio::test]
async fn shutdown_drains_and_later_calls_fail_cleanly() {
    let a = Peer::start(Vec::new());
    let b = Peer::start(vec![a.addr()]);
    b.joined().await;
    a.joined().await;
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let c = Peer::start(vec![to_multiaddr(silent.local_addr().unwrap())]);
    let held = c.dht.find_providers(key(1)).await.unwrap();
    within(c.dht.shutdown()).await;
    assert_eq!(all(held).await, [], "a search ends with the DHT");

    within(b.dht.shutdown()).await;
    within(b.dht.shutdown()).await;
    assert!(matches!(b.dht.provide(key(1)).await, Err(DhtError::Closed)));
    assert!(matches!(b.dht.find_providers(key(1)).await, Err(DhtError::Closed)));
    until(async || a.dht.peers().await.unwrap().is_empty()).await;
    // The data plane lives on without the DHT.
    b.endpoint.connect(a.endpoint.local_addr(), a.id()).await.unwrap();
}

#[tokio::test]
async fn bad_settings_are_told_at_the_start() {
    let start = |config| {
        let keypair = Keypair::generate_ed25519();
        let net = NetConfig { listen: vec![LOOPBACK.parse().unwrap()], ..NetConfig::default() };
        let (endpoint, transport, _incoming) = bind(&keypair, net).unwrap();
        (Dht::start(keypair, transport, vec![LOOPBACK.parse().unwrap()], config), endpoint)
    };
    let bootstrap = vec!["/ip4/1.2.3.4/tcp/4001".parse().unwrap()];
    assert!(matches!(start(DhtConfig { bootstrap, ..config() }).0, Err(DhtError::Bootstrap { .. })));
    let kad_protocol = "no-slash".to_owned();
    assert!(matches!(start(DhtConfig { kad_protocol, ..config() }).0, Err(DhtError::ProtocolName { .. })));
    let peer = Peer::start(Vec::new());
    assert!(matches!(peer.dht.provide(vec![0; 200]).await, Err(DhtError::KeyTooLong { len: 200, max: 128 })));
}
