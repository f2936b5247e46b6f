//! How cost grows: with workers, and with requests that one worker has in flight.

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::cluster::{Sample, sample};
use crate::contenders::{Contender, Program};
use crate::http;
use crate::report::{Series, thousands};
use crate::rounds::{CONNECTIONS, Case, in_turns, wrk};

const WORKERS: [usize; 4] = [1, 2, 4, 8];
const IN_FLIGHT: [usize; 3] = [1, 100, 1000];
/// It waits in the guest, so that a request is in flight for this long and costs little.
const WAITING: &str = "/sleep?ms=100";
const WAITED: &[u8] = b"waited";

pub(crate) fn measure(bench: &Bench) -> Vec<Series> {
    vec![by_workers(bench), by_requests_in_flight(bench)]
}

fn by_workers(bench: &Bench) -> Series {
    let case = |workers| Case::new(counted(workers, "worker"), move |bench| with_workers(bench, workers));
    let cpus = bench.cpus.count();
    Series {
        title: "Workers",
        about: format!(
            "Hello of WASI 0.2, fresh instance, {} keep-alive connections. Workers and load share {cpus} CPUs: rows \
             beyond these show what workers cost. Memory is proportional (Pss), right after the load.",
            cpus * CONNECTIONS
        ),
        columns: &["requests/s", "workers together, MiB", "primary, MiB"],
        rows: in_turns(bench, WORKERS.map(case).into()),
    }
}

fn with_workers(bench: &Bench, workers: usize) -> Result<Vec<f64>> {
    let hello = Contender { key: "", name: "", program: Program::Ours("hello_p2"), flags: &[] };
    let server = hello.start(bench, workers, bench.cpus.all())?;
    server.check()?;
    let load = |time| wrk(server.address, "/", bench.cpus.all(), time, &[]);
    load(bench.warm_up).context("while it warms up")?;
    let rate = load(bench.time)?;
    let Sample { workers, primary, .. } = sample(bench, &server, workers)?;
    server.check()?;
    Ok(vec![rate, workers, primary])
}

fn by_requests_in_flight(bench: &Bench) -> Series {
    let guests = [("WASI 0.2", "hostile_p2"), ("WASI 0.3", "hostile_p3")];
    let cases = guests.into_iter().flat_map(|(world, guest)| {
        let case = move |count| {
            let label = format!("{world}, {}", counted(count, "request"));
            Case::new(label, move |bench| with_requests_in_flight(bench, guest, count))
        };
        IN_FLIGHT.map(case)
    });
    Series {
        title: "Requests in flight",
        about: "One worker on a core of its own, each guest with its default reuse. Every request waits in the guest for \
                100 ms, and every connection has one: 10 requests a second for each are the most. What is in flight, and \
                the worker's proportional memory (Pss), are seen once, in the middle of the load."
            .into(),
        columns: &["requests/s", "in flight", "worker, MiB"],
        rows: in_turns(bench, cases.collect()),
    }
}

fn with_requests_in_flight(bench: &Bench, guest: &'static str, count: usize) -> Result<Vec<f64>> {
    let waiting = Contender { key: "", name: "", program: Program::Ours(guest), flags: &["--max-in-flight", "1000"] };
    let server = waiting.start(bench, 1, bench.cpus.server())?;
    let check = || {
        let answer = http::get(server.address, WAITING)?;
        ensure!(answer.status == 200 && answer.body == WAITED, "{WAITING} is answered with {}", answer.summary());
        Ok(())
    };
    check()?;
    let load = |time| wrk(server.address, WAITING, bench.cpus.load(), time, &["-c", &count.to_string()]);
    load(bench.warm_up).context("while it warms up")?;
    let (rate, sample) = std::thread::scope(|scope| {
        let sample = scope.spawn(|| {
            std::thread::sleep(bench.time / 2);
            sample(bench, &server, 1)
        });
        (load(bench.time), sample.join().expect("it does not panic"))
    });
    let (rate, sample) = (rate?, sample?);
    check()?;
    Ok(vec![rate, sample.in_flight, sample.workers])
}

fn counted(count: usize, what: &str) -> String {
    format!("{} {what}{}", thousands(count as u64), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        assert_eq!([1, 1000].map(|count| counted(count, "worker")), ["1 worker", "1,000 workers"]);
    }
}
