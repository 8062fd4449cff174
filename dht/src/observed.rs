//! Tells the swarm the address that remotes see, as they see it.
//!
//! identify replaces an observed port that is not a listen port by the listen port. That is wrong for us: every dial
//! goes out of the listening socket, so another port in the remote's eyes is a NAT's mapping of it, and the very one
//! that hole punching needs.

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm, dummy,
    },
};
use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

/// How many different observations are remembered; remotes can make them up. AutoNAT tests each before it is believed.
const MAX_SEEN: usize = 32;

/// A behaviour that passes observed addresses on as candidates for external addresses.
#[derive(Default)]
pub(crate) struct Observed {
    /// Oldest first. At most [`MAX_SEEN`].
    seen: VecDeque<Multiaddr>,
    /// At most as many as `seen`.
    queue: VecDeque<Multiaddr>,
    waker: Option<Waker>,
}

impl Observed {
    /// A remote says that it sees us there.
    pub(crate) fn report(&mut self, addr: Multiaddr) {
        if self.seen.contains(&addr) {
            return;
        }
        if self.seen.len() == MAX_SEEN {
            self.seen.pop_front();
        }
        if self.queue.len() < MAX_SEEN {
            self.queue.push_back(addr.clone());
        }
        self.seen.push_back(addr);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Observed {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.queue.pop_front() {
            Some(addr) => Poll::Ready(ToSwarm::NewExternalAddrCandidate(addr)),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_observation_is_told_once_and_liars_are_bounded() {
        let mut observed = Observed::default();
        let addr = |port: usize| format!("/ip4/9.9.9.9/udp/{port}/quic-v1").parse::<Multiaddr>().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..3 {
            observed.report(addr(1));
        }
        assert!(matches!(observed.poll(&mut cx), Poll::Ready(ToSwarm::NewExternalAddrCandidate(a)) if a == addr(1)));
        assert!(observed.poll(&mut cx).is_pending());
        for port in 0..1_000 {
            observed.report(addr(port));
        }
        assert_eq!((observed.seen.len(), observed.queue.len()), (MAX_SEEN, MAX_SEEN));
    }
}
