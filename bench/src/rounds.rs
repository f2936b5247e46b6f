//! Measurements in turns: of a group of contenders, which are all started, checked and warmed up before, or of cases that
//! see to that themselves.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Bench;
use crate::contenders::{Contender, Program, Server, component};
use crate::plan::{Group, Load};
use crate::process::{ANYWHERE, Scratch, on, output};
use crate::report::Why;
use crate::tls;

/// Open connections for each thread of the load.
pub(crate) const CONNECTIONS: usize = 32;

/// What came of a case.
pub(crate) struct Measured {
    pub(crate) label: String,
    /// For each round one value for each column.
    pub(crate) rounds: Result<Vec<Vec<f64>>, Why>,
}

/// Requests per second of a contender, one value for each round.
pub(crate) struct Figures {
    pub(crate) contender: &'static Contender,
    pub(crate) rates: Result<Vec<f64>, Why>,
    /// Header fields that are not as those of others.
    pub(crate) odd_headers: Option<String>,
}

pub(crate) fn run(bench: &Bench, group: &'static Group) -> Vec<Figures> {
    eprintln!("{}: {}", group.key, group.title);
    let started = group.contenders.iter().map(|contender| start(bench, group, contender));
    let (mut all, servers): (Vec<Figures>, Vec<Option<Server>>) = started.unzip();
    for round in 0..bench.rounds {
        for index in order(round, all.len()) {
            let (figures, Some(server)) = (&mut all[index], &servers[index]) else { continue };
            let Ok(rates) = &mut figures.rates else { continue };
            match measure(bench, group.load, server, bench.time) {
                Ok(rate) => {
                    eprintln!("  {}/{}  {:<45} {rate:>9.0}/s", round + 1, bench.rounds, figures.contender.name);
                    rates.push(rate);
                }
                Err(error) => figures.fail(&error),
            }
        }
    }
    for (figures, server) in all.iter_mut().zip(&servers) {
        if let (Ok(_), Some(server)) = (&figures.rates, server)
            && let Err(error) = server.check().context("after the load")
        {
            figures.fail(&error);
        }
    }
    all
}

/// Whoever follows whom, it evens out.
pub(crate) fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Something that is measured for a row of a table, from the start of a server to its end.
pub(crate) struct Case {
    label: String,
    /// Why it is skipped.
    missing: Option<String>,
    measure: Box<Measure>,
}

/// One value for each column; the last may be missing.
type Measure = dyn Fn(&Bench) -> Result<Vec<f64>>;

impl Case {
    pub(crate) fn new(label: String, measure: impl Fn(&Bench) -> Result<Vec<f64>> + 'static) -> Self {
        Self { label, missing: None, measure: Box::new(measure) }
    }

    /// Skips it if something that it needs is missing.
    pub(crate) fn unless(self, missing: Option<String>) -> Self {
        Self { missing, ..self }
    }

    fn unmeasured(&self) -> Measured {
        let rounds = match &self.missing {
            Some(why) => Err(Why::Skipped(why.clone())),
            None => Ok(Vec::new()),
        };
        Measured { label: self.label.clone(), rounds }
    }
}

/// A case that has failed is not tried again.
pub(crate) fn in_turns(bench: &Bench, cases: Vec<Case>) -> Vec<Measured> {
    let mut all: Vec<_> = cases.iter().map(Case::unmeasured).collect();
    for round in 0..bench.rounds {
        for index in order(round, all.len()) {
            let (case, Measured { rounds: done, .. }) = (&cases[index], &mut all[index]);
            let Ok(values) = done else { continue };
            match (case.measure)(bench) {
                Ok(new) => {
                    eprintln!("  {}/{}  {:<45} {new:>9.1?}", round + 1, bench.rounds, case.label);
                    values.push(new);
                }
                Err(error) => {
                    eprintln!("  {}: {error:#}", case.label);
                    *done = Err(Why::failed(&error));
                }
            }
        }
    }
    all
}

impl Figures {
    fn fail(&mut self, error: &anyhow::Error) {
        eprintln!("  {}: {error:#}", self.contender.name);
        self.rates = Err(Why::Failed(format!("{}: {error:#}", self.contender.name)));
    }
}

/// Whether it starts, answers as it should, and takes the load for as long as it warms up.
pub(crate) fn warm_up(bench: &Bench, group: &Group, contender: &'static Contender) -> Figures {
    start(bench, group, contender).0
}

fn start(bench: &Bench, group: &Group, contender: &'static Contender) -> (Figures, Option<Server>) {
    let mut figures = Figures { contender, rates: Ok(Vec::new()), odd_headers: None };
    if let Some(why) = missing(bench, contender) {
        eprintln!("  {}: skipped, {why}", contender.name);
        figures.rates = Err(Why::Skipped(why));
        return (figures, None);
    }
    match warm(bench, group, contender) {
        Ok((server, odd_headers)) => (Figures { odd_headers, ..figures }, Some(server)),
        Err(error) => {
            figures.fail(&error);
            (figures, None)
        }
    }
}

/// One that has answered as it should and is warm, and its odd header fields.
pub(crate) fn warm(bench: &Bench, group: &Group, contender: &Contender) -> Result<(Server, Option<String>)> {
    let cpus = if group.load == Load::TwoWorkers { bench.cpus.both() } else { bench.cpus.server() };
    let server = contender.start(bench, group.load.workers(), cpus)?;
    let odd_headers = server.check()?;
    measure(bench, group.load, &server, bench.warm_up).context("while it warms up")?;
    Ok((server, odd_headers))
}

fn missing(bench: &Bench, contender: &Contender) -> Option<String> {
    match contender.program {
        Program::Ours(guest) | Program::OursTls(guest) | Program::OursProxy(guest) | Program::OursTraced(guest) => {
            component(guest).err().map(|error| error.to_string())
        }
        Program::Wasmtime(guest) => {
            let program = bench.programs.wasmtime.as_ref().err().cloned();
            program.or_else(|| component(guest).err().map(|error| error.to_string()))
        }
        Program::Node => bench.programs.node.as_ref().err().cloned(),
        Program::Workerd => bench.programs.workerd.as_ref().err().cloned(),
        Program::BareHyper | Program::BareHyperTls => None,
        Program::Nginx | Program::NginxProxy => {
            let found = output(Command::new("nginx").arg("-v"), ANYWHERE);
            found.err().map(|_| "there is no nginx on the PATH".into())
        }
    }
}

/// Requests per second, as `wrk` counts them.
pub(crate) fn measure(bench: &Bench, load: Load, server: &Server, time: Duration) -> Result<f64> {
    let cpus = if load == Load::TwoWorkers { bench.cpus.both() } else { bench.cpus.load() };
    let seconds = time.as_secs().to_string();
    match load {
        Load::Http2 => return h2load(server, cpus, CONNECTIONS, 1, &["-D", &seconds]),
        Load::OneConnection => return h2load(server, cpus, 1, CONNECTIONS, &["-D", &seconds]),
        Load::Http1 => return h2load(server, cpus, CONNECTIONS, 1, &["-D", &seconds, "--h1"]),
        Load::Handshakes(handshake) => return on(cpus, || tls::connections(server.address, handshake, time)),
        Load::KeepAlive | Load::ConnectionEach | Load::TwoWorkers => {}
    }
    let extra: &[&str] = if load == Load::ConnectionEach { &["-H", "Connection: close"] } else { &[] };
    wrk(server.address, "/", cpus, time, extra)
}

pub(crate) fn wrk(address: SocketAddr, path: &str, cpus: &[usize], time: Duration, extra: &[&str]) -> Result<f64> {
    let mut command = Command::new("wrk");
    command.args(["-t", &cpus.len().to_string(), "-c", &(CONNECTIONS * cpus.len()).to_string()]);
    command.args(["-d", &format!("{}s", time.as_secs())]).args(extra).arg(format!("http://{address}{path}"));
    rate(&output(&mut command, cpus)?)
}

/// Where `wrk -s` finds this script.
pub(crate) fn script_file(scratch: &Scratch, script: &str) -> Result<String> {
    let file = scratch.path("load.lua");
    std::fs::write(&file, script).with_context(|| format!("writing {}", file.display()))?;
    Ok(file.to_str().context("the name of a scratch folder is not UTF-8")?.into())
}

/// Requests per second over HTTP/2, as `h2load` counts them. `extra` says how many, or how long.
pub(crate) fn h2load(
    server: &Server,
    cpus: &[usize],
    connections: usize,
    streams: usize,
    extra: &[&str],
) -> Result<f64> {
    let mut command = Command::new("h2load");
    command.args(["-t", "1", "-c", &connections.to_string(), "-m", &streams.to_string()]);
    let scheme = if server.is_tls { "https" } else { "http" };
    let url = format!("{scheme}://{}/", server.address);
    command.args(extra).arg(&url);
    h2_rate(&output(&mut command, cpus).context("h2load, on Debian in nghttp2-client")?)
}

/// The figure in what `h2load` printed. Requests that failed make it worthless.
fn h2_rate(text: &str) -> Result<f64> {
    let line = text.lines().find(|line| line.starts_with("requests:")).unwrap_or_default();
    if !line.contains(" 0 failed, 0 errored, 0 timeout") {
        bail!("{}", if line.is_empty() { text.trim() } else { line });
    }
    let line = text.lines().find_map(|line| line.strip_prefix("finished in ")).context("h2load did not finish")?;
    let rate = line.split(", ").find_map(|part| part.strip_suffix(" req/s")).and_then(|rate| rate.parse().ok());
    rate.filter(|rate| *rate > 0.0).with_context(|| format!("no answer came: {line}"))
}

/// The figure in what `wrk` printed. An answer that is not 2xx, or none, makes it worthless.
fn rate(text: &str) -> Result<f64> {
    if let Some(line) = text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors")) {
        bail!("{}", line.trim());
    }
    let rate =
        text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).and_then(|rate| rate.trim().parse().ok());
    let count = || text.lines().find(|line| line.contains(" requests in ")).unwrap_or(text).trim();
    rate.filter(|rate| *rate > 0.0).with_context(|| format!("no answer came: {}", count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_h2load_prints() {
        let text = |failed| {
            format!(
                "finished in 3.00s, 45234.33 req/s, 5.39MB/s\nrequests: 135703 total, 135735 started, 135703 done, 135703 \
                 succeeded, {failed} failed, 0 errored, 0 timeout\n"
            )
        };
        assert_eq!(h2_rate(&text(0)).unwrap(), 45234.33);
        h2_rate(&text(1)).unwrap_err();
        h2_rate("").unwrap_err();
    }

    #[test]
    fn what_wrk_prints() {
        assert_eq!(rate("  11758 requests in 2.01s, 1.58MB read\nRequests/sec:   5835.75\n").unwrap(), 5835.75);
        for bad in [
            "  Non-2xx or 3xx responses: 3\nRequests/sec:   5.0\n",
            "  Socket errors: connect 0, read 9, write 0, timeout 0\nRequests/sec:   5.0\n",
            "Requests/sec:      0.00\n",
        ] {
            rate(bad).unwrap_err();
        }
        let none = "Running 2s test\n  0 requests in 3.46s, 0.00B read\nRequests/sec:      0.00\n";
        assert_eq!(rate(none).unwrap_err().to_string(), "no answer came: 0 requests in 3.46s, 0.00B read");
    }
}
