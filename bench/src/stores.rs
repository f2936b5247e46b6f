//! Key-value stores: how fast a guest gets, sets and increments with a store in a file and with one in Redis, beside native
//! programs that do the same (`native.rs`).

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::contenders::{Server, component, ours};
use crate::plan::REUSED;
use crate::process::{ANYWHERE, Process, Scratch, output};
use crate::report::Series;
use crate::rounds::{Case, in_turns, script_file, wrk};
use crate::{Bench, http, native};

const GUEST: &str = "stores";
const WORKERS: [usize; 2] = [1, 8];
const CLIENTS: [usize; 2] = [1, 64];
/// The order of a row's values. Native programs have only those of one worker.
const COLUMNS: &[&str] =
    &["1 worker, 1 client", "1 worker, 64 clients", "8 workers, 1 client", "8 workers, 64 clients"];

/// A path on which the guest asks no store, and its answer.
const NO_STORE: (&str, &str) = ("/", "no store");
/// About as long as the answer without a store, so that a difference in time is the store's.
const VALUE: &str = "a value";
/// If each write is a commit of its own, a client waits for those of all others. wrk's own limit is two seconds.
const PATIENCE: &str = "30s";
const REDIS_TIMEOUT: Duration = Duration::from_secs(10);

const SUBJECTS: [Subject; 4] = [
    IN_A_FILE,
    Subject { name: "wasmcluster, Redis", place: Place::Redis, program: Program::Guest },
    Subject { name: "native, Redis", place: Place::Redis, program: Program::Native },
    Subject { name: "native, LMDB, a commit for each write", place: Place::File, program: Program::Native },
];
const IN_A_FILE: Subject = Subject { name: "wasmcluster, `file:`", place: Place::File, program: Program::Guest };

/// A table for each operation.
pub(crate) fn measure(bench: &Bench) -> Vec<Series> {
    let case = |subject: Subject, operation| {
        Case::new(subject.name.into(), move |bench| subject.measure(bench, operation)).unless(subject.missing())
    };
    let series = |operation: Operation| Series {
        title: operation.title(),
        about: about(bench, operation),
        columns: COLUMNS,
        rows: in_turns(bench, SUBJECTS.map(|subject| case(subject, operation)).into()),
    };
    Operation::ALL.map(series).into()
}

/// Microseconds that a request takes longer if it gets a value, on one core that is always busy.
pub(crate) fn beyond_a_request(bench: &Bench) -> Result<Vec<f64>> {
    let cpus = bench.cpus.server();
    let store = Store::new(IN_A_FILE.place, cpus)?;
    let server = IN_A_FILE.start(bench, &store, 1, cpus)?;
    let check = || {
        let (path, expected) = NO_STORE;
        let answer = http::get(server.address, path)?;
        ensure!(answer.body == expected.as_bytes(), "{path} is answered with {}", answer.summary());
        Operation::Get.check(server.address)
    };
    let rate = |path, time| wrk(server.address, path, bench.cpus.load(), time, &[]);
    let both = |time| Ok::<_, anyhow::Error>((rate(NO_STORE.0, time)?, rate(Operation::Get.path(), time)?));
    Operation::Set.check(server.address)?;
    check()?;
    both(bench.warm_up).context("while it warms up")?;
    let rounds = (0..bench.rounds).map(|round| {
        let (none, get) = both(bench.time)?;
        eprintln!("  {}/{}  no store {none:.0}/s, get {get:.0}/s", round + 1, bench.rounds);
        Ok(microseconds_beyond(none, get))
    });
    let rounds = rounds.collect();
    check()?;
    rounds
}

/// What a request takes longer, from the rates per second of requests without and with something.
fn microseconds_beyond(without: f64, with: f64) -> f64 {
    1e6 / with - 1e6 / without
}

/// Writes per second of many clients to a store in a file, divided by those of one client. Increments: a request with a body would
/// be more work than the write that it asks for.
pub(crate) fn writes_together(bench: &Bench) -> Result<Vec<f64>> {
    (0..bench.rounds)
        .map(|round| {
            let [one, many] = IN_A_FILE.rates(bench, Operation::Increment, 1)?;
            eprintln!("  {}/{}  one {one:.0}/s, many {many:.0}/s", round + 1, bench.rounds);
            Ok(many / one)
        })
        .collect()
}

#[derive(Clone, Copy)]
enum Operation {
    Get,
    Set,
    Increment,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Get, Self::Set, Self::Increment];

    fn title(self) -> &'static str {
        match self {
            Self::Get => "Get, requests/s",
            Self::Set => "Set, requests/s",
            Self::Increment => "Increment, requests/s",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Get | Self::Set => "/default/value",
            Self::Increment => "/default/count?increment=1",
        }
    }

    fn method_and_body(self) -> (&'static str, &'static str) {
        match self {
            Self::Set => ("PUT", VALUE),
            Self::Get | Self::Increment => ("GET", ""),
        }
    }

    /// What `wrk` has to know beside the path.
    fn script(self) -> String {
        let (method, body) = self.method_and_body();
        format!("wrk.method = '{method}'\nwrk.body = '{body}'\n")
    }

    fn check(self, address: SocketAddr) -> Result<()> {
        let (method, body) = self.method_and_body();
        let answer = http::send(address, method, self.path(), body.as_bytes())?;
        let is_right = match self {
            Self::Get => answer.body == VALUE.as_bytes(),
            Self::Set => answer.body == b"set",
            Self::Increment => str::from_utf8(&answer.body).is_ok_and(|sum| sum.parse::<u64>().is_ok()),
        };
        ensure!(answer.status == 200 && is_right, "{method} {} is answered with {}", self.path(), answer.summary());
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    File,
    Redis,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Guest,
    /// One process, which counts as one worker.
    Native,
}

/// A row of the tables.
#[derive(Clone, Copy)]
struct Subject {
    name: &'static str,
    place: Place,
    program: Program,
}

impl Subject {
    fn missing(self) -> Option<String> {
        if self.program == Program::Guest
            && let Err(error) = component(GUEST)
        {
            return Some(error.to_string());
        }
        let has_redis = || output(Command::new("redis-server").arg("--version"), ANYWHERE).is_ok();
        (self.place == Place::Redis && !has_redis()).then(|| "there is no redis-server on the PATH".into())
    }

    /// Requests per second, column by column.
    fn measure(self, bench: &Bench, operation: Operation) -> Result<Vec<f64>> {
        let workers = match self.program {
            Program::Guest => &WORKERS[..],
            Program::Native => &WORKERS[..1],
        };
        let rates = workers.iter().map(|workers| self.rates(bench, operation, *workers));
        Ok(rates.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Requests per second from one client, and from many.
    fn rates(self, bench: &Bench, operation: Operation, workers: usize) -> Result<[f64; 2]> {
        let (cpus, load) = match workers {
            1 => (bench.cpus.server(), bench.cpus.load()),
            _ => (bench.cpus.all(), bench.cpus.all()),
        };
        // What a server asks is part of its cost: the keeper and Redis run where it runs.
        let store = Store::new(self.place, cpus)?;
        let server = self.start(bench, &store, workers, cpus)?;
        let script = script_file(&server.scratch, &operation.script())?;
        let rate = |clients: usize, time| {
            let clients = clients.to_string();
            let more = ["-t", "1", "-c", &clients, "-s", &script, "--timeout", PATIENCE];
            wrk(server.address, operation.path(), load, time, &more)
        };
        Operation::Set.check(server.address)?;
        operation.check(server.address)?;
        let [one, many] = CLIENTS;
        rate(many, bench.warm_up).context("while it warms up")?;
        let rates = [rate(one, bench.time)?, rate(many, bench.time)?];
        operation.check(server.address)?;
        Ok(rates)
    }

    fn start(self, bench: &Bench, store: &Store, workers: usize, cpus: &[usize]) -> Result<Server> {
        let scratch = Scratch::new()?;
        let command = match self.program {
            Program::Guest => {
                let mut command = ours(&bench.programs, GUEST, workers, &scratch)?;
                command.args(REUSED).args(["--kv", &format!("default={}", store.url)]);
                command
            }
            Program::Native => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args([native::COMMAND, &store.url]);
                command
            }
        };
        Server::start(command, scratch, cpus)
    }
}

/// An empty store, removed when it is dropped.
struct Store {
    /// As `--kv` has it.
    url: String,
    _redis: Option<Process>,
    _folder: Scratch,
}

impl Store {
    fn new(place: Place, cpus: &[usize]) -> Result<Self> {
        match place {
            Place::File => {
                let folder = Scratch::on_disk()?;
                let url = format!("file:{}", folder.path("store").display());
                Ok(Self { url, _redis: None, _folder: folder })
            }
            Place::Redis => {
                // Not below the build folder: the path of a socket has at most 107 bytes.
                let folder = Scratch::new()?;
                let redis = start_redis(&folder, cpus)?;
                let url = format!("unix:{}", folder.path("redis.sock").display());
                Ok(Self { url, _redis: Some(redis), _folder: folder })
            }
        }
    }
}

/// A server that writes nothing to disk. It listens when this returns.
fn start_redis(folder: &Scratch, cpus: &[usize]) -> Result<Process> {
    let socket = folder.path("redis.sock");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"]).arg(folder.path(""));
    command.arg("--unixsocket").arg(&socket).stdout(File::create(folder.path("log"))?);
    let mut redis = Process::start(&mut command, cpus)?;
    let deadline = Instant::now() + REDIS_TIMEOUT;
    while UnixStream::connect(&socket).is_err() {
        if let Some(status) = redis.has_ended()? {
            let log = std::fs::read_to_string(folder.path("log"))?;
            bail!("redis-server ended with {status}: {}", log.trim().lines().last().unwrap_or_default());
        }
        ensure!(Instant::now() < deadline, "redis-server does not listen after {} s", REDIS_TIMEOUT.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(redis)
}

fn about(bench: &Bench, operation: Operation) -> String {
    match operation {
        Operation::Get => format!(
            "All requests are for the same key. The guest `stores` reuses its instances. One worker: the worker and what it \
             asks (the keeper, or Redis) share a core, and the load has another. Eight workers: everything shares {} CPUs. \
             The native programs are hyper on one thread, in one process: one has a multiplexed connection to Redis (crate \
             redis), the other has LMDB in the same process (crate heed).",
            bench.cpus.count()
        ),
        Operation::Set => format!(
            "As above, with a value of {} bytes. `file:` and native LMDB write to {}, and answer once the write is on the \
             disk (fdatasync). Native LMDB commits each write on its own; `file:` commits writes that are under way at the \
             same time together. Redis runs with `--save '' --appendonly no` and writes nothing to disk.",
            VALUE.len(),
            file_system().unwrap_or_else(|_| "a file system without a name".into())
        ),
        Operation::Increment => "As above. Each request adds 1 to the same number.".into(),
    }
}

/// The type of the one that stores in files are on.
fn file_system() -> Result<String> {
    let text = output(Command::new("df").arg("--output=fstype").arg(Scratch::on_disk()?.path("")), ANYWHERE)?;
    Ok(text.lines().last().context("df is silent")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_get_costs_what_its_request_takes_longer() {
        assert_eq!(microseconds_beyond(100_000.0, 80_000.0), 2.5);
    }

    #[test]
    fn columns_are_in_the_order_of_measurements() {
        let counted = |count, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let columns = WORKERS.iter().flat_map(|workers| {
            CLIENTS.map(|clients| format!("{}, {}", counted(*workers, "worker"), counted(clients, "client")))
        });
        assert_eq!(columns.collect::<Vec<_>>(), COLUMNS);
    }

    #[test]
    fn only_what_is_set_has_a_body() {
        assert_eq!(Operation::Set.script(), "wrk.method = 'PUT'\nwrk.body = 'a value'\n");
        assert_eq!(Operation::Get.script(), "wrk.method = 'GET'\nwrk.body = ''\n");
    }
}
