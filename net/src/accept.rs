//! The accept loop: admission, handshake, and the hand-over by ALPN. One task; it owns the handshakes.

use crate::{
    CLOSE_BUSY, Connection, PeerId,
    addr::canonical,
    congestion,
    endpoint::Shared,
    muxer::Muxer,
    quic::Alpn,
    table::{Full, Slot},
    tls,
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

/// An inbound libp2p connection on its way to the transport.
pub(crate) struct InboundLibp2p {
    pub(crate) peer: PeerId,
    pub(crate) muxer: Muxer,
    pub(crate) from: SocketAddr,
}

/// What happened at the door since the endpoint was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetStats {
    /// Connections and handshakes open now, both directions.
    pub open: usize,
    /// Inbound connections with ALPN `libp2p`.
    pub accepted_libp2p: u64,
    /// Inbound connections with ALPN `shoal/1`.
    pub accepted_shoal: u64,
    /// Clients that were asked to prove their address.
    pub retried: u64,
    /// Handshakes refused because the table is full.
    pub refused_full: u64,
    /// Handshakes refused because their address has its share.
    pub refused_ip: u64,
    /// Handshakes that failed or took too long.
    pub failed: u64,
    /// Connections closed because nobody took them from the backlog.
    pub busy: u64,
}

/// The counters behind [`NetStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    accepted_libp2p: AtomicU64,
    accepted_shoal: AtomicU64,
    retried: AtomicU64,
    refused_full: AtomicU64,
    refused_ip: AtomicU64,
    failed: AtomicU64,
    busy: AtomicU64,
}

impl Counters {
    pub(crate) fn snapshot(&self, open: usize) -> NetStats {
        NetStats {
            open,
            accepted_libp2p: self.accepted_libp2p.load(Relaxed),
            accepted_shoal: self.accepted_shoal.load(Relaxed),
            retried: self.retried.load(Relaxed),
            refused_full: self.refused_full.load(Relaxed),
            refused_ip: self.refused_ip.load(Relaxed),
            failed: self.failed.load(Relaxed),
            busy: self.busy.load(Relaxed),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Runs until the endpoint is cancelled; then no handshake of it is left.
pub(crate) async fn run(
    shared: Arc<Shared>,
    to_libp2p: mpsc::Sender<InboundLibp2p>,
    to_shoal: mpsc::Sender<Connection>,
) {
    let permits = Arc::new(Semaphore::new(shared.limits.pending_handshakes));
    let mut handshakes = JoinSet::new();
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, shared.quinn.accept().await?))
        };
        let (permit, incoming) = tokio::select! {
            biased;
            () = shared.cancel.cancelled() => break,
            // Dropping `next` here loses nothing: a permit is given back, and quinn's accept keeps its queue.
            Some(done) = handshakes.join_next() => {
                if let Err(error) = done && error.is_panic() {
                    tracing::error!(%error, "a handshake task panicked");
                }
                continue;
            }
            next = next => match next {
                Some(next) => next,
                None => break,
            },
        };
        let pending = shared.limits.pending_handshakes - permits.available_permits();
        if let Some((incoming, slot)) = admit(&shared, incoming, pending) {
            handshakes.spawn(handshake(shared.clone(), incoming, slot, permit, to_libp2p.clone(), to_shoal.clone()));
        }
    }
    handshakes.shutdown().await;
}

/// Decides on a first packet before any work is spent on it.
fn admit(shared: &Arc<Shared>, incoming: quinn::Incoming, pending: usize) -> Option<(quinn::Incoming, Slot)> {
    let from = canonical(incoming.remote_address());
    if pending > shared.limits.retry_above && !incoming.remote_address_validated() && incoming.may_retry() {
        count(&shared.counters.retried);
        if let Err(error) = incoming.retry() {
            tracing::debug!(%from, %error, "no retry sent");
        }
        return None;
    }
    match shared.table.inbound(from.ip()) {
        Ok(slot) => Some((incoming, slot)),
        Err(full) => {
            count(match full {
                Full::All => &shared.counters.refused_full,
                Full::Ip => &shared.counters.refused_ip,
            });
            tracing::debug!(%from, ?full, "refused");
            incoming.refuse();
            None
        }
    }
}

/// Completes one handshake and hands the connection over. Holds its permit to the end.
async fn handshake(
    shared: Arc<Shared>,
    incoming: quinn::Incoming,
    slot: Slot,
    permit: OwnedSemaphorePermit,
    to_libp2p: mpsc::Sender<InboundLibp2p>,
    to_shoal: mpsc::Sender<Connection>,
) {
    let from = canonical(incoming.remote_address());
    let payload = shared.underlay.max_payload(from).unwrap_or(crate::quic::MIN_UDP_PAYLOAD);
    let work = async {
        let connection = incoming
            .accept_with(shared.configs.server(payload))
            .map_err(|e| e.to_string())?
            .await
            .map_err(|e| e.to_string())?;
        let alpn = connection.handshake_data().and_then(tls::alpn_of).ok_or("no ALPN")?;
        let alpn = Alpn::from_name(&alpn).ok_or("unknown ALPN")?;
        let peer = shared.configs.peer_of(&connection).ok_or("no identity")?;
        Ok::<_, String>((connection, alpn, peer))
    };
    let (connection, alpn, peer) = match tokio::time::timeout(shared.limits.handshake_timeout, work).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => {
            count(&shared.counters.failed);
            tracing::debug!(%from, %error, "inbound handshake failed");
            return;
        }
        Err(_) => {
            count(&shared.counters.failed);
            tracing::debug!(%from, "inbound handshake timed out");
            return;
        }
    };
    shared.configs.admit(alpn, &connection);
    let for_closing = connection.clone();
    let delivered = match alpn {
        Alpn::Libp2p => {
            count(&shared.counters.accepted_libp2p);
            match shared.punches.claim(from, Box::new((peer, Muxer::new(connection, slot)))) {
                Ok(()) => true,
                Err(unclaimed) => {
                    let (peer, muxer) = *unclaimed;
                    to_libp2p.try_send(InboundLibp2p { peer, muxer, from }).is_ok()
                }
            }
        }
        Alpn::Shoal => {
            count(&shared.counters.accepted_shoal);
            to_shoal.try_send(Connection::new(connection, peer, false, slot)).is_ok()
        }
    };
    if !delivered {
        // Waiting here would let one protocol's idle owner block the other one's door.
        count(&shared.counters.busy);
        congestion::let_go(&for_closing);
        for_closing.close(CLOSE_BUSY, b"busy");
    }
    drop(permit);
}
