//! Whose answers an uplink carries at once, and which comes next. Sans-IO.
//!
//! Of many answers that share an uplink all come late, and until then nobody can pass anything on. Taken in turns, each is
//! through in a fraction of that time, and the uplink carries as much, as long as those who have a turn fill it. Whether
//! they do is looked at all the time: as soon as less is carried than the uplink can, another answer begins, for readers'
//! downlinks are full of what others send now and then, for some milliseconds. What it can carry is the largest of recent
//! rates, measured over longer times. Now and then more are let through than fill it, or it would never be seen to carry
//! more.
//!
//! At most some times as many are let through as filled it of late. So their number follows from how fast and how far away
//! the readers are, and a machine that is busy with other things is not taken for readers that are slow.
//!
//! Of the answers that wait, those come first whose leaves were sent the fewest times: what is rare multiplies soonest.
//! Bytes, streams and clocks are not known here.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// Answers under way at least, and peers that need no turns. A turn ends when all of it is acknowledged, and readers are
/// busy with others now and then: fewer leave gaps.
pub const LEAST: usize = 8;
/// Rates are measured over so long; shorter spans measure the scheduler of the machine.
const SPAN: Duration = Duration::from_millis(200);
/// An uplink is full when it carries this part of what it carried at most: from the first to the second, more by a step for
/// each span in which less than `USED` of it was carried and answers waited, else less.
const FULL: (f64, f64) = (0.95, 0.99);
const FULL_STEP: f64 = 0.01;
const USED: f64 = 0.98;
/// No more have a turn than so many times the fewest answers that filled it of late.
const GAIN: f64 = 2.0;
/// In one of so many spans, and after each that carried so much more than all before, more have a turn even where the
/// uplink is full: so many times those of the span before.
const PROBE_EVERY: u32 = 25;
const GREW: f64 = 1.05;
const PROBE: f64 = 1.5;
/// What was carried at most is forgotten after one to two of these;
const MEMORY: Duration = Duration::from_secs(5);
/// or after so many spans in a row in which answers waited and less than this part of it was carried: readers have become
/// slower, or the uplink has.
const SHORT_SPANS: u32 = 5;
const SHORT: f64 = 0.7;
/// A turn is over after so many times what it should take; within bounds, and before that is known.
const PATIENCE: f64 = 2.0;
const LEAST_TURN: Duration = Duration::from_millis(300);
const MOST_TURN: Duration = Duration::from_secs(3);
const FIRST_TURN: Duration = Duration::from_secs(1);
/// An answer that has waited for so long begins without a turn: a reader that hears nothing for two seconds takes its work
/// elsewhere. Where all are so late, the uplink is shared by all.
const OVERDUE: Duration = Duration::from_millis(1_500);
/// An answer is as rare as the rarest of so many of its leaves.
const LEAVES_LOOKED_AT: usize = 8;
/// Leaves of which it is known how often they were sent: the last so many, to twice as many.
const LEAVES_REMEMBERED: usize = 1 << 15;

/// An answer's number; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TurnId(pub u64);

/// Says when answers may begin. `P` tells peers apart.
///
/// Call [`handle_request`](Self::handle_request) when there is something to answer, [`handle_sent`](Self::handle_sent) when
/// it is being sent, [`handle_ended`](Self::handle_ended) when that is over, and [`handle_timeout`](Self::handle_timeout) at
/// [`poll_timeout`](Self::poll_timeout); after each, and when less is carried than [`poll_room`](Self::poll_room) tells,
/// [`poll_begin`](Self::poll_begin) until it gives `None`. Times must not go backwards. What it holds is bounded by whoever
/// calls: a place for each answer that has not ended, and some 65,536 counts of leaves.
#[derive(Debug)]
pub struct Turns<P> {
    next: u64,
    waiting: Vec<Waiting<P>>,
    /// Answers that were begun and have not ended.
    sending: BTreeMap<TurnId, Sending<P>>,
    /// Of these, how many have a turn: those for which it is not over.
    turns: usize,
    /// How many of the answers that were begun are not being sent yet.
    coming: usize,
    /// For each peer, answers that have not ended, and how many of them have a turn.
    peers: BTreeMap<P, (usize, usize)>,
    recent: Recent,
    span: Span,
    /// Bytes per second carried at most: of late, since `peaks_since`, and in the time before.
    peaks: (f64, f64),
    peaks_since: Duration,
    /// The fewest answers, on average, that filled it for a span, in the same times.
    fewest: (f64, f64),
    /// Spans in a row in which little was carried.
    short_spans: u32,
    /// Spans since one in which more have a turn than fill the uplink; none while it lasts.
    unprobed: u32,
    /// How many have one then.
    probe: usize,
    /// This part of what was carried at most counts as full.
    full: f64,
}

#[derive(Debug)]
struct Waiting<P> {
    id: TurnId,
    peer: P,
    since: Duration,
    bytes: u64,
    /// The first few.
    leaves: Vec<u64>,
}

#[derive(Debug)]
struct Sending<P> {
    peer: P,
    bytes: u64,
    /// It is not being sent yet.
    coming: bool,
    /// When its turn is over; none once it is, or where it never had one.
    until: Option<Duration>,
}

/// Room for another turn.
enum Room {
    /// Whatever is carried.
    Free,
    /// While less than so many bytes per second are carried.
    Below(u64),
    None,
}

/// What is being measured.
#[derive(Debug, Default)]
struct Span {
    since: Duration,
    /// Bytes delivered before it.
    delivered: u64,
    /// Answers under way, times seconds, until `at`.
    busy: f64,
    at: Duration,
}

impl<P: Ord + Copy> Default for Turns<P> {
    fn default() -> Self {
        Turns {
            next: 0,
            waiting: vec![],
            sending: BTreeMap::new(),
            turns: 0,
            coming: 0,
            peers: BTreeMap::new(),
            recent: Recent::default(),
            span: Span::default(),
            peaks: (0.0, 0.0),
            peaks_since: Duration::ZERO,
            fewest: (f64::INFINITY, f64::INFINITY),
            short_spans: 0,
            unprobed: 0,
            probe: 0,
            full: FULL.0,
        }
    }
}

impl<P: Ord + Copy> Turns<P> {
    /// An answer of `bytes` to `peer` waits. `leaves` are numbers that tell its leaves apart from all others.
    pub fn handle_request(
        &mut self,
        now: Duration,
        peer: P,
        bytes: u64,
        leaves: impl IntoIterator<Item = u64>,
    ) -> TurnId {
        let id = TurnId(self.next);
        self.next += 1;
        let leaves = leaves.into_iter().take(LEAVES_LOOKED_AT).collect();
        self.waiting.push(Waiting { id, peer, since: now, bytes, leaves });
        self.peers.entry(peer).or_default().0 += 1;
        id
    }

    /// The next answer that may begin, while `rate` bytes per second are carried.
    pub fn poll_begin(&mut self, now: Duration, rate: u64) -> Option<TurnId> {
        let free = match self.room() {
            Room::Free => true,
            Room::Below(full) => rate < full,
            Room::None => false,
        };
        let order = |w: &Waiting<P>| {
            let has_turn = self.peers.get(&w.peer).is_some_and(|(_, turns)| *turns > 0);
            let sent = w.leaves.iter().map(|leaf| self.recent.count(*leaf)).min().unwrap_or(0);
            // those who are overdue, and others with the same count, in the order they came
            (has_turn, if w.since + OVERDUE <= now { None } else { Some(sent) }, w.id)
        };
        let may = self.waiting.iter().enumerate().filter(|(_, w)| free || w.since + OVERDUE <= now);
        let (at, _) = may.min_by_key(|(_, w)| order(w))?;
        let next = self.waiting.swap_remove(at);
        next.leaves.iter().for_each(|leaf| self.recent.add(*leaf));
        self.account(now);
        let usual = self.each().and_then(|each| Duration::try_from_secs_f64(PATIENCE * next.bytes as f64 / each).ok());
        let turn = usual.map_or(FIRST_TURN, |usual| usual.clamp(LEAST_TURN, MOST_TURN));
        self.sending.insert(
            next.id,
            Sending { peer: next.peer, bytes: next.bytes, coming: true, until: free.then_some(now + turn) },
        );
        self.coming += 1;
        if free && let Some((_, turns)) = self.peers.get_mut(&next.peer) {
            self.turns += 1;
            *turns += 1;
        }
        Some(next.id)
    }

    /// Some of an answer was handed over for sending: from now on it is seen in what is carried.
    pub fn handle_sent(&mut self, id: TurnId) {
        if let Some(sending) = self.sending.get_mut(&id)
            && std::mem::take(&mut sending.coming)
        {
            self.coming -= 1;
        }
    }

    /// An answer was acknowledged as a whole, or is given up, begun or not.
    pub fn handle_ended(&mut self, now: Duration, id: TurnId) {
        let peer = if let Some(at) = self.waiting.iter().position(|w| w.id == id) {
            self.waiting.swap_remove(at).peer
        } else {
            self.account(now);
            let Some(ended) = self.sending.remove(&id) else { return };
            self.coming -= usize::from(ended.coming);
            if ended.until.is_some() {
                self.turn_over(ended.peer);
            }
            ended.peer
        };
        if let Some((answers, _)) = self.peers.get_mut(&peer) {
            *answers -= 1;
            if *answers == 0 {
                self.peers.remove(&peer);
            }
        }
    }

    /// How long what was asked for will take, as far as that is known: what is under way counts half.
    pub fn backlog(&self) -> Option<Duration> {
        let waits: u64 = self.waiting.iter().map(|w| w.bytes).sum();
        let goes: u64 = self.sending.values().map(|s| s.bytes).sum();
        Duration::try_from_secs_f64((waits + goes / 2) as f64 / self.peak()).ok()
    }

    /// Another answer may begin once less than so many bytes per second are carried.
    pub fn poll_room(&self) -> Option<u64> {
        match self.room() {
            Room::Below(full) if !self.waiting.is_empty() => Some(full),
            _ => None,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called; never while nothing is sent.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.sending.is_empty() {
            return None;
        }
        let over = self.sending.values().filter_map(|s| s.until).min().filter(|_| !self.waiting.is_empty());
        let overdue = self.waiting.iter().map(|w| w.since + OVERDUE).min();
        over.into_iter().chain(overdue).chain([self.span.since + SPAN]).min()
    }

    /// Time has passed. `delivered`: bytes that were acknowledged so far, by all peers.
    pub fn handle_timeout(&mut self, now: Duration, delivered: u64) {
        self.account(now);
        let over = self.sending.values_mut().filter(|s| s.until.is_some_and(|until| until <= now));
        let over: Vec<P> = over
            .map(|s| {
                s.until = None;
                s.peer
            })
            .collect();
        over.into_iter().for_each(|peer| self.turn_over(peer));
        let lasted = now.saturating_sub(self.span.since);
        if lasted < SPAN {
            return;
        }
        // a span in which the uplink was idle for long says nothing
        if lasted < 4 * SPAN {
            let seconds = lasted.as_secs_f64();
            let rate = delivered.saturating_sub(self.span.delivered) as f64 / seconds;
            self.measured(now, rate, self.span.busy / seconds);
        }
        self.span = Span { since: now, delivered, busy: 0.0, at: now };
    }

    /// Whether there is room for another turn.
    fn room(&self) -> Room {
        let least = if self.unprobed == 0 { self.probe.max(LEAST) } else { LEAST };
        if self.turns < least || self.peers.len() <= LEAST {
            Room::Free
        } else if self.turns < self.limit() {
            let coming = self.coming as f64 * self.each().unwrap_or(0.0);
            // a negative number becomes none
            Room::Below((self.full * self.peak() - coming) as u64)
        } else {
            Room::None
        }
    }

    /// How many turns there may be.
    fn limit(&self) -> usize {
        self.fewest().map_or(LEAST, |fewest| ((GAIN * fewest) as usize).max(LEAST))
    }

    /// Bytes per second that an answer gets where just enough are under way.
    fn each(&self) -> Option<f64> {
        self.fewest().map(|fewest| self.peak() / fewest.max(1.0))
    }

    /// How few answers fill the uplink, once it is known.
    fn fewest(&self) -> Option<f64> {
        Some(self.fewest.0.min(self.fewest.1)).filter(|fewest| fewest.is_finite())
    }

    /// What the uplink carried at most.
    fn peak(&self) -> f64 {
        self.peaks.0.max(self.peaks.1)
    }

    fn turn_over(&mut self, peer: P) {
        self.turns -= 1;
        if let Some((_, turns)) = self.peers.get_mut(&peer) {
            *turns -= 1;
        }
    }

    fn account(&mut self, now: Duration) {
        self.span.busy += now.saturating_sub(self.span.at).as_secs_f64() * self.sending.len() as f64;
        self.span.at = now;
    }

    /// In a span `rate` bytes per second were carried, with so many answers under way on average.
    fn measured(&mut self, now: Duration, rate: f64, answers: f64) {
        if now >= self.peaks_since + MEMORY {
            let idle = now >= self.peaks_since + 2 * MEMORY;
            self.peaks = (0.0, if idle { 0.0 } else { self.peaks.0 });
            self.fewest = (f64::INFINITY, if idle { f64::INFINITY } else { self.fewest.0 });
            self.peaks_since = now;
        }
        let short = rate < SHORT * self.peak() && !self.waiting.is_empty();
        self.short_spans = if short { self.short_spans + 1 } else { 0 };
        if self.short_spans >= SHORT_SPANS {
            self.short_spans = 0;
            self.peaks = (0.0, 0.0);
        }
        let grew = rate > GREW * self.peak();
        if grew {
            // what fewer carried was less than it can
            self.fewest = (f64::INFINITY, f64::INFINITY);
        }
        self.peaks.0 = self.peaks.0.max(rate);
        if rate >= FULL.0 * self.peak() {
            self.fewest.0 = self.fewest.0.min(answers);
        }
        self.unprobed = if grew { 0 } else { (self.unprobed + 1) % PROBE_EVERY };
        self.probe = (PROBE * answers) as usize;
        let more = rate < USED * self.peak() && !self.waiting.is_empty();
        self.full = (self.full + if more { FULL_STEP } else { -FULL_STEP }).clamp(FULL.0, FULL.1);
    }
}

/// How often leaves were sent of late: two generations, of which the older one is forgotten when the newer one is full.
#[derive(Debug, Default)]
struct Recent {
    /// Only looked up, never walked through: their order is chance.
    new: HashMap<u64, u32>,
    old: HashMap<u64, u32>,
}

impl Recent {
    fn count(&self, leaf: u64) -> u32 {
        let of = |map: &HashMap<u64, u32>| map.get(&leaf).copied().unwrap_or(0);
        of(&self.new).saturating_add(of(&self.old))
    }

    fn add(&mut self, leaf: u64) {
        let count = self.new.entry(leaf).or_default();
        *count = count.saturating_add(1);
        if self.new.len() >= LEAVES_REMEMBERED {
            self.old = std::mem::take(&mut self.new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const STEP: f64 = 0.001;

    /// A reader that always wants more: what it takes at most, bytes per second, and its round trip.
    #[derive(Clone, Copy)]
    struct Reader {
        rate: f64,
        rtt: f64,
        /// Bytes of its answers, on average.
        answer: u64,
    }

    /// `many` readers of `mbit` each, at a round trip of so many milliseconds.
    fn readers(many: usize, mbit: f64, rtt_ms: f64) -> Vec<Reader> {
        vec![Reader { rate: mbit * 1e6 / 8.0, rtt: rtt_ms / 1e3, answer: 256 << 10 }; many]
    }

    struct Flow {
        reader: usize,
        id: TurnId,
        left: f64,
        /// When its last byte is acknowledged.
        over: Option<f64>,
    }

    /// An uplink that its readers share evenly, as far as they take it.
    struct Uplink {
        turns: Turns<usize>,
        readers: Vec<Reader>,
        now: f64,
        delivered: f64,
        rate: f64,
        flows: Vec<Flow>,
        /// Bytes of the answer that waits.
        waits: Vec<Option<f64>>,
        asked: u64,
        most_at_once: usize,
    }

    impl Uplink {
        fn new(readers: Vec<Reader>) -> Self {
            let waits = vec![None; readers.len()];
            let turns = Turns::default();
            let (flows, asked, most_at_once) = (vec![], 0, 0);
            let (now, delivered, rate) = (0.0, 0.0, 0.0);
            Uplink { turns, readers, now, delivered, rate, flows, waits, asked, most_at_once }
        }

        /// Runs on for so many seconds, with so many Mbit/s. Gives what part of it was used.
        fn run(&mut self, seconds: f64, mbit: f64) -> f64 {
            let (capacity, before, until) = (mbit * 1e6 / 8.0, self.delivered, self.now + seconds);
            self.most_at_once = 0;
            while self.now < until {
                self.step(capacity);
            }
            (self.delivered - before) / (capacity * seconds)
        }

        fn step(&mut self, capacity: f64) {
            self.now += STEP;
            let now = Duration::from_secs_f64(self.now);
            let mut open = self.flows.iter().filter(|f| f.over.is_none()).count();
            let mut by_rate: Vec<usize> = (0..self.flows.len()).filter(|i| self.flows[*i].over.is_none()).collect();
            by_rate.sort_by(|a, b| {
                let rate = |i: &usize| self.readers[self.flows[*i].reader].rate;
                rate(a).total_cmp(&rate(b))
            });
            let mut left = capacity * STEP;
            self.rate = 0.0;
            for i in by_rate {
                let flow = &mut self.flows[i];
                let reader = self.readers[flow.reader];
                let part = (left / open as f64).min(reader.rate * STEP).min(flow.left);
                open -= 1;
                left -= part;
                flow.left -= part;
                self.delivered += part;
                self.turns.handle_sent(flow.id);
                if flow.left <= 0.0 {
                    flow.over = Some(self.now + reader.rtt);
                } else {
                    self.rate += part / STEP;
                }
            }
            let over: Vec<TurnId> =
                self.flows.extract_if(.., |f| f.over.is_some_and(|at| at <= self.now)).map(|f| f.id).collect();
            over.into_iter().for_each(|id| self.turns.handle_ended(now, id));
            for reader in 0..self.readers.len() {
                let busy =
                    self.waits[reader].is_some() || self.flows.iter().any(|f| f.reader == reader && f.over.is_none());
                if !busy {
                    self.asked += 1;
                    // a half to one and a half of that
                    let part = 0.5 + (self.asked as f64 * 0.618_034).fract();
                    let answer = (self.readers[reader].answer as f64 * part) as u64;
                    self.turns.handle_request(now, reader, answer, [self.asked]);
                    self.waits[reader] = Some(answer as f64);
                }
            }
            if self.turns.poll_timeout().is_some_and(|at| at <= now) {
                self.turns.handle_timeout(now, self.delivered as u64);
            }
            while let Some(id) = self.turns.poll_begin(now, self.rate as u64) {
                let reader = self.turns.sending[&id].peer;
                let left = self.waits[reader].take().unwrap();
                self.flows.push(Flow { reader, id, left, over: None });
            }
            self.most_at_once = self.most_at_once.max(self.flows.len());
        }
    }

    #[track_caller]
    fn full(used: f64) {
        assert!(used >= 0.95, "only {:.1} % was used", used * 100.0);
    }

    #[test]
    fn few_fast_readers_fill_it_and_more_wait() {
        let mut uplink = Uplink::new(readers(32, 100.0, 5.0));
        full(uplink.run(60.0, 40.0));
        let most = uplink.most_at_once;
        assert!(most <= 3 * LEAST, "{most} at once");
    }

    #[test]
    fn many_slow_readers_fill_a_fast_one() {
        let mut uplink = Uplink::new(readers(100, 10.0, 5.0));
        uplink.run(2.0, 1_000.0);
        full(uplink.run(40.0, 1_000.0));
    }

    #[test]
    fn many_distant_readers_fill_it() {
        let mut uplink = Uplink::new(readers(60, 1_000.0, 200.0));
        uplink.run(2.0, 60.0);
        full(uplink.run(40.0, 60.0));
    }

    #[test]
    fn one_fast_reader_among_slow_ones_gets_the_rest() {
        let mut all = readers(50, 2.0, 5.0);
        all.extend(readers(1, 1_000.0, 1.0));
        all[50].answer = 4 << 20;
        let mut uplink = Uplink::new(all);
        uplink.run(2.0, 1_000.0);
        full(uplink.run(40.0, 1_000.0));
    }

    #[test]
    fn readers_of_all_sorts_fill_it() {
        // a fortieth to all of it
        let mut all = readers(30, 5.0, 20.0);
        all.extend(readers(20, 20.0, 100.0));
        all.extend(readers(4, 200.0, 5.0));
        let mut uplink = Uplink::new(all);
        uplink.run(3.0, 200.0);
        full(uplink.run(40.0, 200.0));
    }

    #[test]
    fn it_follows_when_readers_and_limits_change() {
        let mut uplink = Uplink::new(readers(100, 1_000.0, 2.0));
        full(uplink.run(20.0, 500.0));
        // all readers become slow: few of them are not enough any more
        uplink.readers = readers(100, 10.0, 2.0);
        uplink.run(8.0, 500.0);
        full(uplink.run(20.0, 500.0));
        // and fast again: within half a minute it is a few at a time once more
        uplink.readers = readers(100, 1_000.0, 2.0);
        uplink.run(35.0, 500.0);
        full(uplink.run(10.0, 500.0));
        let most = uplink.most_at_once;
        assert!(most <= 2 * LEAST, "{most} at once");
        // a limit is a slower uplink
        uplink.run(12.0, 50.0);
        full(uplink.run(20.0, 50.0));
        uplink.run(3.0, 400.0);
        full(uplink.run(20.0, 400.0));
    }

    #[test]
    fn readers_that_take_nothing_hold_nobody_up() {
        let mut all = readers(40, 0.0, 5.0);
        all.extend(readers(20, 100.0, 5.0));
        let mut uplink = Uplink::new(all);
        uplink.run(6.0, 100.0);
        full(uplink.run(40.0, 100.0));
    }

    /// Turns with one peer more than need any, and all places taken by others.
    fn taken() -> (Turns<usize>, Vec<TurnId>) {
        let mut turns = Turns::default();
        let taken: Vec<TurnId> = (100..100 + LEAST).map(|p| turns.handle_request(MS(0), p, 1_000, [9_999])).collect();
        taken.iter().for_each(|id| assert_eq!(turns.poll_begin(MS(0), 0), Some(*id)));
        (turns, taken)
    }

    #[test]
    fn another_one_begins_while_the_uplink_is_not_full() {
        let (mut turns, places) = taken();
        places.iter().for_each(|id| turns.handle_sent(*id));
        assert_eq!(turns.poll_room(), None, "nobody waits");
        let waiting: Vec<TurnId> = (0..40).map(|p| turns.handle_request(MS(0), p, 1_000, [p as u64])).collect();
        assert_eq!(turns.poll_begin(MS(0), 0), None, "it is not known how many fill it");
        // 1 MB/s with eight of them
        turns.handle_timeout(SPAN, 200_000);
        let probed: Vec<TurnId> = std::iter::from_fn(|| turns.poll_begin(SPAN, 1_000_000)).collect();
        assert_eq!(probed.len(), LEAST / 2, "more are tried");
        probed.iter().for_each(|id| turns.handle_ended(SPAN, *id));
        // which did not bring more
        let now = 2 * SPAN;
        turns.handle_timeout(now, 400_000);
        let full = turns.poll_room().unwrap();
        assert!((950_000..=990_000).contains(&full), "{full}");
        assert_eq!(turns.poll_begin(now, full), None);
        let next = turns.poll_begin(now, full - 1).unwrap();
        assert!(waiting.contains(&next));
        // it is not seen in the rate before it is sent
        assert_eq!(turns.poll_begin(now, full - 1), None);
        assert_eq!(turns.poll_room(), Some(full - 125_000));
        turns.handle_sent(next);
        turns.handle_sent(next);
        assert_eq!(turns.poll_room(), Some(full));
        // however little is carried, there is a limit
        let mut begun = places.len() + 1;
        while let Some(id) = turns.poll_begin(now, 0) {
            turns.handle_sent(id);
            begun += 1;
        }
        assert_eq!(begun, 2 * LEAST);
        assert_eq!(turns.poll_room(), None);
    }

    #[test]
    fn what_was_sent_least_comes_first_and_nobody_waits_for_ever() {
        let (mut turns, mut places) = taken();
        let ask = |turns: &mut Turns<usize>, now, peer: usize, leaf| turns.handle_request(MS(now), peer, 1_000, [leaf]);
        let first = ask(&mut turns, 0, 1, 5);
        assert_eq!(turns.poll_begin(MS(0), 0), None);
        turns.handle_ended(MS(0), places.remove(0));
        assert_eq!(turns.poll_begin(MS(0), 0), Some(first));
        let (again, new) = (ask(&mut turns, 10, 2, 5), ask(&mut turns, 11, 3, 6));
        turns.handle_ended(MS(12), first);
        assert_eq!(turns.poll_begin(MS(12), 0), Some(new));
        let newer = ask(&mut turns, 900, 4, 7);
        turns.handle_ended(MS(1_000), new);
        assert_eq!(turns.poll_begin(MS(1_000), 0), Some(newer));
        // once it is overdue it begins beside those who have a turn
        assert_eq!(turns.poll_begin(MS(1_509), 0), None);
        assert_eq!(turns.poll_begin(MS(1_510), 0), Some(again));
        let newest = ask(&mut turns, 1_511, 6, 8);
        assert_eq!(turns.poll_begin(MS(1_511), 0), None);
        // and takes nobody's place when it ends
        turns.handle_ended(MS(1_512), again);
        assert_eq!(turns.poll_begin(MS(1_512), 0), None);
        turns.handle_ended(MS(1_512), newer);
        assert_eq!(turns.poll_begin(MS(1_512), 0), Some(newest));
    }

    #[test]
    fn a_peer_with_many_requests_takes_its_place_among_the_others() {
        let (mut turns, places) = taken();
        let greedy: Vec<TurnId> = (0..10).map(|leaf| turns.handle_request(MS(0), 1, 1_000, [leaf])).collect();
        let modest = turns.handle_request(MS(1), 2, 1_000, [9_999]);
        turns.handle_request(MS(1), 3, 1_000, [9_999]);
        turns.handle_ended(MS(2), places[0]);
        turns.handle_ended(MS(2), places[1]);
        assert_eq!(turns.poll_begin(MS(2), 0), Some(greedy[0]));
        assert_eq!(turns.poll_begin(MS(2), 0), Some(modest), "the other one has a turn");
        assert_eq!(turns.poll_begin(MS(2), 0), None);
    }

    #[test]
    fn few_peers_need_no_turns_and_nothing_is_left_behind() {
        let mut turns = Turns::default();
        let all: Vec<TurnId> = (0..64).map(|n| turns.handle_request(MS(0), n % LEAST, 1 << 20, [n as u64])).collect();
        all.iter().for_each(|id| assert_eq!(turns.poll_begin(MS(0), 0), Some(*id)));
        all.iter().for_each(|id| turns.handle_ended(MS(5), *id));
        assert_eq!(turns.poll_timeout(), None);
        assert!(turns.peers.is_empty() && turns.sending.is_empty() && turns.turns == 0);
        // an answer that is given up before its turn
        let (mut turns, places) = taken();
        let gone = turns.handle_request(MS(0), 1, 1_000, [1]);
        turns.handle_ended(MS(1), gone);
        turns.handle_ended(MS(1), gone);
        turns.handle_ended(MS(2), places[0]);
        assert_eq!(turns.poll_begin(MS(2), 0), None);
        assert_eq!((turns.turns, turns.peers.len()), (LEAST - 1, LEAST - 1));
    }

    #[test]
    fn the_backlog_is_what_was_asked_for_by_what_the_uplink_carries() {
        let mut turns = Turns::default();
        assert_eq!(turns.backlog(), None, "nothing was carried yet");
        let first = turns.handle_request(MS(0), 1, 1_000_000, [1]);
        assert_eq!(turns.poll_begin(MS(0), 0), Some(first));
        assert_eq!(turns.poll_timeout(), Some(SPAN), "a single answer is measured as well");
        turns.handle_timeout(SPAN, 200_000);
        // 1 MB/s; half of what is under way is taken to be sent
        assert_eq!(turns.backlog(), Some(MS(500)));
        let second = turns.handle_request(MS(200), 2, 2_000_000, [2]);
        assert_eq!(turns.backlog(), Some(MS(2_500)));
        turns.handle_ended(MS(300), second);
        turns.handle_ended(MS(300), first);
        assert_eq!(turns.backlog(), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_remembered_of_leaves_is_bounded() {
        let mut recent = Recent::default();
        for leaf in 0..5 * LEAVES_REMEMBERED as u64 {
            recent.add(leaf);
            recent.add(leaf);
            assert_eq!(recent.count(leaf), 2);
        }
        assert!(recent.new.len() + recent.old.len() <= 2 * LEAVES_REMEMBERED);
        assert_eq!(recent.count(0), 0);
    }
}
