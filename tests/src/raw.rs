//! Peers that speak the protocol by hand, to misbehave with: real endpoints, real handshakes, and answers that are not.

use std::{net::SocketAddr, sync::mpsc::sync_channel, thread::JoinHandle};

use shoal_content::Cid;
use shoal_net::{Connection, Endpoint, Incoming, Keypair, NetConfig, PeerId};
use shoal_transfer::wire::{Hello, LeafSet, Message, PackHead, PackKind, Request};
use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    content::{Plan, noise},
    place::LOOPBACK,
};

/// What a raw peer does with a request for leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers with bytes of the right length and the wrong content.
    Lies,
    /// Takes the request and answers nothing, for ever.
    Stalls,
}

/// A peer that joins the swarm of a root, says that it has every leaf, and misbehaves. Stops when dropped.
#[derive(Debug)]
pub struct RawPeer {
    peer: PeerId,
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RawPeer {
    /// Starts one on loopback.
    pub fn start(plan: &Plan, manner: Manner) -> RawPeer {
        let (stop, stopped) = oneshot::channel();
        let (started, start) = sync_channel(1);
        let plan = plan.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let config = NetConfig { listen: vec![LOOPBACK.parse().unwrap()], ..NetConfig::default() };
                let keypair = Keypair::generate_ed25519();
                let (endpoint, _libp2p, incoming) = shoal_net::bind(&keypair, config).unwrap();
                started.send((endpoint.peer_id(), endpoint.local_addr())).unwrap();
                tokio::select! {
                    () = serve(&endpoint, incoming, plan, manner) => {}
                    // Either the guard says so or it is gone.
                    _ = stopped => {}
                }
            });
        });
        let (peer, addr) = start.recv().unwrap();
        RawPeer { peer, addr, stop: Some(stop), thread: Some(thread) }
    }

    /// Who it is.
    pub fn peer(&self) -> String {
        self.peer.to_string()
    }

    /// Where it is, as a link says it.
    pub fn via(&self) -> String {
        format!("{}/p2p/{}", shoal_net::to_multiaddr(self.addr), self.peer)
    }
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a raw peer panicked");
        }
    }
}

async fn serve(_endpoint: &Endpoint, mut incoming: Incoming, plan: Plan, manner: Manner) {
    let mut open = JoinSet::new();
    while let Some(connection) = incoming.next().await {
        let plan = plan.clone();
        open.spawn(async move {
            // The other side hangs up on somebody like this, at any point.
            if let Err(error) = misbehave(&connection, plan, manner).await {
                eprintln!("raw peer ({manner:?}): {error}");
            }
        });
    }
}

async fn misbehave(
    connection: &Connection,
    plan: Plan,
    manner: Manner,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Plan { root, leaf_sizes } = plan;
    let mut control = connection.quinn().open_uni().await?;
    control.write_all(&greeting(root, leaf_sizes.len())).await?;
    let mut held = Vec::new();
    loop {
        let (mut send, mut recv) = connection.quinn().accept_bi().await?;
        let head = recv.read_to_end(1 << 16).await?;
        match Request::decode(&head)? {
            Request::Leaves { leaves, .. } if manner == Manner::Lies => {
                for leaf in leaves.ranges().into_iter().flatten() {
                    let len = leaf_sizes[leaf as usize];
                    let head = PackHead { kind: PackKind::Plain, items: 1, plain: len, wire: len };
                    send.write_all(&head.encode()).await?;
                    send.write_all(&noise(u64::from(leaf) + 99, len.into())).await?;
                }
                send.finish()?;
            }
            _ => held.push((send, recv)),
        }
    }
}

/// Says hello, joins, and claims every leaf. It does not claim to know the tree: nodes are not what it misbehaves with.
fn greeting(root: Cid, leaves: usize) -> Vec<u8> {
    let all = LeafSet::pack(0..u32::try_from(leaves).unwrap());
    let mut bytes = Vec::new();
    Message::Hello(Hello { version: 1, features: 0, agent: "raw".into(), addrs: vec![] }).encode(&mut bytes);
    Message::Join { channel: 7, root, leaves: 0, answer: true }.encode(&mut bytes);
    for leaves in all {
        Message::Have { channel: 7, leaves }.encode(&mut bytes);
    }
    bytes
}
