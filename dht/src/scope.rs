//! How far an address reaches, and which addresses of strangers are worth keeping here.

use shoal_net::{Multiaddr, PeerId, from_multiaddr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// From where an address can be reached. Ordered from near to far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// This machine.
    Loopback,
    /// The local network, or the carrier's (RFC 1918, 6598, 4193, link-local).
    Private,
    /// Everywhere.
    Global,
}

/// The scope of a unicast address; `None` for what nobody can be dialled at.
pub(crate) fn scope(ip: IpAddr) -> Option<Scope> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => scope_v4(v4),
        IpAddr::V6(v6) => scope_v6(v6),
    }
}

fn scope_v4(ip: Ipv4Addr) -> Option<Scope> {
    let [a, b, _, _] = ip.octets();
    match (a, b) {
        (0 | 224..=255, _) => None,
        (127, _) => Some(Scope::Loopback),
        (10, _) | (172, 16..=31) | (192, 168) | (169, 254) | (100, 64..=127) => Some(Scope::Private),
        // Documentation ranges among them: test networks use those as their internet.
        _ => Some(Scope::Global),
    }
}

fn scope_v6(ip: Ipv6Addr) -> Option<Scope> {
    let first = ip.segments()[0];
    if ip.is_loopback() {
        Some(Scope::Loopback)
    } else if ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local() {
        None // link-local needs an interface's name, which is ours and not theirs
    } else if first & 0xfe00 == 0xfc00 {
        Some(Scope::Private)
    } else if first & 0xe000 == 0x2000 {
        Some(Scope::Global)
    } else {
        None
    }
}

/// A UDP address over QUIC that somebody may be dialled at, with its scope.
pub(crate) fn dialable(addr: &Multiaddr) -> Option<(SocketAddr, Option<PeerId>, Scope)> {
    let (socket, peer) = from_multiaddr(addr)?;
    if socket.port() == 0 {
        return None;
    }
    Some((socket, peer, scope(socket.ip())?))
}

/// Keeps the addresses of `peer` that reach at least as far as `nearest`, at most `max`, without repetition.
pub(crate) fn keep<'a>(
    addrs: impl IntoIterator<Item = &'a Multiaddr>,
    peer: PeerId,
    nearest: Scope,
    max: usize,
) -> Vec<SocketAddr> {
    let mut kept = Vec::new();
    for addr in addrs {
        if kept.len() == max {
            break;
        }
        if let Some((socket, named, scope)) = dialable(addr)
            && named.is_none_or(|named| named == peer)
            && scope >= nearest
            && !kept.contains(&socket)
        {
            kept.push(socket);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_reach_as_far_as_their_range_says() {
        let cases = [
            ("127.0.0.1", Some(Scope::Loopback)),
            ("::1", Some(Scope::Loopback)),
            ("::ffff:127.0.0.1", Some(Scope::Loopback)),
            ("10.1.2.3", Some(Scope::Private)),
            ("172.31.0.1", Some(Scope::Private)),
            ("172.32.0.1", Some(Scope::Global)),
            ("100.64.0.1", Some(Scope::Private)),
            ("fd00::1", Some(Scope::Private)),
            ("8.8.8.8", Some(Scope::Global)),
            ("2a00::1", Some(Scope::Global)),
            ("0.0.0.0", None),
            ("::", None),
            ("224.0.0.1", None),
            ("255.255.255.255", None),
            ("203.0.113.9", Some(Scope::Global)),
            ("fe80::1", None),
            ("ff02::1", None),
            ("2001:db8::1", Some(Scope::Global)),
            ("4000::1", None),
        ];
        for (ip, want) in cases {
            assert_eq!(scope(ip.parse().unwrap()), want, "{ip}");
        }
    }

    #[test]
    fn what_a_stranger_far_away_calls_local_is_not_kept() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let addrs: Vec<Multiaddr> = [
            "/ip4/127.0.0.1/udp/4/quic-v1".to_owned(),
            "/ip4/192.168.1.1/udp/4/quic-v1".to_owned(),
            "/ip4/9.9.9.9/udp/4/quic-v1".to_owned(),
            format!("/ip4/9.9.9.9/udp/4/quic-v1/p2p/{peer}"),
            format!("/ip4/9.9.9.8/udp/4/quic-v1/p2p/{other}"),
            "/ip4/9.9.9.7/udp/0/quic-v1".to_owned(),
            "/ip4/9.9.9.6/tcp/4".to_owned(),
            format!("/ip4/9.9.9.5/udp/4/quic-v1/p2p/{other}/p2p-circuit/p2p/{peer}"),
        ]
        .iter()
        .map(|a| a.parse().unwrap())
        .collect();
        let count = |nearest| keep(&addrs, peer, nearest, 9).len();
        assert_eq!((count(Scope::Loopback), count(Scope::Private), count(Scope::Global)), (3, 2, 1));
        assert_eq!(keep(&addrs, peer, Scope::Loopback, 2).len(), 2);
    }
}
