//! A build by cargo, and which of its files is the component. Cargo tells that itself, in lines of JSON on its standard
//! output; compiler messages go to standard error as ever. When it fails, `hints.rs` looks for a crate that cannot work.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::BuildOutcome;
use super::toolchain::{TARGET, Toolchain};
use crate::os::child::with_default_signals;

pub(super) fn build(folder: &Path) -> BuildOutcome {
    let mut artifacts = Vec::new();
    let component = run(folder, &mut artifacts).and_then(|()| {
        let manifest = std::fs::canonicalize(folder)?.join("Cargo.toml");
        component(&artifacts, &manifest).map_err(anyhow::Error::msg)
    });
    BuildOutcome { component, uses: local_packages(&artifacts) }
}

fn run(folder: &Path, artifacts: &mut Vec<Artifact>) -> anyhow::Result<()> {
    let toolchain = Toolchain::find(folder)?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(toolchain.argument())
        .args(["build", "--release", "--target", TARGET, "--message-format=json-render-diagnostics"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = with_default_signals(&mut cargo)
        .spawn()
        .context("cannot start cargo; install Rust with rustup (https://rustup.rs)")?;
    let messages = BufReader::new(running.stdout.take().context("cargo has no output")?);
    artifacts.extend(messages.lines().map_while(Result::ok).filter_map(|line| Artifact::read(&line)));
    let status = running.wait()?;
    if !status.success() {
        let compiled = artifacts.iter().map(|artifact| artifact.target.name.as_str());
        let hint = dependencies(folder, toolchain).and_then(|tree| super::hints::hint(&tree, compiled));
        let hint = hint.map(|hint| format!(". {hint}")).unwrap_or_default();
        bail!("`cargo build --release --target {TARGET}` failed; its output is above{hint}");
    }
    Ok(())
}

/// What goes into the component, a package a line; `None` if cargo cannot tell, as with a Cargo.toml that is wrong.
fn dependencies(folder: &Path, toolchain: Toolchain) -> Option<String> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(toolchain.argument())
        .args(["tree", "--offline", "--target", TARGET, "--edges", "normal,no-proc-macro", "--prefix", "none"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = with_default_signals(&mut cargo).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A `compiler-artifact` of cargo's messages, as far as it matters here:
/// <https://doc.rust-lang.org/cargo/reference/external-tools.html#artifact-messages>.
#[derive(Debug, Deserialize)]
struct Artifact {
    reason: String,
    package_id: String,
    manifest_path: PathBuf,
    target: CargoTarget,
    filenames: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct CargoTarget {
    name: String,
    crate_types: Vec<String>,
}

impl Artifact {
    /// Of a line that is one. There are others, also such that programs print which cargo runs.
    fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok().filter(|artifact: &Self| artifact.reason == "compiler-artifact")
    }

    fn component(&self) -> Option<&Path> {
        let is_library = self.target.crate_types.iter().any(|kind| kind == "cdylib");
        self.filenames.iter().map(PathBuf::as_path).find(|file| is_library && file.extension() == Some("wasm".as_ref()))
    }
}

/// The one component of the package at `manifest`, or, if that is a workspace, of all its packages.
fn component(artifacts: &[Artifact], manifest: &Path) -> Result<PathBuf, String> {
    let is_package = artifacts.iter().any(|artifact| artifact.manifest_path == manifest);
    let meant = artifacts.iter().filter(|artifact| !is_package || artifact.manifest_path == manifest);
    let components: BTreeSet<&Path> = meant.filter_map(Artifact::component).collect();
    match Vec::from_iter(components)[..] {
        [component] => Ok(component.into()),
        [] => {
            Err("cargo made no component: components are libraries of the type cdylib; add this to Cargo.toml: [lib] \
                   crate-type = [\"cdylib\"]"
                .into())
        }
        ref several => {
            let names: Vec<_> = several.iter().filter_map(|file| file.file_name()?.to_str()).collect();
            Err(format!("cargo made {} components: {}; name the folder of one of them", names.len(), names.join(", ")))
        }
    }
}

/// Where the sources are of those packages that come from no registry.
fn local_packages(artifacts: &[Artifact]) -> Vec<PathBuf> {
    let local = artifacts.iter().filter(|artifact| artifact.package_id.contains("path+file://"));
    let folders: BTreeSet<&Path> = local.filter_map(|artifact| artifact.manifest_path.parent()).collect();
    folders.into_iter().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(package: &str, crate_type: &str, file: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/{package}#0.1.0",
            "manifest_path":"/w/{package}/Cargo.toml","target":{{"kind":["{crate_type}"],"crate_types":["{crate_type}"],
            "name":"x"}},"profile":{{}},"filenames":["{file}"],"fresh":true}}"#
        )
    }

    /// What is found of the artifacts in /w/`package`: the component, or a part of the message.
    #[track_caller]
    fn check(package: &str, artifacts: &[String], expected: Result<&str, &str>) {
        let artifacts: Vec<Artifact> = artifacts.iter().filter_map(|line| Artifact::read(line)).collect();
        match (component(&artifacts, &Path::new("/w").join(package).join("Cargo.toml")), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, Path::new(expected)),
            (Err(message), Err(part)) => assert!(message.contains(part), "{message}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_component_is_the_library_of_the_folder_s_package() {
        let app = || artifact("app", "cdylib", "/t/app.wasm");
        let other = || artifact("other", "cdylib", "/t/other.wasm");
        let plain = || artifact("app", "lib", "/t/libapp.rlib");
        check("app", &[artifact("dep", "lib", "/t/libdep.rlib"), app()], Ok("/t/app.wasm"));
        check("app", &[other(), app()], Ok("/t/app.wasm"));
        check("app", &[app(), app(), "{\"reason\":\"build-finished\"}".into(), "hi".into()], Ok("/t/app.wasm"));
        check("app", &[other(), plain()], Err("[\"cdylib\"]"));
        check("app", &[artifact("app", "bin", "/t/app.wasm")], Err("[\"cdylib\"]"));
        check("app", &[], Err("[\"cdylib\"]"));
        // A workspace without a package of its own.
        check("", &[other()], Ok("/t/other.wasm"));
        check("", &[app(), other()], Err("cargo made 2 components: app.wasm, other.wasm"));
    }

    #[test]
    fn packages_from_elsewhere_are_no_sources() {
        let registry = artifact("http", "lib", "/t/libhttp.rlib").replace("path+file:///", "registry+https://");
        let lines = [registry, artifact("sdk", "lib", "/t/libsdk.rlib"), artifact("app", "cdylib", "/t/app.wasm")];
        let artifacts: Vec<Artifact> = lines.iter().filter_map(|line| Artifact::read(line)).collect();
        assert_eq!(local_packages(&artifacts), [Path::new("/w/app"), Path::new("/w/sdk")]);
    }
}
