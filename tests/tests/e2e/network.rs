//! A network of daemons on loopback that know one bootstrap peer: content is found by its CID alone.

use std::path::Path;

use shoal_content::ShoalLink;
use shoal_tests::{
    MB,
    content::assert_same_file,
    place::{Place, link_of},
    process::number,
};

#[test]
fn a_bare_cid_is_found_and_fetched_among_twenty_daemons() {
    const DAEMONS: usize = 20;
    let place = Place::new();
    let (boot, addr) = place.daemon("d0", &[]);
    let mut daemons = vec![boot];
    daemons.extend((1..DAEMONS).map(|n| place.daemon(&format!("d{n}"), &[&addr]).0));

    let mut from_daemons = Vec::new();
    let mut from_commands = Vec::new();
    for n in 1..DAEMONS / 2 {
        let (sharer, fetcher, alone) = (format!("d{n}"), format!("d{}", DAEMONS - n), format!("c{n}"));
        let file = place.file(&format!("f{n}"), MB + n as u64);
        let shared = place.shoal(&sharer, [Path::new("share"), &file]).run().ok();
        let cid = ShoalLink::new(link_of(shared.event("shared")).root);
        // One asks its daemon; the other one has none and joins the network first.
        for (home, bootstrap, times) in [(&fetcher, None, &mut from_daemons), (&alone, Some(&addr), &mut from_commands)]
        {
            let mut fetch = place.fetch(home, &cid, &format!("out-{home}"));
            if let Some(addr) = bootstrap {
                fetch = fetch.args(["--bootstrap", addr]);
            }
            let done = fetch.run().done();
            assert_eq!(number(&done, "bytes_fetched"), MB + n as u64, "{done}");
            assert_same_file(&file, &place.path(format!("out-{home}")).join(cid.root.to_string()));
            times.push(done["first_provider_seconds"].as_f64().unwrap());
        }
    }
    println!(
        "median time to first provider: daemon {:.3} s, new peer {:.3} s",
        median(&mut from_daemons),
        median(&mut from_commands)
    );
    for daemon in daemons {
        assert_eq!(daemon.interrupt().code, Some(0));
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
