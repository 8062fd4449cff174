//! What the endpoint stands on: UDP sockets, a QUIC runtime, routes and interfaces. [`Kernel`] is the real thing; a test
//! network implements [`Underlay`] to run whole daemons over simulated UDP.

use crate::{route, socket};
use std::{
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The system below the endpoint. All methods are quick and do not wait for the network.
pub trait Underlay: fmt::Debug + Send + Sync + 'static {
    /// Opens a UDP socket. `dual_stack` (only with an IPv6 wildcard) serves IPv4 too.
    fn open(&self, addr: SocketAddr, dual_stack: bool) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// Timers and tasks for QUIC.
    fn runtime(&self) -> Arc<dyn quinn::Runtime>;

    /// The largest UDP payload in bytes that the first hop towards `to` carries. An error means that there is no route.
    fn max_payload(&self, to: SocketAddr) -> io::Result<u16>;

    /// Addresses of the interfaces that are up, in the system's order.
    fn interfaces(&self) -> io::Result<Vec<IpAddr>>;
}

/// The operating system's UDP, under tokio.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

impl Underlay for Kernel {
    fn open(&self, addr: SocketAddr, dual_stack: bool) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        socket::open(addr, dual_stack)
    }

    fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }

    fn max_payload(&self, to: SocketAddr) -> io::Result<u16> {
        route::max_payload(to)
    }

    fn interfaces(&self) -> io::Result<Vec<IpAddr>> {
        let mut ips: Vec<IpAddr> =
            if_addrs::get_if_addrs()?.into_iter().filter(|i| i.is_oper_up()).map(|i| i.ip()).collect();
        if ips.is_empty() {
            return Err(io::Error::new(ErrorKind::NetworkDown, "no interface is up"));
        }
        let mut seen = std::collections::BTreeSet::new();
        ips.retain(|ip| seen.insert(*ip));
        Ok(ips)
    }
}
