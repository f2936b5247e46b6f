//! Which addresses an instance was given for which names. To others no name takes it: so that a name leads elsewhere when it
//! is looked up again (DNS rebinding) gives nobody an address that was not checked.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that an instance may have by name. With one more, the first is forgotten.
const MAX_REACHED: usize = 64;
/// An address may be another's by and by: so long it is good, as often as it is used.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// What an instance's look-ups gave.
#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<VecDeque<Reached>>);

#[derive(Debug)]
struct Reached {
    name: String,
    address: IpAddr,
    at: Instant,
}

impl Reach {
    /// A look-up of `name`, which is granted, gave these addresses.
    pub(super) fn found(&self, name: &str, addresses: &[IpAddr]) {
        self.found_at(name, addresses, Instant::now());
    }

    /// The names that led to `address`, the last first.
    pub(super) fn names_of(&self, address: IpAddr) -> Vec<String> {
        self.names_at(address, Instant::now())
    }

    fn found_at(&self, name: &str, addresses: &[IpAddr], at: Instant) {
        let mut reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for &address in addresses {
            reached.retain(|known| known.name != name || known.address != address);
            if reached.len() >= MAX_REACHED {
                reached.pop_front();
            }
            reached.push_back(Reached { name: name.to_owned(), address, at });
        }
    }

    fn names_at(&self, address: IpAddr, now: Instant) -> Vec<String> {
        let mut reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reached.retain(|known| now.duration_since(known.at) < GOOD_FOR);
        reached.iter().rev().filter(|known| known.address == address).map(|known| known.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(n: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, n).into()
    }

    #[test]
    fn addresses_are_those_that_names_led_to() {
        let (reach, start) = (Reach::default(), Instant::now());
        reach.found_at("a.test", &[address(1), address(2)], start);
        reach.found_at("b.test", &[address(2)], start);
        assert_eq!(reach.names_at(address(1), start), ["a.test"]);
        assert_eq!(reach.names_at(address(2), start), ["b.test", "a.test"]);
        assert!(reach.names_at(address(3), start).is_empty());
        // Looked up again, it is good for as long again.
        reach.found_at("a.test", &[address(1)], start + GOOD_FOR / 2);
        let later = start + GOOD_FOR;
        assert_eq!(reach.names_at(address(1), later), ["a.test"]);
        assert!(reach.names_at(address(2), later).is_empty());
        assert!(reach.names_at(address(1), later + GOOD_FOR / 2).is_empty());
    }

    #[test]
    fn addresses_that_are_kept_for_an_instance_are_bounded() {
        let (reach, now) = (Reach::default(), Instant::now());
        for n in 0..200 {
            reach.found_at(&format!("n{n}.test"), &[address(n)], now);
            reach.found_at("same.test", &[address(250)], now);
        }
        assert_eq!(reach.0.lock().unwrap().len(), MAX_REACHED);
        assert!(reach.names_at(address(0), now).is_empty());
        assert_eq!(reach.names_at(address(199), now), ["n199.test"]);
        assert_eq!(reach.names_at(address(250), now), ["same.test"]);
    }
}
