//! `wasmcluster doctor`: says in plain words whether this machine, this user and the limits of this process have what `serve`
//! and `build` need. It tries what can be tried, and changes nothing.

mod folders;
mod kernel;
mod limits;

use std::iter;

use anyhow::anyhow;
use serde::Serialize;

use super::args::DoctorArgs;
use super::exit::Failure;
use super::output::{self, WIDTH};
use crate::build::{TARGET, check_toolchain};
use crate::settings::paths::control_path;

/// Columns before what a finding says.
const VERDICT: usize = 9;
const CHECK: usize = 16;

/// What comes of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckVerdict {
    Ok,
    /// Good to know, and nothing is lost.
    Note,
    /// It serves, but slower, or less of it.
    Warning,
    /// It does not serve.
    Fault,
}

impl CheckVerdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }
}

/// What one check found.
#[derive(Debug, Serialize)]
struct CheckResult {
    check: &'static str,
    verdict: CheckVerdict,
    says: String,
    /// What to do, if there is something to do.
    advice: Option<String>,
}

impl CheckResult {
    fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, verdict: CheckVerdict::Ok, says: says.into(), advice: None }
    }

    fn of(verdict: CheckVerdict, check: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict, says: says.into(), advice: Some(advice.into()) }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Diagnosis {
    schema: u32,
    version: &'static str,
    faults: usize,
    warnings: usize,
    checks: Vec<CheckResult>,
}

pub(super) fn doctor(args: DoctorArgs) -> Result<(), Failure> {
    let DoctorArgs { cluster, store, state_dir, json } = args;
    let mut checks = kernel::check();
    checks.extend(limits::check());
    checks.extend(folders::check(store, state_dir, &control_path(&cluster.name, cluster.control)));
    checks.push(toolchain());
    let count = |verdict| checks.iter().filter(|finding| finding.verdict == verdict).count();
    let (faults, warnings) = (count(CheckVerdict::Fault), count(CheckVerdict::Warning));
    let text = if json {
        let version = env!("CARGO_PKG_VERSION");
        serde_json::to_string(&Diagnosis { schema: 1, version, faults, warnings, checks })
            .map_err(anyhow::Error::from)?
            + "\n"
    } else {
        checks.iter().map(lines).collect()
    };
    output::print(text.as_bytes())?;
    match faults {
        0 => Ok(()),
        1 => Err(anyhow!("1 fault").into()),
        faults => Err(anyhow!("{faults} faults").into()),
    }
}

/// Only `build` needs one, and `serve` of a folder.
fn toolchain() -> CheckResult {
    match check_toolchain() {
        Ok(which) => CheckResult::ok("toolchain", format!("{which} has the target {TARGET}, to build guests")),
        Err(why) => CheckResult::of(
            CheckVerdict::Note,
            "toolchain",
            format!("{why}; only folders of Rust sources need it"),
            format!("install Rust with rustup (https://rustup.rs), then run `rustup target add {TARGET}`"),
        ),
    }
}

/// The finding as lines of a terminal.
fn lines(CheckResult { check, verdict, says, advice }: &CheckResult) -> String {
    let indent = " ".repeat(VERDICT + CHECK);
    let mut text = block(&format!("{:<VERDICT$}{check:<CHECK$}", verdict.name()), &indent, says);
    if let Some(advice) = advice {
        text.push_str(&block(&format!("{indent}-> "), &format!("{indent}   "), advice));
    }
    text
}

/// A text with something before its first line, and something as wide before the others.
fn block(first: &str, others: &str, text: &str) -> String {
    let lines = output::filled(text, WIDTH - others.len());
    lines
        .iter()
        .zip(iter::once(first).chain(iter::repeat(others)))
        .map(|(line, head)| format!("{head}{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fit_a_terminal() {
        let finding = CheckResult::of(
            CheckVerdict::Warning,
            "open files",
            "a worker takes at most 768 connections, as it may open only 1024 files",
            "raise the hard limit (ulimit -Hn, or LimitNOFILE= in systemd)",
        );
        let expected = [
            "warning  open files      a worker takes at most 768 connections, as it may open",
            "                         only 1024 files",
            "                         -> raise the hard limit (ulimit -Hn, or LimitNOFILE= in",
            "                            systemd)",
        ];
        assert_eq!(lines(&finding).lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_word_that_is_too_long_has_a_line_of_its_own() {
        assert_eq!(output::filled("a /very/long/path is", 8), ["a", "/very/long/path", "is"]);
    }
}
