//! A QUIC connection as libp2p's `StreamMuxer`. Address changes are never reported: migration is off.

use crate::table::Slot;
use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture, ready};
use libp2p_core::muxing::{StreamMuxer, StreamMuxerEvent};
use quinn::{ConnectionError, RecvStream, SendStream};
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

type Opening = BoxFuture<'static, Result<(SendStream, RecvStream), ConnectionError>>;

/// One libp2p connection. Holds its place in the connection table until it is dropped.
pub struct Muxer {
    connection: quinn::Connection,
    accepting: Option<Opening>,
    opening: Option<Opening>,
    closing: Option<BoxFuture<'static, ConnectionError>>,
    _slot: Slot,
}

impl Muxer {
    pub(crate) fn new(connection: quinn::Connection, slot: Slot) -> Self {
        Muxer { connection, accepting: None, opening: None, closing: None, _slot: slot }
    }

    pub(crate) fn connection(&self) -> &quinn::Connection {
        &self.connection
    }
}

impl fmt::Debug for Muxer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Muxer({})", self.connection.remote_address())
    }
}

/// Polls the future in the slot, made anew when there is none, and clears the slot when it is done.
fn poll_slot(
    slot: &mut Option<Opening>,
    make: impl FnOnce() -> Opening,
    cx: &mut Context<'_>,
) -> Poll<Result<Substream, ConnectionError>> {
    let result = ready!(slot.get_or_insert_with(make).poll_unpin(cx));
    *slot = None;
    Poll::Ready(result.map(|(send, recv)| Substream { send, recv, close: CloseState::Open }))
}

impl StreamMuxer for Muxer {
    type Substream = Substream;
    type Error = ConnectionError;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        let this = self.get_mut();
        let connection = &this.connection;
        let make = || {
            let connection = connection.clone();
            async move { connection.accept_bi().await }.boxed()
        };
        poll_slot(&mut this.accepting, make, cx)
    }

    fn poll_outbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        let this = self.get_mut();
        let connection = &this.connection;
        let make = || {
            let connection = connection.clone();
            async move { connection.open_bi().await }.boxed()
        };
        poll_slot(&mut this.opening, make, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let this = self.get_mut();
        let closing = this.closing.get_or_insert_with(|| {
            crate::congestion::let_go(&this.connection);
            this.connection.close(crate::CLOSE_NORMAL, b"");
            let connection = this.connection.clone();
            async move { connection.closed().await }.boxed()
        });
        match ready!(closing.poll_unpin(cx)) {
            ConnectionError::LocallyClosed => Poll::Ready(Ok(())),
            other => Poll::Ready(Err(other)),
        }
    }

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        Poll::Pending
    }
}

/// One bidirectional stream.
#[derive(Debug)]
pub struct Substream {
    send: SendStream,
    recv: RecvStream,
    close: CloseState,
}

#[derive(Clone, Copy, Debug)]
enum CloseState {
    Open,
    /// quinn reports an error when a finished stream is finished again; libp2p may close twice.
    Closed(Result<(), io::ErrorKind>),
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let CloseState::Closed(result) = self.close {
            return Poll::Ready(result.map_err(Into::into));
        }
        let result = ready!(AsyncWrite::poll_close(Pin::new(&mut self.send), cx));
        self.close = CloseState::Closed(result.as_ref().copied().map_err(io::Error::kind));
        Poll::Ready(result)
    }
}
