//! The Rust toolchain that makes components: looked for, not asked for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::bail;

/// What guests are built for.
pub(crate) const TARGET: &str = "wasm32-wasip2";
/// What `scripts/guest-toolchain` prepares where rustup cannot download.
const PREPARED: &str = "wasmcluster-guest";

/// One that has the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toolchain {
    /// What cargo takes in the folder by itself; the folder may say which one that is.
    Default,
    Prepared,
}

impl Toolchain {
    /// The first argument of cargo and rustc, if it needs one.
    pub(super) fn argument(self) -> Option<String> {
        match self {
            Self::Default => None,
            Self::Prepared => Some(format!("+{PREPARED}")),
        }
    }

    /// The one to build `folder` with. Asks rustup for the target if no toolchain has it.
    pub(super) fn find(folder: &Path) -> anyhow::Result<Self> {
        let default = sysroot(Self::Default, folder);
        if default.as_deref().is_ok_and(has_target) {
            return Ok(Self::Default);
        }
        if sysroot(Self::Prepared, folder).is_ok_and(|sysroot| has_target(&sysroot)) {
            return Ok(Self::Prepared);
        }
        if let Err(Missing::Program) = default {
            bail!(
                "there is no `rustc` on the PATH; install Rust with rustup (https://rustup.rs), then run `rustup target \
                 add {TARGET}`"
            );
        }
        let refusal = match add_target(folder) {
            Ok(()) if sysroot(Self::Default, folder).as_deref().is_ok_and(has_target) => return Ok(Self::Default),
            Ok(()) => "rustup added it to another toolchain".to_owned(),
            Err(refusal) => refusal,
        };
        bail!(
            "this Rust toolchain cannot make components: it lacks the target {TARGET} ({refusal}). Run `rustup \
             target add {TARGET}` with a connection to the internet, or install your distribution's Rust with its \
             package for this target. On Debian, scripts/guest-toolchain in wasmcluster's sources prepares a toolchain \
             called {PREPARED}"
        );
    }
}

/// Whether components can be built with what is installed, or why not. Installs nothing, unlike [`Toolchain::find`].
pub(crate) fn check_toolchain() -> Result<&'static str, String> {
    // There no file asks for a toolchain that rustup would fetch.
    let anywhere = Path::new("/");
    match sysroot(Toolchain::Default, anywhere) {
        Ok(sysroot) if has_target(&sysroot) => Ok("the Rust toolchain"),
        _ if sysroot(Toolchain::Prepared, anywhere).is_ok_and(|sysroot| has_target(&sysroot)) => {
            Ok("the Rust toolchain wasmcluster-guest")
        }
        Err(Missing::Program) => Err("there is no `rustc` on the PATH".into()),
        Err(Missing::Toolchain) => Err("`rustc` does not run".into()),
        Ok(_) => Err(format!("the Rust toolchain lacks the target {TARGET}")),
    }
}

/// Why a toolchain has no sysroot.
enum Missing {
    Program,
    Toolchain,
}

fn sysroot(toolchain: Toolchain, folder: &Path) -> Result<PathBuf, Missing> {
    let output = Command::new("rustc")
        .args(toolchain.argument())
        .args(["--print", "sysroot"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|_| Missing::Program)?;
    if !output.status.success() {
        return Err(Missing::Toolchain);
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

/// Whether it has the target's standard library.
fn has_target(sysroot: &Path) -> bool {
    let libraries = std::fs::read_dir(sysroot.join("lib/rustlib").join(TARGET).join("lib"));
    libraries.into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    })
}

/// Has rustup fetch the target for the folder's toolchain, or says why not.
fn add_target(folder: &Path) -> Result<(), String> {
    super::say(format_args!("The target {TARGET} is not installed: rustup target add {TARGET}"));
    let command = format!("`rustup target add {TARGET}`");
    let output = Command::new("rustup")
        .args(["target", "add", TARGET])
        .current_dir(folder)
        // It would print a backtrace when it cannot download.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| format!("{command} cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.lines().find_map(|line| line.strip_prefix("error: ")).or(said.lines().last());
    let reason = reason.unwrap_or("no output");
    Err(format!("{command} failed: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_there_with_its_standard_library() {
        let sysroot = tempfile::tempdir().unwrap();
        assert!(!has_target(sysroot.path()));
        let folder = sysroot.path().join("lib/rustlib/wasm32-wasip2/lib");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("libcore-1.rlib"), "").unwrap();
        assert!(!has_target(sysroot.path()));
        std::fs::write(folder.join("libstd-1.rlib"), "").unwrap();
        assert!(has_target(sysroot.path()));
    }
}
