//! Measures the release binary on paths that have a rate, a delay and losses: `cargo run --release -p shoal-tests --example
//! paths -- long|share|seeders|tcp …`, as root. Without arguments it says what each prints.
//!
//! Each host is a network namespace of its own; nothing leaves them.

#![allow(clippy::unwrap_used, reason = "a measurement that fails says where")]

use shoal_tests::{
    bottleneck::{Bottleneck, Link, Paths, address},
    place::{Place, link_of},
};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

const USAGE: &str = "\
paths long [mbit=200] [rtt=100] [loss=0] [queue=60] [mb=67] [runs=3]   one fetch, and its time by the link's
paths share [mbit=200] [rtt=100] [queue=60] [tcp=cubic] [first=both]   a fetch and a TCP flow on one link
paths seeders [count=4] [mbit=50] [down=200] [rtt=20] [mb=268]         one fetch from several seeders
paths tcp [mbit=200] [rtt=100] [queue=60] [tcp=cubic] [other=bbr]      two TCP flows, to compare with
every one: [congestion=…] as in the settings";

struct Args(Vec<String>);

impl Args {
    fn text(&self, name: &str, or: &str) -> String {
        let found = self.0.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or(or).to_owned()
    }

    fn number(&self, name: &str, or: f64) -> f64 {
        self.text(name, &or.to_string()).parse().unwrap_or_else(|_| panic!("{name} takes a number"))
    }

    fn paths(&self, rtt: f64) -> Paths {
        Paths {
            rtt: Duration::from_secs_f64(self.number("rtt", rtt) / 1e3),
            loss: self.number("loss", 0.0) / 100.0,
            queue: Duration::from_secs_f64(self.number("queue", 60.0) / 1e3),
            seed: self.number("seed", 1.0) as u64,
        }
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let args = Args(args.collect());
    let done = match what.as_str() {
        "long" => long(&args),
        "share" => share(&args),
        "seeders" => seeders(&args),
        "tcp" => tcp(&args),
        _ => {
            println!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if done.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Content lies in memory where there is room for it, so that no disk is measured.
fn place() -> Place {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { Place::below(memory) } else { Place::new() }
}

/// Starts sharing `file` on a host, gives a guard and the link.
macro_rules! share_on {
    ($place:expr, $net:expr, $args:expr, $host:expr, $file:expr) => {{
        let home = format!("seeder{}", $host);
        let command = $place.shoal(&home, ["share".as_ref(), $file.as_os_str()]).with_defaults();
        let command = settings(command, $args).within($net.host($host));
        let mut running = command.start();
        let link = link_of(&running.event("shared"));
        (running, link)
    }};
}

fn settings(command: shoal_tests::place::Shoal, args: &Args) -> shoal_tests::place::Shoal {
    let command = command.env("SHOAL_MDNS", "false");
    match args.text("congestion", "") {
        none if none.is_empty() => command,
        word => command.env("SHOAL_CONGESTION", word),
    }
}

fn long(args: &Args) -> Option<()> {
    let (bits, mb) = (args.number("mbit", 200.0) * 1e6, args.number("mb", 67.0));
    for run in 0..args.number("runs", 3.0) as u32 {
        let net = Bottleneck::new(&[Link { up: bits, down: bits }; 2], args.paths(100.0))?;
        let place = place();
        let file = place.file("content", (mb * 1e6) as u64);
        let (_share, link) = share_on!(place, net, args, 0, file);
        let began = Instant::now();
        let done =
            settings(place.fetch("leecher", &link, "out").with_defaults(), args).within(net.host(1)).run().done();
        let (all, bound) = (began.elapsed().as_secs_f64(), mb * 8e6 / bits);
        println!(
            "run {run}: {all:.2} s with the process, {:.2} times the link's {bound:.2} s; fetch {:.2} s, first leaf after {:.2} s, {:.3} bytes on the wire for each",
            all / bound,
            done["seconds"].as_f64().unwrap(),
            done["first_byte_seconds"].as_f64().unwrap(),
            net.arrived(1).udp.load(Relaxed) as f64 / (mb * 1e6),
        );
    }
    Some(())
}

fn share(args: &Args) -> Option<()> {
    let bits = args.number("mbit", 200.0) * 1e6;
    let seconds = args.number("seconds", 30.0);
    let first = args.text("first", "both");
    let late = |who: &str| Duration::from_secs_f64(if first == who || first == "both" { 0.0 } else { 3.0 });
    let net = Bottleneck::new(&[Link { up: bits, down: bits }; 2], args.paths(100.0))?;
    let place = place();
    let file = place.file("content", (bits / 8.0 * (seconds + 10.0)) as u64);
    let (_share, link) = share_on!(place, net, args, 0, file);
    let stop = AtomicBool::new(false);
    let series = std::thread::scope(|scope| {
        let (net, stop) = (&net, &stop);
        scope.spawn(move || flow(net, &args.text("tcp", "cubic"), late("tcp"), stop, &AtomicU64::new(0)));
        std::thread::sleep(late("shoal"));
        let fetch = settings(place.fetch("leecher", &link, "out").with_defaults(), args).within(net.host(1)).start();
        let series = watch(Duration::from_secs_f64(seconds), || {
            let arrived = net.arrived(1);
            [arrived.udp.load(Relaxed), arrived.tcp.load(Relaxed)]
        });
        stop.store(true, Relaxed);
        drop(fetch);
        series
    });
    report(&series, ["shoal", "TCP"], bits);
    Some(())
}

fn tcp(args: &Args) -> Option<()> {
    let bits = args.number("mbit", 200.0) * 1e6;
    let net = Bottleneck::new(&[Link { up: bits, down: bits }; 2], args.paths(100.0))?;
    let (stop, one, two) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let late = Duration::from_secs_f64(args.number("late", 0.0));
    let series = std::thread::scope(|scope| {
        let (net, stop, one, two) = (&net, &stop, &one, &two);
        scope.spawn(move || flow(net, &args.text("tcp", "cubic"), Duration::ZERO, stop, one));
        scope.spawn(move || flow(net, &args.text("other", "bbr"), late, stop, two));
        let series =
            watch(Duration::from_secs_f64(args.number("seconds", 30.0)), || [one.load(Relaxed), two.load(Relaxed)]);
        stop.store(true, Relaxed);
        series
    });
    report(&series, ["the first", "the other"], bits);
    Some(())
}

fn seeders(args: &Args) -> Option<()> {
    let (count, mb) = (args.number("count", 4.0) as usize, args.number("mb", 268.0));
    let (up, down) = (args.number("mbit", 50.0) * 1e6, args.number("down", 200.0) * 1e6);
    let mut links = vec![Link { up, down }; count];
    links.push(Link { up: down, down });
    let net = Bottleneck::new(&links, args.paths(20.0))?;
    let place = place();
    let file = place.file("content", (mb * 1e6) as u64);
    let mut shares = Vec::new();
    let mut link = None::<shoal_content::ShoalLink>;
    for host in 0..count {
        let (running, this) = share_on!(place, net, args, host, file);
        shares.push(running);
        match &mut link {
            Some(link) => link.via.extend(this.via),
            none => *none = Some(this),
        }
    }
    let link = link?;
    let fetch = settings(place.fetch("leecher", &link, "out").with_defaults(), args).within(net.host(count)).start();
    let began = Instant::now();
    let done = fetch.finish().done();
    let all = began.elapsed().as_secs_f64();
    println!(
        "{count} seeders of {:.0} Mbit/s, {all:.2} s: payload {:.1} % of {:.0} Mbit/s, {:.3} bytes on the wire for each, {} twice",
        up / 1e6,
        mb * 8e8 / all / down,
        down / 1e6,
        net.arrived(count).udp.load(Relaxed) as f64 / (mb * 1e6),
        done["bytes_duplicate"],
    );
    Some(())
}

/// Bytes of two flows every half second.
fn watch(time: Duration, read: impl Fn() -> [u64; 2]) -> Vec<[u64; 2]> {
    let began = Instant::now();
    let mut series = vec![read()];
    while began.elapsed() < time {
        let next = began + Duration::from_millis(500) * series.len() as u32;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        series.push(read());
    }
    series
}

/// Shares from the fifth second on, and the rates every two seconds.
fn report(series: &[[u64; 2]], names: [&str; 2], bits: f64) {
    let rate = |from: usize, to: usize| -> [f64; 2] {
        [0, 1].map(|i| (series[to][i] - series[from][i]) as f64 * 8.0 / ((to - from) as f64 * 0.5) / 1e6)
    };
    let end = series.len() - 1;
    for at in (4..=end).step_by(4) {
        let [a, b] = rate(at - 4, at);
        println!("{:5.1} s: {} {a:6.1} Mbit/s, {} {b:6.1}", at as f64 / 2.0, names[0], names[1]);
    }
    let [a, b] = rate(10.min(end - 1), end);
    println!(
        "from 5 s on: {} {:.1} %, {} {:.1} %, used {:.1} % of the link",
        names[0],
        100.0 * a / (a + b),
        names[1],
        100.0 * b / (a + b),
        100.0 * (a + b) * 1e6 / bits
    );
}

/// One TCP flow from host 0 to host 1 under the kernel's controller of this name; `arrived` counts its payload.
fn flow(net: &Bottleneck, controller: &str, late: Duration, stop: &AtomicBool, arrived: &AtomicU64) {
    std::thread::sleep(late);
    let listener = net.host(1).enter(|| TcpListener::bind((address(1), 0))).unwrap();
    let to: SocketAddr = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut stream = net.host(0).enter(|| {
                fs::write("/proc/sys/net/ipv4/tcp_congestion_control", controller)
                    .unwrap_or_else(|error| panic!("the kernel does not take {controller}: {error}; name it in net.ipv4.tcp_allowed_congestion_control"));
                TcpStream::connect(to).unwrap()
            });
            let bytes = vec![0x5a; 1 << 18];
            while !stop.load(Relaxed) && stream.write_all(&bytes).is_ok() {}
        });
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 18];
        while !stop.load(Relaxed) {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => arrived.fetch_add(n as u64, Relaxed),
            };
        }
    });
}
