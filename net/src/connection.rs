//! A data-plane connection and the stream of inbound ones. What is said on them is not known here.

use crate::{PeerId, addr::canonical, congestion, table::Slot};
use std::{fmt, net::SocketAddr, sync::Arc};
use tokio::sync::mpsc;

/// An authenticated connection with ALPN `shoal/1`. Clones share it.
///
/// The connection closes when the last handle and the last stream are dropped, or by [`Connection::close`]. It counts
/// against [`Limits::connections`](crate::Limits) as long as a handle lives, so keep one while it is used and no longer.
#[derive(Clone)]
pub struct Connection {
    quinn: quinn::Connection,
    peer: PeerId,
    dialer: bool,
    _slot: Arc<Slot>,
}

impl Connection {
    pub(crate) fn new(quinn: quinn::Connection, peer: PeerId, dialer: bool, slot: Slot) -> Self {
        Connection { quinn, peer, dialer, _slot: Arc::new(slot) }
    }

    /// The QUIC connection, for streams, statistics and closing. Window sizes can be changed on it for a trusted bulk
    /// peer: `set_receive_window`, `set_send_window`, `set_max_concurrent_bi_streams`.
    pub fn quinn(&self) -> &quinn::Connection {
        &self.quinn
    }

    /// Closes at once, with a code and a reason (UTF-8, at most some 1,000 bytes) that the remote will see. Unlike
    /// `quinn().close(…)`, the goodbye leaves also when the congestion window is full.
    pub fn close(&self, code: quinn::VarInt, reason: &[u8]) {
        congestion::let_go(&self.quinn);
        self.quinn.close(code, reason);
    }

    /// The identity that the remote proved.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The remote's address; IPv4 also where it came through a dual-stack socket.
    pub fn remote_addr(&self) -> SocketAddr {
        canonical(self.quinn.remote_address())
    }

    /// Whether we opened it. Where two peers dial each other at once, this and the order of their ids settle which
    /// connection stays.
    pub fn is_dialer(&self) -> bool {
        self.dialer
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = if self.dialer { "to" } else { "from" };
        write!(f, "Connection({arrow} {} at {})", self.peer, self.remote_addr())
    }
}

/// Inbound data-plane connections, handshake complete, peer authenticated.
#[derive(Debug)]
pub struct Incoming(pub(crate) mpsc::Receiver<Connection>);

impl Incoming {
    /// The next one; `None` after shutdown. Cancel safe. At most [`Limits::backlog`](crate::Limits) wait here; further
    /// ones are closed with [`CLOSE_BUSY`](crate::CLOSE_BUSY).
    pub async fn next(&mut self) -> Option<Connection> {
        self.0.recv().await
    }
}
