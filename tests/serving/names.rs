//! Names of upstreams: whom a worker asks for them, how often, and what it believes.
//!
//! Each test has a network of its own, with a name server in it. The upstream is the cluster itself, which is there anyway.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::name_server::{NameServer, run_if_asked};
use harness::{Cluster, until};

use super::calls::{apart, get_by};

const SERVER: &str = "127.0.0.53";
/// A second address of the same.
const OTHER: &str = "127.0.0.54";
const FINE: &str = "200\nhello";
/// An address that swallows what is sent to it, and files that can be written to while the cluster serves.
const SCRIPT: &str = "ip route add 192.0.2.53/32 dev lo; \
    printf \"$HOSTS\" > hosts; mount --bind hosts /etc/hosts; \
    printf \"$RESOLV_CONF\" > resolv.conf; mount --bind resolv.conf /etc/resolv.conf";

/// What [`NameServer`] starts this program for. Otherwise it has nothing to do.
#[test]
fn a_name_server_runs_if_it_is_asked_for() {
    run_if_asked(|line| println!("{line}"));
}

struct Stage {
    cluster: Cluster,
    socket: PathBuf,
    server: NameServer,
}

impl Stage {
    /// A cluster whose guest may send requests to all names, which lead to 127.0.0.1 at most.
    fn set(resolv_conf: &str, hosts: &str) -> Option<Self> {
        let script = format!("HOSTS='{hosts}'; RESOLV_CONF='{resolv_conf}'; {SCRIPT}");
        let allowed = ["*.test.example", "a.localhost", "host", "127.0.0.1"].map(|host| format!("http://{host}:*"));
        let args: Vec<_> = allowed.iter().flat_map(|host| ["--allow-host", host]).collect();
        let (cluster, socket) = apart("hostile_p2", &script, &args)?;
        let zone = cluster.folder.path().join("zone");
        let entry = "names::a_name_server_runs_if_it_is_asked_for";
        let server = NameServer::start(cluster.pid(), &format!("{SERVER} {OTHER}"), &zone, entry);
        Some(Self { cluster, socket, server })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.folder.path().join(name)
    }

    fn url(&self, name: &str) -> String {
        format!("/fetch?url=http://{name}:{}/", self.cluster.address().port())
    }

    /// What the guest says of a request to `name`.
    async fn fetch(&self, name: &str) -> String {
        get_by(&self.socket, &self.url(name)).await
    }

    /// How often addresses of `name` were asked for. A datagram may be sent again, with the same number.
    fn count(&self, name: &str) -> usize {
        let numbers: BTreeSet<_> = self.server.asked(name, "A").iter().map(|question| question.id).collect();
        numbers.len()
    }
}

fn by(server: &str) -> String {
    format!("nameserver {server}\\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_asked_for_again_when_their_time_is_over() {
    let Some(stage) = Stage::set(&by(SERVER), "") else { return };
    stage.server.says(
        "long.test.example A 600 127.0.0.1\nbrief.test.example A 2 127.0.0.1\nnever.test.example A 0 127.0.0.1\nhalf.test.example A 600 \
         127.0.0.1\nhalf.test.example AAAA 0 ::1",
    );
    let start = Instant::now();
    assert_eq!(stage.fetch("brief.test.example").await, FINE);
    for n in 1..=5 {
        assert_eq!(stage.fetch("long.test.example").await, FINE);
        assert_eq!(stage.fetch("never.test.example").await, FINE);
        assert_eq!((stage.count("long.test.example"), stage.count("never.test.example")), (1, n));
    }
    while stage.count("brief.test.example") < 2 {
        assert_eq!(stage.fetch("brief.test.example").await, FINE);
    }
    assert!(start.elapsed() >= Duration::from_secs(2), "it was asked again too early: {:?}", start.elapsed());
    // By the record that is good for the shortest time.
    for n in 1..=3 {
        assert_eq!(stage.fetch("half.test.example").await, FINE);
        assert_eq!(stage.count("half.test.example"), n);
    }
    // What is not there is known for a while too; what was refused is not.
    let start = Instant::now();
    while stage.count("none.test.example") < 2 {
        let said = stage.fetch("none.test.example").await;
        assert!(said.contains("DnsError"), "{said}");
    }
    assert!(start.elapsed() >= Duration::from_secs(5), "it was asked again too early: {:?}", start.elapsed());
    stage.server.says("refused.test.example A refused\nrefused.test.example AAAA refused");
    assert!(stage.fetch("refused.test.example").await.contains("DnsError"));
    stage.server.says("refused.test.example A 600 127.0.0.1");
    assert_eq!(stage.fetch("refused.test.example").await, FINE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_requests_ask_for_a_name_once() {
    let Some(stage) = Stage::set(&(by(SERVER) + "options timeout:5 attempts:1\\n"), "") else { return };
    // On a machine that is so slow that the look-up is over before all wait for it, with another name.
    for name in (0..10).map(|n| format!("held{n}.test.example")) {
        stage.server.says(&format!("{name} A held\n{name} AAAA held"));
        let fetch = |_| {
            let (socket, url) = (stage.socket.clone(), stage.url(&name));
            tokio::spawn(async move { get_by(&socket, &url).await })
        };
        let waiting: Vec<_> = (0..50).map(fetch).collect();
        until("they wait", || (stage.cluster.in_flight()? >= 50).then_some(()));
        stage.server.says(&format!("{name} A 600 127.0.0.1"));
        let mut said = BTreeSet::new();
        for waiting in waiting {
            said.insert(waiting.await.unwrap());
        }
        if said.len() == 1 && said.contains(FINE) {
            assert_eq!(stage.count(&name), 1);
            return;
        }
        assert!(said.iter().all(|said| said == FINE || said.contains("DnsTimeout")), "{said:?}");
    }
    panic!("50 requests never waited for the same look-up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_nobody_answers_for_holds_up_no_other() {
    let Some(stage) = Stage::set(&by(SERVER), "127.0.0.1 here.test.example\\n") else { return };
    let names: Vec<_> = (0..100).map(|n| format!("n{n}.test.example")).collect();
    let silent = (0..20).map(|n| format!("silent{n}.test.example A silent\nsilent{n}.test.example AAAA silent\n"));
    let answered = names.iter().map(|name| format!("{name} A 600 127.0.0.1\n"));
    stage.server.says(&silent.chain(answered).collect::<String>());
    // They ask for ever, so that some of them always wait, however slow this machine is.
    let over = Arc::new(AtomicBool::new(false));
    let ask = |n| {
        let (socket, url, over) = (stage.socket.clone(), stage.url(&format!("silent{n}.test.example")), over.clone());
        tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                let said = get_by(&socket, &url).await;
                assert!(said.contains("DnsTimeout"), "{said}");
            }
        })
    };
    // Fewer than a grant's places: all names here are below the same.
    let waiting: Vec<_> = (0..6).map(ask).collect();
    stage.server.until_asked("silent5.test.example", "A");
    for name in names {
        assert_eq!(stage.fetch(&name).await, FINE, "{name}");
    }
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    // What this machine knows itself needs no place, nor what is known by now.
    let more: Vec<_> = (6..20).map(ask).collect();
    until("they wait", || (stage.cluster.in_flight()? >= 20).then_some(()));
    for name in ["n1.test.example", "here.test.example", "a.localhost"] {
        assert_eq!(stage.fetch(name).await, FINE, "{name}");
    }
    over.store(true, Ordering::SeqCst);
    for waiting in waiting.into_iter().chain(more) {
        waiting.await.unwrap();
    }
}

/// Prints how long requests to other names take while six wait for names that nobody answers for, and while none does, in turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures, for a quiet machine"]
async fn figures_beside_a_name_that_nobody_answers_for() {
    const ROUNDS: usize = 8;
    const REQUESTS: usize = 500;
    let Some(stage) = Stage::set(&by(SERVER), "") else { return };
    let silent = (0..6).map(|n| format!("silent{n}.test.example A silent\nsilent{n}.test.example AAAA silent\n"));
    let answered = "kept.test.example A 600 127.0.0.1\nanew.test.example A 0 127.0.0.1\n".to_owned();
    stage.server.says(&silent.chain([answered]).collect::<String>());
    for name in ["kept.test.example", "anew.test.example"] {
        let mut took: [Vec<Duration>; 2] = Default::default();
        for _ in 0..ROUNDS {
            for is_beside in [false, true] {
                let over = Arc::new(AtomicBool::new(!is_beside));
                let waiting = (0..6).map(|n| {
                    let (socket, over) = (stage.socket.clone(), over.clone());
                    let url = stage.url(&format!("silent{n}.test.example"));
                    tokio::spawn(async move {
                        while !over.load(Ordering::SeqCst) {
                            get_by(&socket, &url).await;
                        }
                    })
                });
                let waiting: Vec<_> = waiting.collect();
                until("they wait", || (stage.cluster.in_flight()? >= if is_beside { 6 } else { 0 }).then_some(()));
                for _ in 0..REQUESTS {
                    let start = Instant::now();
                    assert_eq!(stage.fetch(name).await, FINE);
                    took[usize::from(is_beside)].push(start.elapsed());
                }
                over.store(true, Ordering::SeqCst);
                for waiting in waiting {
                    waiting.await.unwrap();
                }
            }
        }
        for (mut took, what) in took.into_iter().zip(["alone", "beside silent ones"]) {
            took.sort();
            println!("{name}, {what}: p50 {:?}, p99 {:?}", took[took.len() / 2], took[took.len() * 99 / 100]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_dead_or_refuses_does_not_stop_the_next() {
    // Nobody listens at the first, and nobody hears the second.
    let servers = ["127.0.0.9", "192.0.2.53", SERVER].map(by).concat();
    let Some(stage) = Stage::set(&(servers + "options timeout:1 attempts:1\\n"), "") else { return };
    stage.server.says("a.test.example A 600 127.0.0.1\nb.test.example A 600 127.0.0.1");
    assert_eq!(stage.fetch("a.test.example").await, FINE);
    // Nobody at all answers at once that nobody is there.
    write(&stage.file("resolv.conf"), "nameserver 127.0.0.9");
    until_it_says(&stage, "nobody.test.example", "DnsError").await;
    // Nor is this machine's own asked.
    write(&stage.file("resolv.conf"), "");
    until_it_says(&stage, "nobody.test.example", "DnsError").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_machine_says_of_names_is_followed() {
    let Some(stage) = Stage::set(&(by(SERVER) + "search lan.test.example\\n"), "127.0.0.1 here.test.example\\n") else {
        return;
    };
    stage.server.says(
        "here.test.example A 0 192.0.2.9\nhost.lan.test.example A 600 127.0.0.1\nhost A 600 192.0.2.9\nbig.test.example A cut 600 \
         127.0.0.1\nmoved.test.example A 0 127.0.0.1\nsix.test.example AAAA 600 2001:db8::1\nsix.test.example A 600 127.0.0.1",
    );
    assert_eq!(stage.fetch("here.test.example").await, FINE);
    assert_eq!(stage.count("here.test.example"), 0, "hosts come first");
    assert_eq!(stage.fetch("a.localhost").await, FINE);
    assert_eq!(stage.count("a.localhost"), 0, "nobody is asked for this machine");
    assert_eq!(stage.fetch("host").await, FINE);
    assert_eq!(stage.count("host"), 0, "domains are searched");
    assert_eq!(stage.fetch("big.test.example").await, FINE);
    let asked = stage.server.asked("big.test.example", "A");
    let mut transports: Vec<_> = asked.into_iter().map(|asked| asked.transport).collect();
    transports.dedup();
    assert_eq!(transports, ["udp", "tcp"]);
    // There is no route for IPv6 in this network.
    assert_eq!(stage.fetch("six.test.example").await, FINE);

    assert_eq!(stage.fetch("moved.test.example").await, FINE);
    assert!(stage.server.asked("moved.test.example", "A").iter().all(|asked| asked.at.to_string() == SERVER));
    // A file that cannot be used changes nothing, and that is said once.
    write(&stage.file("resolv.conf"), "nameserver 127.0.0.");
    while !stage.cluster.stderr.lines().iter().any(|line| line.contains("cannot use /etc/resolv.conf")) {
        assert_eq!(stage.fetch("moved.test.example").await, FINE);
    }
    write(&stage.file("resolv.conf"), &format!("nameserver {OTHER}\n"));
    while !stage.server.asked("moved.test.example", "A").iter().any(|asked| asked.at.to_string() == OTHER) {
        assert_eq!(stage.fetch("moved.test.example").await, FINE);
    }
    let told = stage.cluster.stderr.lines().iter().filter(|line| line.contains("resolv.conf")).count();
    assert_eq!(told, 1);
    write(&stage.file("hosts"), "127.0.0.9 here.test.example\n");
    until_it_says(&stage, "here.test.example", "DestinationIpProhibited").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_server_that_lies_is_not_believed() {
    let Some(stage) = Stage::set(&by(SERVER), "") else { return };
    stage.server.says("forged.test.example A forged 600 127.0.0.1\nturns.test.example A 0 127.0.0.1");
    // Datagrams that somebody else sends, or that answer something else, are dropped without a word.
    assert_eq!(stage.fetch("forged.test.example").await, FINE);
    // A name that is looked at and then leads elsewhere: no connection goes there, also if one is kept to where it led.
    for (address, is) in [("169.254.169.254", "link-local"), ("127.0.0.9", "loopback"), ("10.0.0.1", "private")] {
        stage.server.says("turns.test.example A 0 127.0.0.1");
        assert_eq!(stage.fetch("turns.test.example").await, FINE);
        stage.server.says(&format!("turns.test.example A 0 {address}"));
        let said = stage.fetch("turns.test.example").await;
        assert!(said.contains("DestinationIpProhibited"), "{address} ({is}): {said}");
        stage.cluster.stderr.find(&format!("with the special address {address}"));
    }
    let lines = stage.cluster.stderr.lines();
    assert!(lines.iter().all(|line| !line.contains("ignoring")), "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aliases_are_followed_and_not_for_ever() {
    let Some(stage) = Stage::set(&by(SERVER), "") else { return };
    stage.server.says(
        "first.test.example A alias 0 second.test.example\nsecond.test.example A 600 127.0.0.1\n\
         inside.test.example A alias 600 metadata.test.example\nmetadata.test.example A 600 169.254.169.254\n\
         round.test.example A alias 600 about.test.example\nabout.test.example A alias 600 round.test.example",
    );
    for n in 1..=3 {
        assert_eq!(stage.fetch("first.test.example").await, FINE);
        assert_eq!(stage.count("first.test.example"), n, "the alias is good for no time");
    }
    let said = stage.fetch("inside.test.example").await;
    assert!(said.contains("DestinationIpProhibited"), "{said}");
    let said = stage.fetch("round.test.example").await;
    assert!(said.contains("DnsError"), "{said}");
    let asked = stage.count("round.test.example") + stage.count("about.test.example");
    assert!(asked <= 8, "it was asked {asked} times");
}

async fn until_it_says(stage: &Stage, name: &str, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let said = stage.fetch(name).await;
        if said.contains(what) {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}: {said}");
    }
}

/// Into the same file, which is mounted.
fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
}
