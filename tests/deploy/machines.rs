//! Several machines behind HAProxy, with what they share in a Redis: an upgrade from host to host, the loss of a host, and a
//! partition between a host and Redis. docs/many-machines.md has the figures; `make machines` measures them.

use std::net::SocketAddr;
use std::time::Duration;

use harness::haproxy::{Haproxy, PORT};
use harness::network::{Machine, Network};
use harness::tools::Tool;
use harness::traffic::{Fates, Traffic};
use harness::{Cluster, Follower, Setup, guest, until};

use nix::unistd::Pid;

use super::kubernetes::{NO_RETRIES, RETRIES, kill_all};
use super::reload::{AT_ONCE, another_version};
use model::Parts;

mod model;

const HTTP: u16 = 8080;
const REDIS: u16 = 6379;
/// How often the balancer asks hosts whether they are ready; two failures in a row take one out.
const CHECKS: &str = "check port 9090 inter 500ms fall 2 rise 1";

/// Hosts, each a cluster on a machine of its own, and the machine with Redis.
struct Site {
    hosts: Vec<Cluster>,
    balancer: Haproxy,
    redis: Option<Follower>,
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
        let site = Self { hosts, balancer, redis, network };
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
    let Some(site) = Site::start(3, "stores", &[], "retries 0", "") else { return };
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
            // An answer that had begun cannot be tried again: of those that the killed host had in hand, at most.
            assert!(fates.answers.keys().eq(&[200]) && fates.broken <= 24 / 3, "{fates:?}");
        }
    }
}

/// Bytes of the value that hosts get from Redis.
const VALUE: usize = 16 << 10;
/// What the links carry, in Mbit/s, so that neither a host's limit nor Redis's is the test machine's.
const LINK_OF_A_HOST: u32 = 40;
const LINK_OF_REDIS: u32 = 65;
const MEASURED: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(2);
const MANY_CLIENTS: usize = 96;

/// A way that requests take: what is measured of one host, and predicted of more.
struct Way {
    what: &'static str,
    app: &'static str,
    path: &'static str,
    args: &'static [&'static str],
    /// As many as the host answers at the same time: others wait in the balancer.
    of_server: &'static str,
    clients: usize,
    links_are_slow: bool,
}

const WAYS: [Way; 3] = [
    Way {
        what: "requests that wait 50 ms, 16 at a time on each host",
        app: "scenarios",
        path: "/sleep?ms=50",
        args: &["--max-in-flight", "16"],
        of_server: "maxconn 16",
        clients: MANY_CLIENTS,
        links_are_slow: false,
    },
    Way {
        what: "the same, asked by 24 clients",
        app: "scenarios",
        path: "/sleep?ms=50",
        args: &["--max-in-flight", "16"],
        of_server: "maxconn 16",
        clients: 24,
        links_are_slow: false,
    },
    Way {
        what: "16 KiB from Redis, over slow links",
        app: "stores",
        path: "/default/value",
        args: &[],
        of_server: "maxconn 16",
        clients: MANY_CLIENTS,
        links_are_slow: true,
    },
];

impl Way {
    /// Requests a second, of so many hosts and clients.
    async fn measure(&self, hosts: u8, clients: usize) -> Option<f64> {
        let site = self.start(hosts)?;
        let traffic = Traffic::start(&site.balancer.front(), std::iter::repeat_n(self.path, clients));
        traffic.goes_on(20);
        let rate = traffic.rate(MEASURED).await;
        let fates = traffic.end().await;
        assert_eq!(fates.lost(), 0, "{fates:?}");
        Some(rate)
    }

    fn start(&self, hosts: u8) -> Option<Site> {
        let site = Site::start(hosts, self.app, self.args, "retries 3", self.of_server)?;
        let redis = site.network.machines.last().unwrap();
        redis.run("redis-cli", &format!("-p {REDIS} set value \"{}\"", "x".repeat(VALUE)));
        if self.links_are_slow {
            let slow = |machine: &Machine, rate: u32| {
                machine.run("tc", &format!("qdisc add dev eth0 root tbf rate {rate}mbit burst 64kb latency 500ms"));
            };
            site.network.machines[..hosts.into()].iter().for_each(|machine| slow(machine, LINK_OF_A_HOST));
            slow(redis, LINK_OF_REDIS);
        }
        Some(site)
    }

    /// What Redis gives without a host, asked from the middle.
    fn store(&self) -> Option<f64> {
        if !self.links_are_slow {
            return Some(f64::INFINITY);
        }
        let site = self.start(1)?;
        let args = format!("-h {} -p {REDIS} --csv -c 16 -n 2000 get value", site.redis_address());
        let said = site.network.middle.run("redis-benchmark", &args);
        // A line of names, and `"get value","1234.5",…`.
        Some(said.lines().last()?.split(',').nth(1)?.trim_matches('"').parse().expect("requests a second"))
    }

    /// Of one host, as much as it takes to predict more. The balancer is no limit for so few.
    async fn parts(&self) -> Option<Parts> {
        let alone = self.measure(1, 1).await?;
        let host = self.measure(1, MANY_CLIENTS).await?;
        Some(Parts { host, balancer: f64::INFINITY, store: self.store()?, seconds: alone.recip() })
    }
}

/// One host is measured, two and three are predicted and measured: figures for docs/many-machines.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures for minutes: make machines"]
async fn figures_of_several_hosts_beside_what_one_predicts() {
    println!("| requests | hosts | limit | predicted | measured | |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for way in &WAYS {
        let Some(parts) = way.parts().await else { return };
        for hosts in 1..=3 {
            let (predicted, limit) = parts.predict(hosts.into(), way.clients);
            let measured = way.measure(hosts, way.clients).await.unwrap();
            let difference = (measured / predicted - 1.0) * 100.0;
            println!(
                "| {} | {hosts} | {limit:?} | {predicted:.0}/s | {measured:.0}/s | {difference:+.0} % |",
                way.what
            );
        }
    }
}

/// Processor time of a process, in seconds.
fn processor_time(pid: Pid) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime, the 14th and 15th of all, in hundredths of a second.
    (ticks(11) + ticks(12)) / 100.0
}

/// What each part of the way works for a request.
struct Cost {
    rate: f64,
    /// Of HAProxy, of all hosts, and of Redis, in microseconds.
    microseconds: [f64; 3],
}

/// Of requests that come as fast as they are answered.
fn cost(hosts: u8, app: &str, path: &str) -> Option<Cost> {
    let site = Site::start(hosts, app, &[], "retries 3", "")?;
    let wrk = |time: Duration| {
        let url = format!("http://127.0.0.1:{PORT}{path}");
        let said = site.network.middle.run("wrk", &format!("-t1 -c32 -d{} {url}", time.as_secs()));
        assert!(!said.contains("Non-2xx"), "{said}");
        let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:")).expect("a rate");
        rate.trim().parse::<f64>().expect("a rate")
    };
    let times = || {
        let of_hosts = site.hosts.iter().flat_map(|it| it.children().into_iter().chain([it.pid()]));
        let of_redis = site.redis.as_ref().map_or(0.0, |it| processor_time(it.pid()));
        [processor_time(site.balancer.pid()), of_hosts.map(processor_time).sum(), of_redis]
    };
    wrk(WARM_UP);
    let before = times();
    let rate = wrk(MEASURED);
    let after = times();
    let microseconds = |part: usize| (after[part] - before[part]) * 1e6 / (rate * MEASURED.as_secs_f64());
    Some(Cost { rate, microseconds: std::array::from_fn(microseconds) })
}

/// By processor time, which the two cores of a test machine tell better than requests a second.
#[test]
#[ignore = "it measures for minutes: make machines"]
fn figures_of_what_a_request_costs_each_part() {
    let Some(_) = Tool::find("wrk") else { return println!("skipped: there is no wrk") };
    println!(
        "| requests | hosts | HAProxy | wasmcluster | Redis | cores of wasmcluster for one of HAProxy and Redis |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (what, app, path) in [("hello", "hello", "/"), ("an increment in Redis", "stores", COUNT)] {
        for hosts in 1..=3 {
            let Some(Cost { rate, microseconds: [balancer, host, redis] }) = cost(hosts, app, path) else { return };
            let a_second = |microseconds: f64| if microseconds < 1.0 { f64::INFINITY } else { 1e6 / microseconds };
            let parts =
                Parts { host: a_second(host), balancer: a_second(balancer), store: a_second(redis), seconds: 0.0 };
            let cores = parts.useful_hosts();
            println!("| {what} | {hosts} | {balancer:.0} µs | {host:.0} µs | {redis:.0} µs | {cores:.1} |");
            println!("  {what}, {hosts} hosts: {rate:.0}/s");
        }
    }
}
