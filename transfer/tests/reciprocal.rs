//! The reciprocal uplink over real connections: a peer by hand that takes and never serves, and another that wants
//! something too.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{LIMIT, Peer, bind, noise};
use shoal_content::Cid;
use shoal_net::{Connection, quinn};
use shoal_transfer::{
    TransferConfig,
    choke::{ADVANCE, Policy},
    wire::{Hello, LeafSet, Message, Packing, Request, code},
};

/// A connection that takes part in a root's swarm by hand. The streams stay open with it.
struct Hand {
    connection: Connection,
    control: quinn::SendStream,
    _endpoint: shoal_net::Endpoint,
}

impl Hand {
    async fn join(seeder: &Peer, root: Cid, leaves: u32) -> Hand {
        let (endpoint, _incoming) = bind();
        let to = seeder.addr();
        let connection = endpoint.connect(to.addrs[0], to.peer).await.unwrap();
        let control = connection.quinn().open_uni().await.unwrap();
        let mut hand = Hand { connection, control, _endpoint: endpoint };
        hand.say(Message::Hello(Hello { version: 1, features: 0, agent: "hand".into(), addrs: vec![] })).await;
        hand.say(Message::Join { channel: 1, root, leaves, answer: true }).await;
        hand.wants(true).await;
        hand
    }

    async fn wants(&mut self, yes: bool) {
        self.say(Message::Interested { channel: 1, yes }).await;
    }

    async fn say(&mut self, message: Message) {
        let mut bytes = vec![];
        message.encode(&mut bytes);
        self.control.write_all(&bytes).await.unwrap();
    }

    /// Asks for a leaf and reads the answer. Gives the length of it, or none if it was refused for being choked.
    async fn take(&self, root: Cid, leaf: u32) -> Option<u64> {
        let (mut send, mut recv) = self.connection.quinn().open_bi().await.unwrap();
        let leaves = LeafSet::pack([leaf]).remove(0);
        send.write_all(&Request::Leaves { root, packing: Packing::Off, leaves }.encode()).await.unwrap();
        send.finish().unwrap();
        let mut taken = 0;
        loop {
            match recv.read_chunk(1 << 16, true).await {
                Ok(Some(chunk)) => taken += chunk.bytes.len() as u64,
                Ok(None) => return Some(taken),
                Err(quinn::ReadError::Reset(why)) if why == code::CHOKED.into() => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_and_never_serves_waits_while_others_want_something() {
    let config = TransferConfig { agent: "test".into(), uplink: Policy::Reciprocal, ..TransferConfig::default() };
    let seeder = Peer::with(config);
    let (root, _) = seeder.share_bytes("film", &noise(31, 4 << 20)).await;
    let leaves = seeder.store.manifest(&root).unwrap().leaves().len() as u32;
    let mut rider = Hand::join(&seeder, root, leaves).await;
    let mut other = Hand::join(&seeder, root, leaves).await;
    let scene = async {
        let mut taken = 0;
        // announcing one leaf over and over earns no more than the film has: it would do for ten gigabytes, and much more of
        // it ends the connection
        for _ in 0..40_000 {
            rider.say(Message::Have { channel: 1, leaves: LeafSet::pack([0]).remove(0) }).await;
        }
        for leaf in (0..leaves).cycle() {
            // the wish of the other may come later than the first requests
            match rider.take(root, leaf).await {
                Some(bytes) => taken += bytes,
                None => break,
            }
        }
        assert!(taken > ADVANCE, "choked after {taken} bytes");
        assert!(other.take(root, 0).await.is_some(), "the other does its part, as far as anybody knows");
        assert!(rider.take(root, 0).await.is_none());
        other.wants(false).await;
        while rider.take(root, 0).await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, scene).await.unwrap();
    seeder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn among_friends_nobody_is_counted() {
    let seeder = Peer::start();
    let (root, _) = seeder.share_bytes("film", &noise(32, 4 << 20)).await;
    let leaves = seeder.store.manifest(&root).unwrap().leaves().len() as u32;
    let rider = Hand::join(&seeder, root, leaves).await;
    let other = Hand::join(&seeder, root, leaves).await;
    let mut taken = 0;
    for leaf in (0..leaves).cycle() {
        taken += rider.take(root, leaf).await.expect("refused");
        if taken > 8 * ADVANCE {
            break;
        }
    }
    drop(other);
    seeder.stop().await;
}
