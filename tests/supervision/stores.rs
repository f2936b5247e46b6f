//! Key-value stores: what outlives a request, a worker, the process that writes them, and the cluster.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::client::{Answer, Connection};
use harness::history::{Operation, Step, is_linearisable};
use harness::tools::Tool;
use harness::{Cluster, Follower, Setup, guest, until};

const GUESTS: [&str; 2] = ["stores", "stores_p3"];

pub(super) fn serve(name: &str, workers: u32, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(workers).args(&["--min-ready", "0s", "--soak", "0s"]).args(args).start()
}

/// A request on a connection of its own, and so to whichever worker takes it.
#[tokio::main(flavor = "current_thread")]
async fn ask(address: SocketAddr, method: Method, path: &str, body: String) -> hyper::Result<Answer> {
    use http_body_util::Full;
    let mut connection = Connection::<Full<bytes::Bytes>>::open(address).await;
    harness::client::whole(connection.send(method, path, Full::from(body)).await?).await
}

#[track_caller]
pub(super) fn told(cluster: &Cluster, method: Method, path: &str, body: &str) -> (u16, String) {
    let answer = ask(cluster.address(), method, path, body.into()).unwrap();
    (answer.status, answer.text().to_owned())
}

#[track_caller]
pub(super) fn get(cluster: &Cluster, path: &str) -> String {
    told(cluster, Method::GET, path, "").1
}

fn keeper(cluster: &Cluster) -> Option<Pid> {
    Some(Pid::from_raw(i32::try_from(cluster.status()["keeper"]["pid"].as_i64()?).unwrap()))
}

/// As the kernel was asked, and not as it happens to do.
#[test]
fn a_write_is_on_the_disk_before_it_is_answered() {
    let Some(strace) = Tool::find("strace") else { return println!("skipped: there is no strace") };
    let cluster = serve("stores", 1, &[]);
    assert_eq!(told(&cluster, Method::PUT, "/default/key", "0").0, 200);
    let keeper = keeper(&cluster).unwrap();
    let seen = cluster.folder.path().join("calls");
    let mut command = strace.command();
    command.args(["-q", "-f", "-e", "trace=fdatasync,fsync,msync", "-p", &keeper.to_string(), "-o"]).arg(&seen);
    let tracer = Follower::start(&mut command).unwrap();
    let is_traced = |thread: std::fs::DirEntry| {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    let attached = until("it is followed, or that is not allowed", || {
        let threads = std::fs::read_dir(format!("/proc/{keeper}/task")).unwrap();
        let all = threads.map(Result::unwrap).all(is_traced);
        (all || tracer.stdout.ended()).then_some(all)
    });
    if !attached {
        return println!("skipped: strace may not follow other processes here");
    }
    let flushed = || std::fs::read_to_string(&seen).unwrap().lines().filter(|line| line.ends_with("= 0")).count();
    for round in 1..=20 {
        let before = flushed();
        assert_eq!(told(&cluster, Method::PUT, "/default/key", &round.to_string()).0, 200);
        assert!(flushed() > before, "round {round}");
    }
    tracer.signal(Signal::SIGTERM);
    tracer.wait();
}

/// By whichever worker it was written, and with whichever version of WASI.
#[test]
fn every_worker_sees_what_one_has_written_and_so_does_the_next_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").display().to_string();
    for (round, name) in GUESTS.iter().enumerate() {
        let cluster = serve(name, 3, &["--state-dir", &state]);
        if round > 0 {
            assert_eq!((get(&cluster, "/default/text"), get(&cluster, "/default/count")), ("b".into(), "100".into()));
            assert_eq!(told(&cluster, Method::DELETE, "/default/many?many=2500", "").0, 200);
            for key in ["text", "count"] {
                assert_eq!(told(&cluster, Method::DELETE, &format!("/default/{key}"), "").0, 200);
            }
        }
        assert_eq!(told(&cluster, Method::GET, "/default/text", "").0, 404);
        assert_eq!(told(&cluster, Method::PUT, "/default/text", "a").0, 200);
        for _ in 0..10 {
            assert_eq!(get(&cluster, "/default/text"), "a");
        }
        for count in 1..=100 {
            assert_eq!(get(&cluster, "/default/count?increment=1"), count.to_string());
        }
        assert_eq!(get(&cluster, "/default/text?from=none&to=b"), "false");
        assert_eq!(get(&cluster, "/default/text?from=a&to=b"), "true");
        assert_eq!(told(&cluster, Method::PUT, "/default/many?many=2500", "x"), (200, "done".into()));
        assert_eq!(get(&cluster, "/default/many?many=2501"), "2500");
        let pages: Vec<Vec<String>> = serde_json::from_str(&get(&cluster, "/default")).unwrap();
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 502]);
        assert!(pages.concat().is_sorted());
        assert_eq!(cluster.command(&["stop"]).code, Some(0));
    }
}

#[test]
fn what_a_store_cannot_do_is_an_error_for_its_guest() {
    for name in GUESTS {
        let cluster = serve(name, 1, &["--kv", "small=memory:", "--kv-max-value", "1KiB", "--kv-max-size", "1MiB"]);
        for store in ["default", "small"] {
            let put = |key: &str, body: &str| told(&cluster, Method::PUT, &format!("/{store}/{key}"), body);
            let large = "x".repeat(1023);
            assert!(put("k", &large).1.contains("a value of 1025 bytes is over the limit, --kv-max-value 1KiB"));
            assert!(put(&"k".repeat(512), "1").1.contains("a key of 512 bytes is over the limit of 511"));
            assert_eq!(put(&"k".repeat(511), "1").0, 200);
            assert!(
                get(&cluster, &format!("/{store}/{}?increment=9223372036854775807", "k".repeat(511)))
                    .contains("64 bits")
            );
            assert_eq!(put("text", "x").0, 200);
            assert!(get(&cluster, &format!("/{store}/text?increment=1")).contains("not a whole number"));
        }
        assert_eq!(told(&cluster, Method::GET, "/another/k", "").0, 403);
        // All of them, or none.
        let (status, full) = told(&cluster, Method::PUT, "/default/full?many=2000", &"x".repeat(1000));
        assert!(status == 409 && full.contains("--kv-max-size 1MiB is reached"), "{status} {full}");
        assert_eq!(get(&cluster, "/default/full?many=2000"), "0");
        assert_eq!(told(&cluster, Method::PUT, "/default/text", "y").0, 200);
        assert_eq!(get(&cluster, "/default/text"), "y");
        assert_eq!(cluster.status()["totals"]["traps"], 0);
    }
    for (flag, said) in [
        ("sessions", "expected NAME=URL"),
        ("a/b=memory:", "letters, digits"),
        ("a=s3://bucket", "no kind of store"),
        ("a=file://host/x", "another machine"),
    ] {
        let refused = Setup::bare(&["serve", "app.wasm", "--kv", flag]).run();
        assert!(refused.code == Some(2) && refused.stderr.contains(said), "{flag}: {}", refused.stderr);
    }
}

/// A component that has no use for stores starts none, and a store in memory is each worker's own.
#[test]
fn a_keeper_is_there_only_if_there_is_something_to_keep() {
    let cluster = Setup::new(&guest("hello")).start();
    assert_eq!(cluster.status()["keeper"], serde_json::Value::Null);
    assert_eq!(cluster.children().len(), 2);
    let cluster = serve("stores", 1, &["--kv", "default=memory:"]);
    assert_eq!(told(&cluster, Method::PUT, "/default/k", "v").0, 200);
    assert_eq!((get(&cluster, "/default/k"), &cluster.status()["keeper"]), ("v".into(), &serde_json::Value::Null));
    let worker = cluster.worker(0).unwrap();
    kill(worker, Signal::SIGKILL).unwrap();
    cluster.replaced(0, worker);
    assert_eq!(told(&cluster, Method::GET, "/default/k", "").0, 404);
}

/// Whoever ends it, and when it hangs.
#[test]
fn a_keeper_that_is_lost_is_replaced_and_meanwhile_its_stores_are_read() {
    for name in GUESTS {
        let cluster = serve(name, 2, &["--kv-timeout", "300ms", "--hang-timeout", "2s"]);
        assert_eq!(told(&cluster, Method::PUT, "/default/k", "1").0, 200);
        for signal in [Signal::SIGKILL, Signal::SIGABRT] {
            let old = keeper(&cluster).unwrap();
            kill(old, signal).unwrap();
            assert_eq!(get(&cluster, "/default/k"), "1");
            until("it is replaced", || keeper(&cluster).filter(|new| *new != old));
            until("it writes", || (told(&cluster, Method::PUT, "/default/k", "1").0 == 200).then_some(()));
        }
        let old = keeper(&cluster).unwrap();
        // It ends when the cluster does, and not before.
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGXFSZ] {
            kill(old, signal).unwrap();
        }
        assert_eq!(told(&cluster, Method::PUT, "/default/k", "1").0, 200);
        assert_eq!(keeper(&cluster), Some(old));
        kill(old, Signal::SIGSTOP).unwrap();
        let (status, unknown) = told(&cluster, Method::PUT, "/default/k", "2");
        assert!(status == 504 && unknown.contains("did not answer within 300ms"), "{status} {unknown}");
        assert!(["1", "2"].contains(&&*get(&cluster, "/default/k")));
        cluster.stderr.find("hangs: it was silent for 2s");
        until("it is replaced", || keeper(&cluster).filter(|new| *new != old));
        until("it writes", || (told(&cluster, Method::PUT, "/default/k", "3").0 == 200).then_some(()));
        assert_eq!(get(&cluster, "/default/k"), "3");
        let status = cluster.status();
        assert_eq!((&status["totals"]["crashes"], &status["totals"]["traps"]), (&0.into(), &0.into()));
    }
}

/// A store that cannot be opened is told, and harms no other.
#[test]
fn a_store_that_is_damaged_is_refused_until_it_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").display().to_string();
    let args = ["--state-dir", &state, "--kv", "other=file:./other", "--kv-timeout", "2s", "--name", "shop"];
    let cluster = serve("stores", 2, &args);
    assert_eq!(told(&cluster, Method::PUT, "/default/k", "1").0, 200);
    assert_eq!(cluster.command(&["stop", "--name", "shop"]).code, Some(0));
    let store = Path::new(&state).join("shop.kv/default");
    let data = store.join("data.mdb");
    let whole = std::fs::read(&data).unwrap();
    std::fs::write(&data, &whole[..9000]).unwrap();

    let cluster = serve("stores", 2, &args);
    cluster.stderr.find("is damaged: data.mdb has 9000 bytes");
    for (method, path) in [(Method::GET, "/default/k"), (Method::PUT, "/default/k"), (Method::GET, "/default")] {
        let (status, said) = told(&cluster, method, path, "2");
        assert!(status == 409 && said.contains("put back a copy of the folder"), "{path}: {status} {said}");
    }
    assert_eq!(told(&cluster, Method::PUT, "/other/k", "2").0, 200);
    std::fs::write(&data, &whole).unwrap();
    assert_eq!(cluster.reload(&["--name", "shop"]).code, Some(0));
    assert_eq!((get(&cluster, "/default/k"), get(&cluster, "/other/k")), ("1".into(), "2".into()));
}

/// Nothing is acknowledged that is written where nobody will look, and other stores go on.
#[test]
fn a_store_that_is_moved_away_is_not_written_until_the_cluster_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let (one, away) = (folder.path().join("one"), folder.path().join("away"));
    let (grant, alias) = (format!("one={}", as_url(&one)), folder.path().join("alias"));
    let args = ["--kv", &grant, "--kv-timeout", "2s"];
    let cluster = serve("stores", 2, &args);
    assert_eq!(told(&cluster, Method::PUT, "/one/k", "1").0, 200);
    std::fs::rename(&one, &away).unwrap();
    std::fs::create_dir(&one).unwrap();
    for entry in std::fs::read_dir(&away).unwrap().map(|entry| entry.unwrap()) {
        std::fs::copy(entry.path(), one.join(entry.file_name())).unwrap();
    }
    // Nor when the store is opened again, which is after a second.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        let (status, said) = told(&cluster, Method::PUT, "/one/k", "2");
        assert!(status == 409 && said.contains("Stop the cluster and start it again"), "{status} {said}");
        assert_eq!(told(&cluster, Method::PUT, "/default/k", "2").0, 200);
    }
    cluster.stderr.find("was replaced, cut or moved away while it was in use");
    assert_eq!(cluster.status()["keeper"]["restarts"], 0);
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    // By two names, one of which is a link: that is one store.
    std::os::unix::fs::symlink(&one, &alias).unwrap();
    let other = format!("other={}", as_url(&alias));
    let cluster = serve("stores", 2, &[&args[..], &["--kv", &other]].concat());
    assert_eq!(get(&cluster, "/one/k"), "1");
    assert_eq!(told(&cluster, Method::PUT, "/other/k", "4").0, 200);
    assert_eq!(get(&cluster, "/one/k"), "4");
    let second = serve("stores", 1, &args);
    let (status, said) = told(&second, Method::PUT, "/one/k", "5");
    assert!(status == 409 && said.contains("is used by another cluster"), "{status} {said}");
}

fn as_url(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// It is not the keeper that was silent.
#[test]
fn a_pause_of_all_processes_costs_no_keeper() {
    let cluster = serve("stores", 1, &["--hang-timeout", "2s"]);
    let old = keeper(&cluster).unwrap();
    let all: Vec<Pid> = [cluster.pid()].into_iter().chain(cluster.children()).collect();
    let signal = |signal: Signal| all.iter().for_each(|&pid| kill(pid, signal).unwrap());
    for _ in 0..3 {
        signal(Signal::SIGSTOP);
        thread::sleep(Duration::from_secs(3));
        signal(Signal::SIGCONT);
        assert_eq!(told(&cluster, Method::PUT, "/default/k", "1").0, 200);
    }
    assert_eq!(keeper(&cluster), Some(old));
}

/// The error is the interface's, and ends when there is room again.
#[test]
fn a_disk_that_is_full_is_an_error_for_its_guest() {
    let setup = Setup::new(&guest("stores")).args(&["--kv", "disk=file:./small/disk"]);
    let script = "mkdir small && mount -t tmpfs -o size=8m none small && exec \"$@\"";
    let mounts = std::process::Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).status();
    if !mounts.is_ok_and(|mounted| mounted.success()) {
        println!("skipped: only root may mount a file system");
        return;
    }
    let cluster = setup.behind(&["unshare", "-m", "sh", "-c"], script).start();
    let mut written = 0;
    let (status, said) = loop {
        match told(&cluster, Method::PUT, &format!("/disk/{written}"), &"x".repeat(100_000)) {
            (200, _) => written += 1,
            refused => break refused,
        }
    };
    assert!(written > 5 && status == 409 && said.contains("No space left on device"), "{written}: {status} {said}");
    assert_eq!(get(&cluster, "/disk/0").len(), 100_000);
    for number in 0..written {
        // What is given back can be used.
        until("it is deleted", || {
            (told(&cluster, Method::DELETE, &format!("/disk/{number}"), "").0 == 200).then_some(())
        });
    }
    assert_eq!(told(&cluster, Method::PUT, "/disk/again", &"x".repeat(100_000)).0, 200);
    assert_eq!(cluster.status()["keeper"]["restarts"], 0);
}

/// Ends a random worker every 200 ms, and the keeper every `keepers`, until told to stop; how many were ended.
fn end_processes(cluster: &Cluster, keepers: Duration, goes_on: &AtomicBool) -> u64 {
    let (mut killed, mut keeper_at) = (0, Instant::now() + keepers);
    while goes_on.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(200));
        let status = cluster.status();
        let workers = status["workers"].as_array().unwrap();
        let mut pids = vec![workers[fastrand::usize(..workers.len())]["pid"].as_i64()];
        if keeper_at < Instant::now() {
            keeper_at = Instant::now() + keepers;
            pids.push(status["keeper"]["pid"].as_i64());
        }
        for pid in pids.into_iter().flatten() {
            killed += 1;
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
    }
    killed
}

/// What came of a write, as far as its client knows.
enum Fate {
    Done(String),
    /// It was refused, and nothing was written.
    Refused,
    Unknown,
}

/// One connection after the other, each as long as it lasts.
struct Client {
    address: SocketAddr,
    connection: Option<Connection<http_body_util::Full<bytes::Bytes>>>,
}

impl Client {
    async fn send(&mut self, method: Method, path: &str, body: String) -> Fate {
        if self.connection.is_none() {
            let stream = tokio::net::TcpStream::connect(self.address).await.expect("the port is there");
            self.connection = Some(Connection::over(stream).await);
        }
        let connection = self.connection.as_mut().unwrap();
        let sent = connection.send(method, path, body.into()).await;
        let answer = match sent {
            Ok(response) => harness::client::whole(response).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) if answer.status == 200 => Fate::Done(answer.text().to_owned()),
            Ok(answer) if answer.status == 404 => Fate::Done("none".into()),
            // The store did not do it; or no guest was called.
            Ok(answer) if [409, 503].contains(&answer.status) => Fate::Refused,
            Ok(_) => Fate::Unknown,
            Err(_) => {
                self.connection = None;
                Fate::Unknown
            }
        }
    }
}

/// Every increment that was acknowledged is there, exactly once, whatever ends meanwhile, and whatever is deployed.
#[test]
fn every_acknowledged_increment_counts_once() {
    counts_once(&serve("stores", 8, &["--max-error-increase", "100"]), 5000);
}

/// `WASMCLUSTER_TEST_INCREMENTS` is another number of them.
pub(super) fn counts_once(cluster: &Cluster, increments: u64) {
    const CLIENTS: u64 = 64;
    let increments: u64 =
        std::env::var("WASMCLUSTER_TEST_INCREMENTS").map_or(increments, |number| number.parse().expect("a number"));
    let (left, unknown, sums) = (AtomicU64::new(increments), AtomicU64::new(0), Mutex::new(Vec::new()));
    let patience = Duration::from_secs(120 + increments / 20);
    let (began, goes_on) = (Instant::now(), AtomicBool::new(true));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let killed = thread::scope(|scope| {
        let killing = scope.spawn(|| end_processes(cluster, Duration::from_secs(2), &goes_on));
        let counting = scope.spawn(|| {
            runtime.block_on(async {
                let clients = (0..CLIENTS).map(|_| async {
                    let mut client = Client { address: cluster.address(), connection: None };
                    while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                        match client.send(Method::GET, "/default/n?increment=1", String::new()).await {
                            Fate::Done(sum) => sums.lock().unwrap().push(sum.parse::<u64>().unwrap()),
                            Fate::Unknown => drop(unknown.fetch_add(1, Ordering::Relaxed)),
                            // A keeper that ends again and again is waited for, and not for ever.
                            Fate::Refused => {
                                assert!(began.elapsed() < patience, "the store is not written any more");
                                left.fetch_add(1, Ordering::Relaxed);
                            }
                        };
                    }
                });
                futures_util::future::join_all(clients).await;
            });
        });
        // In the middle of it all; what comes of them among so many crashes does not matter.
        cluster.reload(&[]);
        cluster.command(&["scale", "4"]);
        cluster.command(&["rollback"]);
        cluster.command(&["scale", "8"]);
        let counted = counting.join();
        goes_on.store(false, Ordering::Relaxed);
        let killed = killing.join().unwrap();
        counted.unwrap();
        killed
    });
    let took = began.elapsed();
    let (mut sums, unknown) = (sums.into_inner().unwrap(), unknown.into_inner());
    let acknowledged = sums.len() as u64;
    // The last that was ended may have taken the connection.
    let read = || ask(cluster.address(), Method::GET, "/default/n", String::new()).ok()?.text().parse().ok();
    let found: u64 = until("it is read", read);
    println!("{increments} increments in {took:?}: {acknowledged} acknowledged, {unknown} unknown, {killed} killed");
    assert!((acknowledged..=acknowledged + unknown).contains(&found), "{found}, {acknowledged} and {unknown}");
    // Each was told a sum of its own: one that was lost would be told to another as well.
    sums.sort_unstable();
    assert!(sums.windows(2).all(|two| two[0] < two[1]) && sums.last() <= Some(&found));
    assert!(killed > 2 && acknowledged > increments / 2);
}

/// What clients saw of few keys can have happened in one order, although workers and keepers end again and again.
#[test]
fn what_clients_see_of_a_store_has_one_order() {
    const KEYS: usize = 24;
    let cluster = serve("stores_p3", 4, &[]);
    let goes_on = AtomicBool::new(true);
    let histories: Vec<Mutex<Vec<Step>>> = (0..KEYS).map(|_| Mutex::default()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let until_when = Instant::now() + Duration::from_secs(8);
    let killed = thread::scope(|scope| {
        let killing = scope.spawn(|| end_processes(&cluster, Duration::from_millis(700), &goes_on));
        runtime.block_on(async {
            let clients = (0..12).map(|_| async {
                let mut client = Client { address: cluster.address(), connection: None };
                while Instant::now() < until_when {
                    let key = fastrand::usize(..KEYS);
                    // Those that are never known to end make the search long.
                    if histories[key].lock().unwrap().len() > 150 {
                        continue;
                    }
                    let number = fastrand::i64(0..4);
                    let from = Some(fastrand::i64(0..4)).filter(|_| fastrand::u8(0..3) > 0);
                    let from_text = from.map_or("none".into(), |from| from.to_string());
                    let (method, how) = match fastrand::u8(0..8) {
                        0 => (Method::PUT, String::new()),
                        1 => (Method::DELETE, String::new()),
                        2 | 3 => (Method::GET, format!("?increment={number}")),
                        4 | 5 => (Method::GET, format!("?from={from_text}&to={number}")),
                        _ => (Method::GET, String::new()),
                    };
                    let begin = Instant::now();
                    let fate =
                        client.send(method.clone(), &format!("/default/key{key}{how}"), number.to_string()).await;
                    let (answer, end) = match fate {
                        Fate::Done(answer) => (Some(answer), Some(Instant::now())),
                        Fate::Unknown => (None, None),
                        Fate::Refused => continue,
                    };
                    let told = answer.as_deref();
                    let operation = if how.starts_with("?increment") {
                        Operation::Increment(number, told.map(|sum| sum.parse().unwrap()))
                    } else if how.starts_with("?from") {
                        Operation::Swap(from, number, told.map(|swapped| swapped == "true"))
                    } else if method == Method::PUT {
                        Operation::Set(number)
                    } else if method == Method::DELETE {
                        Operation::Delete
                    } else {
                        let Some(value) = told else { continue };
                        Operation::Get(value.parse().ok())
                    };
                    histories[key].lock().unwrap().push(Step { begin, end, operation });
                }
            });
            futures_util::future::join_all(clients).await;
        });
        goes_on.store(false, Ordering::Relaxed);
        killing.join().unwrap()
    });
    let (mut steps, mut unknown) = (0, 0);
    for (key, history) in histories.iter().enumerate() {
        let history = history.lock().unwrap();
        steps += history.len();
        unknown += history.iter().filter(|step| step.end.is_none()).count();
        assert!(is_linearisable(&history), "key{key}: {history:#?}");
    }
    println!("{steps} steps, of which {unknown} are unknown; {killed} processes were killed");
    assert!(steps > 500 && killed > 10);
}
