//! Hosts on links that have a rate, a delay, a queue and losses, as long paths have them: a namespace for each, and one
//! thread that carries the packets between their TUN devices. For root only, and for kernels without `netem` too.
//!
//! Each packet waits for its sender's uplink, travels, and waits for its receiver's downlink. Nothing here knows what
//! the packets are, but it counts what TCP and UDP brought, and where they were lost.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    net::Ipv4Addr,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    ioctl::{Setter, ioctl, opcode},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{content::Rng, lan::Host};

/// Bytes that a packet has on an Ethernet besides its own, as a kernel's shaper counts.
const ETHERNET: usize = 14;
const MTU: usize = 1_500;
/// Packets taken from one device before the others have their turn.
const AT_ONCE: usize = 64;
/// How often the thread looks whether to stop.
const LOOK: Duration = Duration::from_millis(20);

/// A host's link.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Bits per second from the host, Ethernet headers included.
    pub up: f64,
    /// Bits per second to the host.
    pub down: f64,
}

/// What all paths have in common.
#[derive(Clone, Copy, Debug)]
pub struct Paths {
    /// Round trip without queues.
    pub rtt: Duration,
    /// Share of the packets lost at random, each way.
    pub loss: f64,
    /// What waits before a link at most, as the time to send it.
    pub queue: Duration,
    /// Decides the losses.
    pub seed: u64,
}

/// What arrived at one host.
#[derive(Debug, Default)]
pub struct Arrived {
    /// IP packets' bytes that TCP brought.
    pub tcp: AtomicU64,
    /// The same of UDP.
    pub udp: AtomicU64,
    /// Packets lost before this host's downlink, on a full queue.
    pub dropped: AtomicU64,
}

/// The hosts. The paths end when this is dropped.
#[derive(Debug)]
pub struct Bottleneck {
    hosts: Vec<Host>,
    arrived: Arc<[Arrived]>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bottleneck {
    /// A host for each link. `None`, with a word about it, where they cannot be made.
    pub fn new(links: &[Link], paths: Paths) -> Option<Bottleneck> {
        let hosts = links.iter().map(|_| Host::new()).collect::<Option<Vec<_>>>()?;
        let mut devices = Vec::new();
        for (i, host) in hosts.iter().enumerate() {
            let device = host.enter(|| tun("eth0"));
            devices.push(device.unwrap_or_else(|error| panic!("no TUN device in {}: {error}", host.name())));
            host.ip(&["addr", "add", &format!("{}/24", address(i)), "dev", "eth0"]);
            host.ip(&["link", "set", "eth0", "mtu", &MTU.to_string(), "txqueuelen", "2000", "up"]);
        }
        let arrived: Arc<[Arrived]> = links.iter().map(|_| Arrived::default()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let relay = Relay {
            devices,
            links: links.iter().map(|link| [Pipe::new(link.up), Pipe::new(link.down)]).collect(),
            paths,
            random: Rng::new(paths.seed),
            travelling: BinaryHeap::new(),
            count: 0,
            arrived: arrived.clone(),
        };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || relay.run(&stopped));
        Some(Bottleneck { hosts, arrived, stop, thread: Some(thread) })
    }

    /// The namespace of host `i`, which is at [`address`]`(i)`.
    pub fn host(&self, i: usize) -> &Host {
        &self.hosts[i]
    }

    /// What arrived at host `i` so far.
    pub fn arrived(&self, i: usize) -> &Arrived {
        &self.arrived[i]
    }
}

impl Drop for Bottleneck {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the paths between namespaces panicked");
        }
    }
}

/// Where host `i` is.
pub fn address(i: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, i as u8 + 1)
}

impl Host {
    /// Runs `work` on a thread of its own that is in this namespace; sockets it opens stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let name = File::open(format!("/run/netns/{}", self.name())).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(name.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }
}

/// A TUN device in this thread's namespace: IP packets, one for each read and write.
fn tun(name: &str) -> io::Result<File> {
    const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
    const IFF_TUN: u16 = 0x0001;
    const IFF_NO_PI: u16 = 0x1000;
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open("/dev/net/tun")?;
    // struct ifreq: 16 bytes of name, then flags
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    #[allow(unsafe_code, reason = "no safe wrapper exists")]
    // SAFETY: TUNSETIFF reads a struct ifreq, which is 40 bytes without pointers for this request.
    unsafe {
        ioctl(&device, Setter::<TUNSETIFF, [u8; 40]>::new(request))?;
    }
    Ok(device)
}

/// One direction of a link.
struct Pipe {
    nanos_per_byte: f64,
    free: u64,
}

impl Pipe {
    fn new(bits_per_second: f64) -> Self {
        Pipe { nanos_per_byte: 8e9 / bits_per_second, free: 0 }
    }

    /// When a packet that comes at `now` is through; `None` if it does not fit into the queue.
    fn pass(&mut self, now: u64, len: usize, queue: Duration) -> Option<u64> {
        let begin = self.free.max(now);
        if u128::from(begin - now) > queue.as_nanos() {
            return None;
        }
        self.free = begin + ((len + ETHERNET) as f64 * self.nanos_per_byte) as u64;
        Some(self.free)
    }
}

/// A packet under way, the next to get somewhere first. Times are nanoseconds since the relay began.
///
/// A downlink takes packets as they get there. To book it when they leave would let those that wait at one uplink keep it
/// from what comes from another meanwhile.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    at: u64,
    count: u64,
    stage: Stage,
    to: usize,
    bytes: Vec<u8>,
}

/// What a packet gets to.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Downlink,
    Host,
}

struct Relay {
    devices: Vec<File>,
    links: Vec<[Pipe; 2]>,
    paths: Paths,
    random: Rng,
    travelling: BinaryHeap<Reverse<Packet>>,
    count: u64,
    arrived: Arc<[Arrived]>,
}

impl Relay {
    fn run(mut self, stop: &AtomicBool) {
        let begun = Instant::now();
        let now = || begun.elapsed().as_nanos() as u64;
        while !stop.load(Relaxed) {
            while self.travelling.peek().is_some_and(|Reverse(packet)| packet.at <= now()) {
                match self.travelling.pop() {
                    Some(Reverse(packet)) if packet.stage == Stage::Downlink => self.descend(packet),
                    Some(Reverse(packet)) => self.arrive(&packet),
                    None => {}
                }
            }
            let due = self.travelling.peek().map(|Reverse(packet)| packet.at.saturating_sub(now()));
            let wait = Duration::from_nanos(due.unwrap_or(u64::MAX)).min(LOOK);
            let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as i64 };
            let mut fds: Vec<PollFd<'_>> = self.devices.iter().map(|d| PollFd::new(d, PollFlags::IN)).collect();
            let ready: Vec<usize> = match poll(&mut fds, Some(&wait)) {
                Ok(_) => (0..fds.len()).filter(|i| fds[*i].revents().contains(PollFlags::IN)).collect(),
                Err(_) => continue,
            };
            for from in ready {
                self.take(from, &now);
            }
        }
    }

    /// Takes what a host sends.
    fn take(&mut self, from: usize, now: &impl Fn() -> u64) {
        let mut buffer = [0; 2 * MTU];
        for _ in 0..AT_ONCE {
            let len = match (&self.devices[from]).read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a TUN device broke: {error}"),
            };
            self.send(from, &buffer[..len], now());
        }
    }

    fn send(&mut self, from: usize, packet: &[u8], now: u64) {
        // multicast and IPv6 have nowhere to go
        let [.., a, b, c, last] = packet.get(..20).unwrap_or_default() else { return };
        let to = usize::from(*last).wrapping_sub(1);
        if packet[0] >> 4 != 4 || [*a, *b, *c] != [10, 77, 0] || to >= self.devices.len() {
            return;
        }
        if (self.random.number() >> 11) as f64 / (1u64 << 53) as f64 <= self.paths.loss {
            return;
        }
        let Some(up) = self.links[from][0].pass(now, packet.len(), self.paths.queue) else { return };
        let at = up + self.paths.rtt.as_nanos() as u64 / 2;
        self.count += 1;
        let (count, bytes) = (self.count, packet.to_vec());
        self.travelling.push(Reverse(Packet { at, count, stage: Stage::Downlink, to, bytes }));
    }

    /// A packet is at its receiver's downlink.
    fn descend(&mut self, packet: Packet) {
        match self.links[packet.to][1].pass(packet.at, packet.bytes.len(), self.paths.queue) {
            Some(at) => self.travelling.push(Reverse(Packet { at, stage: Stage::Host, ..packet })),
            None => drop(self.arrived[packet.to].dropped.fetch_add(1, Relaxed)),
        }
    }

    fn arrive(&mut self, packet: &Packet) {
        const TCP: u8 = 6;
        let arrived = &self.arrived[packet.to];
        let sum = if packet.bytes[9] == TCP { &arrived.tcp } else { &arrived.udp };
        sum.fetch_add(packet.bytes.len() as u64, Relaxed);
        // a host whose queue is full loses it, as on any network
        let _full = (&self.devices[packet.to]).write(&packet.bytes);
    }
}
