//! Hole punching as the side that listens (libp2p's DCUtR specification, QUIC): small packets of random bytes open our
//! NAT towards the remote, whose dial then comes in like any other and is handed to the punch that waits for it.

use crate::{PeerId, TransportIoError, muxer::Muxer};
use quinn::{AsyncUdpSocket, udp::Transmit};
use rand::{RngExt, SeedableRng, rngs::StdRng, rngs::SysRng};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;

/// The specification's pause between packets, milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 10..=200;
/// Length of a packet, bytes. Random and without QUIC's fixed bit, so that no QUIC stack answers it.
const PACKET_LEN: usize = 64;
const FIXED_BIT: u8 = 0x40;

/// What comes of a punch.
pub(crate) type Punched = Box<(PeerId, Muxer)>;

/// The punches under way, by the remote's canonical address. At most `max`.
#[derive(Debug)]
pub(crate) struct Punches {
    max: usize,
    waiting: Mutex<HashMap<SocketAddr, oneshot::Sender<Punched>>>,
}

impl Punches {
    pub(crate) fn new(max: usize) -> Self {
        Punches { max, waiting: Mutex::default() }
    }

    /// Hands a connection to the punch that waits for its address, or gives it back.
    pub(crate) fn claim(&self, from: SocketAddr, connection: Punched) -> Result<(), Punched> {
        match self.lock().remove(&from) {
            Some(waiting) => waiting.send(connection),
            None => Err(connection),
        }
    }

    /// Sends packets to `destination` until a connection from `addr` comes in. `addr` is canonical, `destination` is
    /// the same as the socket spells it. Cancel safe: a dropped punch is forgotten.
    pub(crate) async fn punch(
        self: &Arc<Self>,
        socket: &dyn AsyncUdpSocket,
        addr: SocketAddr,
        destination: SocketAddr,
        timeout: Duration,
    ) -> Result<Punched, TransportIoError> {
        let (sender, mut connection) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if waiting.contains_key(&addr) {
                return Err(TransportIoError::Punch { addr, why: "one is under way" });
            }
            if waiting.len() >= self.max {
                return Err(TransportIoError::Punch { addr, why: "too many are under way" });
            }
            waiting.insert(addr, sender);
        }
        let _forget = Forget { punches: self, addr };
        let mut random = StdRng::try_from_rng(&mut SysRng).map_err(std::io::Error::other)?;
        let work = async {
            loop {
                let mut packet: [u8; PACKET_LEN] = random.random();
                packet[0] &= !FIXED_BIT;
                let transmit = Transmit { destination, ecn: None, contents: &packet, segment_size: None, src_ip: None };
                if let Err(error) = socket.try_send(&transmit) {
                    tracing::trace!(%addr, %error, "punch packet not sent");
                }
                let pause = Duration::from_millis(random.random_range(PAUSE_MS));
                tokio::select! {
                    connection = &mut connection => return connection.map_err(|_| TransportIoError::Timeout),
                    () = tokio::time::sleep(pause) => {}
                }
            }
        };
        tokio::time::timeout(timeout, work).await.unwrap_or(Err(TransportIoError::Timeout))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, oneshot::Sender<Punched>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a punch however it ends.
struct Forget<'a> {
    punches: &'a Punches,
    addr: SocketAddr,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.punches.lock().remove(&self.addr);
    }
}
