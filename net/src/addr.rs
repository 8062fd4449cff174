//! Multiaddrs to and from socket addresses, and which socket a set of listen addresses asks for.
//! Never resolves names, never asks the system.

use crate::{BindError, Multiaddr, PeerId};
use multiaddr::Protocol;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// `/ip4|ip6/…/udp/…/quic-v1` of a socket address. IPv4 addresses mapped into IPv6, as dual-stack sockets report them,
/// come out as IPv4.
pub fn to_multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(addr.ip().to_canonical().into()).with(Protocol::Udp(addr.port())).with(Protocol::QuicV1)
}

/// Reads `/ip4|ip6/…/udp/…/quic-v1[/p2p/…]`; anything else (names, TCP, circuits) is `None`. The address comes out
/// canonical: IPv4 where it is an IPv4 address mapped into IPv6.
pub fn from_multiaddr(addr: &Multiaddr) -> Option<(SocketAddr, Option<PeerId>)> {
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let (Some(Protocol::Udp(port)), Some(Protocol::QuicV1)) = (parts.next(), parts.next()) else { return None };
    let peer = match parts.next() {
        None => None,
        Some(Protocol::P2p(peer)) if parts.next().is_none() => Some(peer),
        Some(_) => return None,
    };
    Some((canonical(SocketAddr::new(ip, port)), peer))
}

/// The one form of an address: IPv4 where it is an IPv4 address mapped into IPv6.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The form a socket of the given family sends to; `None` where it cannot.
pub(crate) fn for_socket(addr: SocketAddr, socket_is_v6: bool) -> Option<SocketAddr> {
    match (canonical(addr), socket_is_v6) {
        (SocketAddr::V4(v4), true) => Some(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())),
        (SocketAddr::V6(_), false) => None,
        (same, _) => Some(same),
    }
}

/// The socket that serves a set of listen addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketPlan {
    pub(crate) addr: SocketAddr,
    /// Serves IPv4 through the IPv6 socket as well.
    pub(crate) dual_stack: bool,
}

/// Checks that one socket can serve all the addresses.
pub(crate) fn plan(listen: &[Multiaddr]) -> Result<SocketPlan, BindError> {
    let read = |addr: &Multiaddr| match from_multiaddr(addr) {
        Some((socket, None)) => Ok(socket),
        _ => Err(BindError::Unsupported { addr: addr.clone() }),
    };
    let first = listen.first().ok_or(BindError::NoAddress)?;
    let mut plan = SocketPlan { addr: read(first)?, dual_stack: false };
    for second in &listen[1..] {
        let addr = read(second)?;
        let wildcards = plan.addr.ip().is_unspecified() && addr.ip().is_unspecified();
        if addr.port() != plan.addr.port() || !(wildcards || addr.ip() == plan.addr.ip()) {
            return Err(BindError::SeveralSockets { first: first.clone(), second: second.clone() });
        }
        if addr.is_ipv4() != plan.addr.is_ipv4() || plan.dual_stack {
            plan = SocketPlan { addr: (Ipv6Addr::UNSPECIFIED, addr.port()).into(), dual_stack: true };
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn multiaddrs_round_trip_and_mapped_ones_become_ipv4() {
        for text in ["/ip4/1.2.3.4/udp/5/quic-v1", "/ip6/2001:db8::1/udp/65535/quic-v1"] {
            let (addr, peer) = from_multiaddr(&m(text)).unwrap();
            assert_eq!((to_multiaddr(addr), peer), (m(text), None));
        }
        let mapped = "[::ffff:1.2.3.4]:5".parse().unwrap();
        assert_eq!(to_multiaddr(mapped), m("/ip4/1.2.3.4/udp/5/quic-v1"));
        assert_eq!(from_multiaddr(&m("/ip6/::ffff:1.2.3.4/udp/5/quic-v1")).unwrap().0, "1.2.3.4:5".parse().unwrap());
    }

    #[test]
    fn foreign_multiaddrs_are_none() {
        let peer = PeerId::random();
        let with_peer = m(&format!("/ip4/1.2.3.4/udp/5/quic-v1/p2p/{peer}"));
        assert_eq!(from_multiaddr(&with_peer).unwrap().1, Some(peer));
        for text in [
            "/ip4/1.2.3.4/udp/5",
            "/ip4/1.2.3.4/tcp/5",
            "/dns4/example.org/udp/5/quic-v1",
            "/ip4/1.2.3.4/udp/5/quic-v1/p2p-circuit",
            &format!("{with_peer}/p2p-circuit"),
            "",
        ] {
            assert_eq!(from_multiaddr(&m(text)), None, "{text}");
        }
    }

    #[test]
    fn listen_addresses_that_need_two_sockets_are_refused() {
        let (four, six) = (m("/ip4/0.0.0.0/udp/7/quic-v1"), m("/ip6/::/udp/7/quic-v1"));
        let dual = SocketPlan { addr: "[::]:7".parse().unwrap(), dual_stack: true };
        assert_eq!(plan(&[four.clone(), six.clone()]).unwrap(), dual);
        assert_eq!(plan(&[six.clone(), four.clone(), four.clone()]).unwrap(), dual);
        assert_eq!(plan(&[four.clone(), four.clone()]).unwrap().addr, "0.0.0.0:7".parse().unwrap());
        assert!(matches!(plan(&[]), Err(BindError::NoAddress)));
        for other in ["/ip6/::/udp/8/quic-v1", "/ip4/127.0.0.1/udp/7/quic-v1", "/ip6/::1/udp/7/quic-v1"] {
            assert!(matches!(plan(&[four.clone(), m(other)]), Err(BindError::SeveralSockets { .. })), "{other}");
        }
        assert!(matches!(plan(&[m("/ip4/1.1.1.1/tcp/7")]), Err(BindError::Unsupported { .. })));
    }

    #[test]
    fn a_socket_of_one_family_sends_only_there() {
        let (four, six) = ("1.2.3.4:5".parse().unwrap(), "[2001:db8::1]:5".parse().unwrap());
        assert_eq!(for_socket(four, false), Some(four));
        assert_eq!(for_socket(four, true), Some("[::ffff:1.2.3.4]:5".parse().unwrap()));
        assert_eq!(for_socket(six, false), None);
        assert_eq!(for_socket(six, true), Some(six));
    }
}
