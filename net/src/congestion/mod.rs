//! The congestion controllers, what they count together (`flight`), and a way past them for the last packet.
//!
//! quinn holds back a CONNECTION_CLOSE like any other packet while the congestion window is full, and once closing it
//! reads no more acknowledgements, so the window stays full: the remote then learns of the end by its idle time-out, half
//! a minute late. [`Yielding`] wraps the chosen controller and, once told to, lets everything through; what is left to
//! send then is that one packet.

mod flight;
mod tide;

pub use flight::Carried;
pub(crate) use flight::Flight;

use crate::Congestion;
use flight::Part;
use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig, NewRenoConfig};
use quinn_proto::RttEstimator;
use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

/// quinn's own initial window: RFC 9002, 7.2, bytes.
const INITIAL_WINDOW: u64 = 12_000;
/// Datagrams of the route's largest size that the initial window holds, if that is more: an MTU probe in flight must
/// leave room for two of the next size. 35 kB on a jumbo Ethernet, 256 KiB on loopback.
const INITIAL_DATAGRAMS: u64 = 4;
/// A window that no flight fills. quinn also stops pacing above 4 GiB.
const OPEN: u64 = u64::MAX / 2;

/// What the controllers of an endpoint share.
#[derive(Debug, Default)]
pub(crate) struct EndpointFlow {
    /// Set when the whole endpoint closes.
    pub(crate) yields: AtomicBool,
    /// What all of them carry.
    pub(crate) flight: Arc<Flight>,
}

/// Builds the controllers of one kind of connection.
pub(crate) struct Factory {
    inner: Arc<dyn ControllerFactory + Send + Sync>,
    endpoint: Arc<EndpointFlow>,
}

impl Factory {
    /// `payload` is the route's largest datagram.
    pub(crate) fn new(kind: Congestion, payload: u16, endpoint: Arc<EndpointFlow>) -> Arc<Self> {
        let window = INITIAL_WINDOW.max(INITIAL_DATAGRAMS * u64::from(payload));
        let inner: Arc<dyn ControllerFactory + Send + Sync> = match kind {
            Congestion::Cubic => {
                let mut config = CubicConfig::default();
                config.initial_window(window);
                Arc::new(config)
            }
            // BBR measures its way up by itself.
            Congestion::Bbr => Arc::new(BbrConfig::default()),
            Congestion::Tide => Arc::new(tide::TideConfig { initial_window: window }),
            Congestion::NewReno => {
                let mut config = NewRenoConfig::default();
                config.initial_window(window);
                Arc::new(config)
            }
        };
        Arc::new(Factory { inner, endpoint })
    }
}

impl Congestion {
    /// The controllers that this endpoint would use on a route whose largest datagram is `payload` bytes: for a test bed
    /// or another endpoint.
    pub fn factory(self, payload: u16) -> Arc<dyn ControllerFactory + Send + Sync> {
        Factory::new(self, payload, Arc::default())
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Yielding {
            inner: self.inner.clone().build(now, current_mtu),
            endpoint: self.endpoint.clone(),
            yields: Arc::default(),
            part: Part::new(self.endpoint.flight.clone()),
        })
    }
}

/// Opens the window of one connection for its last packet. To be called right before closing it.
pub(crate) fn let_go(connection: &quinn::Connection) {
    if let Ok(controller) = connection.congestion_state().into_any().downcast::<Yielding>() {
        controller.yields.store(true, Relaxed);
    }
}

/// A controller that can be told to step aside.
struct Yielding {
    inner: Box<dyn Controller>,
    endpoint: Arc<EndpointFlow>,
    /// Shared by the clones that quinn hands out, which is how the flag is reached from outside.
    yields: Arc<AtomicBool>,
    part: Part,
}

impl Controller for Yielding {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.part.sent(now, bytes);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.part.acknowledged(bytes, rtt.get());
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.part.settled(now, in_flight);
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.part.lost(lost_bytes);
        self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.yields.load(Relaxed) || self.endpoint.yields.load(Relaxed) { OPEN } else { self.inner.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Yielding {
            inner: self.inner.clone_box(),
            endpoint: self.endpoint.clone(),
            yields: self.yields.clone(),
            part: self.part.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_for_one_connection_or_for_all() {
        let all = Arc::new(EndpointFlow::default());
        for kind in [Congestion::Tide, Congestion::Cubic, Congestion::Bbr, Congestion::NewReno] {
            let factory = Factory::new(kind, 1_472, all.clone());
            let build = || factory.clone().build(Instant::now(), 1_200);
            let (one, other) = (build(), build());
            assert!(one.window() <= 20_000 * 1_200, "{kind:?}: {}", one.window());
            one.clone_box().into_any().downcast::<Yielding>().unwrap().yields.store(true, Relaxed);
            assert_eq!(one.window(), OPEN);
            assert!(other.window() < OPEN);
            all.yields.store(true, Relaxed);
            assert_eq!(other.window(), OPEN);
            all.yields.store(false, Relaxed);
        }
    }

    #[test]
    fn the_first_window_holds_the_probes_of_the_route() {
        let window =
            |payload| Factory::new(Congestion::Cubic, payload, Arc::default()).build(Instant::now(), 1_200).window();
        assert_eq!(window(1_472), INITIAL_WINDOW);
        assert_eq!(window(65_507), 4 * 65_507);
    }
}
