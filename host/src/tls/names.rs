//! Which certificate a client gets, by the name that it asks for (RFC 6066, section 3).

use std::collections::HashMap;
use std::net::IpAddr;

/// Certificates, as numbers, by name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Also those that begin with `*.`; with several of a name, in their order.
    names: HashMap<String, Vec<usize>>,
    addresses: HashMap<IpAddr, usize>,
}

impl Names {
    /// Of certificates by their names, in lower case.
    pub(super) fn new<'a>(certificates: impl IntoIterator<Item = &'a [String]>) -> Self {
        let mut all = Self::default();
        for (number, names) in certificates.into_iter().enumerate() {
            for name in names {
                match name.parse() {
                    Ok(address) => drop(all.addresses.entry(address).or_insert(number)),
                    Err(_) => all.names.entry(name.clone()).or_default().push(number),
                }
            }
        }
        all
    }

    /// Those of this very name, or else those of all names that differ in the first label.
    pub(super) fn find(&self, name: &str) -> &[usize] {
        let wildcard = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
        self.names.get(name).or_else(wildcard).map_or(&[], Vec::as_slice)
    }

    /// The first of each address: clients that ask for an address name nothing.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (IpAddr, usize)> {
        self.addresses.iter().map(|(&address, &number)| (address, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_itself_and_then_by_its_wildcard() {
        let certificates = [
            &["shop.test", "*.shop.test"][..],
            &["pay.shop.test", "127.0.0.1"],
            &["shop.test", "127.0.0.1", "2001:db8:0::1"],
        ];
        let certificates = certificates.map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        let names = Names::new(certificates.iter().map(Vec::as_slice));
        for (name, found) in [
            ("shop.test", &[0, 2][..]),
            ("pay.shop.test", &[1]),
            ("www.shop.test", &[0]),
            // The star stands for one label.
            ("a.www.shop.test", &[]),
            ("other.test", &[]),
            ("test", &[]),
            ("", &[]),
        ] {
            assert_eq!(names.find(name), found, "{name}");
        }
        let mut addresses: Vec<_> = names.addresses().collect();
        addresses.sort();
        assert_eq!(addresses, [("127.0.0.1".parse().unwrap(), 1), ("2001:db8::1".parse().unwrap(), 2)]);
    }
}
