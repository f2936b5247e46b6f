//! Connections that guests open themselves (`--allow-connect`): to real servers, by name, and what ends them.
//!
//! The servers run on the loopback interface, or in a network of the test's own. What guests may not reach is tested in
//! `tests/safety/capabilities.rs`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::client::{Connection, get};
use harness::name_server::{NameServer, run_if_asked};
use harness::tools::{Tool, address_of_its_own};
use harness::{Cluster, Follower, Setup, guest_if_built};
use http::Method;
use http_body_util::Full;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chown};
use tempfile::TempDir;

use super::calls::{apart, get_by};

/// The same for both versions of WASI.
const DATABASE: [&str; 2] = ["database", "database_p3"];
const HOSTILE: [&str; 2] = ["hostile_p2", "hostile_p3"];
const PASSWORD: &str = "a secret";
/// PostgreSQL refuses to be root.
const NOBODY: u32 = 65534;
/// As long as an attempt to connect may take, and what a slow machine adds.
const MAX_CONNECT_TIME: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(15);
/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What [`NameServer`] starts this program for. Otherwise it has nothing to do.
#[test]
fn a_name_server_for_connections_runs_if_it_is_asked_for() {
    run_if_asked(|line| println!("{line}"));
}

/// The guest, unless the toolchain has no `std::net` (see scripts/build-guests).
fn database(name: &str) -> Option<PathBuf> {
    let built = guest_if_built(name);
    if built.is_none() {
        println!("skipped: the guest {name} is not built");
    }
    built
}

/// A PostgreSQL of this test's; dropped, it is gone, with all its processes.
struct PostgreSql {
    address: SocketAddr,
    process: Follower,
    _folder: TempDir,
}

impl PostgreSql {
    fn start() -> Option<Self> {
        let (Some(initdb), Some(postgres)) = (Tool::find("initdb"), Tool::find("postgres")) else {
            println!("skipped: there is no PostgreSQL");
            return None;
        };
        let (folder, address) = (tempfile::tempdir().unwrap(), address_of_its_own());
        let path = |name: &str| folder.path().join(name).into_os_string().into_string().unwrap();
        std::fs::write(path("password"), PASSWORD).unwrap();
        let user = Uid::effective().is_root().then_some(NOBODY);
        let owned = |path: &Path| chown(path, user.map(Uid::from_raw), user.map(Gid::from_raw)).unwrap();
        owned(folder.path());
        owned(Path::new(&path("password")));
        // It ends with this program, however that ends.
        let as_user = |tool: &Tool, args: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "QUIT"]);
            if let Some(user) = user {
                command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
            }
            // What it says goes where it is read.
            command.args(["sh", "-c", "exec \"$@\" 2>&1", "sh"]).arg(tool.command().get_program());
            command.args(args.split(' ')).current_dir(folder.path()).env("TZ", "UTC");
            command
        };
        let args = "--pgdata=data --username=app --pwfile=password --auth=scram-sha-256 --no-sync --no-instructions \
                    --encoding=UTF8 --locale=C";
        let made = as_user(&initdb, args).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let (host, port) = (address.ip(), address.port());
        let args = format!("-D data -k {} -h {host} -p {port} -F -c max_connections=50", folder.path().display());
        let process = Follower::start(&mut as_user(&postgres, &args)).unwrap();
        process.stdout.find("ready to accept connections");
        Some(Self { address, process, _folder: folder })
    }

    fn url(&self) -> String {
        format!("/postgres?at={}&user=app&password={}", self.address, PASSWORD.replace(' ', "+"))
    }
}

impl Drop for PostgreSql {
    fn drop(&mut self) {
        // At once, and its children with it: they have shared memory, which a kill would leave behind.
        self.process.signal(Signal::SIGQUIT);
        self.process.wait();
    }
}

/// A Redis, perhaps started by another command.
fn redis(before: &[&str], address: SocketAddr) -> Option<(Follower, TempDir)> {
    let Some(program) = Tool::find("redis-server") else {
        println!("skipped: there is no redis-server");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(before).arg(program.command().get_program());
    command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(["--protected-mode", "no", "--save", "", "--dir"]).arg(folder.path());
    let process = Follower::start(&mut command).unwrap();
    process.stdout.find("Ready to accept connections");
    Some((process, folder))
}

/// What the guest says of some SQL: the process that served it, and rows.
async fn query(connection: &mut Connection<Full<Bytes>>, url: &str, sql: &'static str) -> (u32, String) {
    let answer = connection.request(Method::POST, url, sql).await.unwrap();
    assert_eq!(answer.status, 200, "{sql}: {}", answer.text());
    let (process, rows) = answer.text().split_once('\n').unwrap();
    (process.parse().unwrap(), rows.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_talk_to_postgresql() {
    let Some(postgresql) = PostgreSql::start() else { return };
    let (grant, url) = (postgresql.address.to_string(), postgresql.url());
    for name in DATABASE {
        let Some(app) = database(name) else { return };
        let uses = ["--max-instance-reuse-count", "100"];
        let cluster = Setup::new(&app).workers(1).args(&uses).args(&["--allow-connect", &grant]).start();
        let mut connection = Connection::open(cluster.address()).await;
        let made = "DROP TABLE IF EXISTS sold; CREATE TABLE sold (what text, n int); \
                    INSERT INTO sold SELECT 'x' || n, n FROM generate_series(1, 50000) n";
        let (_, rows) = query(&mut connection, &url, made).await;
        assert_eq!(rows, "");
        let (_, rows) = query(&mut connection, &url, "SELECT count(*), sum(n), NULL FROM sold").await;
        assert_eq!(rows, "50000,1250025000,NULL", "{name}");
        // More than any buffer holds.
        let (_, rows) = query(&mut connection, &url, "SELECT what, n FROM sold ORDER BY n").await;
        assert!(rows.starts_with("x1,1\nx2,2\n") && rows.ends_with("\nx50000,50000"), "{name}");
        let (_, rows) = query(&mut connection, &url, "SELECT length(repeat('long', 250000))").await;
        assert_eq!(rows, "1000000");
        // An instance that is used again has its connection still.
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Requests that can be repeated, as nobody knows yet whether an instance answers a second one.
            let url = format!("{url}&sql=SELECT+pg_backend_pid()");
            let one = connection.get(&url).await.unwrap();
            let other = connection.get(&url).await.unwrap();
            let lines: Vec<_> = one.text().lines().chain(other.text().lines()).collect();
            assert!(lines.len() == 4 && lines[0] == lines[1] && lines[2] == lines[3], "{name}: {lines:?}");
            if lines[0] == lines[2] {
                break;
            }
            assert!(Instant::now() < deadline, "{name}: no connection is used again");
        }
        // And what the server says is not lost.
        let answer = connection.request(Method::POST, &url, "SELECT 1/0").await.unwrap();
        assert_eq!(answer.status, 500);
        cluster.stderr.find("division by zero");
        assert_eq!(query(&mut connection, &url, "SELECT 1").await.1, "1");
        // When its cluster is gone, so are its connections.
        drop(cluster);
        let cluster = Setup::new(&app).workers(1).args(&["--allow-connect", &grant]).start();
        let mut connection = Connection::open(cluster.address()).await;
        let others = "SELECT count(*) FROM pg_stat_activity WHERE client_port > 0 AND pid <> pg_backend_pid()";
        let deadline = Instant::now() + PATIENCE;
        while query(&mut connection, &url, others).await.1 != "0" {
            assert!(Instant::now() < deadline, "{name}: connections are left");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_talk_to_redis() {
    let address = address_of_its_own();
    let Some(_redis) = redis(&[], address) else { return };
    for name in DATABASE {
        let Some(app) = database(name) else { return };
        let cluster = Setup::new(&app).workers(1).args(&["--allow-connect", &address.to_string()]).start();
        for (by, expected) in [(1, "1 1"), (41, "42 42")] {
            let said = get(cluster.address(), &format!("/redis?at={address}&key={name}&by={by}")).await.unwrap();
            assert_eq!((said.status, said.text()), (200, expected), "{name}");
        }
    }
}

/// The address of the name server of a network of its own, and one that is nothing special, where it listens too.
const SERVER: &str = "127.0.0.53";
const PUBLIC: &str = "9.9.9.1";
/// An address that swallows what is sent to it, and that public one on the loopback interface. There is no other interface.
const SCRIPT: &str = "ip route add 192.0.2.53/32 dev lo; ip addr add 9.9.9.1/32 dev lo; ip addr add 9.9.9.2/32 dev lo; \
    printf '' > hosts; mount --bind hosts /etc/hosts; \
    echo nameserver 127.0.0.53 > resolv.conf; mount --bind resolv.conf /etc/resolv.conf";

struct Network {
    cluster: Cluster,
    socket: PathBuf,
    server: NameServer,
}

impl Network {
    /// With an instance for each request: what one was told, no other knows.
    fn set(name: &str, grants: &[&str]) -> Option<Self> {
        let granted = grants.iter().flat_map(|grant| ["--allow-connect", grant]);
        let args: Vec<_> = granted.chain(["--max-instance-reuse-count", "1"]).collect();
        let (cluster, socket) = apart(name, SCRIPT, &args)?;
        let zone = cluster.folder.path().join("zone");
        let entry = "connect::a_name_server_for_connections_runs_if_it_is_asked_for";
        let server = NameServer::start(cluster.pid(), &format!("{SERVER} {PUBLIC}"), &zone, entry);
        Some(Self { cluster, socket, server })
    }

    async fn ask(&self, path: &str) -> String {
        get_by(&self.socket, path).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_leads_a_connection_to_its_own_port_and_nowhere_else() {
    let grants = ["db.test.example:53", "other.test.example:54", "*.inner.test.example:*", "10.0.0.0:5432/8"];
    for name in HOSTILE {
        let Some(network) = Network::set(name, &grants) else { return };
        network.server.says(
            "db.test.example A 0 9.9.9.1\nother.test.example A 0 9.9.9.1\nturns.inner.test.example A 0 9.9.9.2\n\
             meta.inner.test.example A 0 169.254.169.254\nten.inner.test.example A 0 10.0.0.5\n\
             mixed.inner.test.example A 0 127.0.0.1 9.9.9.1",
        );
        let said = network.ask("/reach?name=db.test.example&at=9.9.9.1&port=53").await;
        assert!(said.contains("9.9.9.1") && said.ends_with("Ok(\"connected\")"), "{name}: {said}");
        // Not by an instance that was not told so, nor on a port of another name, nor to another address.
        for path in [
            "/tcp?addr=9.9.9.1:53",
            "/reach?name=db.test.example&at=9.9.9.1&port=54",
            "/reach?name=other.test.example&at=9.9.9.1&port=53",
            "/reach?name=db.test.example&at=9.9.9.2&port=53",
            "/reach?name=db.test.example&at=127.0.0.53&port=53",
            "/reach?name=db.test.example&at=::ffff:9.9.9.1&port=53",
        ] {
            let said = network.ask(path).await;
            let is_denied = said.contains("access-denied") || said.contains("invalid-argument");
            assert!(is_denied && !said.contains("connected"), "{name} {path}: {said}");
        }
        network.cluster.stderr.find("another port of a granted name; grant it with --allow-connect db.test.example:54");
        network.cluster.stderr.find("an address that is not granted; grant it with --allow-connect 9.9.9.2:53");
        // A name that leads inside: the guest is not even told where.
        for (host, address) in [("meta", "169.254.169.254"), ("turns", "127.0.0.53")] {
            network.server.says(&format!("{host}.inner.test.example A 0 {address}"));
            let path = format!("/reach?name={host}.inner.test.example&at={address}&port=53");
            let said = network.ask(&path).await;
            assert!(said.matches("access-denied").count() >= 2 && !said.contains(address), "{name} {path}: {said}");
            network.cluster.stderr.find(&format!("a granted name with the special address {address}"));
        }
        // Of several addresses it is told those that it may have.
        network.server.says("mixed.inner.test.example A 0 127.0.0.1 9.9.9.1");
        let said = network.ask("/resolve?name=mixed.inner.test.example").await;
        assert_eq!(said.trim(), "9.9.9.1", "{name}");
        // One that is granted itself is told, and good on its own port only.
        network.server.says("ten.inner.test.example A 0 10.0.0.5");
        let said = network.ask("/reach?name=ten.inner.test.example&at=10.0.0.5&port=5433").await;
        assert!(said.contains("10.0.0.5") && said.contains("access-denied"), "{name}: {said}");
        // Names that are not granted are not asked for.
        let said = network.ask("/resolve?name=evil.test.example").await;
        assert!(said.contains("access-denied"), "{name}: {said}");
        assert!(network.server.asked("evil.test.example", "A").is_empty());
        network.cluster.stderr.find("grant it with --allow-connect evil.test.example:PORT");
    }
    let Some(network) = Network::set("hostile_p3", &grants) else { return };
    network.server.says("db.test.example A 0 9.9.9.1\nmeta.inner.test.example A 0 169.254.169.254");
    assert_eq!(network.ask("/resolve-async?name=db.test.example").await.trim(), "9.9.9.1");
    for denied in ["evil.test.example", "meta.inner.test.example"] {
        let said = network.ask(&format!("/resolve-async?name={denied}")).await;
        assert!(said.contains("AccessDenied"), "{denied}: {said}");
    }
    let said = network.ask("/resolve-async?name=none.inner.test.example").await;
    assert!(said.contains("NameUnresolvable"), "{said}");
}

/// A name that leads elsewhere at its second look-up, within one instance: each connection is judged by what was found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_turns_takes_no_connection_inside() {
    let grants = ["turns.test.example:53", "stays.test.example:53"];
    for name in HOSTILE {
        let Some(network) = Network::set(name, &grants) else { return };
        // The second look-up is another name's, as the zone cannot change between two calls of a guest.
        network.server.says("turns.test.example A 0 9.9.9.1\nstays.test.example A 0 127.0.0.53");
        let reach = |at: &str| format!("/reach?name=turns.test.example&then=stays.test.example&at={at}&port=53");
        let said = network.ask(&reach(SERVER)).await;
        assert!(said.matches("access-denied").count() >= 2 && !said.contains("connected"), "{name}: {said}");
        let said = network.ask(&reach(PUBLIC)).await;
        assert!(said.ends_with("Ok(\"connected\")"), "{name}: {said}");
        // And the same name later.
        network.server.says("turns.test.example A 0 127.0.0.53");
        let said = network.ask(&format!("/reach?name=turns.test.example&at={SERVER}&port=53")).await;
        assert!(said.contains("access-denied") && !said.contains("connected"), "{name}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_client_finds_its_server_by_name() {
    for name in DATABASE {
        if database(name).is_none() {
            return;
        }
        let Some(network) = Network::set(name, &["redis.test.example:6379"]) else { return };
        network.server.says("redis.test.example A 600 9.9.9.1");
        let pid = network.cluster.pid().to_string();
        let inside = ["nsenter", "--target", &pid, "--user", "--preserve-credentials", "--net"];
        let Some(_redis) = redis(&inside, "9.9.9.1:6379".parse().unwrap()) else { return };
        let said = network.ask("/redis?at=redis.test.example:6379&key=a&by=7").await;
        assert_eq!(said, "7 7", "{name}");
        assert_eq!(network.server.asked("redis.test.example", "A").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_to_connect_ends_in_time() {
    for name in HOSTILE {
        let Some(network) = Network::set(name, &["192.0.2.53:5432"]) else { return };
        let paths: &[&str] = if name == "hostile_p3" { &["/tcp", "/tcp-async"] } else { &["/tcp"] };
        for path in paths {
            let begun = Instant::now();
            let said = network.ask(&format!("{path}?addr=192.0.2.53:5432")).await;
            assert!(said.to_lowercase().contains("timeout"), "{name} {path}: {said}");
            let took = begun.elapsed();
            assert!(took >= MAX_CONNECT_TIME && took < MAX_CONNECT_TIME + SLOW, "{name} {path}: {took:?}");
        }
    }
}
