//! HAProxy before several clusters. It listens on a Unix socket, and takes commands on another, as ingress controllers have it.
//! What it may try again are requests by GET.

#![expect(clippy::print_stdout, reason = "tests tell what they skipped")]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cluster::Follower;
use crate::network::Machine;
use crate::tools::Tool;
use crate::until;

/// Where it listens as well, on a machine of a test's own.
pub const PORT: u16 = 8000;
/// Places for servers, which have an address when they are given one.
const PLACES: usize = 16;

const CONFIGURATION: &str = "
global
    stats socket FOLDER/commands level admin
defaults
    mode http
    maxconn 1000
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout check 5s
    http-reuse always
    SETTINGS
frontend front
    bind unix@FOLDER/front
    BIND
    default_backend clusters
backend clusters
    balance roundrobin
    option httpchk GET /readyz
    http-request disable-l7-retry unless METH_GET
    SERVERS
";

/// A balancer at work; dropped, it is gone.
pub struct Haproxy {
    folder: TempDir,
    process: Follower,
}

impl Haproxy {
    /// Started on a machine or here, with `settings` for all of it, and these servers, or places for those that come later. None
    /// if there is none on this machine, which is said.
    pub fn start(machine: Option<&Machine>, settings: &str, servers: &[String]) -> Option<Self> {
        let Some(program) = Tool::find("haproxy") else {
            println!("skipped: there is no haproxy");
            return None;
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let servers = match servers {
            [] => format!("server-template server 1-{PLACES} 127.0.0.1:1 disabled"),
            servers => servers.iter().map(|server| format!("server {server}")).collect::<Vec<_>>().join("\n    "),
        };
        let bind = machine.map(|_| format!("bind 127.0.0.1:{PORT}")).unwrap_or_default();
        let configuration = CONFIGURATION
            .replace("BIND", &bind)
            .replace("SETTINGS", settings)
            .replace("SERVERS", &servers)
            .replace("FOLDER", folder.path().to_str().expect("UTF-8"));
        let file = folder.path().join("configuration");
        std::fs::write(&file, configuration).expect("it is written");
        let mut command = machine.map_or_else(|| program.command(), |machine| machine.command(program.path()));
        let process = Follower::start(command.args(["-q", "-db", "-f"]).arg(file)).expect("it starts");
        let started = Self { folder, process };
        until("HAProxy listens", || UnixStream::connect(started.front()).ok());
        Some(started)
    }

    /// The socket that takes requests.
    pub fn front(&self) -> PathBuf {
        self.folder.path().join("front")
    }

    /// What it answers to a command.
    pub fn command(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(self.folder.path().join("commands")).expect("it takes commands");
        stream.write_all(format!("{command}\n").as_bytes()).expect("a command is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.trim().into()
    }

    #[track_caller]
    fn does(&self, command: &str) {
        let answer = self.command(command);
        // It tells what has changed.
        let has_done = answer.is_empty() || answer.contains("changed") || answer.contains("no need to change");
        assert!(has_done, "{command}: {answer}");
    }

    /// Gives the server in this place an address, and requests.
    pub fn add(&self, place: usize, address: SocketAddr) {
        self.does(&format!("set server clusters/server{place} addr {} port {}", address.ip(), address.port()));
        self.does(&format!("set server clusters/server{place} state ready"));
    }

    /// Sends no more requests to the server in this place. Those that were sent may be answered.
    pub fn remove(&self, place: usize) {
        self.does(&format!("set server clusters/server{place} state maint"));
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// The servers that are up, by name.
    pub fn up(&self) -> Vec<String> {
        // pxname, svname, …, status in the 18th column.
        let table = self.command("show stat clusters 4 -1");
        let rows = table.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(',').collect::<Vec<_>>());
        rows.filter(|row| row.len() > 17 && row[17].starts_with("UP")).map(|row| row[1].to_owned()).collect()
    }
}
