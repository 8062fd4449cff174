//! The serving side of a simulated peer: whose turn it is, answers in order, connections that share an uplink, accounts of
//! what was taken. What is asked for is not decided here.

use super::*;

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
        node.queue.push_back(client);
        self.answer_next(server);
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

    /// Begins to answer what has a turn.
    pub(super) fn answer_next(&mut self, server: u32) {
        let mut at = 0;
        // one more than that at a time, where those who are served do not fill the uplink
        let mut more = self.fluid.has_room(self.nodes[server as usize].up);
        loop {
            let node = &mut self.nodes[server as usize];
            if node.answering >= self.serving.answers_at_once && !std::mem::take(&mut more) {
                return;
            }
            let Some(client) = node.queue.get(at).copied() else { return };
            let Some(conn) = node.conns.get_mut(&client).filter(|c| !c.waiting.is_empty()) else {
                node.queue.remove(at);
                continue;
            };
            if conn.active.len() >= self.serving.answers_per_connection {
                at += 1;
                continue;
            }
            node.queue.remove(at);
            let Some((batch, leaves)) = conn.waiting.pop_front() else { continue };
            let left = f64::from(self.sizes[leaves[0] as usize]);
            node.answering += 1;
            self.progress(server, client);
            if let Some(conn) = self.nodes[server as usize].conns.get_mut(&client) {
                conn.active.push(Answer { batch, leaves, at: 0, left, untold: 0.0 });
            }
            self.aim(server, client);
        }
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
        let before = conn.active.len();
        conn.active.retain(|a| a.at < a.leaves.len());
        let ended = before - conn.active.len();
        self.nodes[server as usize].answering -= ended;
        self.aim(server, client);
        for (batch, leaf, bytes) in through {
            let at = self.now + self.latency + VERIFY_NS;
            self.at(at, Event::Leaf { client, server, batch, leaf, bytes });
        }
        for batch in refused {
            self.at(self.now + self.latency + VERIFY_NS, Event::Refused { client, server, batch });
        }
        if ended > 0 {
            self.answer_next(server);
        }
    }

    pub(super) fn cancelled(&mut self, server: u32, client: u32, batch: BatchId) {
        self.progress(server, client);
        let Some(conn) = self.nodes[server as usize].conns.get_mut(&client) else { return };
        conn.waiting.retain(|(b, _)| *b != batch);
        let before = conn.active.len();
        conn.active.retain(|a| a.batch != batch);
        let ended = before - conn.active.len();
        self.nodes[server as usize].answering -= ended;
        self.aim(server, client);
        self.answer_next(server);
    }
}
