//! What a caller chooses about the endpoint: where it listens, its limits, and how it sends.

use crate::{Limits, Multiaddr};

/// The congestion controller of every connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Our own: a model of the path after BBR that fills long and lossy paths; see docs/congestion.md.
    #[default]
    Tide,
    /// RFC 9438. Fair, and slow on lossy long paths.
    Cubic,
    /// quinn's BBR version 1 (experimental): fast on lossy paths, at the price of much loss it causes itself.
    Bbr,
    /// RFC 9002, the plain reference.
    NewReno,
}

/// Configuration of [`bind`](crate::bind).
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// One or two addresses `/ip4|ip6/…/udp/PORT/quic-v1`. Two only as the wildcards of both families with one port: one
    /// dual-stack socket then serves both. Port 0 takes a free port.
    pub listen: Vec<Multiaddr>,
    /// What strangers may cost.
    pub limits: Limits,
    /// Congestion controller.
    pub congestion: Congestion,
    /// Upper bound of a UDP payload in bytes, at least 1,200. The path's own bound is found within it: first by what
    /// the kernel says of the route, then by probing.
    pub max_mtu: u16,
    /// Send several datagrams with one system call where the kernel can (GSO). On, except to measure.
    pub segmentation_offload: bool,
    /// Ask the remote to acknowledge only every n-th packet (the QUIC extension "ACK frequency"); `None` leaves it at
    /// every second.
    pub ack_every: Option<u32>,
}

impl Default for NetConfig {
    /// Both wildcards on a free port.
    fn default() -> Self {
        NetConfig {
            listen: [std::net::IpAddr::from([0u8; 4]), std::net::IpAddr::from([0u16; 8])]
                .map(|ip| crate::to_multiaddr((ip, 0).into()))
                .to_vec(),
            limits: Limits::default(),
            congestion: Congestion::default(),
            max_mtu: crate::quic::MAX_UDP_PAYLOAD,
            segmentation_offload: true,
            ack_every: None,
        }
    }
}
