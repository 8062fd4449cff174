//! One sender, one receiver in one process on loopback: `pair FILE DIR` prints import and fetch speed and what the
//! fetch cost in CPU. DIR must be empty and on the file system to measure; /dev/shm measures the engine alone.

use shoal_net::{Keypair, Multiaddr, NetConfig};
use shoal_store::{ImportOptions, Options, Store};
use shoal_transfer::{FetchEvent, FetchRequest, PeerAddr, Transfer, TransferConfig};
use std::{path::PathBuf, sync::atomic::AtomicBool, time::Instant};

/// CPU seconds of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(file), Some(dir)) = (args.next(), args.next()) else { return Err("usage: pair FILE DIR".into()) };
    let listen: Multiaddr = "/ip4/127.0.0.1/udp/0/quic-v1".parse()?;
    let mut peers = vec![];
    for name in ["seeder", "leecher"] {
        let store = Store::open(&dir.join(name), Options::default())?;
        let config = NetConfig { listen: vec![listen.clone()], ..NetConfig::default() };
        let (endpoint, _libp2p, incoming) = shoal_net::bind(&Keypair::generate_ed25519(), config)?;
        let transfer = Transfer::start(endpoint.clone(), incoming, store.clone(), TransferConfig::default());
        peers.push((store, endpoint, transfer));
    }
    let (store, endpoint, seeder) = &peers[0];
    let start = Instant::now();
    let import = {
        let (store, file) = (store.clone(), file.clone());
        tokio::task::spawn_blocking(move || {
            let stop = AtomicBool::new(false);
            shoal_store::import(&store, &file, &shoal_content::SHOAL_V1, &ImportOptions::default(), &|_| {}, &stop)
        })
        .await??
    };
    let took = start.elapsed().as_secs_f64();
    println!("import {:.2} s, {:.2} GB/s", took, import.bytes as f64 / 1e9 / took);
    seeder.seed(import.root).await?;
    let request = FetchRequest {
        root: import.root,
        paths: vec![],
        dir: dir.join("out"),
        name: Some("copy".into()),
        peers: vec![PeerAddr { peer: endpoint.peer_id(), addrs: vec![endpoint.local_addr()] }],
        symlinks: true,
        into: shoal_transfer::FetchInto::Dir,
        expires_unix: None,
        give_up_after: None,
    };
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let mut fetch = peers[1].2.fetch(request).await?;
    while let Some(event) = fetch.next().await {
        match event {
            FetchEvent::Done(report) => {
                let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
                let gb = report.bytes as f64 / 1e9;
                println!("fetch {wall:.2} s, {:.0} MB/s, {:.2} CPU s/GB", gb * 1e3 / wall, cpu / gb);
            }
            FetchEvent::Failed(error) => return Err(error.into()),
            FetchEvent::Started { .. } => println!("started after {:.3} s", start.elapsed().as_secs_f64()),
            _ => {}
        }
    }
    for (_, endpoint, transfer) in &peers {
        transfer.shutdown().await;
        endpoint.shutdown().await;
    }
    Ok(())
}
