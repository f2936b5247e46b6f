//! Asks the name servers of `/etc/resolv.conf`, in the way of the C library: one after the other, as often and as long as the
//! file says, for the name as it is or below the domains that are searched.
//!
//! Hickory sends the questions, each from a random port and with a random number, repeats them every third of a second, turns
//! to TCP when an answer is cut, and follows at most eight aliases. What it would do besides is left alone: it asks two
//! servers at once, believes the first that refuses, mixes hosts with answers, and keeps a cache.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RecordType};
use resolv_conf::{Config, ParseError, ScopedIp};
use tokio::time::{Instant, timeout};

use super::finding::Finding;
use super::sockets::Sockets;
use super::{MAX_WAIT, NotFound, order};
use crate::logging::one_line;

const PORT: u16 = 53;
/// What of the file is used, as by the C library.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHED: usize = 32;
const MAX_ATTEMPTS: u32 = 5;
const MAX_NDOTS: u32 = 15;
/// How long the other family is waited for, once there are addresses of one: some servers never answer for IPv6.
const MAX_BEHIND: Duration = Duration::from_secs(1);
/// How long a server that was silent is asked after the others.
const SHUNNED_FOR: Duration = Duration::from_secs(30);

pub(super) struct NameServers {
    servers: Vec<NameServer>,
    searched: Vec<Name>,
    /// Names with fewer dots are searched before they are taken as they are.
    ndots: u32,
    /// Whether a name without dots is ever taken as it is.
    asks_tld: bool,
    attempts: u32,
    families: &'static [RecordType],
    /// With `rotate`, who is asked first the next time.
    next: Option<AtomicUsize>,
}

struct NameServer {
    address: SocketAddr,
    resolver: hickory_resolver::Resolver<Sockets>,
    silent_at: Mutex<Option<Instant>>,
}

impl Default for NameServers {
    fn default() -> Self {
        Self::new(&Config::new())
    }
}

impl NameServers {
    /// From the text of a resolv.conf. What cannot be understood is passed over, but not a file without a server that can
    /// be: this machine's own would be asked instead.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (config, errors) = Config::parse_with_errors(text.as_bytes());
        let wrong =
            errors.iter().find(|error| matches!(error, ParseError::InvalidIp(..) | ParseError::InvalidValue(_)));
        match wrong {
            Some(error) if config.nameservers.is_empty() => {
                Err(format!("it names no server that can be asked: {error}"))
            }
            _ => Ok(Self::new(&config)),
        }
    }

    fn new(config: &Config) -> Self {
        let addresses: Vec<_> = match config.nameservers.as_slice() {
            [] => vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))],
            named => named.iter().take(MAX_SERVERS).map(socket_address).collect(),
        };
        let attempts = config.attempts.clamp(1, MAX_ATTEMPTS);
        let tries = attempts * addresses.len() as u32;
        let patience = Duration::from_secs(u64::from(config.timeout.max(1))).min(MAX_WAIT / tries);
        let own_domain = if config.get_search().is_none() { config.get_system_domain() } else { None };
        let searched = config.get_last_search_or_domain();
        let searched =
            if searched.clone().next().is_some() { searched.cloned().collect() } else { Vec::from_iter(own_domain) };
        Self {
            servers: addresses.iter().map(|&address| NameServer::new(address, patience, config)).collect(),
            searched: searched.iter().take(MAX_SEARCHED).filter_map(|name| Name::from_ascii(name).ok()).collect(),
            ndots: config.ndots.min(MAX_NDOTS),
            asks_tld: !config.no_tld_query,
            attempts,
            families: if config.no_aaaa { &[RecordType::A] } else { &[RecordType::AAAA, RecordType::A] },
            next: config.rotate.then(AtomicUsize::default),
        }
    }

    pub(super) async fn look_up(&self, name: &str) -> Finding {
        let mut none: Option<Finding> = None;
        for candidate in self.candidates(name) {
            let found = self.addresses_of(&candidate).await;
            if found.addresses.is_ok() || found.addresses == Err(NotFound::Silent) {
                return found;
            }
            // That there is none of them is known for as long as of each.
            let good_for = none.map_or(found.good_for, |before| before.good_for.min(found.good_for));
            none = Some(Finding { good_for, ..found });
        }
        none.unwrap_or(Finding::none(NotFound::Failed))
    }

    /// The names to ask for, one after the other.
    fn candidates(&self, name: &str) -> Vec<Name> {
        let Ok(name) = Name::from_ascii(name) else { return Vec::new() };
        let dots = u32::from(name.num_labels()).saturating_sub(1);
        let mut names: Vec<_> =
            self.searched.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        let mut itself = name;
        itself.set_fqdn(true);
        if dots >= self.ndots {
            names.insert(0, itself);
        } else if dots > 0 || self.asks_tld {
            names.push(itself);
        }
        names
    }

    async fn addresses_of(&self, name: &Name) -> Finding {
        let [first, second] = *self.families else { return self.ask(name, self.families[0]).await };
        let (mut first, mut second) = (pin!(self.ask(name, first)), pin!(self.ask(name, second)));
        let (one, other) = tokio::select! {
            found = &mut first => { let other = behind(&found, second).await; (found, other) }
            found = &mut second => { let other = behind(&found, first).await; (found, other) }
        };
        one.and(other)
    }

    /// Asks for records of one type, until there is an answer.
    async fn ask(&self, name: &Name, family: RecordType) -> Finding {
        let mut last = NotFound::Failed;
        for _ in 0..self.attempts {
            for server in self.in_turn() {
                match server.resolver.lookup(name.clone(), family).await {
                    Ok(answer) => {
                        let addresses = answer.answers().iter().filter_map(|record| record.data.ip_addr());
                        let addresses = Some(order::sorted(addresses)).filter(|found| !found.is_empty());
                        let good_for = answer.valid_until().saturating_duration_since(std::time::Instant::now());
                        return Finding { addresses: addresses.ok_or(NotFound::Failed), good_for };
                    }
                    Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                        let good_for = Duration::from_secs(none.negative_ttl.unwrap_or(0).into());
                        return Finding { addresses: Err(NotFound::Failed), good_for };
                    }
                    Err(NetError::Timeout) => {
                        tracing::debug!("the name server {} is silent", server.address);
                        *server.silent_at() = Some(Instant::now());
                        last = NotFound::Silent;
                    }
                    // It refuses, has failed itself, makes no sense, or is not there.
                    Err(error) => {
                        tracing::debug!(
                            "the name server {} gives no answer: {}",
                            server.address,
                            one_line(&error.to_string())
                        );
                        last = NotFound::Failed;
                    }
                }
            }
        }
        Finding::none(last)
    }

    /// The servers as they are to be asked now.
    fn in_turn(&self) -> Vec<&NameServer> {
        let mut servers: Vec<_> = self.servers.iter().collect();
        if let Some(next) = &self.next {
            servers.rotate_left(next.fetch_add(1, Ordering::Relaxed) % self.servers.len());
        }
        servers.sort_by_key(|server| server.silent_at().is_some_and(|at| at.elapsed() < SHUNNED_FOR));
        servers
    }

    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }
}

/// What is found of the other family, if that is worth the wait.
async fn behind(first: &Finding, other: Pin<&mut impl Future<Output = Finding>>) -> Finding {
    if first.addresses.is_err() {
        return other.await;
    }
    timeout(MAX_BEHIND, other).await.unwrap_or(Finding::none(NotFound::Silent))
}

impl NameServer {
    fn new(address: SocketAddr, patience: Duration, config: &Config) -> Self {
        let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        if config.use_vc {
            connections.remove(0);
        }
        let server = NameServerConfig::new(address.ip(), true, connections);
        let resolver = ResolverConfig::from_name_servers(vec![server]);
        let mut builder = hickory_resolver::Resolver::builder_with_config(resolver, Sockets::to(address));
        let options = builder.options_mut();
        options.timeout = patience;
        options.attempts = 0;
        options.edns0 = config.edns0;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        // The kernel's are as random, and none of those that are kept for others (net.ipv4.ip_local_reserved_ports).
        options.os_port_selection = true;
        let resolver = builder.build().expect("only TLS can fail");
        Self { address, resolver, silent_at: Mutex::default() }
    }

    fn silent_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.silent_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn socket_address(named: &ScopedIp) -> SocketAddr {
    match named {
        ScopedIp::V4(address) => SocketAddr::from((*address, PORT)),
        ScopedIp::V6(address, zone) => {
            let zone = zone.as_deref().unwrap_or("0");
            let index = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok()).unwrap_or(0);
            SocketAddr::V6(SocketAddrV6::new(*address, PORT, 0, index))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> NameServers {
        NameServers::parse(text).unwrap()
    }

    #[test]
    fn resolv_conf_says_whom_to_ask() {
        let addresses = |text: &str| parsed(text).addresses().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(addresses("nameserver 192.0.2.1\nnameserver 2001:db8::1"), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(addresses("nameserver fe80::1%7"), ["[fe80::1%7]:53"]);
        assert_eq!(addresses("nameserver wrong\nnonsense\nnameserver 192.0.2.1"), ["192.0.2.1:53"]);
        assert_eq!(addresses(&"nameserver 192.0.2.1\n".repeat(9)).len(), MAX_SERVERS);
        // Never one of somebody else's.
        for none in ["", "# nameserver 192.0.2.1", "search example\noptions nonsense"] {
            assert_eq!(addresses(none), ["127.0.0.1:53"], "{none}");
        }
        for broken in ["nameserver 192.0.2.", "nameserver", "nameserver\u{a0}example"] {
            let error = NameServers::parse(broken).err().unwrap_or_default();
            assert!(error.starts_with("it names no server that can be asked: "), "{broken}: {error}");
        }
    }

    #[test]
    fn all_servers_are_asked_within_the_time() {
        let patience = |options: &str, servers: usize| {
            let servers = parsed(&format!("options {options}\n{}", "nameserver 192.0.2.1\n".repeat(servers)));
            (servers.servers[0].resolver.options().timeout.as_millis(), servers.attempts)
        };
        assert_eq!(patience("timeout:1 attempts:1", 1), (1000, 1));
        assert_eq!(patience("", 1), (2500, 2));
        assert_eq!(patience("timeout:0", 2), (1000, 2));
        assert_eq!(patience("timeout:4000000000 attempts:4000000000", 3), (333, MAX_ATTEMPTS));
        assert_eq!(patience("attempts:0", 1), (5000, 1));
    }

    #[test]
    fn domains_are_searched_as_resolv_conf_says() {
        let candidates = |options: &str, name: &str| {
            let servers = parsed(options);
            servers.candidates(name).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(candidates("search a.example b.example", "x"), ["x.a.example.", "x.b.example.", "x."]);
        assert_eq!(candidates("search a.example", "x.y"), ["x.y.", "x.y.a.example."]);
        assert_eq!(candidates("search a.example\noptions ndots:2", "x.y"), ["x.y.a.example.", "x.y."]);
        assert_eq!(candidates("search a.example\noptions no-tld-query", "x"), ["x.a.example."]);
        assert_eq!(candidates("search a.example\ndomain b.example", "x"), ["x.b.example.", "x."]);
        assert_eq!(candidates("search", "x"), ["x."]);
        let many = format!("search{}", " a.example".repeat(99));
        assert_eq!(candidates(&many, "x").len(), MAX_SEARCHED + 1);
        assert_eq!(candidates("search a.example", &"x".repeat(64)), Vec::<String>::new(), "no name");
    }

    #[test]
    fn a_server_that_was_silent_is_asked_last() {
        let servers = parsed("nameserver 192.0.2.1\nnameserver 192.0.2.2");
        let first = |servers: &NameServers| servers.in_turn()[0].address.ip().to_string();
        assert_eq!(first(&servers), "192.0.2.1");
        *servers.servers[0].silent_at() = Some(Instant::now());
        assert_eq!(first(&servers), "192.0.2.2");
        let rotating = parsed("nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions rotate");
        assert_eq!([(); 3].map(|()| first(&rotating)), ["192.0.2.1", "192.0.2.2", "192.0.2.1"]);
    }
}
