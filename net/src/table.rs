//! The table of open connections: who may have one more. Counts only; it closes nothing.

use crate::Limits;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The whole table.
    All,
    /// The share of one address.
    Ip,
}

/// Open connections and handshakes, in all and per address.
#[derive(Debug)]
pub(crate) struct Table {
    connections: usize,
    for_strangers: usize,
    per_ip: usize,
    per_ip_on_loopback: bool,
    taken: Mutex<Taken>,
}

/// At most `connections` entries in the map.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    inbound: HashMap<IpAddr, usize>,
}

/// A place in the table, given back on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    table: Arc<Table>,
    network: Option<IpAddr>,
}

impl Table {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Table {
            connections: limits.connections,
            for_strangers: limits.connections.saturating_sub(limits.reserved_for_dials),
            per_ip: limits.per_ip,
            per_ip_on_loopback: limits.per_ip_on_loopback,
            taken: Mutex::default(),
        })
    }

    /// A place for a dial of ours.
    pub(crate) fn outbound(self: &Arc<Self>) -> Result<Slot, Full> {
        let mut taken = self.lock();
        if taken.all >= self.connections {
            return Err(Full::All);
        }
        taken.all += 1;
        Ok(Slot { table: self.clone(), network: None })
    }

    /// A place for a connection from `ip`, which is canonical.
    pub(crate) fn inbound(self: &Arc<Self>, ip: IpAddr) -> Result<Slot, Full> {
        let mut taken = self.lock();
        if taken.all >= self.for_strangers {
            return Err(Full::All);
        }
        let network = (self.per_ip_on_loopback || !ip.is_loopback()).then(|| network(ip));
        if let Some(network) = network {
            let count = taken.inbound.get(&network).copied().unwrap_or(0);
            if count >= self.per_ip {
                return Err(Full::Ip);
            }
            taken.inbound.insert(network, count + 1);
        }
        taken.all += 1;
        Ok(Slot { table: self.clone(), network })
    }

    /// Open connections and handshakes.
    pub(crate) fn open(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.table.lock();
        taken.all = taken.all.saturating_sub(1);
        let Some(network) = self.network else { return };
        if let Some(count) = taken.inbound.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                taken.inbound.remove(&network);
            }
        }
    }
}

/// What counts as one address: an IPv4 address, or the /64 that one IPv6 subscriber has at least.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_share_and_leave_room_for_dials() {
        let table = Table::new(&Limits { connections: 5, reserved_for_dials: 2, per_ip: 2, ..Limits::default() });
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let first = table.inbound(ip(1)).unwrap();
        let _second = table.inbound(ip(1)).unwrap();
        assert_eq!(table.inbound(ip(1)).unwrap_err(), Full::Ip);
        let _third = table.inbound(ip(2)).unwrap();
        assert_eq!(table.inbound(ip(3)).unwrap_err(), Full::All);
        let _dials = [table.outbound().unwrap(), table.outbound().unwrap()];
        assert_eq!(table.outbound().unwrap_err(), Full::All);
        drop(first);
        assert_eq!(table.open(), 4);
        drop(_dials);
        table.inbound(ip(1)).unwrap();
    }

    #[test]
    fn an_ipv6_subscriber_is_one_address_and_loopback_is_free() {
        let table = Table::new(&Limits { per_ip: 1, ..Limits::default() });
        let _one = table.inbound("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(table.inbound("2001:db8::ffff".parse().unwrap()).unwrap_err(), Full::Ip);
        let _other = table.inbound("2001:db8:0:1::1".parse().unwrap()).unwrap();
        let _many: Vec<_> = (0..9).map(|_| table.inbound("127.0.0.1".parse().unwrap()).unwrap()).collect();
        drop(_one);
        assert_eq!(table.lock().inbound.len(), 1, "no entry outlives its connections");
    }
}
