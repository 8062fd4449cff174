//! How the events of an operation look to people: a bar or plain lines while it runs, then its results.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use shoal_node::{
    Collected, Done, EntryInfo, Event, Id, Importing, Limits, Listening, PeerInfo, Progress, RootInfo, Shared, Space,
};

use crate::{
    output::Output,
    text::{Table, bytes, clean, count, duration, short_peer},
};

/// Without a terminal, progress is a line this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows events.
pub(crate) struct View<'a> {
    output: &'a Output,
    bar: Option<ProgressBar>,
    last_line: Instant,
    roots: Vec<RootInfo>,
    peers: Vec<PeerInfo>,
    /// A pid, if another process runs the operation.
    other: Option<u32>,
    /// Whether the process that serves goes on after this command.
    lasting: bool,
}

impl<'a> View<'a> {
    pub(crate) fn new(output: &'a Output) -> Self {
        View {
            output,
            bar: None,
            last_line: Instant::now(),
            roots: Vec::new(),
            peers: Vec::new(),
            other: None,
            lasting: false,
        }
    }

    /// The operation runs in another process.
    pub(crate) fn handed_over(&mut self, pid: u32, daemon: bool) {
        self.other = Some(pid);
        self.lasting = daemon;
    }

    /// Shows one event.
    pub(crate) fn event(&mut self, event: Event) {
        if self.output.json() {
            return self.output.event(&event);
        }
        match event {
            Event::Importing(importing) => self.importing(&importing),
            Event::Shared(shared) => self.shared(&shared),
            Event::Searching { providers, .. } => self.message(&match providers {
                0 => "looking for peers".to_owned(),
                n => format!("asking {}", count(n as u64, "provider", "providers")),
            }),
            Event::Manifest { bytes: total, files, .. } => {
                self.message(&format!("{} in {}", bytes(total), count(files, "file", "files")));
            }
            Event::Started { bytes_total, bytes_resumed, bytes_local } => {
                if bytes_resumed > 0 {
                    self.output.talk(&format!("{} are in place from an earlier run", bytes(bytes_resumed)));
                }
                if bytes_local > 0 {
                    self.output.talk(&format!("{} were here already, under another root", bytes(bytes_local)));
                }
                self.position(bytes_resumed + bytes_local, bytes_total, "");
            }
            Event::Progress(progress) => self.progress(&progress),
            Event::PeerDropped { peer, why } => {
                self.output.talk(&format!("let {} go: {}", short_peer(&peer), clean(&why)));
            }
            Event::Done(done) => self.done(&done),
            Event::Opened { bytes: wanted, missing, kept: false, .. } if missing > 0 => {
                self.output
                    .talk(&format!("no room for {} in the quota: they pass through and are not kept", bytes(wanted)));
            }
            // what was read speaks for itself
            Event::Opened { .. } | Event::Read(_) | Event::Bytes(_) => {}
            Event::Listening(listening) => self.listening(&listening),
            Event::PassphraseChanged { home } => {
                self.output.result(&format!("The passphrase of {} is changed.", clean(&home)));
            }
            Event::Root(root) => self.roots.push(root),
            Event::Entry(entry) => self.entry(&entry),
            Event::Peer(peer) => self.peers.push(peer),
            Event::Counters { bytes_in, bytes_out, peers, roots } => {
                self.peer_table();
                self.output.talk(&format!(
                    "{}, {} served; {} received, {} sent",
                    count(peers as u64, "data connection", "data connections"),
                    count(roots as u64, "root", "roots"),
                    bytes(bytes_in),
                    bytes(bytes_out)
                ));
            }
            Event::Limits(limits) => self.limits(&limits),
            Event::Id(id) => self.id(&id),
            Event::Verifying { bytes_done, bytes_total, .. } => self.position(bytes_done, bytes_total, "reading"),
            Event::Damaged { path, bytes: bad, size, why, .. } => {
                self.output.result(&format!(
                    "damaged: {} ({} of {}): {}",
                    clean(&path),
                    bytes(bad),
                    bytes(size),
                    clean(&why)
                ));
            }
            Event::Verified { name, intact, bytes: read, files_damaged, seconds, root, .. } => {
                self.clear();
                let verdict = match intact {
                    true => "intact".to_owned(),
                    false => count(files_damaged, "damaged file", "damaged files"),
                };
                let took = duration(Duration::from_secs_f64(seconds));
                self.output.result(&format!("{}: {verdict} ({} in {took}) {root}", clean(&name), bytes(read)));
            }
            Event::Scrubbed { copies, bytes: read, bad, mended, recovered, seconds } => {
                self.clear();
                let took = Duration::from_secs_f64(seconds);
                let speed = bytes((read as f64 / seconds.max(1e-3)) as u64);
                let what = count(copies, "copy of a block", "copies of blocks");
                self.output.talk(&format!("read {what}, {} in {} ({speed}/s)", bytes(read), duration(took)));
                if bad > 0 {
                    let bad = count(bad, "copy was bad and is", "copies were bad and are");
                    self.output
                        .talk(&format!("{bad} not used any more; where a block has another copy, nothing is lost"));
                }
                if recovered > 0 {
                    let recovered = count(recovered, "block", "blocks");
                    self.output.talk(&format!("{recovered} that the index had lost were found where they should be"));
                }
                if mended > 0 {
                    let mended = count(mended, "block", "blocks");
                    self.output.talk(&format!("{mended} in damaged surroundings of the store's own were written anew"));
                }
            }
            Event::Pinned { name, pinned, .. } => {
                self.output.result(&format!("{} {}", if pinned { "pinned" } else { "unpinned" }, clean(&name)));
            }
            Event::Collected(collected) => self.collected(&collected),
            Event::Space(space) => self.space(&space),
            Event::Unshared { name, forgotten: true, .. } => {
                self.output.result(&format!("{} is forgotten; its files stay where they are", clean(&name)));
            }
            Event::Unshared { name, .. } => {
                self.output.result(&format!("{} is no longer served; its files stay where they are", clean(&name)));
            }
            Event::Warning { message } => self.output.talk(&format!("warning: {}", clean(&message))),
            other => self.output.talk(&format!("{other:?}")),
        }
    }

    /// Shows what was collected, and takes the bar away.
    pub(crate) fn finish(&mut self) {
        self.clear();
        let roots = std::mem::take(&mut self.roots);
        self.root_table(&roots);
    }

    fn importing(&mut self, importing: &Importing) {
        let speed = format!("{}/s", bytes(importing.bytes_per_second));
        self.position(importing.bytes_done, importing.bytes_total, &format!("reading, {speed}"));
    }

    fn shared(&mut self, shared: &Shared) {
        self.clear();
        let output = self.output;
        let what =
            format!("{} ({}, {})", clean(&shared.name), bytes(shared.bytes), count(shared.files, "file", "files"));
        output.talk(&format!("Sharing {what}, read in {}.", duration(Duration::from_secs_f64(shared.seconds))));
        if shared.files_unread > 0 {
            output.talk(&format!(
                "{} ({}) unchanged and not read again, {} read.",
                count(shared.files_unread, "file", "files"),
                bytes(shared.bytes_unread),
                shared.files.saturating_sub(shared.files_unread)
            ));
        }
        output.result(&shared.link);
        output.talk("On the other machine:");
        output.talk(&format!("  shoal fetch '{}'", shared.link));
        output.talk(&match (self.other, self.lasting) {
            (None, _) => "Serving until you press Ctrl-C.".to_owned(),
            (Some(pid), true) => format!("Served by the daemon (process {pid})."),
            (Some(pid), false) => {
                format!("Served by process {pid}, which has this home open, until either is stopped.")
            }
        });
    }

    fn progress(&mut self, progress: &Progress) {
        let eta = progress.eta_seconds.map(|seconds| format!(", {} left", seconds_left(seconds)));
        let message = format!(
            "{}/s, {}{}",
            bytes(progress.bytes_per_second),
            count(progress.peers as u64, "peer", "peers"),
            eta.unwrap_or_default()
        );
        self.position(progress.bytes_done, progress.bytes_total, &message);
    }

    fn done(&mut self, done: &Done) {
        self.clear();
        let output = self.output;
        for path in &done.paths {
            output.result(&clean(path));
        }
        if done.paths.is_empty() {
            output.result(&format!("{} is in the cache of this home", done.root));
        }
        let took = Duration::from_secs_f64(done.seconds.max(0.0));
        let mut sentence = format!("{} in {}", bytes(done.bytes), count(done.files, "file", "files"));
        match (done.bytes_fetched, done.bytes_resumed + done.bytes_local) {
            (0, _) => sentence.push_str(", all of it here already"),
            (fetched, 0) => {
                sentence.push_str(&format!(", fetched in {}", duration(took)));
                sentence.push_str(&format!(", {}/s", bytes(per_second(fetched, took))));
            }
            (fetched, had) => sentence.push_str(&format!(
                ", {} of it here already, {} fetched in {}, {}/s",
                bytes(had),
                bytes(fetched),
                duration(took),
                bytes(per_second(fetched, took))
            )),
        }
        output.talk(&format!("{sentence}; every byte verified."));
        // Of a first fetch over a fast link there is nothing to tell.
        if done.bytes_local > 0 || done.bytes_moved < done.bytes_fetched {
            let percent = 100.0 * done.bytes_moved as f64 / done.bytes.max(1) as f64;
            output.talk(&format!(
                "{} moved, {percent:.1} %: {} saved.",
                bytes(done.bytes_moved),
                bytes(done.bytes_saved)
            ));
        }
        for skipped in &done.skipped {
            output.talk(&format!("left out: {}", clean(skipped)));
        }
        if !done.peers.is_empty() {
            let mut table = Table::new(&["peer", ">gave", ">share", "note"]);
            for peer in &done.peers {
                let share = 100.0 * peer.bytes as f64 / done.bytes_fetched.max(1) as f64;
                let note = peer.dropped.clone().map(|why| format!("dropped: {why}")).unwrap_or_default();
                table.row([short_peer(&peer.peer), bytes(peer.bytes), format!("{share:.0} %"), note]);
            }
            table.lines().iter().for_each(|line| output.talk(line));
        }
    }

    fn listening(&mut self, listening: &Listening) {
        self.output.talk(&format!("{} on {}", listening.peer, clean(&listening.home)));
        for addr in &listening.addrs {
            self.output.result(addr);
        }
        self.output.talk("Running until Ctrl-C.");
    }

    fn id(&mut self, id: &Id) {
        self.output.result(&id.peer);
        for addr in &id.addrs {
            self.output.result(addr);
        }
        self.output.talk(&match id.pid {
            Some(pid) => format!("shoal {} on {}, running as process {pid}", id.version, clean(&id.home)),
            None => format!("shoal {} on {}, not running", id.version, clean(&id.home)),
        });
    }

    fn limits(&mut self, limits: &Limits) {
        let mut table = Table::new(&["", ">all peers", ">one peer"]);
        table.row(vec!["upload".to_owned(), limits.upload.to_string(), limits.upload_per_peer.to_string()]);
        table.row(vec!["download".to_owned(), limits.download.to_string(), limits.download_per_peer.to_string()]);
        table.lines().iter().for_each(|line| self.output.result(line));
    }

    fn entry(&mut self, entry: &EntryInfo) {
        // The root was collected first; show it before what it holds.
        let roots = std::mem::take(&mut self.roots);
        self.root_table(&roots);
        let path = clean(if entry.path.is_empty() { "." } else { &entry.path });
        self.output.result(&match (entry.kind.as_str(), &entry.target) {
            ("dir", _) => format!("{:>10}  {path}/", "-"),
            ("symlink", Some(target)) => format!("{:>10}  {path} -> {}", "-", clean(target)),
            _ => format!("{:>10}  {path}{}", bytes(entry.size), if entry.executable { "*" } else { "" }),
        });
    }

    fn collected(&self, collected: &Collected) {
        let named: [(&str, &[String]); 3] = [
            ("forgotten, its time was over", &collected.expired),
            ("no longer pinned, its time was over", &collected.unpinned),
            ("evicted", &collected.evicted),
        ];
        for (what, names) in named {
            names.iter().for_each(|name| self.output.result(&format!("{}: {what}", clean(name))));
        }
        for root in &collected.damaged {
            self.output.talk(&format!(
                "warning: {root} is damaged, so whatever may be its own was left; `shoal verify {root}`"
            ));
        }
        let took = duration(Duration::from_secs_f64(collected.seconds.max(0.0)));
        self.output.result(&format!("{} freed in {took}", bytes(collected.bytes_freed)));
        self.output.talk(&format!(
            "{} left the index, {} removed, {} copied.",
            count(collected.blocks, "block", "blocks"),
            count(collected.packs, "pack", "packs"),
            bytes(collected.bytes_moved)
        ));
    }

    fn space(&self, space: &Space) {
        let mut table = Table::new(&["what", ">size", "note"]);
        let mut row = |what: &str, size: u64, note: &str| {
            table.row([what.to_owned(), bytes(size), note.to_owned()]);
        };
        row("quota", space.quota, "the most that this home's store takes");
        row("used", space.used, "");
        row("  index", space.index, "where every block is");
        row("  kept", space.kept, "trees of roots, and pinned content");
        row("  cached", space.cached, "evicted when its space is wanted");
        row("  garbage", space.garbage, "freed by `shoal gc`");
        row("in place", space.in_place, "your own files, not counted");
        if let Some(free) = space.free {
            row("free", free, "on the disk of the store");
        }
        if let Some(scrub) = space.scrub {
            let bad = count(scrub.bad, "bad copy", "bad copies");
            let note = format!("of {} read again in search of rot so far; {bad} found", bytes(scrub.bytes_total));
            row("scrub", scrub.bytes_done, &note);
        }
        if let Some(then) = space.scrubbed_unix {
            let ago = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(then)).unwrap_or_default();
            table.row(["scrubbed".to_owned(), String::new(), format!("by a daemon, {} ago", duration(ago))]);
        }
        table.lines().iter().for_each(|line| self.output.result(line));
    }

    fn root_table(&self, roots: &[RootInfo]) {
        let mut table = Table::new(&["name", ">size", ">files", "state", "root", "path"]);
        for root in roots {
            let mut state = vec![if root.complete { root.kind.as_str() } else { "incomplete" }];
            state.extend(root.selection.is_some().then_some("in part"));
            state.extend(root.pinned.then_some("pinned"));
            state.extend(if root.serving { Some("serving") } else { (!root.provide).then_some("not served") });
            table.row([
                root.name.clone(),
                bytes(root.bytes),
                root.files.to_string(),
                state.join(", "),
                root.root.to_string(),
                root.path.clone(),
            ]);
        }
        if !table.is_empty() {
            table.lines().iter().for_each(|line| self.output.result(line));
        }
    }

    fn peer_table(&mut self) {
        let peers = std::mem::take(&mut self.peers);
        let mut table = Table::new(&["peer", "known by", ">received", ">sent", ">round trip", "agent", "address"]);
        for peer in &peers {
            table.row([
                peer.peer.clone(),
                peer.planes.join("+"),
                bytes(peer.bytes_in),
                bytes(peer.bytes_out),
                peer.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms")),
                peer.agent.clone(),
                peer.addrs.first().cloned().unwrap_or_default(),
            ]);
        }
        if !table.is_empty() {
            table.lines().iter().for_each(|line| self.output.result(line));
        }
    }

    /// What is going on, before there are figures.
    fn message(&mut self, message: &str) {
        if self.output.draws() {
            let bar = self.bar(None);
            bar.set_message(message.to_owned());
        }
    }

    /// How far it is.
    fn position(&mut self, done: u64, total: u64, message: &str) {
        if self.output.draws() {
            let bar = self.bar(Some(total));
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!(
                "{} of {}{}{message}",
                bytes(done),
                bytes(total),
                if message.is_empty() { "" } else { ", " }
            ));
        } else if self.output.talks() && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let percent = (100 * u128::from(done)).checked_div(u128::from(total)).unwrap_or(100);
            self.output.talk(&format!("{percent} %: {} of {}, {message}", bytes(done), bytes(total)));
        }
    }

    fn bar(&mut self, total: Option<u64>) -> &ProgressBar {
        let output = self.output;
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            output.set_bar(Some(bar.clone()));
            bar
        });
        if total.is_some() && bar.length().is_none() {
            let style = ProgressStyle::with_template("{wide_bar:.cyan/blue} {percent:>3} % {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        bar
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            self.output.set_bar(None);
            bar.finish_and_clear();
        }
    }
}

/// An estimate does not pretend to know tenths.
fn seconds_left(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds} s"),
        _ => duration(Duration::from_secs(seconds)),
    }
}

fn per_second(bytes: u64, over: Duration) -> u64 {
    // For people: a figure of three digits.
    (bytes as f64 / over.as_secs_f64().max(1e-6)) as u64
}
