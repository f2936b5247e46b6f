//! What is measured of a cluster of ours alone: a light route beside requests that compute, the start of a worker, and the
//! memory of one.

use std::collections::HashMap;
use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::Bench;
use crate::contenders::{Server, ours};
use crate::open_loop::OpenLoop;
use crate::process::{Process, Scratch, on, output};
use crate::rounds::wrk;

const SPINNING: usize = 4;
/// Starts of a worker in each round.
const STARTS: usize = 4;
/// Starts that may happen before somebody listens to the events.
const MISSED_STARTS: usize = 10;
const SECONDS_OF_A_DAY: f64 = 24.0 * 3600.0;
/// Workers of the cluster whose memory is compared to that of one with a single worker.
const MANY: usize = 4;

/// The p99 of each round, in milliseconds.
pub(crate) fn light_beside_spinning(bench: &Bench) -> Result<Vec<f64>> {
    let server = start(bench, "scenarios")?;
    let path = "/headers";
    let load = bench.cpus.load();
    wrk(server.address, path, load, bench.warm_up, &[])?;
    let capacity = wrk(server.address, path, load, bench.time, &[])?;
    let rate = capacity / 4.0;
    let p99 = |beside| on(load, || OpenLoop { address: server.address, path, rate, time: bench.time, beside }.p99());
    eprintln!("  at {rate:.0}/s, while nothing spins: {:.1} ms", p99((0, ""))?);
    (0..bench.rounds)
        .map(|round| {
            let p99 = p99((SPINNING, "/spin?ms=2000"))?;
            eprintln!("  {}/{}  {p99:.1} ms", round + 1, bench.rounds);
            Ok(p99)
        })
        .collect()
}

/// Milliseconds from the moment a worker is started until it is ready.
pub(crate) fn until_ready(bench: &Bench) -> Result<Vec<f64>> {
    let server = start(bench, "hello")?;
    let heard = server.scratch.path("events");
    let _events =
        Process::start(command(bench, &server, &["events"]).stdout(File::create(&heard)?), bench.cpus.load())?;
    let wanted = bench.rounds * STARTS;
    for _ in 0..wanted + MISSED_STARTS {
        scale(bench, &server, 2)?;
        scale(bench, &server, 1)?;
        let times = start_times(&std::fs::read_to_string(&heard)?)?;
        if times.len() >= wanted {
            return Ok(times);
        }
    }
    bail!("the events do not tell of {wanted} starts")
}

/// From `worker_started` to `worker_ready`, of each worker with both.
fn start_times(events: &str) -> Result<Vec<f64>> {
    let mut started = HashMap::new();
    let mut times = Vec::new();
    // The last line may not be complete yet.
    for event in events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let worker = event["worker"].as_u64();
        match event["event"].as_str() {
            Some("worker_started") => drop(started.insert(worker, time_of_day(&event)?)),
            Some("worker_ready") => {
                let Some(start) = started.remove(&worker) else { continue };
                times.push((time_of_day(&event)? - start).rem_euclid(SECONDS_OF_A_DAY) * 1000.0);
            }
            _ => {}
        }
    }
    Ok(times)
}

/// Proportional set size of a cluster of four workers less that of one with a single worker, by worker, in MiB.
pub(crate) fn memory_of_a_worker(bench: &Bench) -> Result<Vec<f64>> {
    let server = start(bench, "hello")?;
    (0..bench.rounds)
        .map(|_| {
            scale(bench, &server, MANY)?;
            let many = memory(bench, &server, MANY)?;
            scale(bench, &server, 1)?;
            let one = memory(bench, &server, 1)?;
            Ok((many - one) / (MANY - 1) as f64)
        })
        .collect()
}

fn start(bench: &Bench, guest: &str) -> Result<Server> {
    let scratch = Scratch::new()?;
    let mut command = ours(&bench.programs, guest, 1, &scratch)?;
    // The client of the open loop does not connect again when a connection retires.
    command.args(["--max-connection-requests", "1000000000"]);
    Server::start(command, scratch, bench.cpus.server())
}

/// A command for a running cluster.
fn command(bench: &Bench, server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(&bench.programs.ours);
    command.args(arguments).arg("--control").arg(server.scratch.path("control"));
    command
}

/// Returns when it is so.
fn scale(bench: &Bench, server: &Server, workers: usize) -> Result<()> {
    output(&mut command(bench, server, &["scale", &workers.to_string()]), bench.cpus.load()).map(drop)
}

/// The memory of primary and workers that do nothing, in MiB.
fn memory(bench: &Bench, server: &Server, workers: usize) -> Result<f64> {
    // Pages that a start touched once are given back a little later.
    std::thread::sleep(Duration::from_millis(500));
    let sample = sample(bench, server, workers)?;
    Ok(sample.primary + sample.workers)
}

/// A cluster at one moment.
pub(crate) struct Sample {
    /// Proportional set size of all workers together, in MiB.
    pub(crate) workers: f64,
    /// That of the primary.
    pub(crate) primary: f64,
    /// Requests that the workers have not answered.
    pub(crate) in_flight: f64,
}

pub(crate) fn sample(bench: &Bench, server: &Server, workers: usize) -> Result<Sample> {
    let status = output(&mut command(bench, server, &["status", "--json"]), bench.cpus.load())?;
    let status: Value = serde_json::from_str(&status).context("reading the status")?;
    let all = status["workers"].as_array().context("the status has no workers")?;
    ensure!(all.len() == workers, "there are {} workers instead of {workers}", all.len());
    let in_flight = |worker: &Value| worker["in_flight"].as_f64().context("a worker does not say what is in flight");
    Ok(Sample {
        workers: all.iter().map(proportional).sum::<Result<f64>>()?,
        primary: proportional(&status)?,
        in_flight: all.iter().map(in_flight).sum::<Result<f64>>()?,
    })
}

/// Of a process in a status, in MiB.
fn proportional(process: &Value) -> Result<f64> {
    let pid = process["pid"].as_i64().context("a process without a pid")?;
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).with_context(|| format!("{path} has no Pss"))?;
    let kibibytes = line.trim().trim_end_matches(" kB").parse::<f64>().with_context(|| format!("reading {path}"))?;
    Ok(kibibytes / 1024.0)
}

/// Seconds since midnight in an event's time, `2026-11-23T20:14:26.656401Z`.
fn time_of_day(event: &Value) -> Result<f64> {
    let time = event["time"].as_str().and_then(|time| time.split_once('T')).map(|(_, time)| time.trim_end_matches('Z'));
    let time = time.with_context(|| format!("an event without a time: {event}"))?;
    time.split(':').try_fold(0.0, |sum, part| {
        let part: f64 = part.parse().with_context(|| format!("reading the time {time}"))?;
        Ok(sum * 60.0 + part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_in_events() {
        let line = |time, event, worker| {
            format!("{{\"time\":\"2026-11-23T{time}Z\",\"event\":\"{event}\",\"worker\":{worker}}}\n")
        };
        let events = [
            line("23:59:59.900000", "worker_ready", 1),
            line("23:59:59.990000", "worker_started", 2),
            line("23:59:59.995000", "worker_started", 3),
            line("00:00:00.000000", "worker_ready", 2),
            "{\"time\":".into(),
        ];
        let times = start_times(&events.concat()).unwrap();
        assert!(times.len() == 1 && (times[0] - 10.0).abs() < 1e-3, "{times:?}");
        start_times("{\"event\":\"worker_started\"}").unwrap_err();
    }
}
