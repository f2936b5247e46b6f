//! The hot swap: under load, at every gate, back again, and by other ways than the command.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http_body_util::BodyExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use harness::client::{Connection, get};
use harness::load::{Load, Reuse};
use harness::{Cluster, Follower, Setup, fixture, guest, is_gone, until};

/// As fast as workers start.
pub(super) const AT_ONCE: [&str; 4] = ["--min-ready", "0s", "--soak", "0s"];

/// Another version of a component, which does the same: it has one more custom section.
pub(super) fn another_version(of: &str, folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(guest(of)).unwrap();
    bytes.extend(b"\x00\x08\x07version");
    let path = folder.join("another.wasm");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A component that traps while it is instantiated, in the workers `first` to `last` only.
fn failing_in(first: u64, last: u64, folder: &Path) -> PathBuf {
    let text = std::fs::read_to_string(fixture("fails-for-a-while.wat")).unwrap();
    let range = "(i64.const 3)) (i64.const 3))";
    assert!(text.contains(range));
    let path = folder.join(format!("fails-in-{first}-to-{last}.wat"));
    std::fs::write(&path, text.replace(range, &format!("(i64.const {first})) (i64.const {}))", last - first))).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Generation of each answer's worker: whoami tells.
async fn generation(cluster: &Cluster) -> u64 {
    let answer = get(cluster.address(), "/").await.unwrap();
    serde_json::from_slice::<Value>(&answer.body).unwrap()["generation"].as_u64().unwrap()
}

/// Reloads under load.
async fn reload_ten_times(cluster: &Cluster, load: &Load) {
    let versions = [another_version("whoami", cluster.folder.path()), guest("whoami")];
    for round in 0..10 {
        load.goes_on();
        let reloaded = cluster.reload(&[text(&versions[round % 2])]);
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        // From now on nobody is answered by the old version.
        for _ in 0..4 {
            assert_eq!(generation(cluster).await, round as u64 + 2);
        }
        assert_eq!(cluster.children().len(), 2, "the old workers are gone when the command returns");
    }
    load.goes_on();
}

/// Nothing was lost in ten reloads.
fn is_unharmed(cluster: &Cluster) {
    let status = cluster.status();
    assert_eq!((&status["totals"]["reloads"], &status["totals"]["crashes"]), (&10.into(), &0.into()));
    assert_eq!((&status["totals"]["aborted"], &status["totals"]["errors"]), (&0.into(), &0.into()));
}

async fn ten_reloads(reuse: Reuse) {
    let cluster = Setup::new(&guest("whoami")).args(&AT_ONCE).start();
    let load = Load::start(cluster.address(), 32, reuse);
    reload_ten_times(&cluster, &load).await;
    let answered = load.end_well().await;
    println!("wasmcluster, {reuse:?}: ten reloads of two workers: {answered} requests answered, 0 lost");
    is_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_under_keep_alive_connections_lose_nothing() {
    ten_reloads(Reuse::KeepAlive).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_under_connections_that_are_idle_now_and_then_lose_nothing() {
    ten_reloads(Reuse::WithPauses).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_under_a_connection_per_request_lose_nothing() {
    ten_reloads(Reuse::No).await;
}

/// What the server has not begun with when it ends a connection, clients send again; all else is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_under_http_2_lose_nothing() {
    let cluster = Setup::new(&guest("whoami")).args(&AT_ONCE).start();
    let load = Load::start_http2(cluster.address(), 4, 8);
    reload_ten_times(&cluster, &load).await;
    let again = load.again();
    let answered = load.end_well().await;
    println!(
        "wasmcluster, HTTP/2: ten reloads of two workers: {answered} requests answered, {again} sent again, 0 lost"
    );
    is_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_with_a_soak_loses_nothing() {
    let cluster = Setup::new(&guest("hello")).args(&["--min-ready", "500ms", "--soak", "1s"]).start();
    let other = another_version("hello", cluster.folder.path());
    let load = Load::mixed(cluster.address(), [(8, Reuse::KeepAlive), (8, Reuse::No)]);
    load.goes_on();
    let reloaded = cluster.reload(&[text(&other), "--json"]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    load.goes_on();
    load.end_well().await;
    let lines: Vec<Value> = reloaded.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let phases: Vec<&str> = lines.iter().filter_map(|line| line["phase"].as_str()).collect();
    let mut order = phases.clone();
    order.dedup();
    assert_eq!(order, ["compiling", "canary", "rolling", "soaking", "committed", "draining"]);
    assert_eq!(lines.last().unwrap()["result"], "committed");
    let status = cluster.status();
    let generations = &status["generation"];
    assert_eq!((&generations["current"], &generations["previous"]), (&2.into(), &1.into()));
    assert_eq!(generations["source"], text(&other));
    assert_eq!((&status["reload"], &status["last_reload"]["result"]), (&Value::Null, &"committed".into()));
}

/// A request on its way over an idle connection, and an answer in progress, see nothing of a reload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_connections_survive_a_reload() {
    let cluster = Setup::new(&guest("scenarios")).args(&AT_ONCE).args(&["--drain-idle-grace", "60s"]).start();
    let (mut idle, mut busy) = (Connection::open(cluster.address()).await, Connection::open(cluster.address()).await);
    assert_eq!(idle.get("/headers").await.unwrap().status, 200);
    let body = busy.begin("/drip?chunks=20&ms=50").await;
    let reload = cluster.follow(&["reload", "--json"]);
    // Both connections may be one worker's.
    until("all old workers drain", || (cluster.status()["generation"]["current"] == 2).then_some(()));
    let last = idle.get("/headers").await.unwrap();
    assert_eq!((last.status, &last.headers["connection"]), (200, &"close".parse().unwrap()));
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 20 * "tick\n".len());
    drop((idle, busy));
    assert_eq!(reload.wait().code(), Some(0));
    until("its output ends", || reload.stdout.ended().then_some(()));
    let lines = reload.stdout.lines().into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let drained: Vec<_> = lines
        .filter(|line| line["phase"] == "draining")
        .map(|line| (line["done"].as_u64().unwrap(), line["of"].as_u64().unwrap()))
        .collect();
    let of = drained[0].1;
    assert!(of > 0 && drained[0].0 == 0 && drained.last() == Some(&(of, of)), "{drained:?}");
    assert!(drained.is_sorted() && drained.iter().all(|it| it.1 == of), "{drained:?}");
}

/// What Node's documented rolling restart loses, with the same clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_loses_requests_in_a_rolling_restart() {
    const RESTARTS: usize = 5;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/node/rolling-restart.js");
    let Ok(node) = Follower::start(Command::new("node").arg(script)) else {
        println!("skipped: there is no node");
        return;
    };
    let port: u16 = node.stdout.find("port ").strip_prefix("port ").unwrap().parse().unwrap();
    let load = Load::start(([127, 0, 0, 1], port).into(), 32, Reuse::WithPauses);
    for restarts in 1..=RESTARTS {
        load.goes_on();
        node.signal(Signal::SIGHUP);
        let done = || node.stdout.lines().iter().filter(|line| *line == "restarted").count();
        until("Node has restarted its workers", || (done() == restarts).then_some(()));
    }
    let (answered, failed) = load.end().await;
    let lost = failed.len();
    println!("Node: {RESTARTS} rolling restarts of two workers: {answered} requests answered, {lost} lost");
}

/// Runs a reload that must not be committed, and checks that the old workers were left alone.
#[track_caller]
fn refused(cluster: &Cluster, args: &[&str], code: i32, part: &str) {
    let before = cluster.ready();
    let reloaded = cluster.reload(args);
    assert_eq!(reloaded.code, Some(code), "{args:?}: {reloaded:?}");
    assert!(reloaded.stderr.contains(part), "{args:?}: {}", reloaded.stderr);
    assert_eq!(cluster.ready(), before, "{args:?}");
    let status = cluster.status();
    assert_eq!((&status["state"], &status["generation"]["current"]), (&"running".into(), &1.into()), "{args:?}");
    let result = match code {
        3 => "refused",
        4 => "rolled_back",
        _ => "timed_out",
    };
    assert_eq!(status["last_reload"]["result"], result, "{status}");
}

#[test]
fn versions_that_cannot_be_served_are_refused() {
    let cluster = Setup::new(&guest("hello")).start();
    let folder = cluster.folder.path();
    let write = |name: &str, contents: &[u8]| {
        std::fs::write(folder.join(name), contents).unwrap();
        folder.join(name).to_str().unwrap().to_owned()
    };
    refused(&cluster, &[&write("text.wasm", b"no wasm")], 3, "neither a WebAssembly component");
    refused(&cluster, &[&write("core.wat", b"(module)")], 3, "core module");
    refused(&cluster, &[&write("other.wat", b"(component)")], 3, "wasi:http");
    let whole = std::fs::read(guest("echo")).unwrap();
    let middle = whole.len() / 2;
    let broken = [&whole[..middle], &[0xff; 64], &whole[middle + 64..]].concat();
    refused(&cluster, &[&write("empty.wasm", b"")], 3, "the file is empty");
    refused(&cluster, &[&write("cut.wasm", &whole[..middle])], 3, "not a valid component");
    refused(&cluster, &[&write("broken.wasm", &broken)], 3, "not a valid component");
    let import = b"(component (import \"acme:shop/cart@1.0.0\" (instance)))";
    refused(&cluster, &[&write("import.wat", import)], 3, "cannot serve");
    refused(&cluster, &["/nowhere/app.wasm"], 3, "no such file");
    refused(&cluster, &["/"], 3, "neither a Cargo.toml");
    let pipe = folder.join("pipe.wasm");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&cluster, &[text(&pipe)], 3, "it is not a regular file");
    refused(
        &cluster,
        &[text(&fixture("traps-at-start.wat"))],
        4,
        "the canary failed: cannot instantiate the component",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_never_starts_is_refused() {
    let cluster = Setup::new(&guest("hello")).args(&["--request-timeout", "500ms"]).start();
    refused(&cluster, &[text(&fixture("spins-at-start.wat"))], 4, "the canary failed");
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    until("its canary is gone", || (cluster.children().len() == 2).then_some(()));
}

/// A component whose one function is very long.
fn compile_bomb(folder: &Path) -> PathBuf {
    let text = std::fs::read_to_string(fixture("never-answers.wat")).unwrap();
    let step = "(local.set 0 (i64.mul (i64.add (local.get 0) (local.get 1)) (i64.rotl (local.get 1) (local.get 0))))
                (if (i64.lt_u (local.get 0) (i64.const 7)) (then (local.set 1 (i64.popcnt (local.get 0)))))";
    let bomb = format!("(core module $module (func (local i64 i64) {})", step.repeat(100_000));
    assert!(text.contains("(core module $module"));
    let path = folder.join("bomb.wat");
    std::fs::write(&path, text.replace("(core module $module", &bomb)).unwrap();
    path
}

#[test]
fn a_compilation_that_takes_too_long_is_given_up() {
    let cluster = Setup::new(&guest("hello")).start();
    let bomb = compile_bomb(cluster.folder.path());
    refused(&cluster, &[text(&bomb), "--timeout", "1s"], 5, "it did not compile in time");
    until("the compiler is gone", || (cluster.children().len() == 2).then_some(()));

    // A real change does not wait for somebody who only looks.
    let dry = cluster.follow(&["reload", "--dry-run", text(&bomb)]);
    until("it compiles", || (cluster.children().len() == 3).then_some(()));
    assert_eq!(cluster.command(&["scale", "1"]).code, Some(0));
    assert_eq!(dry.wait().code(), Some(1));
    assert_eq!(cluster.command(&["scale", "2"]).code, Some(0));
    until("the compiler is gone again", || (cluster.children().len() == 2).then_some(()));

    // While one is at work: it steps back behind the workers, and may not take all memory.
    let _reload = cluster.follow(&["reload", text(&bomb)]);
    let workers = cluster.ready();
    let proc = |pid: Pid, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    until("the compiler is restrained", || {
        let compiler = cluster.children().into_iter().find(|pid| !workers.contains(&pid.as_raw().into()))?;
        let limits = proc(compiler, "limits");
        let memory = !limits.lines().find(|line| line.starts_with("Max data size"))?.contains("unlimited");
        // The fields behind the name: state is the first, niceness the seventeenth.
        let stat = proc(compiler, "stat");
        let nice = stat.rsplit_once(") ")?.1.split(' ').nth(16)? == "10";
        (memory && nice).then_some(())
    });
    assert_eq!(cluster.command(&["stop"]).code, Some(0), "a stop does not wait for it");
}

#[test]
fn a_canary_must_answer_its_health_check() {
    let cluster = Setup::new(&guest("hello")).args(&["--health-path", "/"]).start();
    refused(&cluster, &[text(&fixture("never-answers.wat"))], 4, "the health check GET / failed: it gave no answer");
    let cluster = Setup::new(&guest("scenarios")).args(&["--health-path", "/headers"]).start();
    refused(&cluster, &[text(&fixture("traps-at-start.wat"))], 4, "the canary failed");
    assert_eq!(cluster.status()["totals"]["requests"], 0, "health checks are nobody's requests");
}

#[test]
fn a_first_version_must_answer_its_health_check() {
    let ended = Setup::new(&guest("scenarios")).args(&["--health-path", "/nowhere"]).run();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("the health check GET /nowhere was answered 404"), "{}", ended.stderr);
}

/// Well at first, and not any more in the middle of `--min-ready`.
#[test]
fn a_canary_must_stay_well() {
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(12);
    let path = format!("/well-until?unix_ms={}", end.as_millis());
    let args = ["--health-path", path.as_str(), "--min-ready", "60s"];
    let cluster = Setup::new(&guest("scenarios")).args(&args).start();
    let before = cluster.ready();
    let reloaded = cluster.reload(&[]);
    assert_eq!(reloaded.code, Some(4), "{reloaded:?}");
    assert!(reloaded.stderr.contains("a first worker must stay healthy for 1m"), "{}", reloaded.stderr);
    assert!(reloaded.stderr.contains("was answered 503"), "{}", reloaded.stderr);
    assert_eq!(cluster.ready(), before);
}

#[test]
fn a_worker_that_dies_before_it_is_ready_rolls_back() {
    let cluster = Setup::new(&guest("hello")).args(&AT_ONCE).start();
    // Worker 3 is the canary.
    let version = failing_in(4, 4, cluster.folder.path());
    let second = cluster.worker(1);
    let reloaded = cluster.reload(&[text(&version)]);
    assert_eq!(reloaded.code, Some(4), "{reloaded:?}");
    assert!(reloaded.stderr.contains("died before it was ready"), "{}", reloaded.stderr);
    assert_eq!(cluster.worker(1), second, "its slot was not rolled");
    let status = cluster.status();
    let generations: Vec<_> =
        status["workers"].as_array().unwrap().iter().map(|worker| &worker["generation"]).collect();
    assert_eq!(generations, [1, 1], "{status}");
    // With force such a death is no reason.
    let version = failing_in(7, 7, cluster.folder.path());
    let reloaded = cluster.reload(&[text(&version), "--force"]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
}

#[test]
fn crashes_in_the_soak_roll_back() {
    let cluster = Setup::new(&guest("hello")).args(&["--min-ready", "0s", "--soak", "60s"]).start();
    let reload = cluster.follow(&["reload"]);
    cluster.reload_is("soaking");
    for _ in 0..2 {
        let worker = cluster.worker(1).unwrap();
        kill(worker, Signal::SIGKILL).unwrap();
        until("it is gone", || is_gone(worker).then_some(()));
        until("another is there", || cluster.worker(1).filter(|&other| other != worker));
    }
    assert_eq!(reload.wait().code(), Some(4));
    let status = cluster.status();
    assert!(status["last_reload"]["reason"].as_str().unwrap().contains("2 workers of the new version"), "{status}");
    until("the old version serves", || {
        let status = cluster.status();
        let workers = status["workers"].as_array().unwrap();
        workers.iter().all(|worker| worker["generation"] == 1 && worker["state"] == "ready").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worse_answers_roll_back() {
    let args = ["--min-ready", "0s", "--soak", "60s", "--hang-timeout", "2s"];
    let cluster = Setup::new(&guest("hello")).args(&args).start();
    for _ in 0..50 {
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    }
    // Seen by the primary, which looks several times a second.
    let looked = Instant::now();
    until("it has looked", || (looked.elapsed() > Duration::from_secs(1)).then_some(()));
    let bad = fixture("never-answers.wat");
    let reload = cluster.follow(&["reload", text(&bad), "--max-error-increase", "10"]);
    cluster.reload_is("soaking");
    let mut errors = 0;
    while cluster.status()["reload"]["phase"] == "soaking" {
        errors += usize::from(get(cluster.address(), "/").await.unwrap().status == 500);
    }
    println!("rolled back after {errors} errors");
    assert_eq!(reload.wait().code(), Some(4));
    assert!(cluster.status()["last_reload"]["reason"].as_str().unwrap().contains("answers were errors"));
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
}

#[test]
fn a_reload_that_takes_too_long_is_rolled_back() {
    let cluster = Setup::new(&guest("hello")).args(&["--min-ready", "60s"]).start();
    refused(&cluster, &["--timeout", "2s"], 5, "it took too long");
    let doubt = "--timeout 2s is shorter than --min-ready 1m and --soak 10s together";
    refused(&cluster, &["--timeout", "2s"], 5, doubt);
    cluster.stderr.find(doubt);
}

#[test]
fn one_change_at_a_time() {
    let cluster = Setup::new(&guest("hello")).args(&["--min-ready", "60s"]).start();
    let reload = cluster.follow(&["reload"]);
    let status = cluster.reload_is("canary");
    assert_eq!((&status["state"], &status["generation"]["candidate"]), (&"reloading".into(), &2.into()));
    for args in [&["reload"][..], &["rollback"], &["scale", "3"]] {
        let second = cluster.command(args);
        assert_eq!(second.code, Some(6), "{args:?}: {second:?}");
        assert!(second.stderr.contains("a reload is in progress"), "{}", second.stderr);
    }
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
    assert_eq!(reload.wait().code(), Some(1), "a stop wins");
    assert_eq!(cluster.reload(&[]).code, Some(7));
}

/// Ctrl-C ends the command; the reload goes on.
#[test]
fn a_reload_goes_on_without_its_command() {
    let cluster = Setup::new(&guest("hello")).args(&["--min-ready", "3s", "--soak", "0s"]).start();
    let reload = cluster.follow(&["reload"]);
    cluster.reload_is("canary");
    reload.signal(Signal::SIGINT);
    until("it is committed", || (cluster.status()["last_reload"]["result"] == "committed").then_some(()));
}

/// A respawn in the middle of a reload is what its slot is: the old version where it is not rolled, the new one where it is.
#[test]
fn respawns_in_the_middle_of_a_reload() {
    let cluster = Setup::new(&guest("hello")).args(&["--min-ready", "6s", "--soak", "60s"]).start();
    let _reload = cluster.follow(&["reload"]);
    cluster.reload_is("canary");
    let generation_of = |slot: usize, new: Pid| {
        let status = cluster.status();
        let workers = status["workers"].as_array().unwrap();
        let worker = workers.iter().find(|worker| worker["pid"] == new.as_raw()).unwrap();
        assert_eq!(worker["slot"], slot);
        worker["generation"].as_u64().unwrap()
    };
    let old = cluster.worker(1).unwrap();
    kill(old, Signal::SIGKILL).unwrap();
    assert_eq!(generation_of(1, cluster.replaced(1, old)), 1);
    cluster.reload_is("soaking");
    let old = cluster.worker(1).unwrap();
    kill(old, Signal::SIGKILL).unwrap();
    assert_eq!(generation_of(1, cluster.replaced(1, old)), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_needs_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app.wasm");
    std::fs::copy(guest("whoami"), &app).unwrap();
    let store = folder.path().join("store");
    let args = ["--store", text(&store), "--soak", "0s", "--min-ready", "0s"];
    let cluster = Setup::new(&app).args(&args).start();
    assert_eq!(cluster.command(&["rollback"]).code, Some(1), "there is nothing to roll back to");
    assert_eq!(cluster.reload(&[text(&guest("hello"))]).code, Some(0));
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "Hello from wasmcluster!\n");
    std::fs::remove_file(&app).unwrap();
    std::fs::remove_dir_all(&store).unwrap();
    let back = cluster.command(&["rollback"]);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert!(back.stdout.starts_with(&format!("generation 3 is served: {} (sha256:", text(&app))), "{back:?}");
    assert_eq!(generation(&cluster).await, 3);
    // And forth again, to what was rolled back from.
    assert_eq!(cluster.command(&["rollback", "--to", "2"]).code, Some(0));
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "Hello from wasmcluster!\n");
    assert_eq!(cluster.status()["generation"]["previous"], 1);
}

#[test]
fn signals_reload() {
    if std::fs::File::open("/dev/tty").is_ok() {
        println!("skipped: with a controlling terminal SIGHUP stops");
        return;
    }
    let cluster = Setup::new(&guest("hello")).args(&AT_ONCE).start();
    for (signal, generation) in [(Signal::SIGUSR2, 2), (Signal::SIGHUP, 3)] {
        cluster.signal(signal);
        until("it is reloaded", || (cluster.status()["last_reload"]["generation"] == generation).then_some(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_file_is_reloaded_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app.wasm");
    std::fs::copy(guest("hello"), &app).unwrap();
    let cluster = Setup::new(&app).args(&AT_ONCE).args(&["--watch"]).start();
    let becomes = |current: u64| {
        until("it is reloaded", || {
            let status = cluster.status();
            (status["generation"]["current"] == current && status["state"] == "running").then_some(())
        });
    };
    // As editors and build tools do: written beside its place and renamed into it.
    let draft = folder.path().join("draft");
    std::fs::copy(guest("whoami"), &draft).unwrap();
    std::fs::rename(&draft, &app).unwrap();
    becomes(2);
    assert_eq!(generation(&cluster).await, 2);
    // In place, and broken at first.
    std::fs::write(&app, b"half a compon").unwrap();
    until("it is refused", || (cluster.status()["last_reload"]["result"] == "refused").then_some(()));
    std::fs::copy(guest("hello"), &app).unwrap();
    becomes(3);
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "Hello from wasmcluster!\n");
    // Written anew, but the same.
    std::fs::copy(guest("hello"), &app).unwrap();
    cluster.stderr.find("unchanged: this is already being served");
    assert_eq!(cluster.status()["generation"]["current"], 3);
    // The file that was given is watched, whatever else is deployed by hand.
    assert_eq!(cluster.reload(&[text(&guest("whoami"))]).code, Some(0));
    std::fs::copy(guest("scenarios"), &app).unwrap();
    becomes(5);
    assert_eq!(get(cluster.address(), "/headers").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_resumes_what_was_committed_last() {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app.wasm");
    std::fs::copy(guest("hello"), &app).unwrap();
    let state = folder.path().join("state");
    let start = |more: &[&str]| Setup::new(&app).args(&AT_ONCE).args(&["--state-dir", text(&state)]).args(more).start();
    let cluster = start(&["--resume"]);
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "Hello from wasmcluster!\n", "there was nothing yet");
    std::fs::copy(guest("whoami"), &app).unwrap();
    assert_eq!(cluster.reload(&[]).code, Some(0));
    drop(cluster);
    // The file is another now, and broken at that.
    std::fs::write(&app, b"half a component").unwrap();
    let cluster = start(&["--resume"]);
    assert_eq!(generation(&cluster).await, 2, "its number is kept");
    // Also one that came from another file; and the way back is not lost.
    assert_eq!(cluster.reload(&[text(&guest("scenarios"))]).code, Some(0));
    drop(cluster);
    let cluster = start(&["--resume"]);
    assert_eq!(cluster.status()["generation"]["source"], text(&guest("scenarios")));
    assert_eq!(cluster.command(&["rollback"]).code, Some(0));
    assert_eq!(generation(&cluster).await, 4);
    drop(cluster);
    // Not without being asked; and another application is not mistaken for it.
    std::fs::copy(guest("hello"), &app).unwrap();
    let cluster = start(&[]);
    assert_eq!(cluster.status()["generation"]["current"], 1);
    drop(cluster);
    let args = ["--state-dir", text(&state), "--resume"];
    let ended = Setup::new(&guest("whoami")).args(&args).run();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("cannot resume"), "{}", ended.stderr);
}

/// Not a test of speed: it says how long it took.
#[test]
fn a_reload_of_eight_workers() {
    let cluster = Setup::new(&guest("hello")).workers(8).args(&AT_ONCE).start();
    let before: BTreeSet<i64> = cluster.ready().into_iter().collect();
    let started = Instant::now();
    assert_eq!(cluster.reload(&[]).code, Some(0));
    println!("a reload of eight workers took {:?}", started.elapsed());
    let after: BTreeSet<i64> = cluster.ready().into_iter().collect();
    assert!(after.len() == 8 && after.is_disjoint(&before));
}
