//! Measures handshakes: `cargo run [--release] -p shoal-net --example handshakes [-- COUNT]` prints the CPU time of one,
//! both sides together.

use shoal_net::{Keypair, NetConfig, bind};
use std::time::Duration;

fn cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u32 = std::env::args().nth(1).map_or(Ok(200), |n| n.parse())?;
    let config = || -> Result<NetConfig, Box<dyn std::error::Error>> {
        Ok(NetConfig { listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse()?], ..NetConfig::default() })
    };
    let (server, _a, mut incoming) = bind(&Keypair::generate_ed25519(), config()?)?;
    let (client, _b, _) = bind(&Keypair::generate_ed25519(), config()?)?;
    let before = cpu();
    for _ in 0..count {
        let dialed = client.connect(server.local_addr(), server.peer_id()).await?;
        incoming.next().await.ok_or("no connection")?;
        dialed.close(shoal_net::CLOSE_NORMAL, b"");
    }
    println!("{:.2} CPU ms per handshake", (cpu() - before).as_secs_f64() * 1e3 / f64::from(count));
    Ok(())
}
