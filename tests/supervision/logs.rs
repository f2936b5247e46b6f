//! `wasmcluster logs`: the latest lines, for whoever asks. `--log-file`: all lines, in files that others rotate.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use harness::client::{Connection, get};
use harness::{Cluster, Setup, guest, until};

/// The lines that `wasmcluster logs ARGS` prints.
#[track_caller]
fn logs(cluster: &Cluster, args: &[&str]) -> Vec<String> {
    let ended = cluster.command(&[&["logs"], args].concat());
    assert!(ended.code == Some(0) && ended.stderr.is_empty(), "{ended:?}");
    ended.stdout.lines().map(str::to_owned).collect()
}

/// Those lines, once one of them has this text.
#[track_caller]
fn logs_with(cluster: &Cluster, text: &str, args: &[&str]) -> Vec<String> {
    until(&format!("{text} is among the lines"), || {
        let lines = logs(cluster, args);
        lines.iter().any(|line| line.contains(text)).then_some(lines)
    })
}

fn parsed(lines: &[String]) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    lines.iter().map(parse).collect()
}

async fn ask_as(cluster: &Cluster, path: &str, name: &str) {
    let request = http::Request::builder().uri(path).header("x-request-id", name);
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let mut connection = Connection::open(cluster.address()).await;
    let response = connection.send_request(request).await.unwrap();
    harness::client::whole(response).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_lines_are_told_by_worker_and_request() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    get(cluster.address(), "/print?out=to-stdout&err=to-stderr").await.unwrap();
    get(cluster.address(), "/trap").await.unwrap();
    ask_as(&cluster, "/print?out=by-name&err=", "order-7").await;
    logs_with(&cluster, "to-stdout", &[]);
    logs_with(&cluster, "to-stderr", &[]);
    let trapped = logs_with(&cluster, "the guest trapped", &["--request", "1-2"]);
    let all = logs_with(&cluster, "by-name", &[]);
    assert!(all[0].starts_with("Serving HTTP on http://127.0.0.1:"), "{all:#?}");
    // As they went out, each from its stream.
    let gone_out = [cluster.stdout.lines(), cluster.stderr.lines()].concat();
    assert!(all.iter().all(|line| gone_out.contains(line)), "{all:#?}");

    let printed = logs(&cluster, &["--request", "1-1"]);
    assert!(printed.iter().any(|line| line == "[worker 1 g 1 request 1-1 GET /print] to-stdout"), "{printed:#?}");
    assert!(printed.iter().all(|line| line.contains(" request 1-1 ")), "{printed:#?}");
    // With all lines of its backtrace.
    assert!(trapped.iter().any(|line| line.starts_with("    0: ")), "{trapped:#?}");
    let named = logs(&cluster, &["--request", "order-7"]);
    assert!(!named.is_empty() && named.iter().all(|line| line.contains(" order-7] ")), "{named:#?}");
    assert!(logs(&cluster, &["--request", "1-99"]).is_empty());

    let killed = cluster.worker(0).unwrap();
    kill(killed, Signal::SIGKILL).unwrap();
    cluster.replaced(0, killed);
    get(cluster.address(), "/print?out=by-the-second&err=").await.unwrap();
    let second = logs_with(&cluster, "by-the-second", &["--worker", "2"]);
    assert!(second.iter().all(|line| line.starts_with("[worker 2 ")), "{second:#?}");
    // The primary's own line is about it.
    let first = logs(&cluster, &["--worker", "1"]);
    assert!(first.iter().any(|line| line.contains("a worker died")), "{first:#?}");
    assert!(!first.iter().any(|line| line.contains("by-the-second") || line.contains("Serving")), "{first:#?}");
}

/// Whatever form they go out in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_lines_are_json_for_whoever_asks() {
    for format in ["pretty", "json"] {
        let cluster = Setup::new(&guest("scenarios")).workers(1).args(&["--log-format", format]).start();
        get(cluster.address(), "/print?out=to-stdout&err=to-stderr").await.unwrap();
        get(cluster.address(), "/trap").await.unwrap();
        logs_with(&cluster, "to-stdout", &[]);
        logs_with(&cluster, "to-stderr", &[]);
        let text = logs_with(&cluster, "the guest trapped", &[]);
        let lines = parsed(&logs(&cluster, &["--json"]));
        if format == "json" {
            assert_eq!(parsed(&text), lines);
        }
        let with = |part: &str| {
            let found = lines.iter().find(|line| line["message"].as_str().unwrap().contains(part));
            found.unwrap_or_else(|| panic!("{part}: {lines:#?}"))
        };
        assert!(with("Serving HTTP on")["url"].as_str().unwrap().starts_with("http://127.0.0.1:"));
        let printed = with("to-stdout");
        let about = ["stream", "request", "method", "path"].map(|field| printed[field].as_str().unwrap());
        assert_eq!(about, ["stdout", "1-1", "GET", "/print"]);
        assert_eq!((&printed["worker"], &printed["message"]), (&1.into(), &"to-stdout".into()));
        let trapped = with("the guest trapped");
        assert_eq!(
            (&trapped["level"], &trapped["worker"], &trapped["request"]),
            (&"ERROR".into(), &1.into(), &"1-2".into())
        );
        assert!(trapped["message"].as_str().unwrap().contains("\n    0: "), "{trapped}");
        assert!(parsed(&logs(&cluster, &["--json", "--request", "1-2"])).contains(trapped));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_followed_across_a_reload_to_the_end_of_the_cluster() {
    let cluster = Setup::new(&guest("scenarios"))
        .workers(1)
        .args(&["--min-ready", "0s", "--soak", "0s", "--log-level", "debug"])
        .start();
    get(cluster.address(), "/print?out=before&err=").await.unwrap();
    logs_with(&cluster, "before", &[]);
    let reader = cluster.follow(&["logs", "-f"]);
    let of_json = cluster.follow(&["logs", "--follow", "--json"]);
    reader.stdout.find("before");
    of_json.stdout.find("before");
    assert_eq!(cluster.reload(&[]).code, Some(0));
    get(cluster.address(), "/print?out=after&err=").await.unwrap();
    reader.stdout.find("[worker 2 g 2 request 2-1 GET /print] after");
    of_json.stdout.find("after");
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    for follower in [&reader, &of_json] {
        assert_eq!(follower.wait().code(), Some(0), "it ends with the cluster");
        until("its output ends", || follower.stdout.ended().then_some(()));
        let lines = follower.stdout.lines();
        let told = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!((told("before"), told("after"), told("Serving HTTP on")), (1, 1, 1), "{lines:#?}");
        assert!(lines.last().unwrap().contains("stopped"), "{lines:#?}");
    }
    parsed(&of_json.stdout.lines());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_the_log_misses_lines_and_holds_up_nobody() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    let socket = cluster.folder.path().join("wasmcluster/default.sock");
    let readers: Vec<UnixStream> = (0..4)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(b"GET /logs?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            let mut status = [0; 15];
            stream.read_exact(&mut status).unwrap();
            assert_eq!(status, *b"HTTP/1.1 200 OK");
            stream
        })
        .collect();
    let full = cluster.command(&["logs", "-f"]);
    assert!(full.code == Some(1) && full.stderr.contains("the log has 4 readers already"), "{full:?}");
    // More than sockets and buffers on the way hold.
    for _ in 0..3 {
        assert_eq!(get(cluster.address(), "/flood?lines=100000").await.unwrap().status, 200);
    }
    let dropped = cluster.status()["totals"]["lines_dropped"].as_u64().unwrap();
    until("the pipes are empty", || {
        let flooded = cluster.stdout.lines().iter().filter(|line| line.ends_with("flood")).count() as u64;
        (flooded + dropped >= 300_000).then_some(())
    });
    // One begins to read: it is told how much it has missed, and then goes on.
    for reader in &readers[1..] {
        reader.shutdown(std::net::Shutdown::Both).unwrap();
    }
    let mut lines =
        BufReader::new(&readers[0]).split(b'\n').map(|line| String::from_utf8_lossy(&line.unwrap()).into_owned());
    let missed = lines.find(|line| line.contains("lines: the reader was too slow]"));
    assert!(missed.is_some_and(|line| line.starts_with('[')));
    assert!(lines.next().unwrap().contains("flood"));
    drop(readers);
    logs_with(&cluster, "flood", &[]);
}

#[test]
fn a_primary_of_before_that_keeps_no_lines_is_told_as_such() {
    let cluster = Setup::new(&guest("hello")).start();
    assert_eq!(cluster.command(&["logs", "--name", "nobody"]).code, Some(7));
    assert_eq!(cluster.command(&["logs", "--worker", "first"]).code, Some(2));
    let socket = cluster.folder.path().join("old.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let old = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = String::new();
        BufReader::new(&stream).read_line(&mut asked).unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
        asked
    });
    let refused = cluster.command(&["logs", "-f", "--worker", "3", "--control", socket.to_str().unwrap()]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("older than this command and keeps no lines"),
        "{refused:?}"
    );
    assert_eq!(old.join().unwrap(), "GET /logs?follow=true&worker=3 HTTP/1.1\r\n");
}

/// `serve` with a log file in its folder.
fn with_log_file(name: &str, args: &[&str]) -> (Cluster, PathBuf) {
    let setup = Setup::new(&guest(name));
    let path = setup.folder.path().join("shop.log");
    let cluster = setup.args(&["--log-file", path.to_str().unwrap()]).args(args).start();
    (cluster, path)
}

fn lines_of(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[track_caller]
fn until_it_has(path: &Path, text: &str) -> Vec<String> {
    until(&format!("{text} is in the file"), || {
        Some(lines_of(path)).filter(|lines| lines.iter().any(|line| line.contains(text)))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_lines_are_in_the_log_file_and_the_start_is_told_on_stderr() {
    for format in ["pretty", "json"] {
        let (cluster, path) = with_log_file("scenarios", &["--log-format", format]);
        get(cluster.address(), "/print?out=to-stdout&err=to-stderr").await.unwrap();
        get(cluster.address(), "/trap").await.unwrap();
        for text in ["Serving HTTP on", "serving ", "to-stdout", "to-stderr", "the guest trapped"] {
            until_it_has(&path, text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        logs_with(&cluster, "to-stdout", &[]);
        assert_eq!(cluster.command(&["stop"]).code, Some(0));
        cluster.wait();
        until("its output ends", || (cluster.stdout.ended() && cluster.stderr.ended()).then_some(()));
        assert!(cluster.stdout.lines().is_empty(), "{:?}", cluster.stdout.lines());
        let said = cluster.stderr.lines();
        assert!(said.len() == 1 && said[0].contains("Serving HTTP on"), "{said:?}");
        let lines = lines_of(&path);
        assert!(lines[0].contains("Serving HTTP on") && lines.last().unwrap().contains("stopped"), "{lines:#?}");
        match format {
            "json" => drop(parsed(&lines)),
            _ => assert!(!lines.concat().contains(['\x1b', '\x1e']), "{lines:#?}"),
        }
    }
}

/// Renamed, or said by a signal, under load and during a reload: each line that a guest prints is in one of the files, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_file_that_is_rotated_under_load_loses_no_line() {
    let (cluster, path) = with_log_file("scenarios", &["--min-ready", "0s", "--soak", "0s"]);
    let (address, next, goes_on) = (cluster.address(), AtomicU64::new(0), AtomicBool::new(true));
    let (next, goes_on) = (Arc::new(next), Arc::new(goes_on));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (next, goes_on) = (next.clone(), goes_on.clone());
            tokio::spawn(async move {
                while goes_on.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let answer = get(address, &format!("/print?out=line-{number}-&err=")).await.unwrap();
                    assert_eq!(answer.status, 200);
                }
            })
        })
        .collect();
    let goes_further = || {
        let from = next.load(Ordering::Relaxed);
        until("the load goes on", || (next.load(Ordering::Relaxed) > from + 100).then_some(()));
    };
    goes_further();
    let rotated = |number: u32| path.with_extension(format!("log.{number}"));
    for number in 1..=3 {
        fs::rename(&path, rotated(number)).unwrap();
        if number > 1 {
            cluster.signal(Signal::SIGUSR1);
        }
        until_it_has(&path, "again");
        goes_further();
        if number == 2 {
            assert_eq!(cluster.reload(&[]).code, Some(0));
            goes_further();
        }
    }
    goes_on.store(false, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let totals = &cluster.status()["totals"];
    assert_eq!((&totals["lines_dropped"], &totals["log_file_dropped"]), (&0.into(), &0.into()));
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    cluster.wait();
    let all: Vec<String> = (1..=3).map(rotated).chain([path.clone()]).flat_map(|path| lines_of(&path)).collect();
    let number = |line: &String| line.split_once("] line-")?.1.strip_suffix('-')?.parse::<u64>().ok();
    let mut numbers: Vec<u64> = all.iter().filter_map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..next.load(Ordering::Relaxed)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_file_that_takes_nothing_costs_lines_and_no_request() {
    // A device that is always full.
    let cluster = Setup::new(&guest("scenarios")).args(&["--log-file", "/dev/full"]).start();
    let print = async |text: &str| {
        assert_eq!(get(cluster.address(), &format!("/print?out={text}&err=")).await.unwrap().status, 200);
    };
    print("to-nowhere").await;
    cluster.stderr.find("the log file /dev/full did not take");
    cluster.stderr.find("No space left on device");
    let dropped = |cluster: &Cluster| cluster.status()["totals"]["log_file_dropped"].as_u64();
    until("they are counted", || (dropped(&cluster)? >= 2).then_some(()));
    // Who asks sees them nevertheless, and why they are not in the file.
    logs_with(&cluster, "to-nowhere", &[]);
    logs_with(&cluster, "the log file /dev/full did not take", &[]);
    drop(cluster);

    // Nor does a reader that does not read.
    let setup = Setup::new(&guest("scenarios"));
    let fifo = setup.folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let cluster = setup.args(&["--log-file", fifo.to_str().unwrap()]).start();
    while dropped(&cluster) == Some(0) {
        assert_eq!(get(cluster.address(), "/flood?lines=20000").await.unwrap().status, 200);
    }
    cluster.stderr.find("it takes them too slowly");
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0), "it stops although its log is stuck");
    drop(reader);

    for (path, code, said) in [
        ("/no/such/folder/log", 1, "cannot open the log file /no/such/folder/log: No such file or directory"),
        ("/", 1, "cannot open the log file /: "),
        ("-", 2, "--log-file - is no file"),
    ] {
        let refused = Setup::new(&guest("hello")).args(&["--log-file", path]).run();
        assert!(refused.code == Some(code) && refused.stderr.contains(said), "{path}: {refused:?}");
    }
}

/// Why it does not serve is in the file, too, for whoever looks only there.
#[test]
fn a_log_file_has_the_error_that_ends_the_start() {
    let setup = Setup::new(Path::new("/no/such/app.wasm"));
    let path = setup.folder.path().join("shop.log");
    let ended = setup.args(&["--log-file", path.to_str().unwrap()]).launch();
    assert_eq!(ended.wait().code(), Some(1));
    ended.stderr.find("/no/such/app.wasm");
    until_it_has(&path, "/no/such/app.wasm");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_file_goes_on_when_its_disk_has_room_again() {
    let mount = "set -e; mkdir small; mount -t tmpfs -o size=64k,mode=700 none small";
    let before = ["unshare", "--map-root-user", "--mount", "sh", "-c"];
    let folder = tempfile::tempdir().unwrap();
    let mut tried = Command::new(before[0]);
    tried.args(&before[1..]).arg(mount).current_dir(folder.path());
    if !tried.output().is_ok_and(|tried| tried.status.success()) {
        return println!("skipped: there can be no small disk for one process");
    }
    let setup = Setup::new(&guest("scenarios")).args(&["--log-file", "small/shop.log"]);
    let cluster = setup.behind(&before, &format!("{mount}; exec \"$@\"")).start();
    // What only the cluster sees.
    let small = PathBuf::from(format!("/proc/{}/cwd/small", cluster.pid()));
    fs::write(small.join("filler"), vec![0; 1024 * 1024]).unwrap_err();
    let text = "x".repeat(3000);
    let print = async |text: &str| {
        assert_eq!(get(cluster.address(), &format!("/print?out={text}&err=")).await.unwrap().status, 200);
    };
    for _ in 0..20 {
        print(&text).await;
    }
    cluster.stderr.find("did not take");
    fs::remove_file(small.join("filler")).unwrap();
    print("there-is-room").await;
    let lines = until_it_has(&small.join("shop.log"), "there-is-room");
    assert!(lines.last().unwrap().starts_with("[worker "), "it begins a line of its own: {lines:#?}");
}
