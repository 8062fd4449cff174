//! The serving side of a simulated peer: whose turn it is, answers in order, connections that share an uplink, accounts of
//! what was taken. What is asked for is not decided here.

use super::*;

/// How often a peer looks whether its uplink has room for another answer, while one waits for that. A driver hears of
/// every acknowledgement.
const LOOK_NS: u64 = 2_000_000;

impl World {
    pub(super) fn request(&mut self, server: u32, client: u32, batch: BatchId, leaves: Vec<u32>) {
        let node = &mut self.nodes[server as usize];
        if !node.neighbours.contains(&client) {
            return;
        }
        self.book(server, client);
        let node = &mut self.nodes[server as usize];
        if node.choked.contains(&client) || node.plan.kind == Kind::FreeRider {
            return self.soon(Event::Refused { client, server, batch });
        }
        node.conns.entry(client).or_default().waiting.push_back((batch, leaves));
        self.offer(server, client);
    }

    /// Brings `client`'s account with `server` up to date, where it matters.
    pub(super) fn book(&mut self, server: u32, client: u32) {
        if self.serving.policy == Policy::Cooperative {
            return;
        }
        self.progress(server, client);
        self.aim(server, client);
        let (there, here) = (&self.nodes[client as usize], &self.nodes[server as usize]);
        let rides = there.plan.kind == Kind::FreeRider;
        let bytes = |bytes: Option<&f64>| bytes.map_or(0, |bytes| bytes.round() as u64);
        let account = Account {
            taken: bytes(there.given.get(&server)),
            given: bytes(here.given.get(&client)),
            announced: if rides { 0 } else { there.have.ones().map(|leaf| u64::from(self.sizes[leaf])).sum() },
            refuses: rides,
        };
        let now = Duration::from_nanos(self.now);
        let verdicts = self.nodes[server as usize].choker.handle_account(now, client, account);
        self.choke(server, verdicts);
    }

    /// Lets the next requests of `client` wait for their turn, as many as may be answered at the same time.
    fn offer(&mut self, server: u32, client: u32) {
        let now = Duration::from_nanos(self.now);
        let node = &mut self.nodes[server as usize];
        if let Some(conn) = node.conns.get_mut(&client) {
            while conn.active.len() + conn.turning.len() < self.serving.answers_per_connection
                && let Some((batch, leaves)) = conn.waiting.pop_front()
            {
                let bytes = leaves.iter().map(|leaf| u64::from(self.sizes[*leaf as usize])).sum();
                let turn = node.turns.handle_request(now, client, bytes, leaves.iter().map(|leaf| u64::from(*leaf)));
                node.clients.insert(turn, client);
                conn.turning.insert(turn, (batch, leaves));
            }
        }
        self.take_turns(server);
    }

    /// Begins to answer what has a turn.
    fn take_turns(&mut self, server: u32) {
        let now = Duration::from_nanos(self.now);
        let node = &mut self.nodes[server as usize];
        // their flows have had their shares since
        if node.begun_at < self.now {
            node.begun.drain(..).for_each(|turn| node.turns.handle_sent(turn));
        }
        let rate = self.fluid.load(node.up).0 as u64;
        loop {
            let node = &mut self.nodes[server as usize];
            let Some(turn) = node.turns.poll_begin(now, rate) else { break };
            node.begun.push(turn);
            node.begun_at = self.now;
            let Some(client) = node.clients.get(&turn).copied() else { continue };
            let choked = node.choked.contains(&client);
            self.progress(server, client);
            let Some(conn) = self.nodes[server as usize].conns.get_mut(&client) else { continue };
            let Some((batch, leaves)) = conn.turning.remove(&turn) else { continue };
            if choked {
                self.soon(Event::Refused { client, server, batch });
                self.turn_ended(server, turn);
                continue;
            }
            let left = f64::from(self.sizes[leaves[0] as usize]);
            conn.active.push(Answer { turn, batch, leaves, at: 0, left, untold: 0.0 });
            self.aim(server, client);
        }
        let node = &mut self.nodes[server as usize];
        let look = node.turns.poll_room().map(|_| self.now + LOOK_NS);
        if let Some(at) = node.turns.poll_timeout() {
            let at = (at.as_nanos() as u64).max(self.now + 1).min(look.unwrap_or(u64::MAX));
            if at < node.turn_timer {
                node.turn_timer = at;
                self.at(at, Event::TurnTimer(server));
            }
        }
    }

    pub(super) fn turn_timer(&mut self, server: u32) {
        let node = &mut self.nodes[server as usize];
        if node.turn_timer > self.now {
            return;
        }
        node.turn_timer = u64::MAX;
        let now = Duration::from_nanos(self.now);
        if node.turns.poll_timeout().is_none_or(|at| at > now) {
            return self.take_turns(server);
        }
        let clients: Vec<u32> = node.conns.keys().copied().collect();
        for client in clients {
            self.progress(server, client);
            self.aim(server, client);
        }
        let node = &mut self.nodes[server as usize];
        node.turns.handle_timeout(now, node.sent.round() as u64);
        self.take_turns(server);
    }

    /// An answer is through, or is not wanted any more.
    pub(super) fn turn_ended(&mut self, server: u32, turn: TurnId) {
        let node = &mut self.nodes[server as usize];
        node.turns.handle_ended(Duration::from_nanos(self.now), turn);
        let Some(client) = node.clients.remove(&turn) else { return };
        self.offer(server, client);
    }

    /// Books what a connection has moved.
    pub(super) fn progress(&mut self, server: u32, client: u32) {
        let Some(conn) = self.nodes[server as usize].conns.get_mut(&client) else { return };
        let Some(flow) = conn.flow else { return };
        let moved = self.fluid.take(self.now, flow);
        let each = moved / conn.active.len().max(1) as f64;
        for answer in &mut conn.active {
            answer.left -= each;
            answer.untold += each;
        }
        self.nodes[server as usize].sent += moved;
        self.nodes[client as usize].received += moved;
        *self.nodes[client as usize].given.entry(server).or_default() += moved;
    }

    /// Sets when a connection's flow is due next; ends the flow when there is nothing to send.
    pub(super) fn aim(&mut self, server: u32, client: u32) {
        let (up, down) = (self.nodes[server as usize].up, self.nodes[client as usize].down);
        let Some(conn) = self.nodes[server as usize].conns.get_mut(&client) else { return };
        let nearest = conn.active.iter().map(|a| a.left.max(0.0)).fold(f64::INFINITY, f64::min);
        let goal = nearest * conn.active.len() as f64;
        match conn.flow {
            Some(flow) if conn.active.is_empty() => {
                conn.flow = None;
                self.fluid.stop(flow);
            }
            Some(flow) => self.fluid.set_goal(flow, goal),
            None if conn.active.is_empty() => {}
            None => {
                let flow = self.fluid.start(self.now, up, down, goal);
                conn.flow = Some(flow);
                if self.flows.len() <= flow as usize {
                    self.flows.resize(flow as usize + 1, (0, 0));
                }
                self.flows[flow as usize] = (server, client);
            }
        }
        if let Some(conn) = self.nodes[server as usize].conns.get(&client)
            && conn.active.is_empty()
            && conn.waiting.is_empty()
            && conn.turning.is_empty()
        {
            self.nodes[server as usize].conns.remove(&client);
        }
    }

    /// A leaf of a flow may be through.
    pub(super) fn due(&mut self, flow: FlowId) {
        let (server, client) = self.flows[flow as usize];
        self.progress(server, client);
        let mut through = vec![];
        let mut refused = vec![];
        let choked = self.nodes[server as usize].choked.contains(&client);
        let Some(conn) = self.nodes[server as usize].conns.get_mut(&client) else { return };
        for answer in &mut conn.active {
            // half a byte of rounding
            while answer.left <= 0.5 && answer.at < answer.leaves.len() {
                through.push((answer.batch, answer.leaves[answer.at], answer.untold));
                answer.untold = 0.0;
                answer.at += 1;
                if let Some(next) = answer.leaves.get(answer.at) {
                    answer.left += f64::from(self.sizes[*next as usize]);
                    if choked {
                        refused.push(answer.batch);
                        answer.at = answer.leaves.len();
                    }
                }
            }
        }
        let ended: Vec<TurnId> = conn.active.extract_if(.., |a| a.at == a.leaves.len()).map(|a| a.turn).collect();
        self.aim(server, client);
        for (batch, leaf, bytes) in through {
            let at = self.now + self.latency + VERIFY_NS;
            self.at(at, Event::Leaf { client, server, batch, leaf, bytes });
        }
        for batch in refused {
            self.at(self.now + self.latency + VERIFY_NS, Event::Refused { client, server, batch });
        }
        if !ended.is_empty() {
            for turn in ended {
                self.at(self.now + 2 * self.latency, Event::Acknowledged { server, turn });
            }
            self.offer(server, client);
        }
    }

    pub(super) fn cancelled(&mut self, server: u32, client: u32, batch: BatchId) {
        self.progress(server, client);
        let Some(conn) = self.nodes[server as usize].conns.get_mut(&client) else { return };
        conn.waiting.retain(|(b, _)| *b != batch);
        let turning = conn.turning.extract_if(.., |_, (b, _)| *b == batch).map(|(turn, _)| turn);
        let active = conn.active.extract_if(.., |a| a.batch == batch).map(|a| a.turn);
        let ended: Vec<TurnId> = turning.chain(active).collect();
        self.aim(server, client);
        ended.into_iter().for_each(|turn| self.turn_ended(server, turn));
    }
}
