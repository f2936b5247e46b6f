//! What service managers are told of a cluster (sd_notify(3)), and sockets that they pass on (sd_listen_fds(3)).

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use harness::client::get;
use harness::tools::{Tool, address_of_its_own};
use harness::{Setup, guest, until};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// A manager that keeps all that it hears.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn watch(setup: Setup) -> (Self, Setup) {
        let path = setup.folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        (Self { socket, heard: Vec::new() }, setup.env("NOTIFY_SOCKET", path.to_str().unwrap()))
    }

    /// Listens until somebody says a line that begins like this, which it returns.
    fn hears(&mut self, begin: &str) -> String {
        let (mut message, since) = ([0; 4096], Instant::now());
        loop {
            let length = self.socket.recv(&mut message);
            assert!(since.elapsed() < PATIENCE && length.is_ok(), "nobody said {begin}, but {:#?}", self.heard);
            let length = length.unwrap();
            let text = std::str::from_utf8(&message[..length]).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
            if let Some(line) = text.lines().find(|line| line.starts_with(begin)) {
                return line.to_owned();
            }
        }
    }

    /// How often a line was heard.
    fn count(&self, line: &str) -> usize {
        self.heard.iter().filter(|heard| *heard == line).count()
    }
}

#[test]
fn a_manager_is_told_how_the_cluster_is() {
    let (mut manager, setup) = Manager::watch(Setup::new(&guest("whoami")).workers(1).args(&["--soak", "0s"]));
    let app = setup.folder.path().join("app.wasm");
    fs::copy(guest("whoami"), &app).unwrap();
    let cluster = setup.env("WATCHDOG_USEC", "600000").args(&["--min-ready", "0s"]);
    let cluster = cluster.args(&["--shutdown-delay", "1s", "--shutdown-timeout", "4s"]).start();
    assert!(manager.hears("STATUS=").contains("STATUS="));
    manager.hears("READY=1");
    assert!(manager.heard.iter().any(|line| line.starts_with("STATUS=compiling ")), "{:?}", manager.heard);
    let status = manager.hears("STATUS=serving");
    assert!(status.starts_with("STATUS=serving generation 1 of ") && status.ends_with(", 1 worker"), "{status}");
    assert_eq!(manager.count("RELOADING=1"), 0);

    // By command, by the signal that `systemctl reload` sends, and by that one when there is nothing to be had.
    let mut last = 0;
    let mut reload = |by: &dyn Fn(), generation: u32| {
        let ready = manager.count("READY=1");
        by();
        let begun = manager.hears("MONOTONIC_USEC=");
        assert_eq!(manager.heard[manager.heard.len() - 2], "RELOADING=1");
        let begun: u64 = begun["MONOTONIC_USEC=".len()..].parse().unwrap();
        assert!(begun > std::mem::replace(&mut last, begun));
        manager.hears("READY=1");
        assert_eq!(manager.count("READY=1"), ready + 1);
        let status = manager.hears("STATUS=serving");
        assert!(status.starts_with(&format!("STATUS=serving generation {generation} of ")), "{status}");
    };
    reload(&|| assert_eq!(cluster.reload(&["--force", app.to_str().unwrap()]).code, Some(0)), 2);
    reload(&|| cluster.signal(Signal::SIGUSR2), 3);
    fs::write(&app, "no component").unwrap();
    reload(&|| cluster.signal(Signal::SIGUSR2), 3);

    // It turns.
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    // And hears so no more when it does not: what was sent before may still be in the queue.
    cluster.signal(Signal::SIGSTOP);
    manager.socket.set_read_timeout(Some(Duration::from_millis(1200))).unwrap();
    while manager.socket.recv(&mut [0; 4096]).is_ok() {}
    cluster.signal(Signal::SIGCONT);
    manager.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    manager.hears("WATCHDOG=1");

    assert_eq!(manager.count("STOPPING=1"), 0);
    cluster.signal(Signal::SIGTERM);
    manager.hears("STOPPING=1");
    // The delay, what requests have, and what it takes beyond that.
    assert_eq!(manager.heard.last().unwrap(), "EXTEND_TIMEOUT_USEC=10000000");
    assert!(cluster.wait().success());
}

/// Else the manager would take it for stuck.
#[test]
fn a_reload_asks_for_time_as_long_as_it_takes() {
    let args = ["--soak", "2s", "--min-ready", "0s"];
    let (mut manager, setup) = Manager::watch(Setup::new(&guest("whoami")).workers(1).args(&args));
    let cluster = setup.env("WATCHDOG_USEC", "600000").start();
    manager.hears("STATUS=serving");
    let (more, ready) = ("EXTEND_TIMEOUT_USEC=30000000", manager.count("READY=1"));
    let at_start = manager.count(more);
    cluster.signal(Signal::SIGUSR2);
    manager.hears("RELOADING=1");
    manager.hears(more);
    assert_eq!(manager.count("READY=1"), ready);
    manager.hears("READY=1");
    let asked = manager.count(more);
    assert!(asked > at_start);
    for _ in 0..4 {
        manager.hears("WATCHDOG=1");
    }
    assert_eq!(manager.count(more), asked);
}

/// Its queue is full, its socket is gone, or was never there.
#[test]
fn a_manager_that_does_not_listen_holds_nothing_up() {
    let (mut manager, setup) = Manager::watch(Setup::new(&guest("whoami")).workers(1).args(&["--soak", "0s"]));
    let (filler, path) = (UnixDatagram::unbound().unwrap(), setup.folder.path().join("notify"));
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"full\n", &path).is_ok() {}
    let cluster = setup.env("WATCHDOG_USEC", "100000").args(&["--min-ready", "0s"]).start();
    assert_eq!(cluster.reload(&["--force"]).code, Some(0));
    // When it listens again, it hears what counts.
    for line in ["full", "READY=1", "RELOADING=1", "READY=1", "STATUS=serving generation 2 ", "WATCHDOG=1"] {
        manager.hears(line);
    }
    drop(manager);
    fs::remove_file(&path).unwrap();
    assert_eq!(cluster.reload(&["--force"]).code, Some(0));
    cluster.signal(Signal::SIGTERM);
    assert!(cluster.wait().success());
    let never = Setup::new(&guest("whoami")).workers(1).env("NOTIFY_SOCKET", "/no/such/socket").start();
    never.signal(Signal::SIGTERM);
    assert!(never.wait().success());
}

/// A cluster that systemd-socket-activate starts with these sockets, when a client comes.
fn activated(sockets: &[(&str, &str)], args: &[&str]) -> Option<Setup> {
    let Some(activate) = Tool::find("systemd-socket-activate") else {
        println!("skipped: there is no systemd-socket-activate");
        return None;
    };
    let component = guest("whoami");
    let setup = Setup::bare(&[&["serve", component.to_str().unwrap(), "--workers", "1"], args].concat());
    let names: Vec<&str> = sockets.iter().map(|(_, name)| *name).collect();
    let program = activate.command().get_program().to_str().unwrap().to_owned();
    let mut before = vec![program, format!("--fdname={}", names.join(":"))];
    before.extend(sockets.iter().map(|(address, _)| format!("--listen={address}")));
    // It passes on no others.
    before.extend(
        setup.command.get_envs().filter_map(|(name, value)| {
            Some(format!("--setenv={}={}", name.to_str().unwrap(), value?.to_str().unwrap()))
        }),
    );
    before.extend(["sh".into(), "-c".into()]);
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    Some(setup.behind(&before, r#"exec "$@""#))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_were_passed_on_are_served() {
    // All of them without a word; or each by its name, and one in another way.
    for args in [&[][..], &["--listen", "systemd"], &["--listen", "systemd:api", "--listen", "systemd:web"]] {
        let folder = tempfile::tempdir().unwrap();
        let unix = folder.path().join("web.sock");
        let address = address_of_its_own();
        let sockets = [(unix.to_str().unwrap(), "web"), (&*address.to_string(), "api")];
        let Some(setup) = activated(&sockets, args) else { return };
        let cluster = setup.launch();
        // It is there before there is a cluster, and the client that starts that is served.
        until("the socket is there", || TcpStream::connect(address).ok());
        assert_eq!(get(address, "/").await.unwrap().status, 200);
        let stream = tokio::net::UnixStream::connect(&unix).await.unwrap();
        let answer = harness::client::Connection::over(stream).await.get("/").await.unwrap();
        assert_eq!(answer.status, 200);
        until("it is announced", || {
            let lines = cluster.stderr.lines();
            let serves = |url: &str| lines.iter().any(|line| line.starts_with(&format!("Serving HTTP on {url}")));
            (serves(&format!("http://{address}")) && serves(&format!("unix:{}", unix.display()))).then_some(())
        });
        cluster.signal(Signal::SIGTERM);
        assert!(cluster.wait().success());
        assert!(unix.exists(), "it is the manager's");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_was_not_passed_on_is_missed() {
    let address = address_of_its_own();
    let Some(setup) = activated(&[(&address.to_string(), "api")], &["--listen", "systemd:web"]) else { return };
    let cluster = setup.launch();
    until("the socket is there", || TcpStream::connect(address).ok());
    cluster.stderr.find("cannot listen on systemd:web: systemd has passed on only api.");
    assert_eq!(cluster.wait().code(), Some(1));
    let alone = Setup::bare(&["serve", guest("whoami").to_str().unwrap(), "--listen", "systemd"]).run();
    assert_eq!(alone.code, Some(1), "{alone:?}");
    assert!(alone.stderr.contains("cannot listen on systemd: systemd has passed on no sockets."), "{alone:?}");
    let Some(setup) = activated(&[(&address.to_string(), "api")], &["--listen", "127.0.0.1:0"]) else { return };
    let cluster = setup.launch();
    until("the socket is there", || TcpStream::connect(address).ok());
    cluster.stderr.find("systemd has passed on the socket api, which no --listen takes; add --listen systemd:api");
    until("it serves elsewhere", || {
        cluster.stderr.lines().iter().any(|it| it.starts_with("Serving HTTP")).then_some(())
    });
}

/// As a script that sets the variables by hand may have it.
#[test]
fn sockets_that_were_not_passed_on_are_not_taken() {
    for (count, named) in [("1", "3"), ("6", "3"), ("4000000000", "3")] {
        let setup =
            Setup::bare(&["serve", guest("whoami").to_str().unwrap(), "--listen", "systemd"]).env("LISTEN_FDS", count);
        let ended = setup.behind(&["sh", "-c"], r#"exec 3>&-; LISTEN_PID=$$ exec "$@""#).run();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let said = format!("LISTEN_FDS says that descriptor {named} was passed on, and it was not");
        assert!(ended.stderr.contains(&said), "{ended:?}");
    }
}
