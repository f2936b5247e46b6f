//! What a look-up comes to, and what those of both families do together.

use std::net::IpAddr;
use std::time::Duration;

use super::{NotFound, order};

/// How long the addresses of one family are good, if the other did not come.
const HALF_GOOD_FOR: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) addresses: Result<Vec<IpAddr>, NotFound>,
    /// How long that is good: nothing if nobody says so.
    pub(super) good_for: Duration,
}

impl Finding {
    pub(super) fn none(why: NotFound) -> Self {
        Self { addresses: Err(why), good_for: Duration::ZERO }
    }

    /// What both families come to.
    pub(super) fn and(self, other: Self) -> Self {
        let good_for = self.good_for.min(other.good_for);
        match (self.addresses, other.addresses) {
            (Ok(mut addresses), Ok(others)) => {
                addresses.extend(others);
                Self { addresses: Ok(order::sorted(addresses)), good_for }
            }
            (Ok(addresses), Err(NotFound::Silent)) | (Err(NotFound::Silent), Ok(addresses)) => {
                let good_for = self.good_for.max(other.good_for).min(HALF_GOOD_FOR);
                Self { addresses: Ok(addresses), good_for }
            }
            (Ok(addresses), Err(_)) => Self { addresses: Ok(addresses), good_for: self.good_for },
            (Err(_), Ok(addresses)) => Self { addresses: Ok(addresses), good_for: other.good_for },
            (Err(NotFound::Failed), Err(NotFound::Failed)) => Self { addresses: Err(NotFound::Failed), good_for },
            (Err(_), Err(_)) => Self::none(NotFound::Silent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn the_addresses_of_both_families_are_one_finding() {
        let (six, four) = (IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(Ipv4Addr::LOCALHOST));
        let found = |address, seconds| Finding { addresses: Ok(vec![address]), good_for: Duration::from_secs(seconds) };
        let none = |seconds| Finding { addresses: Err(NotFound::Failed), good_for: Duration::from_secs(seconds) };
        let silent = || Finding::none(NotFound::Silent);
        let both = Finding { addresses: Ok(vec![six, four]), good_for: Duration::from_secs(20) };
        assert_eq!(found(four, 30).and(found(six, 20)), both);
        assert_eq!(found(four, 30).and(none(0)), found(four, 30));
        assert_eq!(none(0).and(found(four, 30)), found(four, 30));
        assert_eq!(found(four, 30).and(silent()), found(four, 5), "the other may be there the next time");
        assert_eq!(silent().and(found(four, 3)), found(four, 3));
        assert_eq!(none(30).and(none(20)), none(20));
        assert_eq!(none(30).and(silent()), silent());
    }
}
