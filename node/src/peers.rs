//! Who is connected: the data plane's peers and the DHT's, as one list; and how fast they may be served.

use std::collections::BTreeMap;

use shoal_transfer::RateChange;

use crate::{Event, Failure, LimitChange, Limits, Node, PeerInfo, RateLimit, Root, operation::Sink};

impl Node {
    /// [`crate::Request::Limit`].
    pub(crate) async fn limit(&self, sink: Sink, change: LimitChange) -> Result<(), Failure> {
        let change = RateChange {
            up: change.upload.map(|limit| limit.0),
            down: change.download.map(|limit| limit.0),
            up_per_peer: change.upload_per_peer.map(|limit| limit.0),
            down_per_peer: change.download_per_peer.map(|limit| limit.0),
        };
        let rates = self.transfer().limit(change).await.ok_or_else(Failure::interrupted)?;
        sink.event(Event::Limits(Limits {
            upload: RateLimit(rates.up),
            download: RateLimit(rates.down),
            upload_per_peer: RateLimit(rates.up_per_peer),
            download_per_peer: RateLimit(rates.down_per_peer),
        }))
        .await
    }

    /// [`crate::Request::Peers`].
    pub(crate) async fn peers(&self, sink: Sink) -> Result<(), Failure> {
        let mut peers = BTreeMap::<String, PeerInfo>::new();
        for report in self.transfer().peers().await {
            let peer = report.peer.to_string();
            let info = PeerInfo {
                peer: peer.clone(),
                addrs: vec![shoal_net::to_multiaddr(report.addr).to_string()],
                agent: report.agent,
                planes: vec!["data".to_owned()],
                bytes_in: report.bytes_in,
                bytes_out: report.bytes_out,
                rtt_ms: Some(report.rtt.as_secs_f64() * 1e3),
                roots: report.roots.into_iter().map(Root).collect(),
            };
            peers.insert(peer, info);
        }
        for known in self.dht().peers().await.unwrap_or_default() {
            let peer = known.peer.to_string();
            let addrs: Vec<String> =
                known.addrs.iter().map(|addr| shoal_net::to_multiaddr(*addr).to_string()).collect();
            let info = peers.entry(peer.clone()).or_insert_with(|| PeerInfo {
                peer,
                addrs: Vec::new(),
                agent: known.agent.clone(),
                planes: Vec::new(),
                bytes_in: 0,
                bytes_out: 0,
                rtt_ms: None,
                roots: Vec::new(),
            });
            info.planes.push("dht".to_owned());
            for addr in addrs {
                if !info.addrs.contains(&addr) {
                    info.addrs.push(addr);
                }
            }
        }
        for info in peers.into_values() {
            sink.event(Event::Peer(info)).await?;
        }
        let counters = self.transfer().counters().await;
        sink.event(Event::Counters {
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            peers: counters.peers,
            roots: counters.roots,
        })
        .await
    }
}
