//! Who takes part: finds the programs, starts them as servers on a free port, and checks what they answer.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{ANYWHERE, Process, Scratch, output};
use crate::{Bench, http, nginx, peers, root, target, tls, variable};

/// What all contenders answer, but the guest of WASI 0.3.
pub(crate) const HELLO: &str = "Hello from wasmcluster!\n";
pub(crate) const CONTENT_TYPE_OF_HELLO: &str = "text/plain; charset=utf-8";

/// Compiling a large guest takes a while.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// A server, and how it is started.
pub(crate) struct Contender {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) program: Program,
    pub(crate) flags: &'static [&'static str],
}

#[derive(Clone, Copy)]
pub(crate) enum Program {
    /// This project, with the name of a guest.
    Ours(&'static str),
    /// `wasmtime serve`, with the name of a guest.
    Wasmtime(&'static str),
    /// This project over TLS.
    OursTls(&'static str),
    Node,
    /// A worker in JavaScript that answers the same.
    Workerd,
    BareHyper,
    BareHyperTls,
    /// One worker process, over TLS.
    Nginx,
    /// This project with a guest that passes requests on to a server of hyper alone.
    OursProxy(&'static str),
    /// This project, with traces that go to that server.
    OursTraced(&'static str),
    /// One worker process, to the same server, whose connections it keeps.
    NginxProxy,
}

impl Program {
    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::OursTls(_) | Self::BareHyperTls | Self::Nginx)
    }

    /// Whether it is this project.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_) | Self::OursTls(_) | Self::OursProxy(_) | Self::OursTraced(_))
    }

    /// Whether it is of this workspace.
    pub(crate) fn is_built_here(self) -> bool {
        self.is_ours() || matches!(self, Self::BareHyper | Self::BareHyperTls)
    }

    /// Whether there is another server behind it.
    fn has_upstream(self) -> bool {
        matches!(self, Self::OursProxy(_) | Self::OursTraced(_) | Self::NginxProxy)
    }
}

/// The programs that were found, or why they were not.
#[derive(Clone)]
pub(crate) struct Programs {
    pub(crate) ours: PathBuf,
    /// Where it keeps what it has compiled.
    pub(crate) store: PathBuf,
    pub(crate) wasmtime: Result<PathBuf, String>,
    pub(crate) node: Result<String, String>,
    pub(crate) workerd: Result<PathBuf, String>,
}

impl Programs {
    pub(crate) fn find() -> Result<Self> {
        let ours = variable("WASMCLUSTER").map_or_else(|| target().join("release/wasmcluster"), PathBuf::from);
        // It is started in another folder.
        let ours = ours.canonicalize().with_context(|| format!("there is no {}: run `make build`", ours.display()))?;
        Command::new("wrk").arg("--version").output().context("there is no wrk: on Debian, apt-get install wrk")?;
        let node =
            output(Command::new("node").arg("--version"), ANYWHERE).map_err(|_| "there is no node on the PATH".into());
        let why = |error: anyhow::Error| format!("{error:#}");
        let (wasmtime, workerd) = (peers::wasmtime().map_err(why), peers::workerd().map_err(why));
        Ok(Self { ours, store: target().join("bench/store"), wasmtime, node, workerd })
    }
}

/// What it says with `--version`; nothing if it cannot be started.
pub(crate) fn version(program: &Path) -> String {
    output(Command::new(program).arg("--version"), ANYWHERE).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The compiled form of a guest's name.
pub(crate) fn component(guest: &str) -> Result<PathBuf> {
    let path = target().join(format!("wasm32-wasip2/guest/{guest}.wasm"));
    ensure!(path.is_file(), "there is no component {guest}.wasm");
    Ok(path)
}

/// `wasmcluster serve` on a free port, with files of its own; the store outlives it, so that a guest is compiled once.
pub(crate) fn ours(programs: &Programs, guest: &str, workers: usize, scratch: &Scratch) -> Result<Command> {
    ours_on(programs, guest, workers, scratch, "127.0.0.1:0")
}

fn ours_on(programs: &Programs, guest: &str, workers: usize, scratch: &Scratch, listen: &str) -> Result<Command> {
    let mut command = Command::new(&programs.ours);
    command.arg("serve").args(["--listen", listen, "--workers", &workers.to_string()]);
    command.args(["--name", "bench", "--control"]).arg(scratch.path("control"));
    command.arg("--store").arg(&programs.store).arg("--state-dir").arg(scratch.path("state"));
    command.current_dir(scratch.path("")).arg(component(guest)?);
    Ok(command)
}

impl Contender {
    fn command(
        &self,
        programs: &Programs,
        workers: usize,
        scratch: &Scratch,
        upstream: Option<SocketAddr>,
    ) -> Result<Command> {
        let found = |program: &Result<PathBuf, String>| program.clone().map_err(anyhow::Error::msg);
        let mut command = match self.program {
            Program::Ours(guest) => ours(programs, guest, workers, scratch)?,
            Program::OursTls(guest) => {
                let [certificate, key] = tls::certificate()?.map(|file| file.canonicalize());
                let mut command = ours_on(programs, guest, workers, scratch, "https://127.0.0.1:0")?;
                command.arg("--tls-cert").arg(certificate?).arg("--tls-key").arg(key?);
                command
            }
            Program::OursProxy(guest) => {
                let url = format!("http://{}", upstream.context("a proxy has an upstream")?);
                let mut command = ours(programs, guest, workers, scratch)?;
                command.args(["--allow-host", &url, "--env", &format!("UPSTREAM={url}")]);
                command
            }
            Program::OursTraced(guest) => {
                let mut command = ours(programs, guest, workers, scratch)?;
                command.args(["--otlp", &format!("http://{}", upstream.context("there is a collector")?)]);
                command
            }
            Program::Nginx => nginx::tls(scratch, free_port()?)?,
            Program::NginxProxy => nginx::proxy(scratch, free_port()?, upstream.context("a proxy has an upstream")?)?,
            Program::Wasmtime(guest) => {
                let component = component(guest)?;
                let mut command = Command::new(found(&programs.wasmtime)?);
                // Its one process takes as many threads as there are CPUs for it.
                command.args(["serve", "--addr", "127.0.0.1:0", "-S", "cli"]).args(self.flags).arg(component);
                return Ok(command);
            }
            Program::Node => {
                programs.node.clone().map_err(anyhow::Error::msg)?;
                let mut command = Command::new("node");
                command.arg(root().join("bench/node-cluster.js")).arg(workers.to_string());
                command
            }
            Program::Workerd => peers::serve_by_workerd(&found(&programs.workerd)?, scratch, free_port()?)?,
            Program::BareHyper | Program::BareHyperTls => bare_hyper(self.program.is_tls())?,
        };
        command.args(self.flags);
        Ok(command)
    }

    /// How a person would start it, without the folders that are only for the benchmark.
    pub(crate) fn command_line(&self, workers: usize) -> String {
        let (start, guest) = match self.program {
            Program::Ours(guest) => (format!("wasmcluster serve --workers {workers}"), guest),
            Program::OursTls(guest) => {
                let tls = "--listen https://127.0.0.1:0 --tls-cert cert.pem --tls-key key.pem";
                (format!("wasmcluster serve --workers {workers} {tls}"), guest)
            }
            Program::Wasmtime(guest) => ("wasmtime serve -S cli".into(), guest),
            Program::Workerd => ("workerd serve config.capnp".into(), ""),
            Program::Node => (format!("node bench/node-cluster.js {workers}"), ""),
            Program::BareHyper => (format!("wasmcluster-bench {}", crate::bare::COMMAND), ""),
            Program::BareHyperTls => (format!("wasmcluster-bench {} {}", crate::bare::COMMAND, crate::bare::TLS), ""),
            Program::OursProxy(guest) => {
                let upstream = "--allow-host http://UPSTREAM --env UPSTREAM=http://UPSTREAM";
                (format!("wasmcluster serve --workers {workers} {upstream}"), guest)
            }
            Program::OursTraced(guest) => {
                (format!("wasmcluster serve --workers {workers} --otlp http://COLLECTOR"), guest)
            }
            Program::Nginx | Program::NginxProxy => ("nginx -c nginx.conf".into(), ""),
        };
        let guest = if guest.is_empty() { String::new() } else { format!("{guest}.wasm") };
        let words = std::iter::once(start.as_str()).chain(self.flags.iter().copied()).chain([guest.as_str()]);
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Starts it on these CPUs, and its upstream, if it is a proxy, where the load comes from.
    pub(crate) fn start(&self, bench: &Bench, workers: usize, cpus: &[usize]) -> Result<Server> {
        self.start_as(bench, workers, cpus, Ok)
    }

    /// The same, with what `wrap` makes of its command.
    pub(crate) fn start_as(
        &self,
        bench: &Bench,
        workers: usize,
        cpus: &[usize],
        wrap: impl FnOnce(Command) -> Result<Command>,
    ) -> Result<Server> {
        let upstream =
            self.program.has_upstream().then(|| Server::start(bare_hyper(false)?, Scratch::new()?, bench.cpus.load()));
        let (upstream, scratch) = (upstream.transpose()?, Scratch::new()?);
        let command = self.command(&bench.programs, workers, &scratch, upstream.as_ref().map(|it| it.address))?;
        let mut server = Server::start(wrap(command)?, scratch, cpus)?;
        server.upstream = upstream.map(Box::new);
        Ok(server)
    }
}

/// This program, as a server.
fn bare_hyper(is_tls: bool) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(crate::bare::COMMAND).args(is_tls.then_some(crate::bare::TLS));
    Ok(command)
}

/// One that nobody has at the moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A server that listens, until it is dropped.
pub(crate) struct Server {
    process: Process,
    pub(crate) scratch: Scratch,
    pub(crate) address: SocketAddr,
    pub(crate) is_tls: bool,
    /// Of a proxy, or of who sends traces.
    upstream: Option<Box<Self>>,
}

impl Server {
    pub(crate) fn start(mut command: Command, scratch: Scratch, cpus: &[usize]) -> Result<Self> {
        let log = scratch.path("log");
        let file = File::create(&log)?;
        let process = Process::start(command.stdout(file.try_clone()?).stderr(file), cpus)?;
        let mut server = Self { process, scratch, address: ([127, 0, 0, 1], 0).into(), is_tls: false, upstream: None };
        (server.address, server.is_tls) = server.listens(&log)?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn listens(&mut self, log: &Path) -> Result<(SocketAddr, bool)> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let ended = self.process.has_ended()?;
            let text = std::fs::read_to_string(log)?;
            if let Some((_, rest)) = text.split_once("Serving HTTP on ")
                && let Some((scheme, rest)) = rest.split_once("://")
                && let Some((address, _)) = rest.split_once('/')
            {
                let parsed: SocketAddr = address.parse().with_context(|| format!("reading the address {address}"))?;
                if TcpStream::connect(parsed).is_ok() {
                    return Ok((parsed, scheme == "https"));
                }
            }
            if let Some(status) = ended {
                bail!("it ended with {status}: {}", text.trim().lines().last().unwrap_or_default());
            }
            ensure!(Instant::now() < deadline, "it does not listen after {} s", START_TIMEOUT.as_secs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The answer must be the expected one, to the byte. Says which header fields are not those that all contenders
    /// should send.
    pub(crate) fn check(&self) -> Result<Option<String>> {
        let answer = if self.is_tls { tls::get(self.address, "/")? } else { http::get(self.address, "/")? };
        ensure!(answer.status == 200, "it answers with status {}", answer.status);
        ensure!(answer.body == HELLO.as_bytes(), "it answers {:?}", String::from_utf8_lossy(&answer.body));
        let expected = [("content-length", Some(HELLO.len().to_string())), ("date", None)]
            .into_iter()
            .chain([("content-type", Some(CONTENT_TYPE_OF_HELLO.into()))]);
        let mut odd: Vec<String> = Vec::new();
        for (name, value) in expected.clone() {
            match (answer.header(name), value) {
                (None, _) => odd.push(format!("no {name}")),
                (Some(found), Some(value)) if found != value => odd.push(format!("{name}: {found}")),
                _ => {}
            }
        }
        let others = answer.headers.iter().filter(|(name, _)| !expected.clone().any(|(other, _)| other == name));
        odd.extend(others.map(|(name, value)| format!("{name}: {value}")));
        Ok((!odd.is_empty()).then(|| odd.join(", ")))
    }
}
