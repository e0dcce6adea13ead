//! Who may connect at all: rates of the node and of each address, and how many connections an address has.
//!
//! Does: says yes, with a [`Seat`] where seats are counted, or which limit is reached. Owns: the buckets, and the table of
//! addresses. Never knows: sockets, what is asked for. Keeps: I1 (the tables of addresses are bounded: where there are too
//! many addresses, those that come later share one bucket; seats are as many as connections).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::{
    model::Moment,
    protocol::{ErrorCode, Refusal},
};

/// Addresses whose rates are remembered; beyond it those at rest are forgotten, and newer ones share a bucket.
const ADDRESSES_MAX: usize = 100_000;
/// Between two looks at which addresses are at rest: it costs as much as there are.
const SWEEP_EVERY_MS: u64 = 1000;
/// Addresses that the table of seats holds before those without one are looked for.
const SEATS_LEAST: usize = 1024;

/// What is allowed; none: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionMax {
    /// Connections a second of the node.
    pub per_second: Option<NonZeroU32>,
    /// Connections a second of one address.
    pub per_second_of_address: Option<NonZeroU32>,
    /// Connections of one address.
    pub of_address: Option<NonZeroU32>,
}

/// Why a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// `limits.connects_per_second`.
    NodeRate,
    /// `limits.connects_per_second_per_address`.
    AddressRate,
    /// `limits.connections_per_address`.
    AddressFull,
    /// A worker has as many HTTP connections as it may.
    HttpFull,
}

impl Turned {
    /// What the client is told.
    #[must_use]
    pub fn refusal(self, retry_after_ms: u64) -> Refusal {
        let (code, message) = match self {
            Self::NodeRate => (
                ErrorCode::Overloaded,
                "limits.connects_per_second is reached: too many clients connect at once",
            ),
            Self::AddressRate => (
                ErrorCode::RateLimited,
                "limits.connects_per_second_per_address is reached: this address connects too often",
            ),
            Self::AddressFull => (
                ErrorCode::TooManyConnections,
                "limits.connections_per_address is reached: this address has as many connections as one may have",
            ),
            Self::HttpFull => (
                ErrorCode::Overloaded,
                "too many requests are being answered: try again",
            ),
        };
        Refusal::retry(code, message, retry_after_ms)
    }
}

/// A connection's place among those of its address; it is free again when this is dropped.
#[derive(Debug)]
pub struct Seat(
    #[allow(dead_code, reason = "its address's connections are counted by it")] Arc<()>,
);

/// The door's memory, shared by the node's workers.
pub struct Admission {
    max: AdmissionMax,
    node: Option<Arc<DefaultDirectRateLimiter>>,
    addresses: Option<Arc<DefaultKeyedRateLimiter<IpAddr>>>,
    swept_ms: AtomicU64,
    seats: Arc<Mutex<Seats>>,
}

#[derive(Default)]
struct Seats {
    of: HashMap<IpAddr, Weak<()>>,
    sweep_at: usize,
}

impl Admission {
    /// Nobody has come yet.
    #[must_use]
    pub fn new(max: AdmissionMax) -> Self {
        let direct = |rate| Arc::new(RateLimiter::direct(Quota::per_second(rate)));
        let keyed = |rate| Arc::new(RateLimiter::keyed(Quota::per_second(rate)));
        Self {
            max,
            node: max.per_second.map(direct),
            addresses: max.per_second_of_address.map(keyed),
            swept_ms: AtomicU64::new(0),
            seats: Arc::default(),
        }
    }

    /// The same memory under other limits: seats stay taken, and the buckets of a rate that is the same go on.
    #[must_use]
    pub fn under(&self, max: AdmissionMax) -> Self {
        let mut next = Self {
            seats: self.seats.clone(),
            ..Self::new(max)
        };
        if max.per_second == self.max.per_second {
            next.node.clone_from(&self.node);
        }
        if max.per_second_of_address == self.max.per_second_of_address {
            next.addresses.clone_from(&self.addresses);
        }
        next
    }

    /// Whether a connection from this address may come in now. An address that comes too often takes nothing from the
    /// node's bucket.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn enter(&self, peer: IpAddr, now: Moment) -> Result<Option<Seat>, Turned> {
        let address = group(peer);
        if !self.may_try(address, now) {
            return Err(Turned::AddressRate);
        }
        let seat = match self.max.of_address {
            Some(most) => Some(self.seat(address, most).ok_or(Turned::AddressFull)?),
            None => None,
        };
        if self.node.as_ref().is_some_and(|node| node.check().is_err()) {
            return Err(Turned::NodeRate);
        }
        Ok(seat)
    }

    fn may_try(&self, address: IpAddr, now: Moment) -> bool {
        let Some(addresses) = &self.addresses else {
            return true;
        };
        if addresses.len() < ADDRESSES_MAX {
            return addresses.check_key(&address).is_ok();
        }
        let (now, last) = (now.millis(), self.swept_ms.load(Ordering::Relaxed));
        if now.saturating_sub(last) >= SWEEP_EVERY_MS {
            self.swept_ms.store(now, Ordering::Relaxed);
            addresses.retain_recent();
        }
        let key = if addresses.len() < ADDRESSES_MAX {
            address
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        addresses.check_key(&key).is_ok()
    }

    fn seat(&self, address: IpAddr, most: NonZeroU32) -> Option<Seat> {
        let most = usize::try_from(most.get()).unwrap_or(usize::MAX);
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.of.len() >= seats.sweep_at.max(SEATS_LEAST) {
            seats.of.retain(|_, taken| taken.strong_count() > 0);
            seats.sweep_at = seats.of.len() * 2;
        }
        let taken = seats.of.entry(address).or_default();
        if taken.strong_count() >= most {
            return None;
        }
        let seat = taken.upgrade().unwrap_or_default();
        *taken = Arc::downgrade(&seat);
        Some(Seat(seat))
    }
}

/// Whom an address stands for: IPv6 gives everybody a /64, so what differs within one is one client; IPv4 within IPv6 is
/// IPv4.
fn group(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => IpAddr::V4(four),
            None => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn max(per_second_of_address: u32, of_address: u32) -> AdmissionMax {
        AdmissionMax {
            per_second: None,
            per_second_of_address: NonZeroU32::new(per_second_of_address),
            of_address: NonZeroU32::new(of_address),
        }
    }

    fn enter(admission: &Admission, peer: &str) -> Result<Option<Seat>, Turned> {
        admission.enter(peer.parse().unwrap(), Moment::default())
    }

    #[test]
    fn what_is_within_one_network_is_one_client() {
        let admission = Admission::new(max(0, 1));
        let check = |peer: &str, taken: &str| {
            let seat = enter(&admission, taken).unwrap();
            assert_eq!(
                enter(&admission, peer).map(drop),
                Err(Turned::AddressFull),
                "{peer} beside {taken}"
            );
            drop(seat);
        };
        check("2001:db8:0:1::1", "2001:db8:0:1:ffff::2");
        check("::ffff:192.0.2.1", "192.0.2.1");
        let _seat = enter(&admission, "2001:db8:0:1::1").unwrap();
        assert!(enter(&admission, "2001:db8:0:2::1").is_ok());
        assert!(enter(&admission, "192.0.2.1").is_ok());
    }

    #[test]
    fn a_seat_is_free_again_when_its_connection_ends() {
        let admission = Admission::new(max(0, 2));
        let first = enter(&admission, "192.0.2.1").unwrap();
        let _second = enter(&admission, "192.0.2.1").unwrap();
        assert_eq!(
            enter(&admission, "192.0.2.1").map(drop),
            Err(Turned::AddressFull)
        );
        drop(first);
        assert!(enter(&admission, "192.0.2.1").is_ok());
    }

    #[test]
    fn other_limits_find_the_seats_and_the_buckets_of_those_before() {
        let before = Admission::new(max(1, 1));
        let seat = enter(&before, "192.0.2.1").unwrap();
        let wider = before.under(max(1, 2));
        assert_eq!(
            enter(&wider, "192.0.2.1").map(drop),
            Err(Turned::AddressRate)
        );
        let faster = wider.under(max(1000, 1));
        assert_eq!(
            enter(&faster, "192.0.2.1").map(drop),
            Err(Turned::AddressFull)
        );
        drop(seat);
        assert!(enter(&faster, "192.0.2.1").is_ok());
    }

    #[test]
    fn addresses_without_a_connection_are_forgotten() {
        let admission = Admission::new(max(0, 1));
        for number in 0..10 * u32::try_from(SEATS_LEAST).unwrap() {
            let peer = IpAddr::V4(std::net::Ipv4Addr::from_bits(number));
            drop(admission.enter(peer, Moment::default()).unwrap());
        }
        assert!(admission.seats.lock().unwrap().of.len() <= SEATS_LEAST);
    }

    #[test]
    fn the_table_of_rates_is_bounded_and_those_beyond_it_share_a_bucket() {
        let admission = Admission::new(max(2, 0));
        let peer = |number| IpAddr::V4(std::net::Ipv4Addr::from_bits(number));
        let most = u32::try_from(ADDRESSES_MAX).unwrap();
        for number in 0..most {
            assert!(admission.enter(peer(number), Moment::default()).is_ok());
        }
        let beyond = (most..most + 100)
            .filter(|&number| admission.enter(peer(number), Moment::default()).is_ok());
        let let_in = beyond.count();
        let held = admission.addresses.as_ref().unwrap().len();
        assert!(held <= ADDRESSES_MAX + 1, "{held}");
        // Time goes on while the test runs, and its buckets with it: but nobody of those has one of its own.
        assert!(let_in < 100, "{let_in}");
    }

    #[test]
    fn who_is_refused_for_its_address_takes_nothing_from_the_node() {
        let admission = Admission::new(AdmissionMax {
            per_second: NonZeroU32::new(2),
            ..max(1, 0)
        });
        assert!(enter(&admission, "192.0.2.1").is_ok());
        for _ in 0..10 {
            assert_eq!(
                enter(&admission, "192.0.2.1").map(drop),
                Err(Turned::AddressRate)
            );
        }
        assert!(enter(&admission, "192.0.2.2").is_ok());
        assert_eq!(
            enter(&admission, "192.0.2.3").map(drop),
            Err(Turned::NodeRate)
        );
    }
}
