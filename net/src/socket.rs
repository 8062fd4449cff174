//! The UDP socket under QUIC: buffers, families, and sends that are cut to what the kernel takes.
//!
//! quinn hands over batches of up to ten datagrams of the connection's MTU (GSO). The kernel takes at most 65,507 bytes
//! in one call and answers EMSGSIZE above; quinn-udp swallows that, and the loss looks like an MTU black hole. Lowering
//! `max_transmit_segments` for the whole socket would take the batches from the small MTUs, which need them most. So
//! [`CutSocket`] leaves the batch size and cuts a batch that is too long: ten at 1,452, seven at 9,000, one at 65,507.

use quinn::{
    AsyncUdpSocket, Runtime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

/// Receive and send buffer of the socket, bytes: some 20 ms at 1.6 Gbit/s, and what Linux systems commonly allow.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// The most bytes one send call takes: 65,535 less the headers of IP and UDP.
const MAX_SEND_BYTES: usize = 65_507;
/// How many interrupted batches are remembered. One per connection that is blocked at this moment; a forgotten one is
/// sent again from its start, and the receiver drops the duplicates.
const MAX_INTERRUPTED: usize = 64;
/// Length of the authentication tag that ends each QUIC packet, bytes; it tells batches apart.
const TAG_LEN: usize = 16;

/// Opens, tunes and binds a socket.
pub(crate) fn open(addr: SocketAddr, dual_stack: bool) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    // The system may grant less; slower, but not wrong.
    for result in [socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES), socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)] {
        if let Err(error) = result {
            tracing::debug!(%error, "socket buffer not enlarged");
        }
    }
    socket.bind(&addr.into())?;
    Ok(Arc::new(CutSocket::new(quinn::TokioRuntime.wrap_udp_socket(socket.into())?)))
}

/// A socket that cuts batches which one send call does not take.
#[derive(Debug)]
pub(crate) struct CutSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Batches of which a part was sent before the socket was full. quinn offers the same batch again, byte for byte.
    interrupted: Mutex<VecDeque<Interrupted>>,
}

/// How far a batch got.
#[derive(Debug)]
struct Interrupted {
    destination: SocketAddr,
    /// The last packet's authentication tag. Two batches share it with probability 2^-128.
    tag: [u8; TAG_LEN],
    /// Bytes already sent.
    done: usize,
}

impl CutSocket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        CutSocket { inner, interrupted: Mutex::default() }
    }

    fn send_in_parts(&self, batch: &Transmit<'_>, segment: usize) -> io::Result<()> {
        let part_len = (MAX_SEND_BYTES / segment).max(1) * segment;
        let mut done = self.resume(batch);
        while done < batch.contents.len() {
            let end = batch.contents.len().min(done + part_len);
            let contents = &batch.contents[done..end];
            let part = Transmit {
                destination: batch.destination,
                ecn: batch.ecn,
                contents,
                segment_size: (contents.len() > segment).then_some(segment),
                src_ip: batch.src_ip,
            };
            match self.inner.try_send(&part) {
                Ok(()) => done = end,
                Err(error) => {
                    if error.kind() == ErrorKind::WouldBlock && done > 0 {
                        self.interrupt(batch, done);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Where to go on with this batch: 0, unless its last attempt was interrupted.
    fn resume(&self, batch: &Transmit<'_>) -> usize {
        let mut interrupted = self.interrupted.lock().unwrap_or_else(PoisonError::into_inner);
        if interrupted.is_empty() {
            return 0;
        }
        let tag = tag_of(batch);
        let found = interrupted.iter().position(|i| i.tag == tag && i.destination == batch.destination);
        found.and_then(|at| interrupted.remove(at)).map_or(0, |i| i.done)
    }

    fn interrupt(&self, batch: &Transmit<'_>, done: usize) {
        let mut interrupted = self.interrupted.lock().unwrap_or_else(PoisonError::into_inner);
        if interrupted.len() == MAX_INTERRUPTED {
            interrupted.pop_front();
        }
        interrupted.push_back(Interrupted { destination: batch.destination, tag: tag_of(batch), done });
    }
}

fn tag_of(batch: &Transmit<'_>) -> [u8; TAG_LEN] {
    batch.contents.last_chunk().copied().unwrap_or_default()
}

impl AsyncUdpSocket for CutSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match transmit.segment_size {
            Some(segment) if transmit.contents.len() > MAX_SEND_BYTES && segment > 0 => {
                self.send_in_parts(transmit, segment)
            }
            _ => self.inner.try_send(transmit),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    /// quinn multiplies this with the largest payload to size its receive buffers. The endpoint always announces the
    /// largest payload there is, and the kernel never coalesces past it (GRO): one fits all, 2 MiB and not 128.
    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records sends and is full after `room` of them.
    type Part = (Vec<u8>, Option<usize>);

    #[derive(Debug, Default)]
    struct Scripted {
        state: Mutex<(usize, Vec<Part>)>,
    }

    impl Scripted {
        fn room(&self, sends: usize) {
            self.state.lock().unwrap().0 = sends;
        }
        fn sent(&self) -> Vec<Part> {
            std::mem::take(&mut self.state.lock().unwrap().1)
        }
    }

    impl AsyncUdpSocket for Scripted {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("not polled here")
        }
        fn try_send(&self, t: &Transmit<'_>) -> io::Result<()> {
            assert!(t.contents.len() <= MAX_SEND_BYTES);
            let mut state = self.state.lock().unwrap();
            state.0 = state.0.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
            state.1.push((t.contents.to_vec(), t.segment_size));
            Ok(())
        }
        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(ErrorKind::Unsupported.into())
        }
        fn max_transmit_segments(&self) -> usize {
            10
        }
    }

    fn batch(contents: &[u8], segment: usize) -> Transmit<'_> {
        Transmit {
            destination: "127.0.0.1:1".parse().unwrap(),
            ecn: None,
            contents,
            segment_size: Some(segment),
            src_ip: None,
        }
    }

    fn bytes(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|i| ((i / 100 + i + seed) % 251) as u8).collect()
    }

    #[test]
    fn batches_are_cut_to_what_the_kernel_takes() {
        let inner = Arc::new(Scripted::default());
        let socket = CutSocket::new(inner.clone());
        for (segment, count, want) in [(1_452, 10, vec![10]), (8_972, 10, vec![7, 3]), (65_507, 3, vec![1, 1, 1])] {
            inner.room(usize::MAX);
            let contents = bytes(segment * count, 0);
            socket.try_send(&batch(&contents, segment)).unwrap();
            let sent = inner.sent();
            assert_eq!(sent.iter().map(|(part, _)| part.len() / segment).collect::<Vec<_>>(), want);
            assert_eq!(sent.concat_parts(), contents);
            assert!(
                sent.iter().all(|(part, s)| s.is_none_or(|s| s == segment) && (s.is_some() == (part.len() > segment)))
            );
        }
        assert_eq!(socket.max_transmit_segments(), 10);
    }

    #[test]
    fn a_full_socket_interrupts_a_batch_which_then_goes_on_where_it_was() {
        let inner = Arc::new(Scripted::default());
        let socket = CutSocket::new(inner.clone());
        let (a, b) = (bytes(65_000 * 5 + 77, 1), bytes(65_000 * 4, 2));
        inner.room(2);
        let error = socket.try_send(&batch(&a, 65_000)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert_eq!(socket.try_send(&batch(&b, 65_000)).unwrap_err().kind(), ErrorKind::WouldBlock);
        let mut got = inner.sent().concat_parts();
        inner.room(usize::MAX);
        socket.try_send(&batch(&b, 65_000)).unwrap();
        assert_eq!(inner.sent().concat_parts(), b, "another connection's batch is not mistaken for it");
        socket.try_send(&batch(&a, 65_000)).unwrap();
        got.extend(inner.sent().concat_parts());
        assert_eq!(got, a, "every byte once, in order");
        assert!(socket.interrupted.lock().unwrap().is_empty());
    }

    #[test]
    fn the_memory_of_interrupted_batches_is_bounded() {
        let inner = Arc::new(Scripted::default());
        let socket = CutSocket::new(inner.clone());
        for seed in 0..MAX_INTERRUPTED * 2 {
            inner.room(1);
            socket.try_send(&batch(&bytes(65_000 * 2 + seed, seed), 65_000)).unwrap_err();
        }
        assert_eq!(socket.interrupted.lock().unwrap().len(), MAX_INTERRUPTED);
    }

    trait Concat {
        fn concat_parts(&self) -> Vec<u8>;
    }
    impl Concat for Vec<Part> {
        fn concat_parts(&self) -> Vec<u8> {
            self.iter().flat_map(|(part, _)| part.clone()).collect()
        }
    }
}
