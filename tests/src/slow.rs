//! A slow link to a peer: a relay of datagrams on loopback that lets only so many bytes a second through on the way back,
//! and counts them. It makes moments in a fetch that a test can hit, and it is the account that neither side keeps: what
//! it passed on did arrive.
//!
//! Like a real bottleneck it queues a little and drops what does not fit. The way there is not slowed down.

use std::{
    collections::{HashMap, VecDeque},
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use shoal_content::ShoalLink;
use shoal_net::Multiaddr;

use crate::AT_MOST;

/// Datagrams on loopback are this long at most.
const DATAGRAM: usize = 1 << 16;
/// Bytes that wait for their turn; what comes on top is lost.
const QUEUE: usize = 256 << 10;
/// How often a thread that waits for a datagram looks whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// A slow link. Stops when dropped.
#[derive(Debug)]
pub struct SlowLink {
    via: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Nanoseconds that a byte takes; 0 for a link that is not slow.
    nanos_per_byte: f64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    passed: u64,
    lost: u64,
    stop: bool,
}

impl SlowLink {
    /// A link to the peer at this address (with `/p2p/…`) that passes on so many bytes a second.
    pub fn to(via: &str, bytes_per_second: u64) -> SlowLink {
        let addr: Multiaddr = via.parse().unwrap();
        let (target, peer) = shoal_net::from_multiaddr(&addr).unwrap();
        let front = socket();
        let here = shoal_net::to_multiaddr(front.local_addr().unwrap());
        let shared = Arc::new(Shared {
            nanos_per_byte: 1e9 / bytes_per_second as f64,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let for_thread = shared.clone();
        let thread = std::thread::spawn(move || there(&front, target, &for_thread));
        SlowLink { via: format!("{here}/p2p/{}", peer.unwrap()), shared, thread: Some(thread) }
    }

    /// The address at this end, for links.
    pub fn via(&self) -> String {
        self.via.clone()
    }

    /// The link, leading through here.
    pub fn on(link: &ShoalLink, bytes_per_second: u64) -> (SlowLink, ShoalLink) {
        let slow = SlowLink::to(&link.via[0], bytes_per_second);
        let link = ShoalLink { via: vec![slow.via()], ..link.clone() };
        (slow, link)
    }

    /// Bytes of datagrams passed on from the peer so far.
    pub fn passed(&self) -> u64 {
        self.shared.state.lock().unwrap().passed
    }

    /// Bytes of datagrams lost on a full queue so far.
    pub fn lost(&self) -> u64 {
        self.shared.state.lock().unwrap().lost
    }

    /// Waits until so many bytes were passed on in all.
    pub fn wait_for(&self, bytes: u64) {
        let state = self.shared.state.lock().unwrap();
        let (state, _) = self.shared.changed.wait_timeout_while(state, AT_MOST, |state| state.passed < bytes).unwrap();
        assert!(state.passed >= bytes, "{} of {bytes} bytes came over a slow link in time", state.passed);
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        // A test that panicked while it held the lock has said what is wrong already.
        if let Ok(mut state) = self.shared.state.lock() {
            state.stop = true;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a slow link panicked");
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.state.lock().unwrap().stop
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    socket
}

/// A datagram, or nothing for now. An ICMP error about an earlier one is nothing as well: its peer is gone.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    match socket.recv_from(buffer) {
        Ok(received) => Some(received),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused | ErrorKind::Interrupted => None,
            _ => panic!("a slow link broke: {error}"),
        },
    }
}

/// From the one who dialled to the peer; a way back for each who dialled.
fn there(front: &UdpSocket, target: SocketAddr, shared: &Arc<Shared>) {
    let mut ways: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut threads = Vec::new();
    let mut buffer = vec![0; DATAGRAM];
    while !shared.stopped() {
        let Some((len, from)) = receive(front, &mut buffer) else { continue };
        let back = ways.entry(from).or_insert_with(|| {
            let back = socket();
            back.connect(target).unwrap();
            let (reading, front, shared) = (back.try_clone().unwrap(), front.try_clone().unwrap(), shared.clone());
            threads.push(std::thread::spawn(move || way_back(&reading, &front, from, &shared)));
            back
        });
        // The peer may be gone: whoever dialled finds out by itself.
        if back.send(&buffer[..len]).is_err() {
            continue;
        }
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// From the peer to the one who dialled, slowly: one thread takes datagrams in, this one lets them go.
fn way_back(back: &UdpSocket, front: &UdpSocket, to: SocketAddr, shared: &Shared) {
    let queue = (Mutex::new((VecDeque::<Vec<u8>>::new(), 0)), Condvar::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; DATAGRAM];
            while !shared.stopped() {
                let Some((len, _)) = receive(back, &mut buffer) else { continue };
                let mut waiting = queue.0.lock().unwrap();
                if waiting.1 + len > QUEUE {
                    shared.state.lock().unwrap().lost += len as u64;
                    continue;
                }
                waiting.1 += len;
                waiting.0.push_back(buffer[..len].to_vec());
                queue.1.notify_one();
            }
        });
        let mut free_at = Instant::now();
        while !shared.stopped() {
            let waiting = queue.0.lock().unwrap();
            let (mut waiting, _) = queue.1.wait_timeout_while(waiting, LOOK, |waiting| waiting.0.is_empty()).unwrap();
            let Some(datagram) = waiting.0.pop_front() else { continue };
            waiting.1 -= datagram.len();
            drop(waiting);
            // The link takes its time for each byte; this is what it is for.
            let now = Instant::now();
            std::thread::sleep(free_at.saturating_duration_since(now));
            free_at = free_at.max(now) + Duration::from_nanos((datagram.len() as f64 * shared.nanos_per_byte) as u64);
            if front.send_to(&datagram, to).is_ok() {
                shared.state.lock().unwrap().passed += datagram.len() as u64;
                shared.changed.notify_all();
            }
        }
    });
}
