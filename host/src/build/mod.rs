//! From a folder of sources to a component. What is in the folder says how (`plan.rs`): by cargo (`cargo.rs`, with the
//! toolchain that `toolchain.rs` finds), or by the folder's own command. `rebuild.rs` does so again whenever the sources
//! change, which `sources.rs` tells.

mod bell;
mod cargo;
mod hints;
mod plan;
mod rebuild;
mod sources;
mod toolchain;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::logging::{self, LogLevel};
use crate::os::child::with_default_signals;
use crate::settings::Recipe;
pub(crate) use plan::{NoPlan, Plan};
pub(crate) use rebuild::{Built, Handover, Order, builder_main, describe, tell, watch};
pub(crate) use sources::Sources;
pub(crate) use toolchain::{TARGET, check_toolchain};

/// What came of a build.
#[derive(Debug)]
pub(crate) struct BuildOutcome {
    pub(crate) component: anyhow::Result<PathBuf>,
    /// Folders of sources that went into it, as far as it got; the folder itself is not named.
    pub(crate) uses: Vec<PathBuf>,
}

impl Plan {
    /// Builds. What the tools say goes to standard error.
    pub(crate) fn carry_out(&self) -> BuildOutcome {
        let of = || format!("cannot build {}", self.folder().display());
        match self {
            Self::Cargo { folder } => {
                let outcome = cargo::build(folder);
                BuildOutcome { component: outcome.component.with_context(of), ..outcome }
            }
            Self::Recipe { folder, recipe } => {
                BuildOutcome { component: follow(folder, recipe).with_context(of), uses: Vec::new() }
            }
        }
    }
}

/// A line on standard error.
fn say(line: fmt::Arguments<'_>) {
    logging::say(LogLevel::Info, line);
}

fn follow(folder: &Path, recipe: &Recipe) -> anyhow::Result<PathBuf> {
    let Recipe { command, component } = recipe;
    // Standard output is ours, for what a program may want to read.
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(folder).stdin(Stdio::null()).stdout(stderr);
    // A shell cannot trap what was ignored when it began, and waits for ever for children that it does not hear of.
    let status = with_default_signals(&mut shell).status().context("cannot start a shell")?;
    if !status.success() {
        bail!("`{command}` failed ({status}); its output is above");
    }
    let component = folder.join(component);
    ensure!(
        component.is_file(),
        "`{command}` succeeded, but did not create {}, the component that [build] in wasmcluster.toml names",
        component.display()
    );
    Ok(component)
}
