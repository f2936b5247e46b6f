//! Every misdeed at once, for minutes, beside clients that behave: those must not notice, and nothing may pile up.
//! `make soak`; `SOAK_SECONDS` says for how long, `SOAK_SEED` repeats a choice of misdeeds.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use harness::client::{Connection, get};
use harness::{Cluster, Setup, corpus, guest, until};

const LEAST: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Of each kind, for each cluster.
const CLIENTS: usize = 4;
const OFFENDERS: usize = 8;
/// How much more memory a worker may have at the end than in the first third, and how many more descriptors.
const MEMORY_TOLERANCE: u64 = 32 << 20;
const DESCRIPTOR_TOLERANCE: usize = 8;

/// What guests are asked to do.
const MISDEEDS: &[&str] = &[
    "/spin",
    "/wait",
    "/grow-memory",
    "/hold?mib=100&ms=200",
    "/recurse",
    "/silent",
    "/trap",
    "/trap-after-head?bytes=100",
    "/error-code",
    "/short-body",
    "/long-body",
    "/two-lengths",
    "/status?code=101",
    "/many-fields?n=2000",
    "/large-field?bytes=1000000",
    "/split-field",
    "/forbidden-field?name=connection",
    "/leak",
    "/leak-pollables",
    "/giant-list?mib=8",
    "/giant-list?mib=64",
    "/giant-fields?n=1000000",
    "/giant-random?mib=32",
    "/giant-metric?mib=8",
    "/many-metrics?n=1000",
    "/trickle?ms=100000",
    "/ignore-upload",
    "/linger",
    "/linger-spin",
    "/exit?code=1",
    "/fetch?url=http://127.0.0.1:1/",
    "/fetch?url=http://169.254.169.254/",
    "/fetch-many?url=http://127.0.0.1:1/&n=100",
    "/tcp?addr=127.0.0.1:1",
    "/resolve?name=localhost",
    "/times",
    "/read?path=/etc/passwd",
    "/flood?lines=2000",
    "/flood-partial?bytes=1000000",
    "/secret?set=abc",
];

/// What clients do themselves.
#[derive(Clone, Copy, Debug)]
enum Client {
    ReadsNothing,
    LeavesInTheMiddle,
    BeginsAHead,
    BeginsABody,
    UploadsTooMuch,
    Smuggles,
}

const CLIENT_MISDEEDS: [Client; 6] = [
    Client::ReadsNothing,
    Client::LeavesInTheMiddle,
    Client::BeginsAHead,
    Client::BeginsABody,
    Client::UploadsTooMuch,
    Client::Smuggles,
];

impl Client {
    async fn misbehave(self, address: SocketAddr, smuggled: &[u8]) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address).await?;
        let upload = "POST /count HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
        match self {
            Self::ReadsNothing | Self::LeavesInTheMiddle => {
                stream.write_all(b"GET /endless HTTP/1.1\r\nhost: test\r\n\r\n").await?;
            }
            Self::BeginsAHead => stream.write_all(b"GET / HTTP/1.1\r\nhost: te").await?,
            Self::BeginsABody => stream.write_all(format!("{upload}5\r\nab").as_bytes()).await?,
            Self::UploadsTooMuch => {
                stream.write_all(upload.as_bytes()).await?;
                for _ in 0..20 {
                    stream.write_all(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).as_bytes()).await?;
                }
            }
            Self::Smuggles => stream.write_all(smuggled).await?,
        }
        if let Self::LeavesInTheMiddle = self {
            stream.read_u8().await?;
            return Ok(());
        }
        if let Self::ReadsNothing = self {
            // Until the server has cut it off, and longer.
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        // No more than what is on its way.
        let mut rest = Vec::new();
        stream.take(16 << 20).read_to_end(&mut rest).await?;
        Ok(())
    }
}

/// What a worker has at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    memory: u64,
    descriptors: usize,
}

fn sample(cluster: &Cluster, slot: u32, pid: Pid) -> Sample {
    let memory = cluster.status()["workers"][slot as usize]["rss_bytes"].as_u64().unwrap();
    Sample { memory, descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() }
}

#[derive(Default)]
struct Tally {
    good: AtomicU64,
    failed: AtomicU64,
    bad: AtomicU64,
    is_over: AtomicBool,
}

impl Tally {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

async fn behave(address: SocketAddr, keeps: bool, tally: Arc<Tally>) {
    let mut connection = Connection::open(address).await;
    while !tally.is_over() {
        if !keeps {
            connection = Connection::open(address).await;
        }
        match connection.get("/").await {
            Ok(answer) if answer.status == 200 && answer.text().starts_with("hello") => &tally.good,
            other => {
                println!("a good request failed: {other:?}");
                connection = Connection::open(address).await;
                &tally.failed
            }
        }
        .fetch_add(1, Ordering::Relaxed);
    }
}

async fn offend(address: SocketAddr, mut random: fastrand::Rng, tally: Arc<Tally>) {
    let smuggled: Vec<Vec<u8>> = corpus("refused").into_values().collect();
    while !tally.is_over() {
        let choice = random.usize(..MISDEEDS.len() + CLIENT_MISDEEDS.len());
        if let Some(path) = MISDEEDS.get(choice) {
            let mut connection = Connection::open(address).await;
            // Whatever comes of it.
            if let Ok(answer) = connection.send(http::Method::GET, path, Full::<Bytes>::default()).await {
                let _ = answer.into_body().collect().await;
            }
        } else {
            let smuggled = &smuggled[random.usize(..smuggled.len())];
            let _ = CLIENT_MISDEEDS[choice - MISDEEDS.len()].misbehave(address, smuggled).await;
        }
        tally.bad.fetch_add(1, Ordering::Relaxed);
    }
}

/// A line of bars, from nothing to the most.
fn curve(values: &[u64]) -> String {
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: u64| char::from_u32(0x2581 + (value * 7 / most) as u32).unwrap();
    values.iter().map(|&value| bar(value)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn whoever_behaves_notices_nothing() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let time = seconds.map_or(LEAST, Duration::from_secs);
    let seed = std::env::var("SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("for {time:?}; repeat the choice of misdeeds with SOAK_SEED={seed}");
    let args = [
        &["--request-timeout", "1s", "--stream-timeout", "1s", "--header-timeout", "1s", "--max-body", "1MiB"][..],
        &["--allow-host", "http://127.0.0.1:1", "--log-level", "off"],
    ]
    .concat();
    let clusters = ["hostile_p2", "hostile_p3"].map(|name| {
        let mut setup = Setup::new(&guest(name)).args(&args);
        // What the floods bring is not kept.
        setup.command.stdout(Stdio::null());
        setup.start()
    });
    let workers: Vec<(&Cluster, u32, Pid)> = clusters
        .iter()
        .flat_map(|cluster| (0..2).map(move |slot| (cluster, slot, cluster.worker(slot).unwrap())))
        .collect();
    let tally = Arc::new(Tally::default());
    let mut tasks = JoinSet::new();
    let mut random = fastrand::Rng::with_seed(seed);
    for address in clusters.iter().map(Cluster::address) {
        for number in 0..CLIENTS {
            tasks.spawn(behave(address, number % 2 == 0, tally.clone()));
        }
        for _ in 0..OFFENDERS {
            tasks.spawn(offend(address, random.fork(), tally.clone()));
        }
    }
    let started = Instant::now();
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); workers.len()];
    while started.elapsed() < time {
        tokio::time::sleep(LOOK_EVERY).await;
        for ((cluster, slot, pid), samples) in workers.iter().zip(&mut samples) {
            samples.push(sample(cluster, *slot, *pid));
        }
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let memory: Vec<u64> = samples.iter().map(|samples| samples[samples.len() - 1].memory >> 20).collect();
        let descriptors: Vec<usize> = samples.iter().map(|samples| samples[samples.len() - 1].descriptors).collect();
        println!(
            "{:4} s: {} good requests, {} failed, {} misdeeds; MiB {memory:?}, descriptors {descriptors:?}",
            started.elapsed().as_secs(),
            of(&tally.good),
            of(&tally.failed),
            of(&tally.bad)
        );
    }
    tally.is_over.store(true, Ordering::Relaxed);
    while tasks.join_next().await.is_some() {}
    for cluster in &clusters {
        let rest = |what: &str| {
            (0..2_usize).map(|slot| cluster.status()["workers"][slot][what].as_u64().unwrap()).sum::<u64>()
        };
        until("nothing is in flight", || (rest("in_flight") == 0 && rest("connections") == 0).then_some(()));
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    }
    for ((cluster, slot, pid), samples) in workers.iter().zip(&samples) {
        assert_eq!(cluster.worker(*slot), Some(*pid), "a worker was replaced");
        let column = |of: fn(&Sample) -> u64| samples.iter().map(of).collect::<Vec<_>>();
        println!("worker {pid}: memory      {}", curve(&column(|sample| sample.memory)));
        println!("worker {pid}: descriptors {}", curve(&column(|sample| sample.descriptors as u64)));
        let before = samples[..samples.len().div_ceil(3)].iter();
        let after = sample(cluster, *slot, *pid);
        let memory = before.clone().map(|sample| sample.memory).max().unwrap();
        let descriptors = before.map(|sample| sample.descriptors).max().unwrap();
        assert!(after.memory <= memory + MEMORY_TOLERANCE, "memory grew from {memory} to {}", after.memory);
        assert!(after.descriptors <= descriptors + DESCRIPTOR_TOLERANCE, "{descriptors} to {}", after.descriptors);
    }
    assert_eq!(tally.failed.load(Ordering::Relaxed), 0, "good requests failed");
}
