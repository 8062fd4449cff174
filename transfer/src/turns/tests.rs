//! Turns against a model of an uplink and its readers, and their rules one by one.

use super::{gauge::SPAN, *};

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
