//! A connection's tasks: the control stream in, the control stream out, the requests in; apart, so that each wakes for its
//! own part only. They pass messages on and decide nothing.

use super::{
    Input, LinkId,
    serve::{self, Attempt, Packed},
    thrift::Thrift,
    throttle::Buckets,
};
use crate::wire::{self, Decoder, Hello, Message, Packing, feature};
use bytes::Bytes;
use shoal_net::{CLOSE_NORMAL, Connection, PeerId};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

/// A peer that does not open its control stream and say hello within this time is let go.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last words may take to be sent at shutdown.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(300);
/// Buffers of control messages that may be on their way to the writer; the hub keeps the rest.
const WRITER_QUEUE: usize = 8;
/// Leaves of one peer that are being read at once. A peer answers one request after another; lost packets may put the
/// beginning of an answer before the end of the one before. Whoever mixes more answers stalls by its own fault.
const LEAVES_READ_AT_ONCE: usize = 2;

/// Priority of the control stream: haves, chokes and cancelled requests are worth most while they are fresh.
const CONTROL: i32 = 2;
/// Priority of requests: what is asked for comes a round trip later, and their few bytes cost the answers nothing.
pub(super) const REQUESTS: i32 = 1;

/// How the reason begins of an end that the peer is to blame for.
pub(super) const PROTOCOL_FAULT: &str = "protocol fault";
/// Why a connection ends whose peer says nothing. It may be far away, or busy.
pub(super) const SILENT: &str = "stalled: it said no hello in time";

/// Gives each answer of a connection a priority below those of all earlier ones. So they are finished one after another, for
/// a leaf that is whole is worth more than two halves, and what was lost of an earlier one is sent again before what is new:
/// quinn would queue it behind all that waits, which on a long path is some round trips' worth.
#[derive(Debug, Default)]
pub(super) struct AnswerOrder(AtomicI32);

impl AnswerOrder {
    /// The priority of an answer that begins now. After two thousand million of them the rest share the lowest.
    pub(super) fn next(&self) -> i32 {
        let less = |at: i32| Some(at.saturating_sub(1));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(i32::MIN)
    }
}

/// What the tasks of a connection share.
#[derive(Debug)]
pub(super) struct LinkShared {
    pub(super) peer: PeerId,
    /// Requests are refused while this is set.
    pub(super) choked: AtomicBool,
    /// Payload bytes sent.
    pub(super) bytes_out: AtomicU64,
    /// Payload bytes received.
    pub(super) bytes_in: AtomicU64,
    /// What the peer's hello says that it can; nothing until it came.
    features: AtomicU64,
    /// Whether compressing pays.
    thrift: Mutex<Thrift>,
    /// This peer's own rate limits.
    pub(super) buckets: Buckets,
    /// The shortest round trip seen.
    rtt_micros: AtomicU64,
    /// When the connection was taken up.
    since: Instant,
    /// In which order what is answered is sent.
    pub(super) answers: AnswerOrder,
    /// Leaves of this peer that are being read: [`LEAVES_READ_AT_ONCE`].
    pub(super) reading: Semaphore,
    /// The place of a connection whose windows were widened.
    wide: OnceLock<OwnedSemaphorePermit>,
}

impl LinkShared {
    pub(super) fn new(connection: &Connection) -> Self {
        LinkShared {
            peer: connection.peer(),
            choked: AtomicBool::new(false),
            bytes_out: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            features: AtomicU64::new(0),
            thrift: Mutex::default(),
            buckets: Buckets::default(),
            rtt_micros: AtomicU64::new(connection.quinn().rtt().as_micros() as u64),
            reading: Semaphore::new(LEAVES_READ_AT_ONCE),
            wide: OnceLock::new(),
            since: Instant::now(),
            answers: AnswerOrder::default(),
        }
    }

    /// What this connection has shown of what compressing costs and saves. Held for moments.
    pub(super) fn thrift(&self) -> MutexGuard<'_, Thrift> {
        // a panic elsewhere leaves numbers, at worst old ones
        self.thrift.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the peer's hello says that it can do this, a bit of [`feature`].
    pub(super) fn can(&self, feature: u64) -> bool {
        self.features.load(Ordering::Relaxed) & feature != 0
    }

    /// The level to compress the next pack with, if it is worth trying.
    pub(super) fn level(&self, packing: Packing) -> Option<i32> {
        self.thrift().level(packing, Duration::from_micros(self.rtt_micros.load(Ordering::Relaxed)))
    }

    /// Notes what came of it.
    pub(super) fn note(&self, packed: &Packed) {
        match packed.attempt {
            Attempt::None => {}
            Attempt::GaveWay(plain, took) => self.thrift().gave_way(plain, took),
            Attempt::Resisted => self.thrift().resisted(),
        }
    }
}

/// Starts a connection's tasks. They end with [`Input::Closed`]; dropping the sender it returns makes them say goodbye and end.
pub(super) fn start(
    tasks: &mut JoinSet<()>,
    id: LinkId,
    connection: Connection,
    shared: Arc<LinkShared>,
    server: Arc<serve::Server>,
    inbox: mpsc::Sender<Input>,
) -> mpsc::Sender<Bytes> {
    let (out, queue) = mpsc::channel(WRITER_QUEUE);
    tasks.spawn(async move {
        let why = run(id, &connection, shared, server, inbox.clone(), queue).await;
        connection.close(CLOSE_NORMAL, why.as_bytes());
        // at shutdown the hub may rightly be gone
        let _gone = inbox.send(Input::Closed(id, why)).await;
    });
    out
}

async fn run(
    id: LinkId,
    connection: &Connection,
    shared: Arc<LinkShared>,
    server: Arc<serve::Server>,
    inbox: mpsc::Sender<Input>,
    queue: mpsc::Receiver<Bytes>,
) -> String {
    let mut parts = JoinSet::new();
    let (reading, writing, answering) = (connection.clone(), connection.clone(), connection.clone());
    let listener = shared.clone();
    parts.spawn(async move { read_control(id, &reading, &listener, &inbox).await });
    parts.spawn(async move { write_control(&writing, queue).await });
    parts.spawn(async move { closed_by(&server.answer_all(&answering, &shared).await) });
    // the first to end ends the connection, and the others lose nothing that matters
    let why = match parts.join_next().await {
        Some(Ok(why)) => why,
        ended => {
            tracing::error!(?ended, "a connection's task panicked");
            "closed".into()
        }
    };
    parts.shutdown().await;
    why
}

/// Why a connection ended, for people.
fn closed_by(error: &shoal_net::quinn::ConnectionError) -> String {
    use shoal_net::quinn::ConnectionError as E;
    match error {
        E::ApplicationClosed(close) => {
            format!("closed by the peer: {}", String::from_utf8_lossy(&close.reason).escape_debug())
        }
        E::LocallyClosed => "closed".into(),
        E::TimedOut => "connection lost: nothing heard".into(),
        other => format!("connection lost: {other}"),
    }
}

async fn read_control(id: LinkId, connection: &Connection, shared: &LinkShared, inbox: &mpsc::Sender<Input>) -> String {
    let stream = tokio::time::timeout(HELLO_TIMEOUT, connection.quinn().accept_uni()).await;
    let mut stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return closed_by(&error),
        Err(_) => return SILENT.into(),
    };
    let mut decoder = Decoder::default();
    let mut greeted = false;
    loop {
        match stream.read_chunk(wire::MAX_FRAME_BYTES, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            // the connection's own end tells why
            Ok(None) | Err(_) => return closed_by(&connection.quinn().closed().await),
        }
        loop {
            let message = match decoder.poll() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return format!("{PROTOCOL_FAULT}: {error}"),
            };
            match (&message, greeted) {
                (Message::Hello(hello), false) => {
                    greeted = true;
                    shared.features.store(hello.features, Ordering::Relaxed);
                }
                (Message::Hello(_), true) => return format!("{PROTOCOL_FAULT}: a second hello"),
                (_, false) => return format!("{PROTOCOL_FAULT}: no hello"),
                (Message::Goodbye { reason }, true) => return format!("peer left: {}", reason.escape_debug()),
                _ => {}
            }
            if inbox.send(Input::Message(id, message)).await.is_err() {
                return "closed".into();
            }
        }
    }
}

async fn write_control(connection: &Connection, mut queue: mpsc::Receiver<Bytes>) -> String {
    let mut stream = match connection.quinn().open_uni().await {
        Ok(stream) => stream,
        Err(error) => return closed_by(&error),
    };
    if stream.set_priority(CONTROL).is_err() {
        return closed_by(&connection.quinn().closed().await);
    }
    while let Some(bytes) = queue.recv().await {
        if stream.write_chunk(bytes).await.is_err() {
            return closed_by(&connection.quinn().closed().await);
        }
    }
    // the hub let go of this connection: what it said last should still arrive
    if stream.finish().is_ok() {
        let _timed_out = tokio::time::timeout(GOODBYE_TIMEOUT, stream.stopped()).await;
    }
    "closed".into()
}

/// From this round trip on, a path needs more bytes in flight than a connection gets by default: 1 MiB in 5 ms is 1.7 Gbit/s.
const LONG_PATH: Duration = Duration::from_millis(5);
/// A round trip is believed after so many of them: that of the handshake holds what both sides had to compute.
const BELIEVED_AFTER: u32 = 3;
/// What is in flight then at most: 1 Gbit/s at 250 ms.
const WIDE_WINDOW_BYTES: u32 = 32 << 20;

/// Widens the windows of a connection over a long path, once, as long as `wide` has a place for it. What the place holds
/// is the memory of both windows; it is given back with the connection.
pub(super) fn widen(connection: &Connection, shared: &LinkShared, wide: &Arc<Semaphore>) {
    // the least that was seen: a busy machine makes a short path look long
    let rtt = connection.quinn().rtt().as_micros() as u64;
    let least = shared.rtt_micros.fetch_min(rtt, Ordering::Relaxed).min(rtt);
    let least = Duration::from_micros(least);
    if shared.wide.get().is_some() || least < LONG_PATH || shared.since.elapsed() < BELIEVED_AFTER * least {
        return;
    }
    let Ok(place) = wide.clone().try_acquire_owned() else { return };
    if shared.wide.set(place).is_ok() {
        connection.quinn().set_receive_window(WIDE_WINDOW_BYTES.into());
        connection.quinn().set_send_window(WIDE_WINDOW_BYTES.into());
    }
}

/// The first message.
pub(super) fn hello(agent: &str, addrs: Vec<std::net::SocketAddr>, compress: bool) -> Message {
    let features = feature::LOAD | feature::REACH | if compress { feature::ZSTD } else { 0 };
    Message::Hello(Hello { version: 1, features, agent: agent.to_owned(), addrs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_answers_go_before_later_ones_and_requests_before_all_of_them() {
        let order = AnswerOrder::default();
        let (first, second) = (order.next(), order.next());
        assert!(CONTROL > REQUESTS && REQUESTS > first && first > second);
        let worn = AnswerOrder(AtomicI32::new(i32::MIN));
        assert_eq!((worn.next(), worn.next()), (i32::MIN, i32::MIN), "never back above the others");
    }

    #[test]
    fn an_answer_fits_into_the_window_of_its_stream() {
        use crate::swarm::SwarmConfig;
        let (config, window) = (SwarmConfig::default(), shoal_net::Limits::default().stream_window_bytes as usize);
        let leaf = shoal_content::SHOAL_V1.for_plain_file(u64::MAX).max_chunk();
        let heads = config.most_leaves * wire::PACK_HEAD_BYTES;
        assert!(config.largest_batch as usize + leaf + heads <= window, "an answer would wait a round trip for room");
    }
}
