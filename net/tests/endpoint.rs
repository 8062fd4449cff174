//! The endpoint between real sockets on loopback: identity, limits, shutdown, addresses. Ports are ephemeral.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use futures::{FutureExt, StreamExt, future::poll_fn};
use libp2p_core::{
    Endpoint as Role, Transport,
    muxing::StreamMuxerBox,
    transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent},
};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use shoal_net::{
    BindError, ConnectError, Connection, Endpoint, Incoming, Keypair, Libp2pTransport, Limits, Multiaddr, NetConfig,
    PeerId, bind, from_multiaddr, quinn, to_multiaddr,
};
use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Peer {
    endpoint: Endpoint,
    transport: Option<Libp2pTransport>,
    incoming: Incoming,
}

impl Peer {
    fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }
    fn id(&self) -> PeerId {
        self.endpoint.peer_id()
    }
    async fn next(&mut self) -> Connection {
        within(self.incoming.next()).await.unwrap()
    }
}

fn peer_on(listen: &[&str], limits: Limits) -> Peer {
    let listen = listen.iter().map(|a| a.parse().unwrap()).collect();
    let (endpoint, transport, incoming) =
        bind(&Keypair::generate_ed25519(), NetConfig { listen, limits, ..NetConfig::default() }).unwrap();
    Peer { endpoint, transport: Some(transport), incoming }
}

fn peer() -> Peer {
    peer_on(&["/ip4/127.0.0.1/udp/0/quic-v1"], Limits::default())
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("the test waits in vain")
}

async fn echo_once(connection: &Connection) {
    let (mut send, mut recv) = connection.quinn().accept_bi().await.unwrap();
    let data = recv.read_to_end(1 << 20).await.unwrap();
    send.write_all(&data).await.unwrap();
    send.finish().unwrap();
}

async fn ask(connection: &Connection, data: &[u8]) -> Vec<u8> {
    let (mut send, mut recv) = connection.quinn().open_bi().await.unwrap();
    send.write_all(data).await.unwrap();
    send.finish().unwrap();
    recv.read_to_end(1 << 20).await.unwrap()
}

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let (a, mut b) = (peer(), peer());
    let dialed = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    let accepted = b.next().await;
    assert_eq!((dialed.peer(), dialed.is_dialer(), dialed.remote_addr()), (b.id(), true, b.addr()));
    assert_eq!((accepted.peer(), accepted.is_dialer(), accepted.remote_addr()), (a.id(), false, a.addr()));
    let (answer, ()) = tokio::join!(ask(&dialed, b"hello"), echo_once(&accepted));
    assert_eq!(answer, b"hello");
    let stats = b.endpoint.stats();
    assert_eq!((stats.accepted_shoal, stats.accepted_libp2p, stats.open), (1, 0, 1));
    drop(accepted);
    assert_eq!(b.endpoint.stats().open, 0);
}

#[tokio::test]
async fn another_peer_at_the_address_is_an_error_that_names_both() {
    let (a, b) = (peer(), peer());
    let expected = PeerId::random();
    match a.endpoint.connect(b.addr(), expected).await.unwrap_err() {
        ConnectError::WrongPeer { addr, expected: want, got } => {
            assert_eq!((addr, want, got), (b.addr(), expected, b.id()));
        }
        other => panic!("{other}"),
    }
    assert_eq!(a.endpoint.stats().open, 0, "a failed dial keeps no slot");
}

#[tokio::test]
async fn nobody_there_and_no_route_are_different_errors() {
    let limits = Limits { connect_timeout: Duration::from_millis(200), ..Limits::default() };
    let a = peer_on(&["/ip4/127.0.0.1/udp/0/quic-v1"], limits);
    // A bound socket that never answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = a.endpoint.connect(silent.local_addr().unwrap(), PeerId::random()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    for addr in ["[::1]:1", "127.0.0.1:0", "0.0.0.0:1", "255.255.255.255:1"] {
        let error = a.endpoint.connect(addr.parse().unwrap(), PeerId::random()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{addr}: {error}");
    }
}

/// Believes every certificate. Only a test may.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

/// Shows a certificate, whosever it is.
#[derive(Debug)]
struct Shown(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// A QUIC client of another make: any ALPN, no certificate of its own.
fn stranger(alpn: &[u8]) -> quinn::Endpoint {
    stranger_with(alpn, Shown(None))
}

fn stranger_with(alpn: &[u8], shown: Shown) -> quinn::Endpoint {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_client_cert_resolver(Arc::new(shown));
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint
}

fn alert(error: &quinn::ConnectionError) -> Option<u64> {
    match error {
        quinn::ConnectionError::ConnectionClosed(close) => Some(u64::from(close.error_code)),
        _ => None,
    }
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let b = peer();
    let connecting = stranger(shoal_net::ALPN_SHOAL).connect(b.addr(), "l").unwrap();
    // TLS 1.3: the client is done before the server has judged it.
    let error = match within(connecting).await {
        Ok(connection) => within(connection.closed()).await,
        Err(error) => error,
    };
    assert_eq!(alert(&error), Some(0x100 + 116), "certificate_required: {error}");
    within(async {
        while b.endpoint.stats().failed == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(b.endpoint.stats().accepted_shoal, 0);
}

/// Of a certificate that is known, only the handshake proves that it is the remote's own.
#[tokio::test]
async fn whoever_shows_the_certificate_of_another_is_refused() {
    let (a, mut b) = (peer(), peer());
    let _welcome = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    let known = b.next().await.quinn().peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let own = |key| provider.key_provider.load_private_key(key).unwrap();
    let (mine, key) = libp2p_tls::certificate::generate(&Keypair::generate_ed25519()).unwrap();
    let thief = Shown(Some(Arc::new(CertifiedKey::new(*known, own(key.clone_key())))));
    let error = match within(stranger_with(shoal_net::ALPN_SHOAL, thief).connect(b.addr(), "l").unwrap()).await {
        Ok(connection) => within(connection.closed()).await,
        Err(error) => error,
    };
    assert_eq!(alert(&error), Some(0x100 + 51), "decrypt_error: {error}");
    assert_eq!(b.endpoint.stats().accepted_shoal, 1);
    // the same client under its own name is welcome
    let honest = Shown(Some(Arc::new(CertifiedKey::new(vec![mine], own(key)))));
    let _connection =
        within(stranger_with(shoal_net::ALPN_SHOAL, honest).connect(b.addr(), "l").unwrap()).await.unwrap();
    b.next().await;
}

#[tokio::test]
async fn an_unknown_protocol_is_refused() {
    let b = peer();
    for alpn in [&b"h3"[..], b"shoal/2", b"shoal", b""] {
        if alpn.is_empty() {
            continue;
        }
        let error = within(stranger(alpn).connect(b.addr(), "l").unwrap()).await.unwrap_err();
        assert_eq!(alert(&error), Some(0x100 + 120), "no_application_protocol: {error}");
    }
}

#[tokio::test]
async fn a_full_table_refuses_and_recovers() {
    let limits = Limits { connections: 3, reserved_for_dials: 1, ..Limits::default() };
    let mut b = peer_on(&["/ip4/127.0.0.1/udp/0/quic-v1"], limits);
    let a = peer();
    let _first = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    let first = b.next().await;
    let _second = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    let _second_accepted = b.next().await;
    let error = a.endpoint.connect(b.addr(), b.id()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    assert_eq!(b.endpoint.stats().refused_full, 1);
    // Strangers took their part; a dial of our own still goes.
    let _own = b.endpoint.connect(a.addr(), a.id()).await.unwrap();
    let error = b.endpoint.connect(a.addr(), a.id()).await.unwrap_err();
    assert!(matches!(error, ConnectError::TooMany { max: 3 }), "{error}");
    drop((first, _own));
    a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    b.next().await;
}

#[tokio::test]
async fn one_address_gets_its_share_and_no_more() {
    let limits = Limits { per_ip: 2, per_ip_on_loopback: true, ..Limits::default() };
    let mut b = peer_on(&["/ip4/127.0.0.1/udp/0/quic-v1"], limits);
    let a = peer();
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(a.endpoint.connect(b.addr(), b.id()).await.unwrap());
        kept.push(b.next().await);
    }
    assert!(matches!(a.endpoint.connect(b.addr(), b.id()).await, Err(ConnectError::Refused { .. })));
    assert_eq!(b.endpoint.stats().refused_ip, 1);
}

#[tokio::test]
async fn under_load_clients_prove_their_address_first() {
    let mut b = peer_on(&["/ip4/127.0.0.1/udp/0/quic-v1"], Limits { retry_above: 0, ..Limits::default() });
    let a = peer();
    let _connection = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    b.next().await;
    assert_eq!(b.endpoint.stats().retried, 1);
}

#[tokio::test]
async fn a_flood_of_half_handshakes_leaves_the_door_open() {
    let limits = Limits { pending_handshakes: 4, handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let mut b = peer_on(&["/ip4/127.0.0.1/udp/0/quic-v1"], limits);
    // First packets of real clients that vanish at once.
    for _ in 0..16 {
        let flood = stranger(shoal_net::ALPN_SHOAL);
        let mut connecting = Box::pin(flood.connect(b.addr(), "l").unwrap());
        tokio::select! {
            biased;
            _ = &mut connecting => {}
            () = tokio::task::yield_now() => {}
        }
        std::mem::forget(connecting);
    }
    let a = peer();
    let _connection = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    b.next().await;
}

#[tokio::test]
async fn connections_that_nobody_takes_are_closed_as_busy() {
    let limits = Limits { backlog: 1, ..Limits::default() };
    let b = peer_on(&["/ip4/127.0.0.1/udp/0/quic-v1"], limits);
    let a = peer();
    let first = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    within(async {
        while b.endpoint.stats().accepted_shoal == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let second = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    match within(second.quinn().closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code, shoal_net::CLOSE_BUSY),
        other => panic!("{other:?}"),
    }
    assert!(first.quinn().close_reason().is_none());
    assert_eq!(b.endpoint.stats().busy, 1);
}

#[tokio::test]
async fn shutdown_drains_and_frees_the_port() {
    let (a, mut b) = (peer(), peer());
    let dialed = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    let accepted = b.next().await;
    let addr = b.addr();
    within(b.endpoint.shutdown()).await;
    within(b.endpoint.shutdown()).await;
    let reason = within(dialed.quinn().closed()).await;
    assert!(matches!(reason, quinn::ConnectionError::ApplicationClosed(_)), "{reason:?}");
    assert!(within(b.incoming.next()).await.is_none());
    assert!(matches!(b.endpoint.connect(a.addr(), a.id()).await, Err(ConnectError::Closed)));
    drop((accepted, b));
    let listen: Multiaddr = to_multiaddr(addr);
    within(async {
        let config = || NetConfig { listen: vec![listen.clone()], ..NetConfig::default() };
        while bind(&Keypair::generate_ed25519(), config()).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_in_use_says_what_to_do() {
    let a = peer();
    let config = NetConfig { listen: vec![to_multiaddr(a.addr())], ..NetConfig::default() };
    let error = bind(&Keypair::generate_ed25519(), config).unwrap_err();
    assert!(matches!(error, BindError::AddrInUse { addr } if addr == a.addr()));
    assert!(error.to_string().contains("choose another port"), "{error}");
    let config = NetConfig { listen: vec!["/ip4/192.0.2.1/udp/0/quic-v1".parse().unwrap()], ..NetConfig::default() };
    let error = bind(&Keypair::generate_ed25519(), config).unwrap_err();
    assert!(matches!(error, BindError::AddrNotAvailable { .. }), "{error}");
    let limits = Limits { pending_dials: 0, ..Limits::default() };
    let error = bind(&Keypair::generate_ed25519(), NetConfig { limits, ..NetConfig::default() }).unwrap_err();
    assert!(matches!(error, BindError::Setting { name: "pending_dials", .. }), "{error}");
}

#[tokio::test]
async fn one_dual_stack_socket_serves_both_families() {
    let both = ["/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/udp/0/quic-v1"];
    let (a, mut b) = (peer_on(&both, Limits::default()), peer_on(&both, Limits::default()));
    let port = b.addr().port();
    let mut addrs = vec![SocketAddr::from(([127, 0, 0, 1], port))];
    if a.addr().is_ipv6() {
        addrs.push((std::net::Ipv6Addr::LOCALHOST, port).into());
    }
    for addr in addrs {
        let dialed = a.endpoint.connect(addr, b.id()).await.unwrap();
        let accepted = b.next().await;
        assert_eq!(dialed.remote_addr(), addr);
        assert_eq!(accepted.remote_addr(), SocketAddr::new(addr.ip(), a.addr().port()));
    }
    let listen = b.endpoint.listen_multiaddrs();
    assert!(!listen.is_empty());
    for addr in listen {
        let (socket, id) = from_multiaddr(&addr).unwrap();
        assert_eq!((socket.port(), id), (port, Some(b.id())));
        assert!(!socket.ip().is_unspecified());
    }
}

#[tokio::test]
async fn loopback_soon_carries_the_largest_datagrams() {
    let (a, mut b) = (peer(), peer());
    let dialed = a.endpoint.connect(b.addr(), b.id()).await.unwrap();
    let accepted = b.next().await;
    let mut exchanges = 0;
    while dialed.quinn().stats().path.current_mtu < 60_000 {
        let (answer, ()) = within(async { tokio::join!(ask(&dialed, &[7; 10_000]), echo_once(&accepted)) }).await;
        assert_eq!(answer.len(), 10_000);
        exchanges += 1;
        assert!(exchanges < 40, "mtu {} after {exchanges} exchanges", dialed.quinn().stats().path.current_mtu);
    }
}

fn libp2p(peer: &mut Peer) -> Boxed<(PeerId, StreamMuxerBox)> {
    let transport = peer.transport.take().unwrap();
    let mut boxed = transport.map(|(id, muxer), _| (id, StreamMuxerBox::new(muxer))).boxed();
    let all: Multiaddr = "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap();
    boxed.listen_on(ListenerId::next(), all).unwrap();
    boxed
}

type Next = TransportEvent<
    <Boxed<(PeerId, StreamMuxerBox)> as Transport>::ListenerUpgrade,
    <Boxed<(PeerId, StreamMuxerBox)> as Transport>::Error,
>;

async fn next_event(transport: &mut Boxed<(PeerId, StreamMuxerBox)>) -> Next {
    within(poll_fn(|cx| Pin::new(&mut *transport).poll(cx))).await
}

/// Polls the transport until an inbound connection comes, and gives its sender.
async fn next_incoming(transport: &mut Boxed<(PeerId, StreamMuxerBox)>) -> (PeerId, Multiaddr) {
    loop {
        if let TransportEvent::Incoming { upgrade, send_back_addr, .. } = next_event(transport).await {
            return (upgrade.await.unwrap().0, send_back_addr);
        }
    }
}

#[tokio::test]
async fn a_dial_from_a_new_port_comes_from_a_new_port() {
    let (mut a, mut b) = (peer(), peer());
    let (mut from, mut to) = (libp2p(&mut a), libp2p(&mut b));
    for (port_use, same) in [(PortUse::Reuse, true), (PortUse::New, false)] {
        let dial = from.dial(to_multiaddr(b.addr()), DialOpts { role: Role::Dialer, port_use }).unwrap();
        let (dialed, (id, back)) = within(async { tokio::join!(dial, next_incoming(&mut to)) }).await;
        assert_eq!((dialed.unwrap().0, id), (b.id(), a.id()));
        assert_eq!(from_multiaddr(&back).unwrap().0 == a.addr(), same, "{back}");
    }
}

#[tokio::test]
async fn the_listening_side_of_a_punch_gets_exactly_the_other_sides_dial() {
    let (mut a, mut b) = (peer(), peer());
    let (mut listener, mut dialer) = (libp2p(&mut a), libp2p(&mut b));
    let as_listener = DialOpts { role: Role::Listener, port_use: PortUse::Reuse };
    let as_dialer = DialOpts { role: Role::Dialer, port_use: PortUse::Reuse };
    let punch = listener.dial(to_multiaddr(b.addr()), as_listener).unwrap();
    let second = listener.dial(to_multiaddr(b.addr()), as_listener).unwrap();
    let dial = dialer.dial(to_multiaddr(a.addr()), as_dialer).unwrap();
    let mut punch = Box::pin(punch);
    assert!(punch.as_mut().now_or_never().is_none(), "nobody has dialled yet");
    assert!(within(second).await.is_err(), "one punch at a time");
    let (punched, dialed) = within(async { tokio::join!(punch, dial) }).await;
    assert_eq!((punched.unwrap().0, dialed.unwrap().0), (b.id(), a.id()));
    // Only the listen address was announced: no second connection came in.
    let events: Vec<_> = futures::stream::poll_fn(|cx| Pin::new(&mut listener).poll(cx).map(Some))
        .take_until(tokio::time::sleep(Duration::from_millis(50)))
        .collect()
        .await;
    assert!(events.iter().all(|e| !matches!(e, TransportEvent::Incoming { .. })));
}
