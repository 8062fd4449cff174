//! A stock libp2p peer with its own QUIC transport dials us and is dialled by us, while the data plane uses the same
//! port.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder, ping,
    swarm::{DialError, SwarmEvent, dial_opts::DialOpts},
};
use shoal_net::{Endpoint, Incoming, Keypair, NetConfig, PeerId, bind, quinn, to_multiaddr};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

type Ping = Swarm<ping::Behaviour>;

fn stock() -> Ping {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| ping::Behaviour::default())
        .unwrap()
        .with_swarm_config(|c| c.with_idle_connection_timeout(PATIENCE))
        .build()
}

fn ours() -> (Ping, Endpoint, Incoming) {
    let keypair = Keypair::generate_ed25519();
    let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    let (endpoint, transport, incoming) = bind(&keypair, NetConfig { listen, ..NetConfig::default() }).unwrap();
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .unwrap()
        .with_behaviour(|_| ping::Behaviour::default())
        .unwrap()
        .with_swarm_config(|c| c.with_idle_connection_timeout(PATIENCE))
        .build();
    (swarm, endpoint, incoming)
}

async fn listen(swarm: &mut Ping) -> Multiaddr {
    swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

/// Runs both swarms until each has had a pong from the other.
async fn ping_both(a: &mut Ping, b: &mut Ping) {
    let (ids, mut had) = ([*b.local_peer_id(), *a.local_peer_id()], [false, false]);
    let work = async {
        while had != [true, true] {
            let (at, event) = tokio::select! {
                event = a.select_next_some() => (0, event),
                event = b.select_next_some() => (1, event),
            };
            match event {
                SwarmEvent::Behaviour(ping::Event { peer, result, .. }) => {
                    result.unwrap();
                    assert_eq!(peer, ids[at]);
                    had[at] = true;
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                SwarmEvent::ConnectionClosed { cause: Some(cause), .. } => panic!("{cause}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, work).await.expect("no pong");
}

#[tokio::test]
async fn a_stock_peer_dials_us() {
    let ((mut us, endpoint, _incoming), mut them) = (ours(), stock());
    let addr = listen(&mut us).await;
    assert_eq!(addr, to_multiaddr(endpoint.local_addr()));
    them.dial(DialOpts::peer_id(endpoint.peer_id()).addresses(vec![addr]).build()).unwrap();
    ping_both(&mut us, &mut them).await;
    assert_eq!(endpoint.stats().accepted_libp2p, 1);
}

#[tokio::test]
async fn we_dial_a_stock_peer() {
    let ((mut us, _endpoint, _incoming), mut them) = (ours(), stock());
    let addr = listen(&mut them).await;
    us.dial(DialOpts::peer_id(*them.local_peer_id()).addresses(vec![addr]).build()).unwrap();
    ping_both(&mut us, &mut them).await;
}

#[tokio::test]
async fn the_swarm_reports_whom_it_found_instead() {
    let ((mut us, _endpoint, _incoming), mut them) = (ours(), stock());
    let addr = listen(&mut them).await;
    us.dial(DialOpts::peer_id(PeerId::random()).addresses(vec![addr]).build()).unwrap();
    let work = async {
        loop {
            tokio::select! {
                event = us.select_next_some() => {
                    if let SwarmEvent::OutgoingConnectionError { error, .. } = event {
                        return error;
                    }
                }
                _ = them.select_next_some() => {}
            }
        }
    };
    match tokio::time::timeout(PATIENCE, work).await.unwrap() {
        DialError::WrongPeerId { obtained, .. } => assert_eq!(obtained, *them.local_peer_id()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn both_protocols_share_one_port_and_one_identity() {
    let ((mut a, a_endpoint, _a_incoming), (mut b, b_endpoint, mut b_incoming)) = (ours(), ours());
    let addr = listen(&mut b).await;
    a.dial(DialOpts::peer_id(b_endpoint.peer_id()).addresses(vec![addr]).build()).unwrap();
    let data = async {
        let dialed = a_endpoint.connect(b_endpoint.local_addr(), b_endpoint.peer_id()).await.unwrap();
        let accepted = b_incoming.next().await.unwrap();
        assert_eq!(accepted.peer(), a_endpoint.peer_id());
        assert_eq!(accepted.remote_addr(), a_endpoint.local_addr());
        let mut send = dialed.quinn().open_uni().await.unwrap();
        send.write_all(&[7; 300_000]).await.unwrap();
        send.finish().unwrap();
        let mut recv = accepted.quinn().accept_uni().await.unwrap();
        assert_eq!(recv.read_to_end(1 << 20).await.unwrap().len(), 300_000);
        // The table counts handles: keep both until it is read.
        (dialed, accepted)
    };
    let ((dialed, _accepted), ()) = tokio::join!(data, ping_both(&mut a, &mut b));
    let stats = b_endpoint.stats();
    assert_eq!((stats.accepted_libp2p, stats.accepted_shoal, stats.open), (1, 1, 2));

    // Shutdown closes both.
    b_endpoint.shutdown().await;
    assert!(matches!(dialed.quinn().closed().await, quinn::ConnectionError::ApplicationClosed(_)));
    let work = async { while !matches!(a.select_next_some().await, SwarmEvent::ConnectionClosed { .. }) {} };
    tokio::time::timeout(PATIENCE, work).await.unwrap();
}

#[tokio::test]
async fn a_stock_peer_does_not_speak_the_data_plane() {
    let ((_us, endpoint, _incoming), mut them) = (ours(), stock());
    let addr = listen(&mut them).await;
    let (socket, _) = shoal_net::from_multiaddr(&addr).unwrap();
    let id = *them.local_peer_id();
    let connect = endpoint.connect(socket, id);
    let error = tokio::select! {
        result = connect => result.unwrap_err(),
        () = async { loop { them.select_next_some().await; } } => unreachable!(),
    };
    assert!(matches!(error, shoal_net::ConnectError::NoCommonProtocol { .. }), "{error}");
}
