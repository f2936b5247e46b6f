//! `make count`: what a request costs in instructions and misses of simulated caches. The same program has nearly the same
//! figures each time, whatever else happens on the machine, so that a change of a hundredth shows.
//!
//! One client sends one request after the other. Environment: `COUNT_REQUESTS` (1000), `COUNT_ONLY` (rows, separated by commas),
//! `COUNT_KEEP` (a folder for callgrind's files, which callgrind_annotate reads), `WASMCLUSTER` and `WASMTIME`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::contenders::Program::{BareHyper, Ours, OursTls, OursTraced, Wasmtime};
use crate::contenders::{Contender, Program};
use crate::plan::{FRESH, ON_ONE, REUSED, SEEN, SEEN_FRESH};
use crate::process::{ANYWHERE, Scratch, output};
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
    for case in
        CASES.iter().filter(|case| only.as_ref().is_none_or(|only| only.iter().any(|key| key == case.contender.key)))
    {
        let name = case.contender.name;
        eprintln!("{}: {name}", case.contender.key);
        match case.missing(&bench) {
            Some(why) => writeln!(table, "| {name} | skipped: {why} | | | |")?,
            None => match case.count(&bench, requests) {
                Ok(counts) => {
                    let each = |total: u64| thousands((total + requests as u64 / 2) / requests as u64);
                    let Counts { instructions, in_guest, first_level_misses, second_level_misses } = counts;
                    let [all, guest, first, second] =
                        [instructions, in_guest, first_level_misses, second_level_misses].map(each);
                    writeln!(table, "| {name} | {all} | {guest} | {first} | {second} |")?;
                }
                Err(error) => {
                    is_whole = false;
                    eprintln!("  {error:#}");
                    writeln!(table, "| {name} | failed: {error:#} | | | |")?;
                }
            },
        }
    }
    println!("\n{} a row, in {}\n\n{table}", thousands(requests as u64), bench.programs.ours.display());
    Ok(is_whole)
}

impl Case {
    fn missing(&self, bench: &Bench) -> Option<String> {
        if matches!(self.contender.program, Wasmtime(_)) { bench.programs.wasmtime.clone().err() } else { None }
    }

    fn is_ours(&self) -> bool {
        !matches!(self.contender.program, Wasmtime(_) | BareHyper)
    }

    fn count(&self, bench: &Bench, requests: usize) -> Result<Counts> {
        let scratch = Scratch::new()?;
        let kept = variable("COUNT_KEEP").map(|folder| PathBuf::from(folder).join(self.contender.key));
        let valgrind = Valgrind::new(kept.unwrap_or_else(|| scratch.path("valgrind")))?;
        let server = self.contender.start_as(bench, 1, ANYWHERE, |mut command| {
            if self.is_ours() {
                command.args(IN_FLIGHT);
            }
            valgrind.wrap(&command, self.is_ours())
        })?;
        let pid = if self.is_ours() { valgrind.worker()? } else { server.pid() };
        let send = |count| match self.protocol {
            Protocol::Http1 => one_by_one(server.address, count),
            Protocol::Http2 => over_http2(server.address, server.is_tls, count),
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

fn over_http2(address: SocketAddr, is_tls: bool, count: usize) -> Result<()> {
    let scheme = if is_tls { "https" } else { "http" };
    let mut command = Command::new("h2load");
    command.args(["-c", "1", "-m", "1", "-n", &count.to_string(), &format!("{scheme}://{address}/")]);
    let text = output(&mut command, ANYWHERE).context("h2load, on Debian in nghttp2-client")?;
    ensure!(text.contains(&format!("{count} succeeded")), "requests over HTTP/2 failed: {text}");
    Ok(())
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group));
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
