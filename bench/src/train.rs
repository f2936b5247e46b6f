//! What `scripts/pgo` has run while code is counted: every load of the plan, for a moment, on what is built here; and some compiling.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::contenders::component;
use crate::plan::GROUPS;
use crate::process::{ANYWHERE, Scratch, output};
use crate::report::Why;
use crate::{Bench, rounds, stores};

pub(crate) const COMMAND: &str = "train";

/// What ends writes down what it counted.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Whether any process is of this program.
fn running(program: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut programs = processes.filter_map(|process| std::fs::read_link(process.path().join("exe")).ok());
    programs.any(|of| of == program)
}

/// False when something failed that was there to be tried.
pub(crate) fn train() -> Result<bool> {
    crate::process::end_all_on_signals()?;
    let bench = Bench { rounds: 1, time: Duration::from_secs(1), ..Bench::from_environment()? };
    let scratch = Scratch::new()?;
    for guest in ["hello", "hello_p3", "axum_routes"] {
        let mut command = Command::new(&bench.programs.ours);
        command.arg("compile").arg(component(guest)?).arg("-o").arg(scratch.path(guest));
        output(&mut command, ANYWHERE).with_context(|| format!("compiling {guest}"))?;
    }
    let mut is_whole = true;
    let mut tried = 0;
    for group in GROUPS {
        for contender in group.contenders.iter().filter(|contender| contender.program.is_built_here()) {
            eprintln!("{}: {}", group.key, contender.name);
            match rounds::warm_up(&bench, group, contender).rates {
                Ok(_) => tried += 1,
                Err(Why::Skipped(_)) => {}
                Err(Why::Failed(_)) => is_whole = false,
            }
        }
    }
    for series in stores::measure(&bench) {
        is_whole &= !series.rows.iter().any(|row| matches!(row.rounds, Err(Why::Failed(_))));
    }
    let is_left = || running(&bench.programs.ours);
    let deadline = Instant::now() + ENDS_WITHIN;
    while is_left() {
        ensure!(Instant::now() < deadline, "some of what was tried has not ended: what it counted would be missing");
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(tried > 0, "nothing is there to be tried: build the guests with scripts/build-guests");
    Ok(is_whole)
}
