//! `make count`: what a request costs in instructions and misses of simulated caches. The same program has nearly the same
//! figures each time, whatever else happens on the machine, so that a change of a hundredth shows.
//!
//! One client sends one request after the other. Environment: `COUNT_REQUESTS` (1000), `COUNT_ONLY` (rows, separated by commas),
//! `COUNT_KEEP` (a folder for callgrind's files, which callgrind_annotate reads), `WASMCLUSTER` and `WASMTIME`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::contenders::Program::{BareHyper, Ours, OursProxy, OursTls, OursTraced, Wasmtime};
use crate::contenders::{Contender, Program};
use crate::plan::{FRESH, ON_ONE, REUSED, SEEN, SEEN_FRESH};
use crate::process::{ANYWHERE, Scratch};
use crate::report::thousands;
use crate::rounds::h2load;
use crate::valgrind::{Counts, Valgrind};
use crate::{Bench, http, variable};

pub(crate) const COMMAND: &str = "count";

/// Requests before anything is counted, and with the counting on: translations and caches are then as they stay.
const WARM_UP: usize = 300;
const SETTLE: usize = 100;
/// As many as valgrind has address space for, in a pool like the one of a machine.
const IN_FLIGHT: &[&str] = &["--max-in-flight", "15"];

struct Case {
    contender: Contender,
    protocol: Protocol,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    /// By `h2load`, on one connection.
    Http2,
}

const fn case(
    key: &'static str,
    name: &'static str,
    program: Program,
    flags: &'static [&'static str],
    protocol: Protocol,
) -> Case {
    Case { contender: Contender { key, name, program, flags }, protocol }
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    case("fresh", "0.2, fresh instance", Ours("hello_p2"), FRESH, Protocol::Http1),
    case("reused", "0.2, instance reused", Ours("hello_p2"), REUSED, Protocol::Http1),
    case("p3-fresh", "0.3, fresh instance", Ours("hello_p3"), FRESH, Protocol::Http1),
    case("p3-reused", "0.3, default reuse", Ours("hello_p3"), &[], Protocol::Http1),
    case("sdk-fresh", "SDK's hello, fresh instance", Ours("hello"), FRESH, Protocol::Http1),
    case("axum-fresh", "axum, 20 routes, fresh instance", Ours("axum_routes"), FRESH, Protocol::Http1),
    case("seen-fresh", "0.2, fresh, admin address, access log, server-timing", Ours("hello_p2"), SEEN_FRESH, Protocol::Http1),
    case("seen-reused", "0.2, reused, admin address, access log, server-timing", Ours("hello_p2"), SEEN, Protocol::Http1),
    case("traced-reused", "0.2, reused, all of that and traces, 1 % recorded", OursTraced("hello_p2"), SEEN, Protocol::Http1),
    case("h2-reused", "0.2, reused, HTTP/2", Ours("hello_p2"), ON_ONE, Protocol::Http2),
    case("h2-tls-reused", "0.2, reused, HTTP/2 over TLS", OursTls("hello_p2"), ON_ONE, Protocol::Http2),
    case("proxy-reused", "examples/proxy, reused", OursProxy("proxy"), REUSED, Protocol::Http1),
    case("wasmtime-fresh", "`wasmtime serve`, 0.2, fresh instance", Wasmtime("hello_p2"), &[], Protocol::Http1),
    case("wasmtime-reused", "`wasmtime serve`, 0.2, instance reused", Wasmtime("hello_p2"), REUSED, Protocol::Http1),
    case("wasmtime-p3-fresh", "`wasmtime serve`, 0.3, fresh instance", Wasmtime("hello_p3"), FRESH, Protocol::Http1),
    case("wasmtime-p3-reused", "`wasmtime serve`, 0.3, default reuse", Wasmtime("hello_p3"), &[], Protocol::Http1),
    case("hyper", "bare hyper", BareHyper, &[], Protocol::Http1),
    case("hyper-h2", "bare hyper, HTTP/2", BareHyper, &[], Protocol::Http2),
];

/// Counts, and prints a table. False when something failed that was there to be counted.
pub(crate) fn count() -> Result<bool> {
    crate::process::end_all_on_signals()?;
    let bench = Bench::from_environment()?;
    let requests = match variable("COUNT_REQUESTS") {
        None => 1000,
        Some(text) => {
            text.parse().ok().filter(|&number| number > 0).context("COUNT_REQUESTS is no number of requests")?
        }
    };
    let only: Option<Vec<String>> = variable("COUNT_ONLY").map(|keys| keys.split(',').map(String::from).collect());
    let keys: Vec<&str> = CASES.iter().map(|case| case.contender.key).collect();
    if let Some(key) = only.iter().flatten().find(|key| !keys.contains(&key.as_str())) {
        bail!("COUNT_ONLY: there is no {key}, only {}", keys.join(", "));
    }
    let mut table = String::from(
        "| a request | instructions | of the guest | first-level misses | second-level misses |\n\
         | --- | ---: | ---: | ---: | ---: |\n",
    );
    let mut is_whole = true;
    let is_wanted = |case: &&Case| only.as_ref().is_none_or(|only| only.iter().any(|key| key == case.contender.key));
    for case in CASES.iter().filter(is_wanted) {
        let name = case.contender.name;
        eprintln!("{}: {name}", case.contender.key);
        let columns = if let Some(why) = case.missing(&bench) {
            format!("skipped: {why} | | |")
        } else {
            case.count(&bench, requests).map_or_else(
                |error| {
                    is_whole = false;
                    eprintln!("  {error:#}");
                    format!("failed: {error:#} | | |")
                },
                |counts| columns(counts, requests as u64),
            )
        };
        writeln!(table, "| {name} | {columns} |")?;
    }
    println!("\n{} a row, in {}\n\n{table}", thousands(requests as u64), bench.programs.ours.display());
    Ok(is_whole)
}

/// What one request of so many took.
fn columns(counts: Counts, requests: u64) -> String {
    let Counts { instructions, in_guest, first_level_misses, second_level_misses } = counts;
    let totals = [instructions, in_guest, first_level_misses, second_level_misses];
    totals.map(|total| thousands((total + requests / 2) / requests)).join(" | ")
}

impl Case {
    fn missing(&self, bench: &Bench) -> Option<String> {
        if matches!(self.contender.program, Wasmtime(_)) { bench.programs.wasmtime.clone().err() } else { None }
    }

    fn count(&self, bench: &Bench, requests: usize) -> Result<Counts> {
        let scratch = Scratch::new()?;
        let kept = variable("COUNT_KEEP").map(|folder| PathBuf::from(folder).join(self.contender.key));
        let valgrind = Valgrind::new(kept.unwrap_or_else(|| scratch.path("valgrind")))?;
        let server = self.contender.start_as(bench, 1, ANYWHERE, |mut command| {
            if self.contender.program.is_ours() {
                command.args(IN_FLIGHT);
            }
            valgrind.wrap(&command, self.contender.program.is_ours())
        })?;
        let pid = if self.contender.program.is_ours() { valgrind.worker()? } else { server.pid() };
        let send = |count| match self.protocol {
            Protocol::Http1 => one_by_one(server.address, count),
            Protocol::Http2 => h2load(&server, ANYWHERE, 1, 1, &["-n", &count.to_string()]).map(drop),
        };
        send(WARM_UP)?;
        valgrind.count(pid, || send(SETTLE), || send(requests))
    }
}

/// Requests on one connection, each when the one before is answered.
fn one_by_one(address: SocketAddr, count: usize) -> Result<()> {
    let (mut stream, request) = (http::connect(address)?, http::request(address, "/"));
    for _ in 0..count {
        let answer = http::exchange(&mut stream, &request)?;
        ensure!(answer.status == 200, "{}", answer.summary());
    }
    Ok(())
}
