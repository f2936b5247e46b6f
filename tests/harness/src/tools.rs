//! Programs that a machine may have: proxies, clients, browsers. Tests of them say `skipped:` where one is missing.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::Ended;

/// Where Debian has servers, which not everybody has on the PATH.
const FOLDERS_OF_SERVERS: &str = "/usr/local/sbin:/usr/sbin:/sbin";
/// Where Debian has those of PostgreSQL, in a folder for each version, and on nobody's PATH.
const POSTGRESQL: &str = "/usr/lib/postgresql";
/// How long one may run, in seconds.
const PATIENCE: &str = "100";

/// A program that is there.
#[derive(Clone, Debug)]
pub struct Tool(PathBuf);

impl Tool {
    /// The program of this name, if there is one.
    pub fn find(name: &str) -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let versions = fs::read_dir(POSTGRESQL).into_iter().flatten().flatten();
        let of_postgresql = versions.map(|version| version.path().join("bin"));
        let mut folders = env::split_paths(&path).chain(env::split_paths(FOLDERS_OF_SERVERS)).chain(of_postgresql);
        folders.find_map(|folder| Some(folder.join(name)).filter(|program| program.is_file()).map(Self))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A command of it, without arguments.
    pub fn command(&self) -> Command {
        Command::new(&self.0)
    }

    /// Runs it to its end, in a home of its own. The end is forced if it takes too long: then the code is 124.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Ended {
        let home = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", PATIENCE]).arg(&self.0).args(args);
        command.env("HOME", home.path()).stdin(Stdio::null());
        let output = command.output().expect("the program starts");
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// An address for a server that cannot be given port 0. No other test listens on this one of the loopback interface's
/// addresses, and clients connect from another: so the port, which is free now, is still free when the server binds it.
pub fn address_of_its_own() -> SocketAddr {
    let listener = TcpListener::bind(("127.83.0.1", 0)).expect("the loopback interface has all of 127.0.0.0/8");
    listener.local_addr().expect("a bound address")
}

/// How a configuration of nginx begins, up to what is said of its servers: it runs as one process, which is easy to end, and
/// has its files in FOLDER.
pub const NGINX: &str = "
daemon off;
master_process off;
pid FOLDER/pid;
error_log stderr crit;
events {}
http {
    access_log off;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
";
