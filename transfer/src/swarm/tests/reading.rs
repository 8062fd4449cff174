//! Readers against peers of given speeds: how soon the first byte is there, whether the reader ever waits, what comes twice.

use super::*;

const SIZE: u32 = 256 << 10;
const MB: f64 = 1e6;
/// The world moves in steps of this length.
const STEP: Duration = Duration::from_millis(5);

/// A peer that answers one request after another.
struct Source {
    bytes_per_second: f64,
    has: FixedBitSet,
    requests: VecDeque<(BatchId, VecDeque<u32>)>,
    /// Bytes of the first leaf of the first request that are on their way.
    sent: f64,
}

/// A reader, and the peers that it reads from.
struct Film {
    swarm: Swarm,
    now: Duration,
    sources: Vec<Source>,
    count: u32,
    /// Bytes per second that are taken, if they are there.
    rate: f64,
    at: usize,
    /// Bytes of the leaf at `at` that were taken.
    taken: f64,
    first: Option<Duration>,
    /// How long it waited after its first byte.
    waited: Duration,
    asked: Vec<u32>,
}

const READER: ReaderIx = ReaderIx(7);

impl Film {
    /// A film of `count` leaves, read at `rate` bytes per second, asked for ahead up to `most` bytes.
    fn new(count: u32, rate: f64, most: u64, sources: &[f64]) -> Film {
        let mut swarm = Swarm::on_demand(SwarmConfig::default(), 42, vec![SIZE; count as usize].into());
        let sources: Vec<Source> = sources
            .iter()
            .map(|&bytes_per_second| Source {
                bytes_per_second,
                has: full(count as usize),
                requests: VecDeque::new(),
                sent: 0.0,
            })
            .collect();
        for ix in 0..sources.len() as u32 {
            swarm.handle_peer(MS(0), PeerIx(ix), u64::from(ix) + 1, MS(10));
            assert!(swarm.handle_have(MS(0), PeerIx(ix), std::slice::from_ref(&(0..count))));
        }
        swarm.handle_reader(MS(0), READER, (0..count).collect(), 0, count as usize, most);
        Film {
            swarm,
            now: MS(0),
            sources,
            count,
            rate,
            at: 0,
            taken: 0.0,
            first: None,
            waited: MS(0),
            asked: vec![0; count as usize],
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.swarm.poll_action(self.now) {
            match action {
                Action::Request { peer, batch, leaves } => {
                    for leaf in &leaves {
                        assert!(!self.swarm.has(*leaf) && self.sources[peer.0 as usize].has.contains(*leaf as usize));
                        let open = self.sources.iter().flat_map(|s| &s.requests);
                        let holders = open.filter(|(_, leaves)| leaves.contains(leaf)).count();
                        assert!(holders < 2, "asked for a third time");
                        self.asked[*leaf as usize] += 1;
                    }
                    self.sources[peer.0 as usize].requests.push_back((batch, leaves.into()));
                }
                Action::Cancel { peer, batch } => {
                    let source = &mut self.sources[peer.0 as usize];
                    if source.requests.front().is_some_and(|(first, _)| *first == batch) {
                        source.sent = 0.0;
                    }
                    source.requests.retain(|(b, _)| *b != batch);
                }
                Action::Drop { peer, .. } => self.sources[peer.0 as usize].requests.clear(),
                Action::Interested { .. } | Action::Reach { .. } => {}
            }
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        if self.swarm.poll_timeout().is_some_and(|at| at <= now) {
            self.swarm.handle_timeout(now);
        }
        for ix in 0..self.sources.len() {
            let mut room = self.sources[ix].bytes_per_second * STEP.as_secs_f64();
            while room > 0.0 {
                let source = &mut self.sources[ix];
                let Some((batch, leaves)) = source.requests.front_mut() else { break };
                let (batch, leaf, peer) = (*batch, leaves[0], PeerIx(ix as u32));
                let came = room.min(f64::from(SIZE) - source.sent);
                source.sent += came;
                room -= came;
                let whole = source.sent >= f64::from(SIZE);
                if whole {
                    source.sent = 0.0;
                    leaves.pop_front();
                    if leaves.is_empty() {
                        source.requests.pop_front();
                    }
                }
                self.swarm.handle_bytes(now, peer, came as u64);
                if whole && self.swarm.handle_arrived(now, peer, batch, leaf) {
                    self.swarm.handle_verified(now, peer, leaf);
                }
                self.act();
            }
        }
        self.read();
        self.act();
    }

    /// Takes what there is, at the reader's rate.
    fn read(&mut self) {
        let mut want = self.rate * STEP.as_secs_f64();
        let readable = self.swarm.readable(READER);
        assert!((self.at..readable).all(|leaf| self.swarm.has(leaf as u32)), "it says what is not so");
        while want > 0.0 && self.at < readable {
            self.first.get_or_insert(self.now);
            let took = want.min(f64::from(SIZE) - self.taken);
            want -= took;
            self.taken += took;
            if self.taken >= f64::from(SIZE) {
                self.taken = 0.0;
                self.at += 1;
            }
        }
        if want > 0.0 && self.at < self.count as usize && self.first.is_some() {
            self.waited += STEP;
        }
        self.swarm.handle_read(self.now, READER, self.at);
    }

    fn run(&mut self, at_most: Duration) {
        self.act();
        while self.at < self.count as usize {
            self.step();
            assert!(self.now < at_most, "{} of {} leaves in {:?}", self.at, self.count, self.now);
        }
        assert!(self.swarm.is_complete());
    }

    fn asked_twice(&self) -> usize {
        self.asked.iter().filter(|n| **n > 1).count()
    }
}

#[test]
fn a_film_starts_with_its_first_leaf_and_never_waits_where_peers_are_faster() {
    // the first leaf of one peer takes 0.2 s at this speed; together they are 1.5 times as fast as the film
    let mut film = Film::new(120, 2.0 * MB, 64 << 20, &[1.2 * MB, 1.2 * MB, 0.6 * MB]);
    film.run(Duration::from_secs(30));
    assert!(film.first.unwrap() < MS(400), "the first byte came after {:?}", film.first);
    assert!(film.waited < MS(700), "it waited for {:?} while windows grew", film.waited);
    assert!(film.asked_twice() < 6, "{} leaves were asked for twice", film.asked_twice());
}

#[test]
fn a_slow_peer_that_holds_the_next_leaf_does_not_hold_up_the_reader() {
    for slow in [5e3, 50e3, 200e3] {
        let mut film = Film::new(160, 2.0 * MB, 64 << 20, &[slow, 4.0 * MB]);
        film.run(Duration::from_secs(30));
        assert!(film.first.unwrap() < MS(900), "at {slow}: the first byte came after {:?}", film.first);
        assert!(film.waited < MS(600), "at {slow}: it waited for {:?}", film.waited);
        assert!(film.asked_twice() < 10, "at {slow}: {} leaves were asked for twice", film.asked_twice());
    }
}

#[test]
fn a_peer_that_never_delivers_costs_the_reader_less_than_a_second() {
    for silent in 1..4 {
        let mut sources = vec![0.0; silent];
        sources.push(5.0 * MB);
        let mut film = Film::new(120, 2.0 * MB, 64 << 20, &sources);
        film.run(Duration::from_secs(30));
        assert!(film.first.unwrap() < MS(500 * silent as u64 + 500), "{:?}", film.first);
        assert!(film.waited < Duration::from_secs(1), "{silent} silent: it waited for {:?}", film.waited);
    }
}

#[test]
fn a_peer_that_falls_silent_in_the_middle_is_hardly_noticed() {
    let mut film = Film::new(160, 2.0 * MB, 64 << 20, &[4.0 * MB, 4.0 * MB]);
    film.act();
    while film.at < 60 {
        film.step();
    }
    film.sources[0].bytes_per_second = 0.0;
    let before = film.waited;
    film.run(Duration::from_secs(60));
    assert!(film.waited - before < MS(200), "it waited for {:?}", film.waited - before);
}

#[test]
fn a_reader_that_stops_stops_the_fetch_within_its_limit() {
    let most = 8 << 20;
    let mut film = Film::new(400, 0.0, most, &[20.0 * MB]);
    film.act();
    for _ in 0..2000 {
        film.step();
    }
    let asked: u64 = film.asked.iter().map(|n| u64::from(*n * SIZE)).sum();
    assert!(asked >= 4 << 20 && asked <= most, "{asked} bytes were asked for");
    assert!(film.swarm.is_idle() && film.swarm.poll_timeout().is_none());
    // it goes on
    film.rate = 10.0 * MB;
    film.run(Duration::from_secs(60));
    assert_eq!(film.asked_twice(), 0);
}

#[test]
fn a_seek_leaves_behind_what_was_asked_for() {
    let mut film = Film::new(1000, 1.0 * MB, 16 << 20, &[1.0 * MB, 1.0 * MB]);
    film.act();
    for _ in 0..100 {
        film.step();
    }
    film.swarm.handle_seek(film.now, READER, 800);
    (film.at, film.taken, film.first) = (800, 0.0, None);
    let sought = film.now;
    film.act();
    let waiting: Vec<u32> = film.sources.iter().flat_map(|s| &s.requests).flat_map(|(_, l)| l).copied().collect();
    assert!(waiting.iter().all(|leaf| *leaf >= 800), "{waiting:?}");
    while film.first.is_none() {
        film.step();
    }
    assert!(film.now - sought < MS(700), "the first byte came after {:?}", film.now - sought);
    let before: u32 = film.asked[100..800].iter().sum();
    assert_eq!(before, 0);
}

#[test]
fn what_is_lost_is_asked_for_again() {
    let mut film = Film::new(40, 1.0 * MB, 16 << 20, &[4.0 * MB]);
    film.act();
    while film.swarm.readable(READER) < 12 {
        film.step();
    }
    let lost = film.at as u32 + 3;
    film.swarm.handle_lost(lost);
    assert_eq!(film.swarm.readable(READER), lost as usize);
    film.run(Duration::from_secs(30));
    assert_eq!(film.asked[lost as usize], 2);
}

/// Where a leaf comes several times, as zeros do.
#[test]
fn a_leaf_that_comes_again_is_asked_for_once() {
    let mut s = Swarm::on_demand(SwarmConfig::default(), 42, vec![SIZE; 3].into());
    s.handle_peer(MS(0), PeerIx(0), 1, MS(1));
    assert!(s.handle_have(MS(0), PeerIx(0), std::slice::from_ref(&(0..3))));
    s.handle_reader(MS(0), READER, vec![0, 1, 1, 0, 2, 1].into(), 0, 5, 64 << 20);
    let mut asked = asks(&mut s, MS(0), PeerIx(0));
    asked.sort_unstable();
    assert_eq!(asked, [0, 1, 2]);
    (0..3).for_each(|leaf| s.handle_local(MS(1), leaf));
    assert_eq!(s.readable(READER), 5);
    assert_eq!(s.handle_read(MS(2), READER, 2), [] as [u32; 0]);
    assert_eq!(s.handle_read(MS(2), READER, 4), [1, 0]);
    assert_eq!(s.handle_read(MS(2), READER, 5), [2]);
}

#[test]
fn a_fetch_of_everything_brings_first_what_is_read() {
    let count = 400u32;
    let mut s = swarm(vec![SIZE; count as usize]);
    s.handle_peer(MS(0), PeerIx(0), 1, MS(1));
    s.handle_reader(MS(0), READER, (200..300).collect(), 0, 100, 64 << 20);
    assert!(s.handle_have(MS(0), PeerIx(0), std::slice::from_ref(&(0..count))));
    let asked = asks(&mut s, MS(0), PeerIx(0));
    assert_eq!(asked[..4], [200, 201, 202, 203], "{asked:?}");
    s.handle_reader_gone(READER);
    let mut now = MS(0);
    while !s.is_complete() {
        now += MS(1);
        let next = (0..count).find(|leaf| !s.has(*leaf)).unwrap();
        s.handle_local(now, next);
        asks(&mut s, now, PeerIx(0));
    }
}

/// A seeder and leechers, each with an uplink that those who ask share.
struct Mesh {
    now: Duration,
    nodes: Vec<Node>,
    count: u32,
}

struct Node {
    /// Nothing for the seeder.
    swarm: Option<Swarm>,
    /// Requests of each of the others, and what was sent of the first leaf.
    asked: BTreeMap<usize, (VecDeque<(BatchId, u32)>, f64)>,
    done: Option<Duration>,
}

const UPLINK: f64 = 1.0 * MB;

impl Mesh {
    /// The first leecher reads; the others fetch. With `reads` false it fetches as well.
    fn new(leechers: usize, count: u32, reads: bool) -> Mesh {
        let sizes: Arc<[u32]> = vec![SIZE; count as usize].into();
        let none = FixedBitSet::with_capacity(count as usize);
        let swarm = |me: usize| {
            let (config, tag) = (SwarmConfig::default(), me as u64 * 7919 + 3);
            let mut swarm = match me {
                1 if reads => Swarm::on_demand(config, tag, sizes.clone()),
                _ => Swarm::new(config, tag, sizes.clone(), &full(count as usize), &none),
            };
            for other in (0..=leechers).filter(|other| *other != me) {
                swarm.handle_peer(MS(0), PeerIx(other as u32), other as u64 * 7919 + 3, MS(10));
            }
            assert!(swarm.handle_have(MS(0), PeerIx(0), std::slice::from_ref(&(0..count))));
            if me == 1 && reads {
                swarm.handle_reader(MS(0), READER, (0..count).collect(), 0, count as usize, 64 << 20);
            }
            swarm
        };
        let node = |me| Node { swarm: (me > 0).then(|| swarm(me)), asked: BTreeMap::new(), done: None };
        Mesh { now: MS(0), nodes: (0..=leechers).map(node).collect(), count }
    }

    fn act(&mut self, me: usize) {
        while let Some(action) = self.nodes[me].swarm.as_mut().and_then(|s| s.poll_action(self.now)) {
            match action {
                Action::Request { peer, batch, leaves } => {
                    let (queue, _) = self.nodes[peer.0 as usize].asked.entry(me).or_default();
                    queue.extend(leaves.into_iter().map(|leaf| (batch, leaf)));
                }
                Action::Cancel { peer, batch } => {
                    let (queue, sent) = self.nodes[peer.0 as usize].asked.entry(me).or_default();
                    if queue.front().is_some_and(|(first, _)| *first == batch) {
                        *sent = 0.0;
                    }
                    queue.retain(|(b, _)| *b != batch);
                }
                _ => {}
            }
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        for node in self.nodes.iter_mut().filter_map(|node| node.swarm.as_mut()) {
            if node.poll_timeout().is_some_and(|at| at <= now) {
                node.handle_timeout(now);
            }
        }
        for from in 0..self.nodes.len() {
            let takers: Vec<usize> =
                self.nodes[from].asked.iter().filter(|(_, (queue, _))| !queue.is_empty()).map(|(to, _)| *to).collect();
            let share = UPLINK * STEP.as_secs_f64() / takers.len().max(1) as f64;
            for to in takers {
                let (queue, sent) = self.nodes[from].asked.get_mut(&to).unwrap();
                *sent += share;
                let (batch, leaf) = queue[0];
                let whole = *sent >= f64::from(SIZE);
                if whole {
                    queue.pop_front();
                    *sent = 0.0;
                }
                let (peer, swarm) = (PeerIx(from as u32), self.nodes[to].swarm.as_mut().unwrap());
                swarm.handle_bytes(now, peer, share as u64);
                if whole && swarm.handle_arrived(now, peer, batch, leaf) {
                    swarm.handle_verified(now, peer, leaf);
                    if swarm.is_complete() {
                        self.nodes[to].done = Some(now);
                    }
                    for other in (1..self.nodes.len()).filter(|other| *other != to) {
                        let swarm = self.nodes[other].swarm.as_mut().unwrap();
                        assert!(swarm.handle_have(now, PeerIx(to as u32), std::slice::from_ref(&(leaf..leaf + 1))));
                        self.act(other);
                    }
                }
                self.act(to);
            }
        }
    }

    /// Runs until all have everything, the first one reading at this rate from its first leaf on. Gives when the others
    /// had, how long the first leaf took, how long the reader waited after it, and when it did for the last time.
    fn run(&mut self, rate: f64) -> (Duration, Duration, Duration, Duration) {
        (1..self.nodes.len()).for_each(|me| self.act(me));
        let (mut at, mut taken, mut first, mut waited, mut last) = (0, 0.0, None, MS(0), MS(0));
        while self.nodes[1..].iter().any(|node| node.done.is_none()) {
            self.step();
            assert!(self.now < Duration::from_secs(600), "no end in sight");
            let (now, reader) = (self.now, self.nodes[1].swarm.as_mut().unwrap());
            let readable = reader.readable(READER);
            if first.is_none() && readable > 0 {
                first = Some(now);
            }
            if first.is_some() {
                taken += rate * STEP.as_secs_f64();
                while taken >= f64::from(SIZE) && at < readable {
                    taken -= f64::from(SIZE);
                    at += 1;
                }
                if taken >= f64::from(SIZE) && at < self.count as usize {
                    (taken, waited, last) = (f64::from(SIZE), waited + STEP, now);
                }
                reader.handle_read(now, READER, at);
                self.act(1);
            }
        }
        let others = self.nodes[2..].iter().filter_map(|node| node.done).max().unwrap();
        (others, first.unwrap_or_default(), waited, last)
    }
}

/// Where the swarm as a whole is faster than the film, the reader waits only at its beginning; and the others are done as soon as they
/// are with one more of their kind, or nearly, though the reader asks in order.
#[test]
fn a_reader_among_leechers_sees_its_film_and_costs_them_little() {
    let (leechers, count) = (7, 160);
    let (alone, ..) = Mesh::new(leechers, count, false).run(0.0);
    for rate in [0.5 * MB, 100.0 * MB] {
        let (others, first, waited, last) = Mesh::new(leechers, count, true).run(rate);
        assert!(first < Duration::from_secs(3), "at {rate}: the first leaf came after {first:?}");
        assert!(others < alone.mul_f64(1.15), "at {rate}: the others took {others:?}, and {alone:?} without a reader");
        if rate < MB {
            // at first nobody but the seeder has anything, and gives it to all of them at once
            assert!(waited < Duration::from_secs(3) && last < Duration::from_secs(12), "{waited:?}, last at {last:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// With one honest seeder among any peers, whatever is read arrives, wherever the reader goes, nothing is asked for a
    /// third time and nothing outside of what is read.
    #[test]
    fn what_is_read_arrives_in_any_company(
        sizes in prop::collection::vec(1..300_000u32, 1..60),
        company in prop::collection::vec((0..4u8, any::<u64>()), 0..6),
        seeks in prop::collection::vec((0..200usize, 0..60usize), 0..4),
        loses in prop::collection::vec((0..200usize, 0..60u32), 0..4),
        picks in prop::collection::vec(any::<usize>(), 64),
        all in any::<bool>(),
        most in 1..2_000_000u64,
    ) {
        let count = sizes.len();
        let mut w = World::new(sizes.clone());
        if !all {
            w.swarm = Swarm::on_demand(SwarmConfig::default(), 42, sizes.into());
        }
        for (kind, bits) in company {
            let kind = [Kind::Honest, Kind::Liar, Kind::Staller, Kind::Refuser][kind as usize];
            w.join(kind, (0..count as u32).filter(|l| bits >> (l % 64) & 1 == 1).collect());
        }
        w.join(Kind::Honest, (0..count as u32).collect());
        let end = count.div_ceil(2).max(1);
        w.swarm.handle_reader(w.now, READER, (0..count as u32).rev().collect(), 0, end, most);
        let (mut at, mut steps) = (0, 0);
        while at < end {
            for (when, to) in &seeks {
                if *when == steps {
                    at = to % end;
                    w.swarm.handle_seek(w.now, READER, at);
                }
            }
            for (when, leaf) in &loses {
                if *when == steps && w.done.remove(&(leaf % count as u32)) {
                    w.swarm.handle_lost(leaf % count as u32);
                }
            }
            w.act();
            w.step(picks[steps % picks.len()]);
            let readable = w.swarm.readable(READER);
            prop_assert!((at..readable).all(|place| w.done.contains(&((count - 1 - place) as u32))));
            if steps % 3 == 0 {
                at = at.max(readable);
                w.swarm.handle_read(w.now, READER, at);
            }
            steps += 1;
            prop_assert!(steps < 5_000, "no end in sight: {at} of {end}, {:?}", w.swarm.progress());
        }
        if !all {
            let unread = (end..count).map(|place| (count - 1 - place) as u32).filter(|leaf| w.done.contains(leaf));
            prop_assert_eq!(unread.count(), 0);
        }
    }
}
