//! What the kernel knows of the route to an address: whether there is one, and how large a datagram its first hop takes.
//! Nothing is sent.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

/// IPv4 and UDP headers, bytes. IPv6's are 20 more.
const V4_HEADERS: u32 = 28;
const V6_HEADERS: u32 = 48;
/// What a UDP datagram over IPv4 can carry at most: the IP length field counts its headers. IPv6's does not.
const V4_MAX_PAYLOAD: u32 = 65_535 - V4_HEADERS;
const V6_MAX_PAYLOAD: u32 = 65_535 - 8;
/// Used where the system does not tell: Ethernet.
#[cfg_attr(target_os = "linux", expect(dead_code, reason = "Linux tells"))]
const ETHERNET_MTU: u32 = 1_500;

/// The largest UDP payload towards `to`, by the route's MTU. `to` is canonical.
pub(crate) fn max_payload(to: SocketAddr) -> io::Result<u16> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Connecting a UDP socket only looks the route up.
    let probe = UdpSocket::bind(any)?;
    probe.connect(to)?;
    let mtu = route_mtu(&probe, to.is_ipv4())?;
    let payload = match to {
        SocketAddr::V4(_) => mtu.saturating_sub(V4_HEADERS).min(V4_MAX_PAYLOAD),
        SocketAddr::V6(_) => mtu.saturating_sub(V6_HEADERS).min(V6_MAX_PAYLOAD),
    };
    Ok(u16::try_from(payload).unwrap_or(u16::MAX))
}

#[cfg(target_os = "linux")]
fn route_mtu(connected: &UdpSocket, v4: bool) -> io::Result<u32> {
    use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
    Ok(if v4 { ip_mtu(connected)? } else { ipv6_mtu(connected)? })
}

#[cfg(not(target_os = "linux"))]
fn route_mtu(_: &UdpSocket, _: bool) -> io::Result<u32> {
    Ok(ETHERNET_MTU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_takes_the_largest_datagram_there_is() {
        let payload = max_payload("127.0.0.1:9".parse().unwrap()).unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(payload, 65_507);
        }
    }

    #[test]
    fn the_broadcast_address_is_no_destination() {
        assert!(max_payload("255.255.255.255:9".parse().unwrap()).is_err());
    }
}
