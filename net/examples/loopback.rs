//! Measures what the endpoint moves over loopback: two endpoints in one process, one connection, bulk data one way.
//!
//! `cargo run --release -p shoal-net --example loopback -- [mtu=N] [mib=N] [streams=N] [ack=N] [segments=N] [gso=off]
//! [cc=cubic|bbr|newreno]`. `segments` lowers the batch for the whole socket, to compare with cutting single batches.

use shoal_net::{Congestion, Kernel, Keypair, NetConfig, Underlay, bind_on, quinn};
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// One write of the sender.
const BLOCK: usize = 256 << 10;

#[derive(Debug)]
struct Capped(Kernel, usize);

impl Underlay for Capped {
    fn open(&self, addr: SocketAddr, dual_stack: bool) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        Ok(Arc::new(CappedSocket(self.0.open(addr, dual_stack)?, self.1)))
    }
    fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        self.0.runtime()
    }
    fn max_payload(&self, to: SocketAddr) -> io::Result<u16> {
        self.0.max_payload(to)
    }
    fn interfaces(&self) -> io::Result<Vec<IpAddr>> {
        self.0.interfaces()
    }
}

#[derive(Debug)]
struct CappedSocket(Arc<dyn quinn::AsyncUdpSocket>, usize);

impl quinn::AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        self.0.clone().create_io_poller()
    }
    fn try_send(&self, transmit: &quinn::udp::Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [quinn::udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments().min(self.1)
    }
    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }
    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

fn cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = NetConfig { listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse()?], ..NetConfig::default() };
    let (mut mib, mut streams, mut segments) = (1_024usize, 4usize, usize::MAX);
    for argument in std::env::args().skip(1) {
        let (name, value) = argument.split_once('=').ok_or("arguments are name=value")?;
        match name {
            "mtu" => config.max_mtu = value.parse()?,
            "mib" => mib = value.parse()?,
            "streams" => streams = value.parse()?,
            "segments" => segments = value.parse()?,
            "ack" => config.ack_every = Some(value.parse()?),
            "gso" => config.segmentation_offload = value != "off",
            "window" => config.limits.shoal.receive_window_bytes = value.parse()?,
            "cc" => {
                config.congestion = match value {
                    "bbr" => Congestion::Bbr,
                    "newreno" => Congestion::NewReno,
                    _ => Congestion::Cubic,
                }
            }
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let underlay = Arc::new(Capped(Kernel, segments));
    let server_key = Keypair::generate_ed25519();
    let (server, _server_libp2p, mut incoming) = bind_on(&server_key, config.clone(), underlay.clone())?;
    let (client, _client_libp2p, _) = bind_on(&Keypair::generate_ed25519(), config, underlay)?;

    let sender = tokio::task::JoinSet::from_iter([async move {
        let connection = incoming.next().await.ok_or("no connection")?;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..streams {
            let connection = connection.clone();
            let blocks = mib * (1 << 20) / BLOCK / streams;
            tasks.spawn(async move {
                let mut send = connection.quinn().open_uni().await?;
                let block = bytes::Bytes::from(vec![7u8; BLOCK]);
                for _ in 0..blocks {
                    send.write_chunk(block.clone()).await?;
                }
                send.finish()?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let reason = connection.quinn().closed().await;
        let stats = connection.quinn().stats();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((reason, stats))
    }]);

    let connection = client.connect(server.local_addr(), server.peer_id()).await?;
    let (began, cpu_before) = (Instant::now(), cpu());
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..streams {
        let mut recv = connection.quinn().accept_uni().await?;
        readers.spawn(async move {
            let mut total = 0usize;
            while let Some(chunk) = recv.read_chunk(1 << 20, true).await? {
                total += chunk.bytes.len();
            }
            Ok::<_, quinn::ReadError>(total)
        });
    }
    let mut total = 0;
    while let Some(done) = readers.join_next().await {
        total += done??;
    }
    let (wall, spent) = (began.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
    connection.quinn().close(0u32.into(), b"done");
    let mut sender = sender;
    let (_, stats) =
        sender.join_next().await.ok_or("no sender")?.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    println!(
        "{:.0} MB/s, {:.2} CPU s/GB, mtu {}, {} packets lost of {}, {} black holes, {} calls, {} probes",
        total as f64 / 1e6 / wall,
        spent / (total as f64 / 1e9),
        stats.path.current_mtu,
        stats.path.lost_packets,
        stats.path.sent_packets,
        stats.path.black_holes_detected,
        stats.udp_tx.ios,
        stats.path.sent_plpmtud_probes,
    );
    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}
