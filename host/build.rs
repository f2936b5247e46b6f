//! Tells the program what it was built from: the commit, the target and the cargo features, for `wasmcluster --version`; and
//! whether the sources of the SDK are beside it, which `wasmcluster new` then copies into projects.
//!
//! Nothing here depends on the time, the user or the path, so the same commit gives the same answers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const SDK: &str = "../guest-sdk/Cargo.toml";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=WASMCLUSTER_COMMIT");
    println!("cargo::rerun-if-env-changed=WASMCLUSTER_SDK");
    let said = env::var("WASMCLUSTER_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = said.or_else(packaged).or_else(checked_out).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=WASMCLUSTER_COMMIT={commit}");
    println!("cargo::rustc-env=WASMCLUSTER_TARGET={}", env::var("TARGET").unwrap_or_default());
    println!("cargo::rustc-env=WASMCLUSTER_FEATURES={}", features());
    println!("cargo::rustc-env=WASMCLUSTER_BUILD={}", build());
    println!("cargo::rustc-check-cfg=cfg(sdk_sources)");
    if Path::new(SDK).exists() && env::var("WASMCLUSTER_SDK").as_deref() != Ok("registry") {
        println!("cargo::rustc-cfg=sdk_sources");
    }
}

/// What `cargo package` says of the commit, in a package from a registry.
fn packaged() -> Option<String> {
    let said = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = said.split_once("\"sha1\": \"")?;
    Some(rest.split('"').next()?.chars().take(12).collect())
}

/// What git says of it, unless the repository is another that the sources happen to lie in. Only of optimised builds: while
/// somebody works on the code, each commit would compile it once more.
fn checked_out() -> Option<String> {
    let is_ours = Path::new("../.git").exists() && Path::new(SDK).exists();
    if !is_ours || env::var("PROFILE").as_deref() != Ok("release") {
        return None;
    }
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // Each commit and checkout adds a line to this. A file that is missing would have this run each time.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists());
    for file in log.iter().map(String::as_str).chain(["src", "../Cargo.lock"]) {
        println!("cargo::rerun-if-changed={file}");
    }
    git(&["describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"])
}

/// How it is optimised.
fn build() -> String {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    // PROFILE is `release` for each that inherits from it. This is PROFILE/build/PACKAGE/out.
    let folder = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let profile = folder.ancestors().nth(3).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    // `scripts/pgo`
    let by_profile = if flags.contains("profile-use=") { " by profile" } else { "" };
    format!("{profile}{by_profile}")
}

/// Those of `[features]`, in the order of their names.
fn features() -> String {
    let variables = env::vars().filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase()));
    let mut names: Vec<String> = variables.map(|name| name.replace('_', "-")).collect();
    names.sort();
    names.join(" ")
}
