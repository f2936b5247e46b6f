//! Requests that guests send: upstreams at the edges of HTTP, name servers, ports.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use tokio::net::UnixStream;

use harness::client::{Answer, Connection, get, whole};
use harness::{Cluster, Setup, guest, until};

/// Guests of both versions of WASI that pass on what they get.
const PROXIES: [&str; 2] = ["sdk", "sdk_p3"];
const HOSTILE: [&str; 2] = ["hostile_p2", "hostile_p3"];

/// Answers each request with the pieces that `reply` makes of its head, until the test ends. It is the client who closes.
fn upstream(reply: impl Fn(&str) -> Vec<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let reply = std::sync::Arc::new(reply);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, reply) = (stream.unwrap(), reply.clone());
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                    if head.ends_with(b"\r\n\r\n") {
                        for piece in reply(&String::from_utf8_lossy(&std::mem::take(&mut head))) {
                            let _ = stream.write_all(&piece);
                        }
                    }
                }
            });
        }
    });
    address
}

/// Answers with the head of the request.
fn mirror(head: &str) -> Vec<Vec<u8>> {
    vec![format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len()).into_bytes()]
}

fn cluster(name: &str, upstream: SocketAddr) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(&["--allow-host", &format!("http://{upstream}")]).start()
}

async fn send(cluster: &Cluster, method: Method, path: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path).body(Full::<Bytes>::default()).unwrap();
    for (name, value) in fields {
        request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    whole(Connection::open(cluster.address()).await.send_request(request).await.unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_good_whatever_comes_behind_it() {
    let answers = [
        (Method::HEAD, "200 OK\r\ncontent-length: 5", "hello", ""),
        (Method::GET, "204 No Content", "hello", ""),
        (Method::GET, "304 Not Modified\r\netag: \"1\"", "hello", ""),
        (Method::GET, "200 OK\r\ncontent-length: 5", "hello\r\n", "hello"),
        (Method::GET, "200 OK\r\ncontent-length: 5", "helloHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", "hello"),
        (Method::GET, "200 OK\r\ntransfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n\r\n", "hello"),
        (Method::POST, "413 Content Too Large\r\ncontent-length: 5", "hello, and more", "hello"),
    ];
    let scripts = answers.clone();
    let upstream = upstream(move |head| {
        let number: usize = head.split(['/', ' ']).nth(2).and_then(|number| number.parse().ok()).unwrap();
        let (_, head, rest, _) = scripts[number % scripts.len()];
        let head = format!("HTTP/1.1 {head}\r\n\r\n");
        // At once, or behind each other.
        if number < scripts.len() { vec![(head + rest).into_bytes()] } else { vec![head.into(), rest.into()] }
    });
    for name in PROXIES {
        let cluster = cluster(name, upstream);
        for number in 0..2 * answers.len() {
            let (method, head, _, body) = &answers[number % answers.len()];
            let path = format!("/proxy?url=http://{upstream}/{number}");
            let answer = send(&cluster, method.clone(), &path, &[]).await;
            let status: u16 = head[..3].parse().unwrap();
            assert_eq!((answer.status, answer.text()), (status, *body), "{name}, {number}: {method} {head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_connection_names_is_not_passed_on() {
    let upstream = upstream(|head| {
        let text = head.to_ascii_lowercase();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}", text.len());
        vec![format!("{head}\r\nconnection: x-back, close\r\nx-back: 1\r\nx-end: 1\r\n\r\n{text}").into_bytes()]
    });
    for name in PROXIES {
        let cluster = cluster(name, upstream);
        let fields = [("connection", "X-Hop"), ("connection", "keep-alive"), ("x-hop", "1"), ("x-end", "1")];
        let answer = send(&cluster, Method::GET, &format!("/proxy?url=http://{upstream}/"), &fields).await;
        let sent = answer.text();
        assert!(sent.contains("\r\nx-end: 1\r\n") && !sent.contains("x-hop"), "{name}: {sent}");
        assert!(answer.headers.contains_key("x-end") && !answer.headers.contains_key("x-back"), "{name}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_body_is_sent_as_one() {
    let upstream = upstream(mirror);
    for name in PROXIES {
        let cluster = cluster(name, upstream);
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS, Method::GET] {
            let path = format!("/proxy?url=http://{upstream}/");
            let answer = send(&cluster, method.clone(), &path, &[]).await;
            let head = answer.text().to_ascii_lowercase();
            assert!(!head.contains("transfer-encoding"), "{name}: {head}");
            let has_content = matches!(method, Method::POST | Method::PUT | Method::PATCH);
            assert!(!has_content || head.contains("\r\ncontent-length: 0\r\n"), "{name}: {head}");
        }
    }
}

/// Or is the interface's own error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_target_is_sent_well_formed() {
    let upstream = upstream(mirror);
    for name in HOSTILE {
        let cluster = cluster(name, upstream);
        for (method, target, sent) in [
            ("GET", "", Some("/")),
            ("GET", "%3Fa=b", Some("/?a=b")),
            ("GET", "/a%3Fb%23c", Some("/a?b")),
            ("GET", "//x.example/a", Some("//x.example/a")),
            ("GET", "*", None),
            ("OPTIONS", "/", Some("/")),
            ("GET", "a/b", None),
            ("GET", "x.example:80", None),
            ("GET", "http://x.example/", None),
            ("GET", "/a%20HTTP/1.1%0D%0Ax:%20y", None),
            ("GET", "/%C3%A4", None),
            ("GET", "/%7F", None),
            ("CONNECT", "/", None),
        ] {
            let path = format!("/fetch?url=http://{upstream}&method={method}&target={target}");
            let answer = get(cluster.address(), &path).await.unwrap();
            match sent {
                Some(sent) => {
                    let line = format!("200\n{method} {sent} HTTP/1.1\r\n");
                    assert!(answer.text().starts_with(&line), "{name}, {target:?}: {}", answer.text());
                }
                None => assert!(answer.text().starts_with("error: "), "{name}, {target:?}: {}", answer.text()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_are_told_whoever_fills_the_list() {
    let cluster = Setup::new(&guest("hostile_p2")).workers(1).start();
    let mut connection = Connection::open(cluster.address()).await;
    for n in 0..200 {
        connection.get(&format!("/fetch?url=http://chosen-{n}.example/")).await.unwrap();
    }
    // A line each second, of whatever is denied then.
    while !cluster.stderr.lines().iter().any(|line| line.contains("--allow-host http://needed.example")) {
        connection.get("/fetch?url=http://needed.example/").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.stderr.find("other such messages were not logged)");
    let told = cluster.stderr.lines().iter().filter(|line| line.contains("chosen-")).count();
    assert!((1..100).contains(&told), "{told} lines");
}

/// In namespaces of its own, where `script` has prepared the network, and a socket leads to it. `None` where the machine
/// does not permit that.
pub(super) fn apart(name: &str, script: &str, args: &[&str]) -> Option<(Cluster, std::path::PathBuf)> {
    let setup = Setup::new(&guest(name)).workers(1).args(args);
    let socket = setup.folder.path().join("http");
    let script = format!("set -e; ip link set lo up; {script}");
    let unshare = ["--map-root-user", "--net", "--mount", "sh", "-c"];
    let mut tried = Command::new("unshare");
    tried.args(unshare).arg(&script).arg("sh").current_dir(setup.folder.path());
    if !tried.output().is_ok_and(|tried| tried.status.success()) {
        println!("skipped: there can be no network namespace");
        return None;
    }
    let socket_flag = format!("unix:{}", socket.display());
    let setup = setup.args(&["--listen", &socket_flag]);
    let before: Vec<&str> = ["unshare"].into_iter().chain(unshare).collect();
    Some((setup.behind(&before, &format!("{script}; exec \"$@\"")).start(), socket))
}

pub(super) async fn get_by(socket: &Path, path: &str) -> String {
    let mut connection = Connection::over(UnixStream::connect(socket).await.unwrap()).await;
    connection.get(path).await.unwrap().text().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_free_ports_says_so() {
    let script = "echo 41000 41003 > /proc/sys/net/ipv4/ip_local_port_range";
    for name in HOSTILE {
        let Some((cluster, socket)) = apart(name, script, &["--allow-host", "http://127.0.0.1:*"]) else { return };
        let own = cluster.address();
        let said = get_by(&socket, &format!("/fetch-many?n=8&url=http://{own}/")).await;
        assert!(said.contains("ConnectionLimitReached"), "{name}: {said}");
        cluster.stderr.find("outbound connections fail: no local port is free");
        assert_eq!(cluster.stderr.lines().iter().filter(|line| line.contains("no local port")).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_name_server_holds_up_its_own_names_only() {
    // An address that swallows what is sent to it.
    let script = "ip route add 192.0.2.53/32 dev lo; \
                  echo nameserver 192.0.2.53 > resolv.conf; mount --bind resolv.conf /etc/resolv.conf";
    for name in HOSTILE {
        let args = ["--allow-host", "http://silent.example", "--allow-host", "http://localhost:*"];
        let Some((cluster, socket)) = apart(name, script, &args) else { return };
        let silent =
            |socket: std::path::PathBuf| async move { get_by(&socket, "/fetch?url=http://silent.example/").await };
        let waiting: Vec<_> = (0..40).map(|_| tokio::spawn(silent(socket.clone()))).collect();
        until("they wait", || (cluster.in_flight()? >= 40).then_some(()));
        let port = cluster.address().port();
        let said = get_by(&socket, &format!("/fetch?url=http://localhost:{port}/")).await;
        assert_eq!(said, "200\nhello", "{name}");
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "they still waited when the other was answered");
        // The other guest's need not be waited for.
        if name == HOSTILE[0] {
            for waiting in waiting {
                let said = waiting.await.unwrap();
                assert!(said.contains("DnsTimeout"), "{name}: {said}");
            }
        }
    }
}

/// Swap for the whole machine, from a file, until this is dropped. `None` where that is not permitted.
struct Swap(std::path::PathBuf);

impl Swap {
    fn prepare(folder: &Path) -> Self {
        let file = folder.join("swap");
        std::fs::write(&file, vec![0; 64 << 20]).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Self(file)
    }

    fn turn_on(&self) -> bool {
        ["mkswap", "swapon"]
            .iter()
            .all(|tool| Command::new(tool).arg(&self.0).output().is_ok_and(|ended| ended.status.success()))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // It may never have been on.
        let _ = Command::new("swapoff").arg(&self.0).output();
    }
}

/// A control group whose memory can be pushed out; dropped, it is gone.
struct Group(std::path::PathBuf);

impl Group {
    fn make() -> Option<Self> {
        let root =
            [Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup")].into_iter().find(|it| it.exists())?;
        let group = Self(root.join(format!("wasmcluster-test-{}", std::process::id())));
        std::fs::create_dir(&group.0).ok().map(|()| group)
    }

    fn push_out(&self) {
        for (file, what) in [("memory.force_empty", "0"), ("memory.reclaim", "1G")] {
            // One is of version 1, the other of version 2, and neither manages all that it is asked for.
            let _ = std::fs::write(self.0.join(file), what);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "turns on swap for the whole machine, which other clusters hear of too"]
async fn a_page_that_was_swapped_out_is_seen_by_no_other_instance() {
    let folder = tempfile::tempdir().unwrap();
    for is_on_before in [true, false] {
        let swap = Swap::prepare(folder.path());
        if is_on_before && !swap.turn_on() {
            println!("skipped: swap cannot be turned on");
            return;
        }
        let Some(group) = Group::make() else {
            println!("skipped: there can be no control group");
            return;
        };
        let setup = Setup::new(&guest("hostile_p2")).workers(1).args(&["--max-instance-reuse-count", "100"]);
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0.display());
        let cluster = setup.behind(&["sh", "-c"], &script).start();
        let worker = cluster.worker(0).unwrap();
        assert!(is_on_before || swap.turn_on());
        let secret = async || get(cluster.address(), "/secret").await.unwrap().text().to_owned();
        get(cluster.address(), "/secret?set=x").await.unwrap();
        until("its pages are swapped out", || {
            group.push_out();
            let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
            let swapped = status.lines().find_map(|line| line.strip_prefix("VmSwap:"))?.trim().strip_suffix(" kB")?;
            (swapped.parse::<u64>().unwrap() > 1000).then_some(())
        });
        // Its instance goes when it has not been needed for a while.
        tokio::time::sleep(Duration::from_secs(13)).await;
        assert_eq!(secret().await, "nothing", "swap was on before: {is_on_before}");
        drop(cluster);
        drop(group);
    }
}

/// A guest that was built with debug information says where it was, whatever wasmtime's own variable says: that is no part of
/// what an artifact is kept under, so one that was compiled without the variable serves with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_names_the_lines_of_a_guest_that_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--log-level", "debug", "--store", folder.path().to_str().unwrap()];
    for (variable, cached) in [(None, "cached=false"), (Some("0"), "cached=true"), (Some("1"), "cached=true")] {
        let setup = Setup::new(&guest("hostile_p2_lines")).workers(1).args(&args);
        let cluster = match variable {
            Some(value) => setup.env("WASMTIME_BACKTRACE_DETAILS", value),
            None => setup,
        };
        let cluster = cluster.start();
        let compiled = cluster.stderr.find("the component is compiled");
        assert!(compiled.contains(cached), "{variable:?}: {compiled}");
        get(cluster.address(), "/trap").await.unwrap();
        let line = cluster.stderr.find("0: misdeeds::answer (at misdeeds/src/lib.rs:");
        let source = include_str!("../guests/misdeeds/src/lib.rs");
        let number: usize = line.rsplit(':').next().unwrap().trim_end_matches(')').parse().unwrap();
        assert!(source.lines().nth(number - 1).unwrap().contains("asked to trap"), "{line}");
        cluster.stderr.find("(at hostile-p2/src/lib.rs:");
        // Whoever looks for the request finds them, too.
        let told = cluster.command(&["logs", "--request", "1-1"]);
        assert!(told.code == Some(0) && told.stdout.lines().any(|told| told == line), "{told:?}");
    }
}

/// A guest that ends in the middle of a request: why, and then its own functions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_names_its_cause_and_the_functions_of_the_guest() {
    for name in HOSTILE {
        let cluster = Setup::new(&guest(name)).workers(1).start();
        get(cluster.address(), "/trap").await.unwrap();
        get(cluster.address(), "/exit?code=3").await.unwrap();
        cluster.stderr.find("asked to trap");
        cluster.stderr.find("the guest trapped: wasm `unreachable` instruction executed");
        // The interface that the guest calls says only whether it went well.
        cluster.stderr.find("the guest exited with code 1");
        cluster.stderr.find("0: misdeeds::surroundings::exit");
        let lines = cluster.stderr.lines();
        let first: Vec<&String> = lines.iter().filter(|line| line.trim().starts_with("0: ")).collect();
        assert!(first[0].contains("0: misdeeds::answer (at 0x"), "{name}: {first:?}");
        for machinery in ["RUST_BACKTRACE", "rust_panic", "panicking", "wasm backtrace"] {
            assert!(!lines.iter().any(|line| line.contains(machinery)), "{name}: {machinery}: {lines:#?}");
        }
    }
}
