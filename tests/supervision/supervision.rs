//! What the supervisor does about workers that crash, hang, lie, grow old, or never start; under load where it matters.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use harness::client::{Answer, Connection, get};
use harness::load::{Load, Reuse};
use harness::{Cluster, Setup, fixture, guest, is_gone, until};

/// The pid in an answer of whoami.
fn pid_of(answer: &Answer) -> i64 {
    let worker: Value = serde_json::from_slice(&answer.body).expect("JSON");
    worker["pid"].as_i64().expect("a pid")
}

/// Each worker is killed in turn under load: only what was in flight on it, or was just being sent to it, fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_each_worker_under_load() {
    let cluster = Setup::new(&guest("whoami")).workers(4).start();
    let load = Load::start(cluster.address(), 32, Reuse::KeepAlive);
    let mut killed = BTreeSet::new();
    for slot in 0..4 {
        load.goes_on();
        let worker = cluster.worker(slot).unwrap();
        killed.insert(i64::from(worker.as_raw()));
        kill(worker, Signal::SIGKILL).unwrap();
        cluster.replaced(slot, worker);
    }
    load.goes_on();
    let (answered, failed) = load.end().await;
    let strays: Vec<String> = failed
        .iter()
        .filter(|failed| failed.last.as_ref().is_some_and(|last| !killed.contains(&pid_of(last))))
        .map(|failed| failed.error.to_string())
        .collect();
    println!("{answered} answered, {} failed with their worker", failed.len());
    assert!(strays.is_empty(), "failed on workers that were left alone: {strays:?}");
    // A client has one request under way; each killed worker had a share of the clients.
    assert!(failed.len() <= 4 * 32, "{} failed", failed.len());
    let totals = &cluster.status()["totals"];
    assert_eq!(totals["crashes"], 4);
    assert!(totals["aborted"].as_u64().unwrap() <= failed.len() as u64, "{totals}");
    let requests = totals["requests"].as_u64().unwrap();
    assert!((answered..=answered + failed.len() as u64).contains(&requests), "{requests} of {answered}");
}

/// A crash is logged with the requests that it took along, and they are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_names_the_requests_it_took_along() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    let address = cluster.address();
    assert_eq!(get(address, "/headers").await.unwrap().status, 200);
    let asleep = [(); 2].map(|()| tokio::spawn(async move { get(address, "/sleep?ms=600000").await }));
    until("both sleep", || (cluster.in_flight() == Some(2)).then_some(()));
    kill(cluster.worker(0).unwrap(), Signal::SIGKILL).unwrap();
    let line = cluster.stderr.find("a worker died");
    assert!(line.contains("1-2") && line.contains("1-3") && !line.contains("1-1"), "{line}");
    for request in asleep {
        assert!(request.await.unwrap().is_err());
    }
    let totals = &cluster.status()["totals"];
    assert_eq!((&totals["requests"], &totals["aborted"], &totals["errors"]), (&3.into(), &2.into(), &2.into()));
    assert!(totals["latency_ms"]["p50"].as_f64().unwrap() > 0.0, "{totals}");
}

/// Stops the executor of a worker, and nothing else of it: its main thread. `None` where that is forbidden.
fn wedge(worker: Pid) -> Option<()> {
    match ptrace::seize(worker, ptrace::Options::empty()) {
        Ok(()) => {}
        Err(Errno::EPERM | Errno::ENOSYS) => {
            println!("skipped: threads of other processes cannot be stopped here");
            return None;
        }
        Err(errno) => panic!("ptrace: {errno}"),
    }
    ptrace::interrupt(worker).unwrap();
    assert!(matches!(waitpid(worker, Some(WaitPidFlag::__WALL)), Ok(WaitStatus::PtraceEvent(..))));
    Some(())
}

/// Waits for the end of a process that is traced: it must be noticed here before its parent hears of it.
fn release(worker: Pid) {
    until("the wedged worker ends", || {
        match waitpid(worker, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => Some(()),
            // The signal that is to kill it stops it first, on its way.
            Ok(WaitStatus::Stopped(pid, signal)) => {
                let _ = ptrace::cont(pid, signal);
                None
            }
            _ => None,
        }
    });
}

/// The executor stands still, while the other threads of its worker go on: it takes eight connections at most away from
/// its sibling, and the watchdog ends it.
#[test]
fn a_wedged_worker_swallows_at_most_eight_connections() {
    let cluster = Setup::new(&guest("hello")).args(&["--hang-timeout", "3s"]).start();
    let wedged = cluster.worker(0).unwrap();
    if wedge(wedged).is_none() {
        return;
    }
    let connections: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut stream = TcpStream::connect(cluster.address()).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
            stream
        })
        .collect();
    // Those that were swallowed are closed when the watchdog has killed the worker.
    release(wedged);
    let swallowed = connections.into_iter().filter(|mut stream| {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        !answer.starts_with("HTTP/1.1 200 OK")
    });
    let swallowed = swallowed.count();
    println!("{swallowed} of 60 connections were swallowed");
    assert!((1..=8).contains(&swallowed), "{swallowed}");
    cluster.stderr.find("hung: its event loop made no progress for 3s");
    cluster.replaced(0, wedged);
}

/// Its guardian still hears that the primary is gone.
#[test]
fn a_wedged_worker_does_not_outlive_its_primary() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let worker = cluster.worker(0).unwrap();
    if wedge(worker).is_none() {
        return;
    }
    cluster.signal(Signal::SIGKILL);
    release(worker);
    assert!(is_gone(worker));
}

/// It is drained in time too: the guardian cuts what its executor does not finish.
#[test]
fn a_wedged_worker_does_not_outlive_its_drain() {
    let args = ["--hang-timeout", "60s", "--drain-timeout", "500ms"];
    let cluster = Setup::new(&guest("hello")).workers(1).args(&args).start();
    let worker = cluster.worker(0).unwrap();
    if wedge(worker).is_none() {
        return;
    }
    kill(worker, Signal::SIGTERM).unwrap();
    cluster.replaced(0, worker);
    release(worker);
    until("the wedged worker is reaped", || (cluster.children().len() == 1).then_some(()));
    assert_eq!(cluster.status()["totals"]["crashes"], 0, "it was told to go");
}

/// A worker's own end of its channel, to speak in its name.
fn channel_of(worker: Pid) -> Option<OwnedFd> {
    // SAFETY: plain system calls without pointers; what they return is a new descriptor of ours, or an error.
    let get = |number: i64, one: i64, two: i64| unsafe { libc::syscall(number, one, two, 0) };
    let process = get(libc::SYS_pidfd_open, worker.as_raw().into(), 0);
    let channel = get(libc::SYS_pidfd_getfd, process, 0);
    if channel < 0 {
        println!("skipped: descriptors of other processes cannot be had here ({})", Errno::last());
        return None;
    }
    // SAFETY: as above; both are ours alone.
    let (_process, channel) = unsafe { (OwnedFd::from_raw_fd(process as i32), OwnedFd::from_raw_fd(channel as i32)) };
    Some(channel)
}

/// Frames that no worker sends: too long, of another version, not JSON, not a message. Each costs the worker its life.
#[test]
fn a_worker_that_talks_nonsense_is_replaced() {
    use std::os::fd::AsRawFd;
    let cluster = Setup::new(&guest("hello")).start();
    let (primary, sibling) = (cluster.pid(), cluster.worker(1));
    let frames = [vec![1; 70_000], b"\x02{}".to_vec(), b"\x01\xff\xfe".to_vec(), b"\x01{\"Crash\":{}}".to_vec()];
    for frame in &frames {
        let worker = cluster.worker(0).unwrap();
        let Some(channel) = channel_of(worker) else { return };
        send(channel.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        // Until nobody holds the other end the primary could take it for the worker's.
        drop(channel);
        cluster.replaced(0, worker);
    }
    cluster.stderr.find("broke the protocol");
    assert_eq!((cluster.pid(), cluster.worker(1)), (primary, sibling));
    assert_eq!(cluster.status()["totals"]["crashes"], frames.len());
    assert!(!cluster.has_exited());
}

/// Workers that die before they are ready are tried again, later and later; the sibling serves, and all is well again when
/// one starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn back_off_is_shown_and_recovers() {
    let cluster = Setup::new(&fixture("fails-for-a-while.wat")).start();
    let (killed, sibling) = (cluster.worker(0).unwrap(), cluster.worker(1));
    kill(killed, Signal::SIGKILL).unwrap();
    let waiting = until("the slot waits", || {
        let status = cluster.status();
        let slot = status["workers"].as_array().unwrap().iter().find(|worker| worker["slot"] == 0).cloned()?;
        (slot["state"] == "backoff").then_some(slot)
    });
    assert!(waiting["retry_in_ms"].as_u64().unwrap() <= 500, "{waiting}");
    assert_eq!((&waiting["pid"], &waiting["id"]), (&Value::Null, &Value::Null));
    // This component has no answers; that it has none is the sibling's answer.
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 500);
    cluster.replaced(0, killed);
    let status = cluster.status();
    assert_eq!(status["workers"][0]["id"], 7, "the workers 3 to 6 failed: {status}");
    assert_eq!((cluster.worker(1), &status["totals"]["crashes"]), (sibling, &5.into()));
}

/// Ids of the workers, by slot.
fn ids(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.status();
    let workers = status["workers"].as_array().unwrap();
    workers.iter().filter(|worker| worker["state"] == "ready").map(|worker| worker["id"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recycling_by_requests_under_load_fails_none() {
    let cluster = Setup::new(&guest("hello")).args(&["--max-worker-requests", "300", "--hang-timeout", "2s"]).start();
    let load = Load::mixed(cluster.address(), [(4, Reuse::KeepAlive), (4, Reuse::No)]);
    until("both workers were recycled", || (ids(&cluster).iter().min() > Some(&2)).then_some(()));
    cluster.stderr.find("recycled a worker: it has reached --max-worker-requests");
    let answered = load.end_well().await;
    until("no one drains", || (cluster.status()["workers"].as_array().unwrap().len() == 2).then_some(()));
    let status = cluster.status();
    assert_eq!((&status["totals"]["requests"], &status["totals"]["crashes"]), (&answered.into(), &0.into()));
}

#[test]
fn recycling_by_lifetime_and_memory() {
    for (flag, limit) in [("--max-worker-lifetime", "1s"), ("--max-worker-rss", "1MiB")] {
        let cluster = Setup::new(&guest("hello")).args(&[flag, limit, "--hang-timeout", "2s"]).start();
        until("both workers were recycled", || (ids(&cluster).iter().min() > Some(&2)).then_some(()));
        assert!(cluster.stderr.find("recycled a worker").contains(flag));
        assert_eq!(cluster.status()["totals"]["crashes"], 0);
    }
}

/// The primary survives its workers' floods and keeps no descriptor of theirs.
#[test]
fn replaced_workers_leave_no_descriptors_behind() {
    let cluster = Setup::new(&guest("hello")).start();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", cluster.pid())).unwrap().count();
    let replace = || {
        let worker = cluster.worker(0).unwrap();
        kill(worker, Signal::SIGTERM).unwrap();
        cluster.replaced(0, worker);
        until("the old one is gone", || (cluster.children().len() == 2).then_some(()));
    };
    replace();
    let before = open();
    (0..10).for_each(|_| replace());
    // A command's connection may be open at either moment.
    until("as many are open as before", || (open() <= before + 1).then_some(()));
}

/// What a terminal sends to everything that was started from it is the primary's affair.
#[test]
fn workers_ignore_what_terminals_send() {
    let cluster = Setup::new(&guest("hello")).start();
    let workers = cluster.ready();
    for worker in cluster.children() {
        for signal in
            [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU]
        {
            kill(worker, signal).unwrap();
        }
    }
    assert_eq!(cluster.command(&["scale", "3"]).code, Some(0));
    assert_eq!(cluster.ready()[..2], workers);
    assert_eq!(cluster.status()["totals"]["crashes"], 0);
}

/// A client that stays connected to a worker that is recycled is asked to come again, and is not cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keep_alive_client_moves_to_the_successor() {
    let args = ["--max-worker-lifetime", "1s", "--hang-timeout", "2s", "--drain-idle-grace", "60s"];
    let cluster = Setup::new(&guest("whoami")).workers(1).args(&args).start();
    let mut connection = Connection::open(cluster.address()).await;
    let first = connection.get("/").await.unwrap();
    cluster.stderr.find("recycled a worker");
    let last = connection.get("/").await.unwrap();
    assert_eq!(pid_of(&first), pid_of(&last));
    assert_eq!(last.headers["connection"], "close");
    assert_ne!(pid_of(&get(cluster.address(), "/").await.unwrap()), pid_of(&first));
}

/// What /proc calls the CPUs that a process or a thread may run on, one by one.
fn cpus_of(status: &str) -> Vec<usize> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("Linux says so");
    let number = |text: &str| text.trim().parse::<usize>().expect("a number");
    let ranges = list.split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    ranges.flat_map(|(first, last)| number(first)..=number(last)).collect()
}

/// The same of all threads of a worker, which has them all when it accepts.
fn cpus_of_all_threads(worker: Pid) -> Vec<usize> {
    let each = until("the worker accepts", || {
        let threads = std::fs::read_dir(format!("/proc/{worker}/task")).ok()?;
        // One may end meanwhile.
        let status = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("status")).ok();
        let each: Vec<String> = threads.filter_map(|thread| status(thread.ok()?)).collect();
        each.iter().any(|status| status.starts_with("Name:\taccept\n")).then_some(each)
    });
    let each: Vec<Vec<usize>> = each.iter().map(|status| cpus_of(status)).collect();
    assert!(each.len() >= 4 && each.iter().all(|cpus| *cpus == each[0]), "{each:?}");
    each[0].clone()
}

fn cpus_of_primary(cluster: &Cluster) -> Vec<usize> {
    cpus_of(&std::fs::read_to_string(format!("/proc/{}/status", cluster.pid())).unwrap())
}

#[test]
fn pinned_workers_have_the_cpu_of_their_slot() {
    for workers in [2, 3] {
        let cluster = Setup::new(&guest("hello")).workers(workers).args(&["--pin-cpus"]).start();
        let allowed = cpus_of_primary(&cluster);
        let cpu_of = |slot: u32| vec![allowed[slot as usize % allowed.len()]];
        let pinned = |slot| cpus_of_all_threads(cluster.worker(slot).unwrap());
        for slot in 0..workers {
            assert_eq!(pinned(slot), cpu_of(slot), "slot {slot} of {allowed:?}");
            let worker = cluster.worker(slot).unwrap();
            kill(worker, Signal::SIGKILL).unwrap();
            cluster.replaced(slot, worker);
            assert_eq!(pinned(slot), cpu_of(slot), "slot {slot} of {allowed:?}, again");
        }
        assert_eq!(cpus_of_primary(&cluster), allowed);
        assert!(!cluster.stderr.lines().iter().any(|line| line.contains("cannot pin")));
    }
}

/// As `taskset` or a control group would have it.
#[test]
fn pinned_workers_stay_on_the_cpus_of_their_primary() {
    let cluster = Setup::new(&guest("hello")).args(&["--pin-cpus"]).start();
    let last = *cpus_of_primary(&cluster).last().unwrap();
    let mut only = CpuSet::new();
    only.set(last).unwrap();
    sched_setaffinity(cluster.pid(), &only).unwrap();
    for slot in [0, 1] {
        let worker = cluster.worker(slot).unwrap();
        kill(worker, Signal::SIGKILL).unwrap();
        assert_eq!(cpus_of_all_threads(cluster.replaced(slot, worker)), [last], "slot {slot}");
    }
}

#[test]
fn workers_run_where_their_primary_may_unless_they_are_pinned() {
    let cluster = Setup::new(&guest("hello")).start();
    for slot in [0, 1] {
        assert_eq!(cpus_of_all_threads(cluster.worker(slot).unwrap()), cpus_of_primary(&cluster));
    }
}
