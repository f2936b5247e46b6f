//! Large bodies, many paths, and many connections that do nothing: each beside the simple thing that it should not be far
//! from.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::cluster::sample;
use crate::contenders::{Contender, Program, Server};
use crate::http;
use crate::report::Series;
use crate::rounds::{Case, in_turns, script_file, wrk};

const MEBIBYTE: usize = 1 << 20;
/// Connections that have a large body under way.
const LARGE_AT_A_TIME: &str = "8";
/// Of one body; wrk would give up after two seconds.
const PATIENCE: &str = "30s";
const PATHS: usize = 200;
const IDLE: usize = 1000;

/// They have the same paths for bodies. The first is what the others are held against.
const WITH_BODIES: &[Contender] = &[
    Contender { key: "", name: "bare hyper", program: Program::BareHyper, flags: &[] },
    Contender { key: "", name: "wasmcluster, WASI 0.2", program: Program::Ours("hostile_p2"), flags: &[] },
    Contender { key: "", name: "wasmcluster, WASI 0.2, SDK", program: Program::Ours("scenarios"), flags: &[] },
    Contender { key: "", name: "wasmcluster, WASI 0.3", program: Program::Ours("hostile_p3"), flags: &[] },
];

pub(crate) fn measure(bench: &Bench) -> Vec<Series> {
    let bodies = |bodies: Bodies| {
        let case = |contender: &'static Contender| {
            Case::new(contender.name.into(), move |bench| bodies.measure(bench, contender))
        };
        in_turns(bench, WITH_BODIES.iter().map(case).collect())
    };
    let about = format!("One worker on a core of its own, {LARGE_AT_A_TIME} keep-alive connections, default reuse.");
    vec![
        Series {
            title: "Answers of 1 MiB",
            about: about.clone(),
            columns: &["answers/s", "MiB/s"],
            rows: bodies(Bodies::Answers),
        },
        Series {
            title: "Uploads of 10 MiB",
            about: format!("{about} The guest reads them to the end."),
            columns: &["uploads/s", "MiB/s"],
            rows: bodies(Bodies::Uploads),
        },
        Series {
            title: "Many paths, many idle connections",
            about:
                "The SDK's hello, fresh instance, one core for the server, 32 connections. Idle connections had one \
                    request each; the memory is the worker's, without the kernel's share."
                    .into(),
            columns: &["requests/s", "KiB for each idle connection"],
            rows: in_turns(
                bench,
                vec![
                    Case::new("one path".into(), |bench| hello(bench, 1, 0)),
                    Case::new(format!("{PATHS} paths in turn"), |bench| hello(bench, PATHS, 0)),
                    Case::new("one path, beside 1,000 idle connections".into(), |bench| hello(bench, 1, IDLE)),
                ],
            ),
        },
    ]
}

#[derive(Clone, Copy)]
enum Bodies {
    Answers,
    Uploads,
}

impl Bodies {
    fn bytes(self) -> usize {
        match self {
            Self::Answers => MEBIBYTE,
            Self::Uploads => 10 * MEBIBYTE,
        }
    }

    fn path(self) -> String {
        match self {
            Self::Answers => format!("/large?bytes={}", self.bytes()),
            Self::Uploads => "/count".into(),
        }
    }

    fn check(self, address: SocketAddr) -> Result<()> {
        let path = self.path();
        let (answer, is_right) = match self {
            Self::Answers => {
                let answer = http::get(address, &path)?;
                let is_right = answer.body.len() == self.bytes();
                (answer, is_right)
            }
            Self::Uploads => {
                let answer = http::send(address, "POST", &path, &vec![b'x'; self.bytes()])?;
                let is_right = answer.body.trim_ascii_end() == self.bytes().to_string().as_bytes();
                (answer, is_right)
            }
        };
        ensure!(answer.status == 200 && is_right, "{path} is answered with {}", answer.summary());
        Ok(())
    }

    /// What `wrk` has to know beside the path.
    fn script(self) -> String {
        match self {
            Self::Answers => String::new(),
            Self::Uploads => format!("wrk.method = 'POST'\nwrk.body = string.rep('x', {})\n", self.bytes()),
        }
    }

    /// Bodies and MiB in a second.
    fn measure(self, bench: &Bench, contender: &Contender) -> Result<Vec<f64>> {
        let server = contender.start(bench, 1, bench.cpus.server())?;
        self.check(server.address)?;
        let more = ["-c", LARGE_AT_A_TIME, "--timeout", PATIENCE];
        let rate = scripted(bench, &server, &self.path(), &self.script(), &more)?;
        self.check(server.address)?;
        Ok(vec![rate, rate * (self.bytes() / MEBIBYTE) as f64])
    }
}

/// Requests per second, and the memory of an idle connection in KiB if there are any.
fn hello(bench: &Bench, paths: usize, idle: usize) -> Result<Vec<f64>> {
    let hello =
        Contender { key: "", name: "", program: Program::Ours("hello"), flags: &["--keep-alive-timeout", "1h"] };
    let server = hello.start(bench, 1, bench.cpus.server())?;
    server.check()?;
    wrk(server.address, "/", bench.cpus.load(), bench.warm_up, &[]).context("while it warms up")?;
    let before = sample(bench, &server, 1)?;
    let connections = (0..idle).map(|_| idle_connection(server.address)).collect::<Result<Vec<_>>>()?;
    let with = sample(bench, &server, 1)?;
    // One path is sent by the script as well: it has its price for the client.
    let rate = scripted(bench, &server, "/", &in_turn(paths), &[])?;
    ensure!(connections.iter().all(is_open), "idle connections were closed");
    server.check()?;
    let mut values = vec![rate];
    if idle > 0 {
        values.push((with.workers - before.workers) * 1024.0 / idle as f64);
    }
    Ok(values)
}

/// The rate after a warm-up, both under a load that is told by a script.
fn scripted(bench: &Bench, server: &Server, path: &str, script: &str, more: &[&str]) -> Result<f64> {
    let file = script_file(&server.scratch, script)?;
    let more = [more, &["-s", &file]].concat();
    let load = |time| wrk(server.address, path, bench.cpus.load(), time, &more);
    load(bench.warm_up).context("while it warms up")?;
    load(bench.time)
}

/// Lua for so many paths, one after the other.
fn in_turn(paths: usize) -> String {
    format!(
        "local requests, turn = {{}}, 0
function init()
  for number = 1, {paths} do requests[number] = wrk.format(nil, '/route/' .. number) end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
"
    )
}

/// One that has had an answer, and is kept.
fn idle_connection(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = http::connect(address)?;
    let answer = http::exchange(&mut stream, &http::request(address, "/"))?;
    ensure!(answer.status == 200, "a connection that shall be idle is answered with {}", answer.summary());
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn is_open(stream: &TcpStream) -> bool {
    stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn closed_connections_are_not_idle() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        assert!(is_open(&stream));
        drop(accepted);
        // The end is there at the latest when a read that waits has seen it.
        stream.set_nonblocking(false).unwrap();
        stream.peek(&mut [0]).unwrap();
        assert!(!is_open(&stream));
    }

    #[test]
    fn uploads_are_as_long_as_they_are_said_to_be() {
        assert_eq!(Bodies::Uploads.script(), "wrk.method = 'POST'\nwrk.body = string.rep('x', 10485760)\n");
        assert_eq!(Bodies::Answers.path(), "/large?bytes=1048576");
    }
}
