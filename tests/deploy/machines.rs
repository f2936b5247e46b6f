//! Several machines behind HAProxy, with what they share in a Redis: an upgrade from host to host, the loss of a host, and a
//! partition between a host and Redis. docs/many-machines.md has the figures; `make machines` measures them.

use std::net::SocketAddr;

use harness::haproxy::Haproxy;
use harness::network::{Machine, Network};
use harness::tools::Tool;
use harness::traffic::{Fates, Traffic};
use harness::{Cluster, Follower, Setup, guest, until};

use super::kubernetes::{NO_RETRIES, RETRIES, kill_all};
use super::reload::{AT_ONCE, another_version};

mod model;

const HTTP: u16 = 8080;
const REDIS: u16 = 6379;
/// How often the balancer asks hosts whether they are ready; two failures in a row take one out.
const CHECKS: &str = "check port 9090 inter 500ms fall 2 rise 1";

/// Hosts, each a cluster on a machine of its own, and the machine with Redis.
struct Site {
    hosts: Vec<Cluster>,
    balancer: Haproxy,
    _redis: Option<Follower>,
    // Last: it is removed when nothing runs in it.
    network: Network,
}

impl Site {
    /// None if there are no namespaces or programs for it.
    fn start(hosts: u8, app: &str, args: &[&str], settings: &str, of_server: &str) -> Option<Self> {
        let network = Network::start(hosts + 1)?;
        let redis = redis(network.machines.last().expect("there is one more"));
        let servers = network.machines[..hosts.into()].iter().enumerate();
        let servers: Vec<String> = servers
            .map(|(number, machine)| format!("host{number} {}:{HTTP} {CHECKS} {of_server}", machine.address))
            .collect();
        let balancer = Haproxy::start(Some(&network.middle), settings, &servers)?;
        let store = format!("default=redis://{}:{REDIS}", network.machines[usize::from(hosts)].address);
        let args = [args, &["--kv", &store, "--kv-timeout", "500ms"]].concat();
        let start = |machine: &Machine| start(machine, app, &args);
        let hosts: Vec<Cluster> = network.machines[..hosts.into()].iter().map(start).collect();
        let site = Self { hosts, balancer, _redis: redis, network };
        site.all_are_up();
        Some(site)
    }

    fn all_are_up(&self) {
        until("the balancer finds all hosts", || (self.balancer.up().len() == self.hosts.len()).then_some(()));
    }

    fn redis_address(&self) -> std::net::Ipv4Addr {
        self.network.machines[self.hosts.len()].address
    }
}

/// A cluster on a machine.
fn start(machine: &Machine, app: &str, args: &[&str]) -> Cluster {
    let http = SocketAddr::from((machine.address, HTTP)).to_string();
    let setup = Setup::new(&guest(app)).args(&["--listen", &http, "--admin", "0.0.0.0:9090"]).args(&AT_ONCE).args(args);
    let (setup, enter) = (setup.workers(1), machine.enter());
    setup.behind(&[&enter[0], &enter[1], "sh", "-c"], "exec \"$@\"").start()
}

fn redis(machine: &Machine) -> Option<Follower> {
    let Some(tool) = Tool::find("redis-server") else {
        println!("skipped: there is no redis-server");
        return None;
    };
    let mut command = machine.command(tool.path());
    command.args(["--protected-mode", "no", "--port", &REDIS.to_string(), "--save", "", "--appendonly", "no"]);
    let server = Follower::start(&mut command).unwrap();
    server.stdout.find("Ready to accept connections");
    Some(server)
}

const COUNT: &str = "/default/count?increment=1";

/// What was counted by all hosts.
async fn counted(site: &Site) -> u64 {
    let stream = tokio::net::UnixStream::connect(site.balancer.front()).await.unwrap();
    let answer = harness::client::Connection::over(stream).await.get("/default/count").await.unwrap();
    answer.text().parse().unwrap()
}

/// What became of requests since a moment.
fn since(before: &Fates, now: &Fates) -> String {
    let of = |fates: &Fates, status: &u16| fates.answers.get(status).copied().unwrap_or(0);
    let mut text: Vec<String> =
        now.answers.keys().map(|it| format!("{} of {it}", of(now, it) - of(before, it))).collect();
    text.push(format!("{} without an answer", now.broken - before.broken));
    text.join(", ")
}

/// Every request of clients counts once, whichever host answers, while all of them get a new version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_from_host_to_host_loses_nothing_and_a_partition_ends() {
    if Tool::find("redis-server").is_none() {
        return println!("skipped: there is no redis-server");
    }
    let Some(site) = Site::start(3, "stores", &[], NO_RETRIES, "") else { return };
    let traffic = Traffic::start(&site.balancer.front(), [COUNT; 12]);
    traffic.goes_on(100);
    for host in &site.hosts {
        let new = another_version("stores", host.folder.path());
        let reloaded = host.reload(&[new.to_str().unwrap()]);
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        traffic.goes_on(100);
    }
    let fates = traffic.end().await;
    assert_eq!(fates.lost(), 0, "{fates:?}");
    assert_eq!(counted(&site).await, fates.all());
    println!("upgrade of 3 hosts: {} requests answered, 0 lost, each counted once", fates.all());

    // One host does not reach Redis. It knows within --kv-timeout, and says so; the others notice nothing.
    let traffic = Traffic::start(&site.balancer.front(), [COUNT; 12]);
    traffic.goes_on(100);
    let before = traffic.fates();
    let counted_before = counted(&site).await;
    site.network.machines[0].loses(site.redis_address());
    until("its requests fail", || (traffic.fates().lost() > before.lost() + 20).then_some(()));
    traffic.goes_on(100);
    println!("a host without Redis, of three: {}", since(&before, &traffic.fates()));
    site.network.machines[0].finds(site.redis_address());
    let recovered = || {
        let before = traffic.fates();
        traffic.goes_on(200);
        (traffic.fates().lost() == before.lost()).then_some(())
    };
    until("nothing fails any more", recovered);
    let fates = traffic.end().await;
    // What was answered was counted; what was not may have been.
    assert!(counted(&site).await >= counted_before.min(fates.answers[&200]), "{fates:?}");
    assert!(fates.answers.keys().all(|status| [200, 409, 504].contains(status)) && fates.broken == 0, "{fates:?}");
}

/// A host that loses its power, and one that loses its network, when the balancer tries again what may be repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_host_costs_nothing_that_may_be_repeated() {
    for (what, settings) in [("without retries", NO_RETRIES), ("with retries", RETRIES)] {
        let Some(mut site) = Site::start(3, "scenarios", &[], settings, "") else { return };
        let traffic = Traffic::start(&site.balancer.front(), ["/sleep?ms=20"; 24]);
        traffic.goes_on(100);
        let gone = || (site.balancer.up().len() == 2).then_some(());

        let before = traffic.fates();
        site.network.cut_off(&site.network.machines[0]);
        until("the balancer notices", gone);
        traffic.goes_on(300);
        println!("a host is cut off, {what}: {}", since(&before, &traffic.fates()));
        site.network.join(&site.network.machines[0]);
        site.all_are_up();
        traffic.goes_on(100);

        let before = traffic.fates();
        kill_all(&site.hosts[0]);
        until("the balancer notices", gone);
        traffic.goes_on(300);
        println!("a host is killed, {what}: {}", since(&before, &traffic.fates()));
        assert!(!site.hosts[0].wait().success());
        site.hosts[0] = start(&site.network.machines[0], "scenarios", &[]);
        site.all_are_up();
        let after = traffic.fates();
        traffic.goes_on(300);
        assert_eq!(traffic.fates().lost(), after.lost());
        let fates = traffic.end().await;
        if settings == RETRIES {
            assert_eq!(fates.lost(), 0, "{fates:?}");
        }
    }
}
