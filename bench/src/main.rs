//! `make bench`: wasmcluster beside its peers, in one run. Says what is measured in `plan.rs`, and leaves it to the other
//! files how.
//!
//! Environment: `BENCH_ROUNDS` (5), `BENCH_SECONDS` of each measurement (3), `BENCH_QUICK=1` (one round of a second),
//! `BENCH_ONLY` (parts of the plan, separated by commas), `BENCH_PEERS=all` (fetches what is missing), `WASMCLUSTER`, `WORKERD` and
//! `WASMTIME` (programs to use instead of those that are found).
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its results and its progress")]

mod bare;
mod cluster;
mod compare;
mod contenders;
mod count;
mod growth;
mod http;
mod large;
mod native;
mod nginx;
mod open_loop;
mod peers;
mod picture;
mod plan;
mod process;
mod report;
mod rounds;
mod stats;
mod stores;
mod tls;
mod train;
mod valgrind;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::contenders::Programs;
use crate::plan::{FIGURES, GROUPS, PARTS, RATIOS};
use crate::process::Cpus;
use crate::report::Report;

/// How much is measured, and where.
#[derive(Clone)]
struct Bench {
    rounds: usize,
    time: Duration,
    warm_up: Duration,
    only: Vec<String>,
    cpus: Cpus,
    programs: Programs,
}

impl Bench {
    fn from_environment() -> Result<Self> {
        let quick = variable("BENCH_QUICK").is_some_and(|value| value != "0");
        let number = |name, default| -> Result<u32> {
            let Some(text) = variable(name) else { return Ok(default) };
            let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
            number.with_context(|| format!("{name}={text}: expected a number from 1 to 1000"))
        };
        let only: Vec<String> =
            variable("BENCH_ONLY").iter().flat_map(|keys| keys.split(',')).map(String::from).collect();
        let known = || {
            let tables = GROUPS.iter().map(|group| group.key).chain(PARTS.iter().map(|part| part.key));
            tables.chain(FIGURES.iter().map(|figure| figure.key))
        };
        if let Some(key) = only.iter().find(|key| !known().any(|known| known == *key)) {
            bail!("BENCH_ONLY: there is no {key}, only {}", known().collect::<Vec<_>>().join(", "));
        }
        Ok(Self {
            rounds: number("BENCH_ROUNDS", if quick { 1 } else { 5 })? as usize,
            time: Duration::from_secs(number("BENCH_SECONDS", if quick { 1 } else { 3 })?.into()),
            warm_up: Duration::from_secs(if quick { 1 } else { 2 }),
            only,
            cpus: Cpus::allowed()?,
            programs: Programs::find()?,
        })
    }

    fn wants(&self, key: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == key)
    }

    /// Whether the results are fit to be shown: of everything, at full length.
    fn is_complete(&self) -> bool {
        let full = self.only.is_empty() && self.rounds >= 5 && self.time >= Duration::from_secs(3);
        let has_peers = self.programs.wasmtime.is_ok() && self.programs.node.is_ok() && self.programs.workerd.is_ok();
        full && has_peers && contenders::version(&self.programs.ours).contains("build: release by profile")
    }

    fn run(&self) -> Report {
        let mut report = Report::new(self);
        for group in GROUPS.iter().filter(|group| self.wants(group.key)) {
            let figures = rounds::run(self, group);
            report.rows.extend(RATIOS.iter().filter(|row| row.group == group.key).map(|row| row.of(&figures)));
            report.panels.push((group, figures));
        }
        for figure in FIGURES.iter().filter(|figure| self.wants(figure.key)) {
            eprintln!("{}: {}", figure.key, figure.label);
            report.rows.push(figure.row((figure.measure)(self)));
        }
        for part in PARTS.iter().filter(|part| self.wants(part.key)) {
            eprintln!("{}: {}", part.key, part.title);
            report.parts.push((part, (part.measure)(self)));
        }
        report
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The folder of the repository.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Where cargo puts what it builds.
fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

fn main() -> ExitCode {
    let code = |is_good| if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let mut arguments = std::env::args().skip(2);
    let done = match std::env::args().nth(1).as_deref() {
        None => bench().map(code),
        Some(bare::COMMAND) => bare::serve(arguments.next().as_deref() == Some(bare::TLS)).map(|()| code(true)),
        Some(native::COMMAND) => native::serve(&arguments.next().unwrap_or_default()).map(|()| code(true)),
        Some(compare::COMMAND) => compare::compare(&arguments.next().unwrap_or_default()).map(code),
        Some(count::COMMAND) => count::count().map(code),
        Some(train::COMMAND) => train::train().map(code),
        Some(valgrind::COMMAND) => {
            let folder = PathBuf::from(arguments.next().unwrap_or_default());
            let program: Vec<String> = arguments.collect();
            valgrind::follow(&folder, &program).map(|ended| ExitCode::from(ended as u8))
        }
        Some(other) => Err(anyhow::anyhow!("there is no command {other}")),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Measures, prints and writes. False when something failed that was there to be measured.
fn bench() -> Result<bool> {
    process::end_all_on_signals()?;
    let bench = Bench::from_environment()?;
    let report = bench.run();
    let text = report.markdown();
    println!("\n{text}");
    let folder = if bench.is_complete() { root().join("docs") } else { target().join("bench") };
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for (name, text) in [("benchmark.md", text), ("benchmark.svg", picture::draw(&report.panels()))] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        eprintln!("written: {}", path.display());
    }
    Ok(!report.has_failures())
}
