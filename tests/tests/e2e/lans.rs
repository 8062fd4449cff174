//! Two machines on one Ethernet, as namespaces: found by multicast, or reached by the addresses in the link. These need
//! root; without, they say so and do nothing.

use std::path::Path;

use shoal_content::ShoalLink;
use shoal_tests::{
    MB,
    content::assert_same_file,
    lan::Lan,
    place::{Place, link_of},
    process::number,
};

#[test]
fn on_a_lan_a_bare_cid_is_enough() {
    let Some(lan) = Lan::new() else { return };
    let place = Place::new();
    let file = place.file("f", 10 * MB);
    let mut share = place.shoal("left", [Path::new("share"), &file]).with_defaults().within(&lan.left).start();
    let cid = ShoalLink::new(link_of(&share.event("shared")).root);

    let done = place.fetch("right", &cid, "out").with_defaults().within(&lan.right).run().done();
    println!("first provider on the LAN after {} s", done["first_provider_seconds"]);
    assert_eq!(number(&done, "bytes_fetched"), 10 * MB);
    assert_same_file(&file, &place.path("out").join(cid.root.to_string()));
}

#[test]
fn the_addresses_of_a_link_work_from_another_machine_at_mtu_1500() {
    let Some(lan) = Lan::new() else { return };
    let place = Place::new();
    let file = place.file("f", 20 * MB);
    let mut share = place.shoal("left", [Path::new("share"), &file]).with_defaults();
    share = share.env("SHOAL_MDNS", "false");
    let mut share = share.within(&lan.left).start();
    let link = link_of(&share.event("shared"));
    assert!(link.via.iter().any(|via| via.starts_with("/ip4/10.77.0.1/udp/")), "{link}");

    let fetch = place.fetch("right", &link, "out").with_defaults().env("SHOAL_MDNS", "false");
    let done = fetch.within(&lan.right).run().done();
    println!("{} bytes/s at MTU 1500", done["bytes_per_second"]);
    assert_same_file(&file, &place.path("out/f"));
}
