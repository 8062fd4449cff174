//! One QUIC connection in the test bed: two sans-IO endpoints, timers as coarse as tokio's, and an application that
//! sends streams of one mebibyte one after another.

use super::{IP_UDP, Load, MS, Payload, SEC, Time, World};
use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event,
    MtuDiscoveryConfig, ServerConfig, StreamEvent, StreamId, Transmit, TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use shoal_net::{Congestion, Keypair};
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// Datagrams of one system call, as quinn asks for.
const SEGMENTS: usize = 10;
/// Bytes of one stream.
const STREAM: u64 = 1 << 20;
/// Streams written to at once.
const AT_ONCE: usize = 24;
/// tokio's timers fire on whole milliseconds.
const TICK: Time = MS;
const UDP_PAYLOAD: u16 = 1_472;

struct Side {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    /// The timer that is set.
    armed: Option<Time>,
}

pub(crate) struct Quic {
    flow: usize,
    base: Instant,
    sides: [Side; 2],
    client: Option<ClientConfig>,
    load: Load,
    /// Bytes the application may still send now.
    budget: u64,
    sending: Vec<(StreamId, u64)>,
    readable: Vec<StreamId>,
    arrived: u64,
    /// What has to arrive before the next burst, and when that one may begin.
    due: u64,
    next_burst: Option<Time>,
    connected: bool,
}

fn address(side: usize) -> SocketAddr {
    ([10, 0, 0, side as u8 + 1], 4_000).into()
}

type Crypto = (Arc<QuicClientConfig>, Arc<QuicServerConfig>);

fn crypto() -> &'static Crypto {
    static CRYPTO: OnceLock<Crypto> = OnceLock::new();
    CRYPTO.get_or_init(|| {
        let key = Keypair::generate_ed25519();
        let mut client = libp2p_tls::make_client_config(&key, None).unwrap();
        client.enable_sni = false;
        let server = libp2p_tls::make_server_config(&key).unwrap();
        (Arc::new(QuicClientConfig::try_from(client).unwrap()), Arc::new(QuicServerConfig::try_from(server).unwrap()))
    })
}

fn transport(cc: Congestion) -> Arc<TransportConfig> {
    let mut t = TransportConfig::default();
    t.max_concurrent_uni_streams(128u32.into());
    t.stream_receive_window((2u32 << 20).into());
    t.receive_window((32u32 << 20).into());
    t.send_window(32 << 20);
    t.send_fairness(true);
    t.initial_mtu(1_200);
    t.datagram_receive_buffer_size(None);
    t.max_idle_timeout(Some(Duration::from_secs(300).try_into().unwrap()));
    let mut search = MtuDiscoveryConfig::default();
    search.upper_bound(UDP_PAYLOAD);
    search.minimum_change(20);
    t.mtu_discovery_config(Some(search));
    t.congestion_controller_factory(cc.factory(UDP_PAYLOAD));
    Arc::new(t)
}

impl Quic {
    pub(crate) fn new(flow: usize, base: Instant, cc: Congestion, load: Load, seed: u64) -> Self {
        let (client_crypto, server_crypto) = crypto().clone();
        let mut client = ClientConfig::new(client_crypto);
        client.transport_config(transport(cc));
        let mut server = ServerConfig::with_crypto(server_crypto);
        server.transport_config(transport(cc));
        let seed = |side: u8| {
            let mut bytes = [side; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            Some(bytes)
        };
        let config = Arc::new(EndpointConfig::default());
        let receiver = Endpoint::new(config.clone(), Some(Arc::new(server)), true, seed(1));
        let sender = Endpoint::new(config, None, true, seed(2));
        let side = |endpoint| Side { endpoint, connection: None, armed: None };
        Quic {
            flow,
            base,
            sides: [side(sender), side(receiver)],
            client: Some(client),
            load,
            budget: match load {
                Load::Bulk => u64::MAX,
                Load::Idle(_) => 0,
                Load::Bytes(n) | Load::Bursts(n, _) => n,
            },
            sending: Vec::new(),
            readable: Vec::new(),
            arrived: 0,
            due: match load {
                Load::Bulk | Load::Idle(_) => u64::MAX,
                Load::Bytes(n) | Load::Bursts(n, _) => n,
            },
            next_burst: match load {
                Load::Idle(until) => Some(until.as_nanos() as Time),
                _ => None,
            },
            connected: false,
        }
    }

    fn instant(&self, at: Time) -> Instant {
        self.base + Duration::from_nanos(at)
    }

    pub(crate) fn window(&mut self) -> u64 {
        self.sides[0].connection.as_ref().map_or(0, |(_, c)| c.stats().path.cwnd)
    }

    pub(crate) fn sent_and_lost(&mut self) -> (u64, u64) {
        let path = self.sides[0].connection.as_ref().map(|(_, c)| c.stats().path);
        path.map_or((0, 0), |p| (p.sent_packets, p.lost_packets))
    }

    /// The start, or a timer. The sending side is 0.
    pub(crate) fn wake(&mut self, world: &mut World, forward: bool) {
        let now = self.instant(world.now);
        if let Some(client) = self.client.take() {
            let made = self.sides[0].endpoint.connect(now, client, address(1), "l").unwrap();
            self.sides[0].connection = Some(made);
        }
        let side = usize::from(!forward);
        if let Some((_, connection)) = &mut self.sides[side].connection {
            if self.sides[side].armed.is_some_and(|at| at <= world.now) {
                self.sides[side].armed = None;
            }
            if connection.poll_timeout().is_some_and(|at| at <= now) {
                connection.handle_timeout(now);
            }
        }
        self.drive(world, side);
    }

    pub(crate) fn receive(&mut self, world: &mut World, forward: bool, bytes: Vec<u8>) {
        let now = self.instant(world.now);
        let (to, from) = (usize::from(forward), usize::from(!forward));
        let mut buffer = Vec::new();
        let side = &mut self.sides[to];
        match side.endpoint.handle(now, address(from), None, None, BytesMut::from(&bytes[..]), &mut buffer) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut side.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                side.connection = side.endpoint.accept(incoming, now, &mut buffer, None).ok();
            }
            Some(DatagramEvent::Response(transmit)) => {
                let bytes = buffer[..transmit.size].to_vec();
                world.send(self.flow, !forward, bytes.len() + IP_UDP, Payload::Quic(bytes));
            }
            None => {}
        }
        self.drive(world, to);
    }

    fn drive(&mut self, world: &mut World, side: usize) {
        let now = self.instant(world.now);
        loop {
            let Side { endpoint, connection, .. } = &mut self.sides[side];
            let Some((handle, connection)) = connection else { return };
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(back) = endpoint.handle_event(*handle, event) {
                    connection.handle_event(back);
                }
            }
            let mut any = false;
            while let Some(event) = connection.poll() {
                any = true;
                match event {
                    Event::Connected => self.connected = true,
                    Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                        while let Some(id) = connection.streams().accept(Dir::Uni) {
                            self.readable.push(id);
                        }
                    }
                    Event::Stream(StreamEvent::Readable { id }) => self.readable.push(id),
                    Event::ConnectionLost { reason } => panic!("flow {} was lost: {reason}", self.flow),
                    _ => {}
                }
            }
            if !any {
                break;
            }
        }
        if side == 0 {
            self.write(world)
        } else {
            self.read(world)
        }
        let Some((_, connection)) = &mut self.sides[side].connection else { return };
        let mut buffer = Vec::new();
        while let Some(Transmit { size, segment_size, .. }) = connection.poll_transmit(now, SEGMENTS, &mut buffer) {
            for segment in buffer[..size].chunks(segment_size.unwrap_or(size)) {
                world.send(self.flow, side == 0, segment.len() + IP_UDP, Payload::Quic(segment.to_vec()));
            }
            buffer.clear();
        }
        if let Some(at) = connection.poll_timeout() {
            let at = at.saturating_duration_since(self.base).as_nanos() as Time;
            let at = at.max(world.now + 1).div_ceil(TICK) * TICK;
            if self.sides[side].armed.is_none_or(|armed| armed > at) {
                self.sides[side].armed = Some(at);
                world.wake(self.flow, side == 0, at);
            }
        }
    }

    /// The sending application.
    fn write(&mut self, world: &mut World) {
        static ZEROES: [u8; 65_536] = [0; 65_536];
        if !self.connected {
            return;
        }
        if let (Some(at), Load::Bursts(n, _)) = (self.next_burst, self.load)
            && world.now >= at
        {
            self.next_burst = None;
            self.budget += n;
            self.due += n;
        }
        if let (Some(at), Load::Idle(_)) = (self.next_burst, self.load) {
            if world.now < at {
                return world.wake(self.flow, true, at);
            }
            self.next_burst = None;
            self.budget = u64::MAX;
        }
        let Some((_, connection)) = &mut self.sides[0].connection else { return };
        loop {
            if self.sending.len() < AT_ONCE
                && self.budget > 0
                && let Some(id) = connection.streams().open(Dir::Uni)
            {
                let bytes = STREAM.min(self.budget);
                if self.budget != u64::MAX {
                    self.budget -= bytes;
                }
                self.sending.push((id, bytes));
                continue;
            }
            let mut wrote = false;
            let mut blocked = false;
            for (id, left) in &mut self.sending {
                while *left > 0 {
                    let n = (*left).min(ZEROES.len() as u64) as usize;
                    match connection.send_stream(*id).write(&ZEROES[..n]) {
                        Ok(n) => {
                            *left -= n as u64;
                            wrote = true;
                        }
                        Err(_) => {
                            blocked = true;
                            break;
                        }
                    }
                }
                if *left == 0 {
                    connection.send_stream(*id).finish().unwrap();
                }
            }
            self.sending.retain(|(_, left)| *left > 0);
            if !wrote || blocked {
                return;
            }
        }
    }

    /// The receiving application.
    fn read(&mut self, world: &mut World) {
        let Some((_, connection)) = &mut self.sides[1].connection else { return };
        let mut bytes = 0;
        for id in std::mem::take(&mut self.readable) {
            let mut stream = connection.recv_stream(id);
            let Ok(mut chunks) = stream.read(false) else { continue };
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                bytes += chunk.bytes.len() as u64;
            }
            // whether a window update is due is found at the next transmit in any case
            let _due = chunks.finalize();
        }
        if bytes == 0 {
            return;
        }
        self.arrived += bytes;
        world.arrived(self.flow, bytes);
        if self.arrived >= self.due && self.next_burst.is_none() {
            match self.load {
                Load::Bytes(_) => world.done(self.flow),
                Load::Bursts(_, gap) => {
                    let at = (world.now + gap.as_nanos() as Time).min(world.now + 100 * SEC);
                    self.next_burst = Some(at);
                    world.wake(self.flow, true, at);
                }
                Load::Bulk | Load::Idle(_) => {}
            }
        }
    }
}
