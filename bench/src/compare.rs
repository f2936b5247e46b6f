//! `make bench COMPARE=REV`: this build beside that of another revision, in pairs. This build takes part twice, so that what it
//! differs from itself by tells how much a difference from the other means.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::contenders::{Contender, version};
use crate::plan::{GROUPS, Group};
use crate::process::{ANYWHERE, Scratch, output};
use crate::report::table;
use crate::stats::{quantile, ratios};
use crate::{Bench, root, rounds, target};

pub(crate) const COMMAND: &str = "compare";

/// Fewer pairs say nothing.
const MIN_ROUNDS: usize = 8;
/// If the middle half of the ratios of this build to itself lies further apart, the machine is too noisy.
const MAX_NOISE: f64 = 0.06;

/// What is compared: contenders of the plan that are this project.
const COMPARED: &[(&str, &str)] = &[
    ("hello", "ours-fresh"),
    ("hello", "ours-reused"),
    ("hello", "sdk-fresh"),
    ("hello", "axum-fresh"),
    ("p3", "ours-default"),
    ("p3", "ours-fresh"),
    ("seen", "reused-seen"),
    ("connect", "ours-fresh"),
    ("h2-one", "ours-reused"),
    ("tls", "ours-tls"),
    ("proxy", "ours-reused"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Faster,
    Slower,
    NoDifference,
    TooNoisy,
}

impl Verdict {
    /// Of ratios of this build to the other, and to itself.
    fn of(to_other: &[f64], to_itself: &[f64]) -> Self {
        let [low, middle, high] = quartiles(to_other);
        let [noise_low, offset, noise_high] = quartiles(to_itself);
        let noise = noise_high - noise_low;
        // Two processes of the same program may differ for as long as they live.
        let differs = (middle - 1.0).abs() > (noise / 2.0).max((offset - 1.0).abs());
        if noise > MAX_NOISE {
            Self::TooNoisy
        } else if low > 1.0 && differs {
            Self::Faster
        } else if high < 1.0 && differs {
            Self::Slower
        } else {
            Self::NoDifference
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "**slower**",
            Self::NoDifference => "no difference",
            Self::TooNoisy => "too noisy to judge",
        }
    }
}

/// The values that a quarter, half and three quarters of them are not above.
fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|share| quantile(&sorted, share).unwrap_or(f64::NAN))
}

/// Builds the other revision, measures both, and prints a table. False when something failed that was there to be measured.
pub(crate) fn compare(revision: &str) -> Result<bool> {
    crate::process::end_all_on_signals()?;
    let mut bench = Bench::from_environment()?;
    bench.rounds = bench.rounds.max(MIN_ROUNDS);
    let compared: Vec<_> = COMPARED.iter().filter(|(group, _)| bench.wants(group)).collect();
    ensure!(!compared.is_empty(), "BENCH_ONLY leaves nothing that is compared");
    let (commit, ours) = build(revision)?;
    // What one of them has compiled, the other might not have made like that.
    let stores = Scratch::on_disk()?;
    let mut other = bench.clone();
    (bench.programs.store, other.programs.store) = (stores.path("this"), stores.path("other"));
    other.programs.ours = ours;
    let mut rows = Vec::new();
    let mut is_whole = true;
    for (group, key) in compared {
        let group = GROUPS.iter().find(|known| known.key == *group).expect("the plan has it");
        let contender = group.contenders.iter().find(|known| known.key == *key).expect("the plan has it");
        eprintln!("{}: {}", group.key, contender.name);
        let name = format!("{}, {}", group.key, contender.name);
        rows.push(match pairs(&bench, &other, group, contender) {
            Ok((to_other, to_itself)) => {
                let show = |[low, middle, high]: [f64; 3]| [format!("{middle:.3}"), format!("{low:.3} … {high:.3}")];
                let [middle, half] = show(quartiles(&to_other));
                let [_, noise] = show(quartiles(&to_itself));
                vec![name, middle, half, noise, Verdict::of(&to_other, &to_itself).in_words().into()]
            }
            Err(error) => {
                is_whole = false;
                eprintln!("  {error:#}");
                vec![name, String::new(), String::new(), String::new(), format!("failed: {error:#}")]
            }
        });
    }
    let head = ["what", "this build / the other", "middle half", "this build / itself", "verdict"];
    println!("\n{} rounds of {} s, beside commit {commit}\n", bench.rounds, bench.time.as_secs());
    println!("- this build: {}\n- the other: {}\n", version(&bench.programs.ours), version(&other.programs.ours));
    println!("{}", table(&head, rows));
    Ok(is_whole)
}

/// Ratios of this build to the other, and of this build to itself.
fn pairs(bench: &Bench, other: &Bench, group: &Group, contender: &Contender) -> Result<(Vec<f64>, Vec<f64>)> {
    let start = |bench| rounds::warm(bench, group, contender).map(|(server, _)| server);
    let servers = [start(bench)?, start(other)?, start(bench)?];
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..bench.rounds {
        for index in rounds::order(round, servers.len()) {
            rates[index].push(rounds::measure(bench, group.load, &servers[index], bench.time)?);
        }
        let [this, that, again] = rates.each_ref().map(|rates| rates[round]);
        eprintln!("  {}/{}  {this:>9.0}/s, the other {that:>9.0}/s, again {again:>9.0}/s", round + 1, bench.rounds);
    }
    servers.iter().try_for_each(|server| server.check().map(drop)).context("after the load")?;
    let [this, that, again] = rates;
    Ok((ratios(&this, &that), ratios(&this, &again)))
}

/// The commit of a revision, and its program, built from an export of it below target/.
fn build(revision: &str) -> Result<(String, PathBuf)> {
    let in_repository = |arguments: &[&str]| {
        let mut git = Command::new("git");
        output(git.arg("-C").arg(root()).args(arguments), ANYWHERE)
    };
    ensure!(!revision.is_empty(), "beside which revision? As in: make bench COMPARE=HEAD~1");
    let commit = in_repository(&["rev-parse", "--quiet", "--verify", "--short=12", &format!("{revision}^{{commit}}")]);
    let commit = commit.ok().with_context(|| format!("there is no revision {revision}"))?.trim().to_owned();
    let folder = target().join("bench/compare");
    let source = folder.join(&commit);
    if !source.join("Cargo.lock").is_file() {
        export(&commit, &source)?;
    }
    eprintln!("building {commit}: some ten minutes the first time");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(&source).args(["build", "--release", "--locked", "-p", "wasmcluster"]);
    command.env("CARGO_TARGET_DIR", folder.join("target")).env("WASMCLUSTER_COMMIT", &commit);
    output(&mut command, ANYWHERE)?;
    // The next revision that is built takes its place.
    let built = folder.join(format!("wasmcluster-{commit}"));
    std::fs::copy(folder.join("target/release/wasmcluster"), &built).context("copying what was built")?;
    std::fs::remove_dir_all(&source).context("removing what it was built from")?;
    Ok((commit, built.canonicalize()?))
}

/// Has the folder when all of it is there.
fn export(commit: &str, folder: &Path) -> Result<()> {
    let [archive, part] = ["tar", "part"].map(|extension| folder.with_extension(extension));
    let _ = std::fs::remove_dir_all(&part);
    std::fs::create_dir_all(&part).with_context(|| format!("creating {}", part.display()))?;
    let mut git = Command::new("git");
    output(git.arg("-C").arg(root()).args(["archive", commit, "--output"]).arg(&archive), ANYWHERE)?;
    output(Command::new("tar").arg("-C").arg(&part).arg("-xf").arg(&archive), ANYWHERE)?;
    std::fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
    std::fs::rename(&part, folder).with_context(|| format!("making {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_is_in_the_plan() {
        for (group, key) in COMPARED {
            let group = GROUPS.iter().find(|known| known.key == *group).expect("its group exists");
            assert!(group.contenders.iter().any(|known| known.key == *key && known.program.is_ours()), "{key}");
        }
    }

    #[test]
    fn verdicts_need_a_quiet_machine() {
        let quiet = [0.99, 1.0, 1.0, 1.01];
        let check = |to_other: [f64; 4], to_itself: [f64; 4], expected| {
            assert_eq!(Verdict::of(&to_other, &to_itself), expected, "{to_other:?} {to_itself:?}");
        };
        check([1.03, 1.04, 1.05, 1.06], quiet, Verdict::Faster);
        check([0.93, 0.94, 0.95, 0.96], quiet, Verdict::Slower);
        check([0.98, 0.99, 1.01, 1.02], quiet, Verdict::NoDifference);
        // All of them on one side, but by less than this build differs from itself.
        check([1.02, 1.02, 1.02, 1.02], [1.03; 4], Verdict::NoDifference);
        check([1.001, 1.002, 1.003, 1.004], quiet, Verdict::NoDifference);
        check([1.3, 1.3, 1.3, 1.3], [0.8, 0.95, 1.05, 1.2], Verdict::TooNoisy);
    }
}
