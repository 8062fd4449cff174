//! The UDP port: which one, on which interfaces, and with which limits. Keeps the port of the last start, so that links
//! stay good.

use std::time::Duration;

use shoal_net::{BindError, Endpoint, Incoming, Keypair, Libp2pTransport, Limits, Multiaddr, NetConfig};

use crate::{Config, Failure, Home, blame};

/// How long goodbyes may take to leave. They are sent at once, and again only when the other side still talks; the rest
/// of QUIC's closing time (three probe time-outs) serves nobody, and a command's user waits for it after every fetch.
const GOODBYE: Duration = Duration::from_millis(25);

/// A bound port and what it was asked to listen on.
pub(crate) type Bound = (Endpoint, Libp2pTransport, Incoming, Vec<Multiaddr>);

/// Binds the port: the one that was asked for, else the last one on all interfaces, else a free one.
pub(crate) fn bind(home: &Home, keypair: &Keypair, config: &Config) -> Result<Bound, Failure> {
    let settings = config.settings();
    let limits = Limits {
        connections: settings.connections,
        reserved_for_dials: Limits::default().reserved_for_dials.min(settings.connections / 4),
        shutdown_grace: GOODBYE,
        ..Limits::default()
    };
    let bind = |listen: Vec<Multiaddr>| {
        let config = NetConfig {
            listen: listen.clone(),
            limits: limits.clone(),
            congestion: settings.congestion,
            ..NetConfig::default()
        };
        shoal_net::bind(keypair, config).map(|(endpoint, transport, incoming)| (endpoint, transport, incoming, listen))
    };
    if !settings.listen.is_empty() {
        return bind(settings.listen.clone()).map_err(|error| blame::bind(&error));
    }
    let all = |port: u16| -> Vec<Multiaddr> {
        [std::net::IpAddr::from([0u8; 4]), std::net::IpAddr::from([0u16; 8])]
            .map(|ip| shoal_net::to_multiaddr((ip, port).into()))
            .to_vec()
    };
    // If somebody else has the last port now, any other is as good, and links name the new one.
    let bound = match home.last_port().map(|port| bind(all(port))) {
        Some(Ok(bound)) => Ok(bound),
        Some(Err(_)) | None => match bind(all(0)) {
            // A machine without IPv6.
            Err(BindError::Socket { .. } | BindError::AddrNotAvailable { .. }) => bind(all(0)[..1].to_vec()),
            other => other,
        },
    };
    let bound = bound.map_err(|error| blame::bind(&error))?;
    if let Err(error) = home.remember_port(bound.0.local_addr().port()) {
        tracing::debug!(%error, "the port could not be remembered");
    }
    Ok(bound)
}
