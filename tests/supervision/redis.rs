//! Key-value stores in a Redis: the real one, started by the test, and servers that are none.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use harness::tls::Authority;
use harness::tools::{Tool, address_of_its_own};
use harness::{Cluster, Follower, Setup, guest, until};

use super::stores::{counts_once, get, serve, told};

/// A Redis of a test's own, which keeps nothing.
struct Redis {
    server: Follower,
    address: SocketAddr,
}

impl Redis {
    /// None if there is none on this machine.
    fn start(folder: &Path, args: &[&str]) -> Option<Self> {
        Self::start_at(address_of_its_own(), folder, args)
    }

    fn start_at(address: SocketAddr, folder: &Path, args: &[&str]) -> Option<Self> {
        let Some(tool) = Tool::find("redis-server") else {
            println!("skipped: there is no redis-server");
            return None;
        };
        let mut command = tool.command();
        command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(folder).args(args);
        let server = Follower::start(&mut command).unwrap();
        server.stdout.find("Ready to accept connections");
        Some(Self { server, address })
    }

    fn url(&self) -> String {
        format!("default=redis://{}", self.address)
    }
}

fn put(cluster: &Cluster, key: &str, value: &str) -> (u16, String) {
    told(cluster, Method::PUT, &format!("/default/{key}"), value)
}

/// By each way to it, with a database, a prefix, and a password from a file.
#[test]
fn a_store_in_redis_does_what_one_in_a_file_does() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("redis");
    let (socket, password) = (folder.path().join("redis.sock"), folder.path().join("password"));
    std::fs::write(&password, "p@ss word\n").unwrap();
    let tls = address_of_its_own();
    let [certificate, key] = authority.issue(&[&tls.ip().to_string()]).write(folder.path(), "redis");
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, &authority.pem).unwrap();
    let tls_port = tls.port().to_string();
    let paths = [&certificate, &key, &roots, &socket].map(|path| path.display().to_string());
    let [certificate, key, ca, socket] = &paths;
    let args = [
        ["--requirepass", "p@ss word"],
        ["--unixsocket", socket],
        ["--tls-port", &tls_port],
        ["--tls-cert-file", certificate],
        ["--tls-key-file", key],
        ["--tls-ca-cert-file", ca],
        ["--tls-auth-clients", "no"],
    ];
    let Some(redis) = Redis::start(folder.path(), args.as_flattened()) else { return };
    let (port, file) = (redis.address.port(), password.display());
    let host = tls.ip();
    let urls = [
        format!("default=redis://{host}:{port}/3?prefix=app:*&password-file={file}"),
        format!("default=unix:{socket}?db=4&password=p%40ss%20word"),
        format!("default=rediss://:p%40ss%20word@{host}:{tls_port}/5?prefix=x"),
    ];
    for (url, name) in urls.iter().zip(["stores", "stores_p3", "stores"]) {
        let setup = Setup::new(&guest(name)).args(&["--kv", url]).env("SSL_CERT_FILE", roots.to_str().unwrap());
        let cluster = setup.start();
        assert_eq!(told(&cluster, Method::GET, "/default/k", ""), (404, "404 Not Found\n".into()), "{url}");
        assert_eq!(put(&cluster, "k", "v"), (200, "set".into()));
        assert_eq!(get(&cluster, "/default/k"), "v");
        assert_eq!(get(&cluster, "/default/k?from=none&to=w"), "false");
        assert_eq!(get(&cluster, "/default/k?from=v&to=w"), "true");
        assert_eq!(
            (get(&cluster, "/default/n?increment=7"), get(&cluster, "/default/n?increment=-9")),
            ("7".into(), "-2".into())
        );
        assert_eq!(get(&cluster, "/default/n"), "-2");
        let (status, said) = told(&cluster, Method::GET, "/default/k?increment=1", "");
        assert!(status == 409 && said.contains("not an integer"), "{status} {said}");
        assert_eq!(put(&cluster, "m?many=2500", "x"), (200, "done".into()));
        assert_eq!(get(&cluster, "/default/m?many=2501"), "2500");
        let pages: Vec<Vec<String>> = serde_json::from_str(&get(&cluster, "/default")).unwrap();
        let mut keys = pages.concat();
        keys.sort();
        keys.dedup();
        assert_eq!((keys.len(), &*keys[0], &*keys[2]), (2502, "k", "m00001"), "{url}");
        assert_eq!(told(&cluster, Method::DELETE, "/default/m?many=2500", "").0, 200);
        assert_eq!(told(&cluster, Method::DELETE, "/default/k", "").0, 200);
        assert_eq!(get(&cluster, "/default"), "[[\"n\"]]");
        assert_eq!(cluster.status()["keeper"], serde_json::Value::Null);
    }
    // Each had its own.
    let Some(cli) = Tool::find("redis-cli") else { return };
    for (db, key) in [("3", "app:*n"), ("4", "n"), ("5", "xn")] {
        let args = [
            "-h",
            &host.to_string(),
            "-p",
            &port.to_string(),
            "--no-auth-warning",
            "-a",
            "p@ss word",
            "-n",
            db,
            "keys",
            "*",
        ];
        assert_eq!(cli.run(args).stdout.trim(), key);
    }
}

/// Errors within the timeout; when it is there again, the stores can be used within moments, by the same workers.
#[test]
fn a_redis_that_is_lost_is_an_error_until_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(folder.path(), &[]) else { return };
    let url = redis.url();
    let cluster = serve("stores", 2, &["--kv", &url, "--kv-timeout", "500ms"]);
    let workers = [cluster.worker(0), cluster.worker(1)];
    let is_back = || (put(&cluster, "k", "1").0 == 200).then_some(());
    until("it is served", is_back);

    redis.server.signal(Signal::SIGSTOP);
    let (status, said) = put(&cluster, "k", "2");
    assert!(said.contains("did not answer within --kv-timeout 500ms"), "{status} {said}");
    // A worker that had no connection knows that it has written nothing.
    assert_eq!(status, if said.contains("nothing was written") { 409 } else { 504 }, "{said}");
    let (status, said) = told(&cluster, Method::GET, "/default/k", "");
    assert!(status == 409 && said.contains(&redis.address.to_string()), "{status} {said}");
    // Nothing is kept of those that it has not taken.
    let descriptors = || {
        let of = |worker: Option<Pid>| std::fs::read_dir(format!("/proc/{}/fd", worker.unwrap())).unwrap().count();
        workers.map(of)
    };
    let before = descriptors();
    for _ in 0..10 {
        assert_ne!(put(&cluster, "k", &"x".repeat(1 << 20)).0, 200);
    }
    until("the connections are gone", || {
        descriptors().iter().zip(before).all(|(now, before)| *now <= before + 1).then_some(())
    });
    redis.server.signal(Signal::SIGCONT);
    until("it goes on", is_back);

    let address = redis.address;
    drop(redis);
    until("its end is noticed", || {
        let (status, said) = put(&cluster, "k", "3");
        (status == 409 && said.contains("nothing was written")).then_some(())
    });
    let redis = Redis::start_at(address, folder.path(), &[]).unwrap();
    until("it is there again, for both workers", || (0..8).all(|_| is_back().is_some()).then_some(()));
    // A connection that was closed while nobody used it is no error for the next who does.
    drop(redis);
    let redis = Redis::start_at(address, folder.path(), &["--maxmemory", "1mb"]).unwrap();
    for _ in 0..8 {
        let (status, said) = put(&cluster, "k", "1");
        assert_eq!(status, 200, "{said}");
    }
    assert_eq!(get(&cluster, "/default/k"), "1");
    // What it refuses is said in its own words.
    until("it is full", || {
        let (status, said) = put(&cluster, "large?many=20", &"x".repeat(100_000));
        (status == 409 && said.contains("maxmemory")).then_some(())
    });
    drop(redis);
    assert_eq!([cluster.worker(0), cluster.worker(1)], workers);
    assert_eq!(cluster.status()["totals"]["traps"], 0);
}

/// A server that answers every command with the same, whatever it is.
fn answers(answer: &'static [u8], endless: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move |mut stream: TcpStream| {
        let mut command = [0; 4096];
        while stream.read(&mut command).is_ok_and(|read| read > 0) {
            if stream.write_all(answer).is_err() {
                return;
            }
            while endless && stream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
        }
    };
    // It ends with the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

#[test]
fn servers_that_are_no_redis_cost_no_more_than_an_error() {
    let urls = [
        ("garbage", answers(b"HTTP/1.1 400 Bad Request\r\n\r\n", false)),
        ("half", answers(b"$10\r\nabc", false)),
        ("nothing", answers(b"", false)),
        ("moved", answers(b"-MOVED 3999 127.0.0.1:6381\r\n", false)),
        ("giant", answers(b"$1073741824\r\n", true)),
        ("giant-line", answers(b"+", true)),
        ("nested", answers(b"*2\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n:1\r\n", false)),
        ("other", answers(b"*0\r\n", false)),
        ("full", answers(b"-ERR max number of clients reached\r\n", false)),
    ];
    let grants: Vec<String> =
        urls.iter().flat_map(|(name, address)| ["--kv".into(), format!("{name}=redis://{address}")]).collect();
    let args: Vec<&str> = grants.iter().map(String::as_str).chain(["--kv-timeout", "400ms"]).collect();
    let cluster = serve("stores", 1, &args);
    let worker = cluster.worker(0);
    for (name, _) in &urls {
        for how in ["k", "k?increment=1", "k?from=none&to=1", "k?many=30", ""] {
            let began = Instant::now();
            let path = format!("/{name}/{how}").trim_end_matches('/').to_owned();
            let (status, said) = told(&cluster, Method::GET, &path, "");
            assert!([409, 504].contains(&status), "{path}: {status} {said}");
            assert!(began.elapsed() < Duration::from_secs(30), "{path}");
        }
        assert_ne!(told(&cluster, Method::PUT, &format!("/{name}/k"), "1").0, 500, "{name}");
    }
    assert_eq!(cluster.worker(0), worker);
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.unwrap())).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    assert!(kib.parse::<u64>().unwrap() < 400 << 10, "{kib} KiB");
    assert_eq!(told(&cluster, Method::PUT, "/default/k", "1").0, 200);
}

#[test]
fn every_acknowledged_increment_counts_once_in_redis() {
    let folder = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(folder.path(), &[]) else { return };
    counts_once(&serve("stores", 8, &["--max-error-increase", "100", "--kv", &redis.url()]), 4000);
}
