//! Errors by operation and by whose fault it is: ours to fix, the remote's, or the path's.

use crate::{Multiaddr, PeerId};
use std::{io, net::SocketAddr, time::Duration};

/// Why [`bind`](crate::bind) failed. All are local: the message says what to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// No listen address was given.
    #[error("no listen address given; give one such as /ip4/0.0.0.0/udp/4001/quic-v1")]
    NoAddress,
    /// The address is not a QUIC address of this machine's families.
    #[error("cannot listen on {addr}: only /ip4/…/udp/PORT/quic-v1 and /ip6/…/udp/PORT/quic-v1 are served")]
    Unsupported {
        /// The address as given.
        addr: Multiaddr,
    },
    /// The addresses do not fit on one socket.
    #[error(
        "cannot listen on both {first} and {second}: there is one UDP port; \
         give one address, or the two wildcards /ip4/0.0.0.0 and /ip6/:: with the same port"
    )]
    SeveralSockets {
        /// The first address.
        first: Multiaddr,
        /// The one that does not fit to it.
        second: Multiaddr,
    },
    /// Another process has the port.
    #[error(
        "cannot listen on UDP {addr}: the port is in use; stop the other program, choose another port, or 0 for any"
    )]
    AddrInUse {
        /// The address that is taken.
        addr: SocketAddr,
    },
    /// No interface has this address.
    #[error("cannot listen on UDP {addr}: no interface of this machine has this address; use 0.0.0.0 or [::] for all")]
    AddrNotAvailable {
        /// The address that is not ours.
        addr: SocketAddr,
    },
    /// The system forbids it (ports below 1,024 need a privilege).
    #[error("cannot listen on UDP {addr}: permission denied; choose a port above 1023")]
    PermissionDenied {
        /// The forbidden address.
        addr: SocketAddr,
    },
    /// Any other fault of the socket.
    #[error("cannot open UDP socket {addr}: {source}")]
    Socket {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS certificate could not be made from the key.
    #[error("cannot make the TLS certificate of this identity: {0}")]
    Certificate(String),
    /// A setting is out of its range.
    #[error("setting {name} is {value}: {why}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The allowed range.
        why: &'static str,
    },
}

/// Why [`Endpoint::connect`](crate::Endpoint::connect) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing answered in time: nobody there, a firewall, or a NAT without a mapping. Worth another try later.
    #[error("no answer from {addr} within {after:?}")]
    Timeout {
        /// Whom we called.
        addr: SocketAddr,
        /// How long we waited.
        after: Duration,
    },
    /// Somebody else answered. The address is stale, or somebody pretends.
    #[error("{addr} is not {expected} but {got}")]
    WrongPeer {
        /// Whom we called.
        addr: SocketAddr,
        /// The identity we wanted.
        expected: PeerId,
        /// The identity that was proved.
        got: PeerId,
    },
    /// The remote is there and does not want us (its limits are reached, or it shuts down). Back off.
    #[error("{addr} refused the connection: {reason}")]
    Refused {
        /// Whom we called.
        addr: SocketAddr,
        /// In the remote's words, or the error code's.
        reason: String,
    },
    /// The remote speaks QUIC, but not this protocol: another version, or another program.
    #[error("{addr} does not speak this version of the protocol ({wanted}); one of the two programs is too old")]
    NoCommonProtocol {
        /// Whom we called.
        addr: SocketAddr,
        /// The protocol we offered.
        wanted: String,
    },
    /// The handshake failed for another reason; the remote is faulty.
    #[error("handshake with {addr} failed: {reason}")]
    Handshake {
        /// Whom we called.
        addr: SocketAddr,
        /// What was wrong.
        reason: String,
    },
    /// This machine has no route to the address, or no socket of its family.
    #[error("{addr} cannot be reached from here: {reason}")]
    Unreachable {
        /// Whom we wanted to call.
        addr: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// Our own table of connections is full.
    #[error("{max} connections are open already; close some, or raise the limit `connections`")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The endpoint was shut down.
    #[error("the endpoint is shut down")]
    Closed,
}

/// What the libp2p transport reports to the swarm.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportIoError {
    /// A dial failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// An accepted connection died.
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    /// The remote proved no libp2p identity.
    #[error("the remote proved no libp2p identity")]
    NoIdentity,
    /// The handshake took too long.
    #[error("handshake timed out")]
    Timeout,
    /// A hole punch to this address is running, or too many are.
    #[error("not punching to {addr}: {why}")]
    Punch {
        /// The address to be punched to.
        addr: SocketAddr,
        /// What is in the way.
        why: &'static str,
    },
    /// Interfaces cannot be watched, or a socket cannot be opened.
    #[error(transparent)]
    Io(#[from] io::Error),
}
