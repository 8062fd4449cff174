//! `shoal demo`: five real peers in this process, over loopback. One shares; the other four know one bootstrap peer and
//! the bare CID; the one that shared dies half-way, without a word; a table says who got what from whom.
//!
//! Everything lives in a temporary directory, which is removed however this ends.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;
use shoal_node::{BytePath, Class, Config, Done, Event, Failure, Home, Node, Operation, Request, Role, Shared};
use tempfile::TempDir;
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    output::Output,
    run::listen,
    text::{Table, bytes, clean, count, duration},
};

/// Memory-backed on Linux, so that the disk does not decide how fast it looks.
const SHARED_MEMORY: &str = "/dev/shm";
/// How often the bytes are looked at, to kill the seeder half-way.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A demonstration that takes longer than this has failed.
const AT_MOST: Duration = Duration::from_secs(120);
/// The four that fetch.
const NAMES: [&str; 4] = ["peer 2", "peer 3", "peer 4", "peer 5"];

/// The beginning, as a JSON line.
#[derive(Serialize)]
struct Beginning<'a> {
    event: &'static str,
    root: String,
    name: &'a str,
    bytes: u64,
    directory: String,
}

/// A row of the table, as a JSON line.
#[derive(Serialize)]
struct Row {
    event: &'static str,
    name: &'static str,
    peer: String,
    bytes: u64,
    seconds: f64,
    bytes_per_second: u64,
    first_provider_seconds: Option<f64>,
    verified: bool,
    from: Vec<From>,
}

/// Who gave it.
#[derive(Serialize)]
struct From {
    name: String,
    bytes: u64,
}

/// The end, as a JSON line.
#[derive(Serialize)]
struct End {
    event: &'static str,
    root: String,
    bytes: u64,
    killed_at_bytes: u64,
    seconds: f64,
}

/// Runs the demonstration.
pub(crate) async fn run(path: Option<PathBuf>, config: &Config, output: &Output) -> Result<(), Failure> {
    let path = match path {
        Some(path) => path,
        None => std::env::current_exe()
            .map_err(|error| Failure::internal(format!("this program cannot find itself: {error}")))?,
    };
    let path = std::path::absolute(&path).map_err(|error| Failure::io("find", &path, &error))?;
    let size = size(&path)?;
    let dir = temporary(size)?;
    let mut signals = listen()?;
    let result = tokio::select! {
        result = tokio::time::timeout(AT_MOST, demonstrate(&path, dir.path(), config, output)) => result.unwrap_or_else(|_| {
            let message = format!("the demonstration was not done after {} s", AT_MOST.as_secs());
            Err(Failure::new(Class::NoProvider, message, "run it again with -v to see why"))
        }),
        () = signals.next() => Err(Failure { hint: None, ..Failure::interrupted() }),
    };
    // Removed in any case; a peer that still writes loses a race that nobody minds, so try twice.
    let place = dir.path().to_owned();
    if dir.close().is_err() && place.exists() {
        std::fs::remove_dir_all(&place).map_err(|error| Failure::io("remove", &place, &error))?;
    }
    result
}

async fn demonstrate(path: &Path, dir: &Path, config: &Config, output: &Output) -> Result<(), Failure> {
    let begun = Instant::now();
    // The first of the four is the bootstrap peer of all.
    let first = start(dir, NAMES[0], config, &[]).await?;
    let bootstrap: Vec<String> = first.listening().addrs;
    let seeder = Doomed::start(dir, path, config, &bootstrap).await?;
    let shared = &seeder.shared;
    if output.json() {
        let (root, name) = (shared.root.to_string(), shared.name.as_str());
        let directory = dir.display().to_string();
        output.line(&Beginning { event: "demo_shared", root, name, bytes: shared.bytes, directory });
    }
    output.talk(&format!(
        "peer 1 shares {} ({}, {}) as {}",
        clean(&shared.name),
        bytes(shared.bytes),
        count(shared.files, "file", "files"),
        shared.root
    ));
    output.talk("peers 2 to 5 know peer 2's address and this CID, nothing else");
    let mut names = BTreeMap::from([(shared.peer.clone(), "peer 1"), (first.listening().peer, NAMES[0])]);
    let mut nodes = vec![(NAMES[0], first)];
    for name in &NAMES[1..] {
        let node = start(dir, name, config, &bootstrap).await?;
        names.insert(node.listening().peer, name);
        nodes.push((name, node));
    }

    let cid = shared.root.to_string();
    let mut fetches = JoinSet::new();
    let (name, node) = &nodes[0];
    let (done, operation) = fetch(node.run(request(dir, name, &cid))).await?;
    // The operations are kept until the end: each peer goes on serving.
    let mut serving = vec![operation];
    let mut results = vec![(*name, done)];
    output.talk(&format!("{name} has it all, and serves it too; peers 3 to 5 begin"));
    for (name, node) in &nodes[1..] {
        let (name, operation) = (*name, node.run(request(dir, name, &cid)));
        fetches.spawn(async move { (name, fetch(operation).await) });
    }
    let goal = shared.bytes * 3;
    let mut doomed = Some(&seeder);
    let mut killed_at_bytes = 0;
    let mut look = tokio::time::interval(LOOK_EVERY);
    while !fetches.is_empty() {
        tokio::select! {
            Some(joined) = fetches.join_next() => {
                let (name, result) = joined.map_err(|error| Failure::internal(error.to_string()))?;
                let (done, operation) = result?;
                results.push((name, done));
                serving.push(operation);
            }
            _ = look.tick(), if doomed.is_some() => {}
        }
        let mut arrived = 0;
        if doomed.is_some() {
            for (_, node) in &nodes[1..] {
                arrived += node.counters().await.bytes_in;
            }
        }
        if (arrived * 2 >= goal || results.len() > 1)
            && let Some(seeder) = doomed.take()
        {
            seeder.kill();
            killed_at_bytes = arrived.min(goal);
            output.talk(&format!("peer 1 dies without a word, at {} of {}", bytes(killed_at_bytes), bytes(goal)));
        }
    }
    results.sort_by_key(|(name, _)| *name);

    let mut table = Table::new(&["peer", ">got", ">in", ">speed", "from", "verified"]);
    let mut intact = true;
    for (name, done) in &results {
        let Some((_, node)) = nodes.iter().find(|(known, _)| known == name) else { continue };
        let verified = verify(node, &cid).await?;
        intact &= verified;
        let from: Vec<From> = done
            .peers
            .iter()
            .filter(|share| share.bytes > 0)
            .map(|share| From {
                name: names.get(&share.peer).map_or_else(|| share.peer.clone(), |&name| name.to_owned()),
                bytes: share.bytes,
            })
            .collect();
        if output.json() {
            output.line(&Row {
                event: "demo_peer",
                name,
                peer: node.listening().peer,
                bytes: done.bytes,
                seconds: done.seconds,
                bytes_per_second: done.bytes_per_second,
                first_provider_seconds: done.first_provider_seconds,
                verified,
                from,
            });
            continue;
        }
        let from: Vec<String> = from.iter().map(|from| format!("{} {}", from.name, bytes(from.bytes))).collect();
        table.row([
            (*name).to_owned(),
            bytes(done.bytes),
            duration(Duration::from_secs_f64(done.seconds)),
            format!("{}/s", bytes(done.bytes_per_second)),
            from.join(", "),
            if verified { "every byte" } else { "DAMAGED" }.to_owned(),
        ]);
    }
    if output.json() {
        let seconds = begun.elapsed().as_secs_f64();
        output.line(&End { event: "demo_done", root: cid, bytes: shared.bytes, killed_at_bytes, seconds });
    } else {
        table.lines().iter().for_each(|line| output.result(line));
    }
    drop(serving);
    let mut closing = JoinSet::new();
    for (_, node) in nodes {
        closing.spawn(async move { node.shutdown().await });
    }
    while let Some(closed) = closing.join_next().await {
        closed.map_err(|error| Failure::internal(error.to_string()))??;
    }
    output.talk(&format!("done in {}", duration(begun.elapsed())));
    match intact {
        true => Ok(()),
        false => Err(Failure::internal("a peer holds damaged bytes")),
    }
}

/// The peer that will die. It has a runtime of its own, which can be stopped between two instructions.
struct Doomed {
    runtime: std::sync::Mutex<Option<Runtime>>,
    shared: Shared,
    /// Alive to the end, so that not even a closing socket gives its death away.
    _node: Node,
    _operation: Operation,
}

impl Doomed {
    async fn start(dir: &Path, path: &Path, config: &Config, bootstrap: &[String]) -> Result<Doomed, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("doomed")
            .enable_all()
            .build()
            .map_err(|error| Failure::internal(format!("cannot start two threads: {error}")))?;
        let (dir, config, bootstrap) = (dir.to_owned(), config.clone(), bootstrap.to_vec());
        let request =
            Request::Share { paths: vec![BytePath(path.to_owned())], stay: true, ttl_seconds: None, read_all: false };
        let begun = runtime.spawn(async move {
            let node = start(&dir, "peer 1", &config, &bootstrap).await?;
            let mut operation = node.run(request);
            while let Some(event) = operation.next().await? {
                if let Event::Shared(shared) = event {
                    return Ok((node, operation, shared));
                }
            }
            Err(Failure::internal("sharing ended without a link"))
        });
        // A runtime must not be dropped here, however this ends.
        let runtime = std::sync::Mutex::new(Some(runtime));
        let begun: Result<_, Failure> = begun.await.unwrap_or_else(|error| Err(Failure::internal(error.to_string())));
        match begun {
            Ok((node, operation, shared)) => Ok(Doomed { runtime, shared, _node: node, _operation: operation }),
            Err(failure) => {
                stop(&runtime);
                Err(failure)
            }
        }
    }

    fn kill(&self) {
        stop(&self.runtime);
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        stop(&self.runtime);
    }
}

fn stop(runtime: &std::sync::Mutex<Option<Runtime>>) {
    if let Some(runtime) = runtime.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
        runtime.shutdown_background();
    }
}

/// Starts a peer with a new home, on loopback only.
async fn start(dir: &Path, name: &str, config: &Config, bootstrap: &[String]) -> Result<Node, Failure> {
    let home = Home::locate(Some(&dir.join(format!("home of {name}"))), None)?;
    let parse = |text: &str| {
        text.parse().map_err(|error| Failure::internal(format!("{text} is an address of ours, but: {error}")))
    };
    let mut config = config.clone();
    let settings = config.settings_mut();
    settings.mdns = false;
    // What it keeps goes with it.
    settings.encrypt = false;
    settings.listen = vec![parse("/ip4/127.0.0.1/udp/0/quic-v1")?];
    settings.bootstrap = bootstrap.iter().map(|addr| parse(addr)).collect::<Result<_, _>>()?;
    Node::start(home, config, Role::Command).await
}

fn request(dir: &Path, name: &str, cid: &str) -> Request {
    Request::Fetch {
        link: cid.to_owned(),
        paths: Vec::new(),
        dir: BytePath(dir.join(name)),
        symlinks: true,
        stay: true,
        cached: false,
        ttl_seconds: None,
    }
}

/// Runs a fetch up to its report. The operation goes on: it serves.
async fn fetch(mut operation: Operation) -> Result<(Done, Operation), Failure> {
    while let Some(event) = operation.next().await? {
        if let Event::Done(done) = event {
            return Ok((done, operation));
        }
    }
    Err(Failure::internal("a fetch ended without a report"))
}

/// Reads everything that a peer has of a root again.
async fn verify(node: &Node, cid: &str) -> Result<bool, Failure> {
    let mut operation = node.run(Request::Verify { what: Some(cid.to_owned()), repair: false });
    loop {
        match operation.next().await {
            Ok(Some(Event::Verified { intact, .. })) => return Ok(intact),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(failure) if failure.class == Class::Content => return Ok(false),
            Err(failure) => return Err(failure),
        }
    }
}

/// A place for four copies: memory if that has room, else the temporary directory.
fn temporary(size: u64) -> Result<TempDir, Failure> {
    let needed = size.saturating_mul(4) + (64 << 20);
    let memory = Path::new(SHARED_MEMORY);
    let place = match shoal_node::free_bytes(memory) {
        Some(free) if free / 2 >= needed => memory.to_owned(),
        _ => std::env::temp_dir(),
    };
    if shoal_node::free_bytes(&place).is_some_and(|free| free < needed) {
        let message = format!("the demonstration needs {} in {}", bytes(needed), place.display());
        return Err(Failure::new(Class::Disk, message, "free some space, or give a smaller PATH"));
    }
    TempDir::with_prefix_in("shoal-demo-", &place).map_err(|error| Failure::io("create a directory in", &place, &error))
}

/// Bytes of a file or tree.
fn size(path: &Path) -> Result<u64, Failure> {
    let failed = |error| Failure::io("read", path, &error);
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    let (mut sum, mut dirs) = (0u64, vec![path.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|error| Failure::io("list", &dir, &error))? {
            let entry = entry.map_err(failed)?;
            let meta = entry.metadata().map_err(failed)?;
            if meta.is_dir() {
                dirs.push(entry.path());
            } else {
                sum = sum.saturating_add(meta.len());
            }
        }
    }
    Ok(sum)
}
