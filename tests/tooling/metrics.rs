//! What guests count: exact over all workers, whatever becomes of these, and bounded whatever guests do.

use std::net::SocketAddr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::{Value, json};

use harness::client::{Connection, get};
use harness::{Cluster, Setup, guest, until};

/// Guests of both versions of WASI, which keep any metric they are told to.
const GUESTS: [&str; 2] = ["hostile_p2", "hostile_p3"];

async fn tell(cluster: &Cluster, path: &str) {
    let answer = get(cluster.address(), path).await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, "kept"), "{path}");
}

/// All series of that name.
#[track_caller]
fn metrics(cluster: &Cluster, name: &str) -> Vec<Value> {
    let all = cluster.status()["guest_metrics"].as_array().expect("a list").clone();
    all.into_iter().filter(|metric| metric["name"] == name).collect()
}

#[track_caller]
fn value(cluster: &Cluster, name: &str) -> Value {
    let found = metrics(cluster, name);
    assert!(found.len() <= 1, "{found:?}");
    found.first().map_or(Value::Null, |metric| metric["value"].clone())
}

/// Lines of the log that are about metrics.
fn said(cluster: &Cluster) -> Vec<String> {
    cluster.stderr.lines().into_iter().filter(|line| line.contains("a guest's metric")).collect()
}

fn dropped(cluster: &Cluster) -> u64 {
    cluster.status()["totals"]["metrics_dropped"].as_u64().expect("a number")
}

/// Sends the same request again and again over some connections: how many were answered, and how many failed.
async fn load(cluster: &Cluster, path: &'static str, clients: usize, each: u64) -> (u64, u64) {
    let address = cluster.address();
    let clients: Vec<_> = (0..clients).map(|_| tokio::spawn(client(address, path, each))).collect();
    let (mut answered, mut failed) = (0, 0);
    for client in clients {
        let ended = client.await.unwrap();
        (answered, failed) = (answered + ended.0, failed + ended.1);
    }
    (answered, failed)
}

async fn client(address: SocketAddr, path: &str, each: u64) -> (u64, u64) {
    let (mut connection, mut failed) = (Connection::open(address).await, 0);
    for _ in 0..each {
        match connection.get(path).await {
            Ok(answer) => {
                assert_eq!(answer.status, 200);
                if answer.headers.get("connection").is_none_or(|value| value != "close") {
                    continue;
                }
            }
            Err(_) => failed += 1,
        }
        connection = Connection::open(address).await;
    }
    (each - failed, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_metric_is_shown() {
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(1).start();
        assert_eq!(cluster.status()["guest_metrics"], json!([]), "{name}");
        assert!(!cluster.command(&["status"]).stdout.contains("METRIC"), "{name}");

        tell(&cluster, "/metric?name=orders_total&label=kind&value=book&count=2").await;
        tell(&cluster, "/metric?name=orders_total&label=kind&value=book&count=3").await;
        tell(&cluster, "/metric?name=orders_total&label=kind&value=%22a%0Ab&count=0").await;
        tell(&cluster, "/metric?name=queue&set=1.5&add=-2").await;
        tell(&cluster, "/metric?name=seconds&observe=0.02&times=2").await;
        tell(&cluster, "/metric?name=seconds&observe=11").await;
        let bounds =
            [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let buckets: Vec<Value> =
            bounds.iter().map(|&bound| json!([bound, if bound < 0.02 { 0 } else { 2 }])).collect();
        let expected = json!([
            {"name": "orders_total", "kind": "counter", "labels": {"kind": "\"a\nb"}, "value": 0},
            {"name": "orders_total", "kind": "counter", "labels": {"kind": "book"}, "value": 5},
            {"name": "queue", "kind": "gauge", "labels": {}, "value": -0.5},
            {"name": "seconds", "kind": "histogram", "labels": {}, "count": 3, "sum": 11.04, "buckets": buckets},
        ]);
        assert_eq!(cluster.status()["guest_metrics"], expected, "{name}");

        let table = cluster.command(&["status"]).stdout;
        for row in [
            r#"orders_total{kind="\"a\nb"}  counter    0"#,
            r#"orders_total{kind="book"}    counter    5"#,
            "queue                        gauge      -0.5",
            "seconds                      histogram  3 values, 3.680000 on average",
        ] {
            assert!(table.contains(row), "{name}: {table}");
        }
        assert_eq!((dropped(&cluster), said(&cluster)), (0, vec![]), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_counts_of_four_workers_add_up() {
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(4).start();
        let (answered, failed) = load(&cluster, "/metric?name=answers&count=1", 16, 50).await;
        let (counted, _) = load(&cluster, "/metric?name=seconds&observe=0.5&times=3", 16, 50).await;
        assert_eq!((failed, value(&cluster, "answers")), (0, answered.into()), "{name}");
        let histogram = &metrics(&cluster, "seconds")[0];
        assert_eq!(histogram["count"], counted * 3, "{name}");
        assert_eq!(histogram["sum"], (counted * 3) as f64 * 0.5, "{name}");
        let busy =
            cluster.status()["workers"].as_array().unwrap().iter().filter(|worker| worker["requests"] != 0).count();
        assert!(busy > 1, "{name}: all of it went to one worker");
    }
}

/// Nothing that was counted is lost with its worker; a gauge is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_survive_their_workers_and_gauges_do_not() {
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(1).args(&["--min-ready", "0s", "--soak", "0s"]).start();
        let mut answered = 0;
        for round in 1..=3 {
            answered += load(&cluster, "/metric?name=answers&count=1", 4, 25).await.0;
            tell(&cluster, "/metric?name=seconds&observe=1").await;
            tell(&cluster, "/metric?name=queue&set=7").await;
            assert_eq!(value(&cluster, "queue"), 7.0, "{name}");
            let worker = cluster.worker(0).unwrap();
            if round == 2 {
                assert_eq!(cluster.command(&["reload"]).code, Some(0));
                assert_ne!(cluster.worker(0), Some(worker));
            } else {
                kill(worker, Signal::SIGKILL).unwrap();
                cluster.replaced(0, worker);
            }
            assert_eq!(value(&cluster, "answers"), answered, "{name}, round {round}");
            assert_eq!(metrics(&cluster, "seconds")[0]["count"], round, "{name}");
            assert_eq!(value(&cluster, "queue"), Value::Null, "{name}, round {round}");
        }
    }
}

/// In the middle of a load, what was answered was counted. A request that failed with its worker may have been counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_under_load_is_not_lost() {
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(4).args(&["--min-ready", "0s", "--soak", "0s"]).start();
        let counted = || value(&cluster, "answers").as_u64().unwrap_or_default();
        let under_way = |before: u64| until("it is under way", || (counted() > before).then_some(()));
        let ((answered, failed), ()) = tokio::join!(load(&cluster, "/metric?name=answers&count=1", 8, 250), async {
            tokio::task::block_in_place(|| {
                for slot in 0..4 {
                    under_way(slot * 200);
                    let worker = cluster.worker(slot as u32).unwrap();
                    kill(worker, Signal::SIGKILL).unwrap();
                    cluster.replaced(slot as u32, worker);
                }
            });
        });
        println!("{name}: {answered} answered, {failed} failed, {} counted", counted());
        assert!((answered..=answered + failed).contains(&counted()), "{name}");

        let before = counted();
        let ((answered, failed), ()) = tokio::join!(load(&cluster, "/metric?name=answers&count=1", 8, 250), async {
            tokio::task::block_in_place(|| {
                under_way(before);
                assert_eq!(cluster.command(&["reload"]).code, Some(0));
            });
        });
        assert_eq!((failed, counted()), (0, before + answered), "{name}");
    }
}

/// A gauge is the sum over the workers that live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gauges_of_workers_add_up() {
    let cluster = Setup::new(&guest("hostile_p2")).workers(2).start();
    let both_have_it = || {
        let status = cluster.status();
        status["workers"].as_array().unwrap().iter().all(|worker| worker["requests"].as_u64() > Some(0))
    };
    while !both_have_it() {
        tell(&cluster, "/metric?name=queue&set=2.5").await;
    }
    assert_eq!(value(&cluster, "queue"), 5.0);
    let worker = cluster.worker(1).unwrap();
    kill(worker, Signal::SIGKILL).unwrap();
    cluster.replaced(1, worker);
    assert_eq!(value(&cluster, "queue"), 2.5);
}

/// Those that were there first go on; the rest costs their guest nothing, and a line of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn series_are_bounded() {
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(1).start();
        let worker = cluster.worker(0);
        for round in 1..=2 {
            tell(&cluster, "/many-metrics?n=10000").await;
            let kept = metrics(&cluster, "many");
            assert_eq!(kept.len(), 256, "{name}");
            assert!(kept.iter().all(|metric| metric["value"] == round), "{name}: {kept:?}");
            assert_eq!(dropped(&cluster), round * (10_000 - 256), "{name}");
        }
        let line = cluster.stderr.find("a guest's metric \"many\" is dropped: this worker's guests have 256 series");
        assert!(line.contains("labels with few values"), "{line}");
        assert_eq!(said(&cluster).len(), 1, "{name}");
        assert_eq!(cluster.worker(0), worker, "{name}");
        let table = cluster.command(&["status"]).stdout;
        assert!(table.contains("and 206 more") && table.contains("19488 updates of metrics were dropped"), "{table}");
    }
}

/// Workers that come and go, each with series of its own, do not fill the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn series_of_workers_that_are_gone_are_bounded() {
    let cluster = Setup::new(&guest("hostile_p2")).workers(1).start();
    for round in 0..5 {
        for number in 0..256 {
            tell(&cluster, &format!("/metric?name=of_{round}_{number}&count=1")).await;
        }
        let worker = cluster.worker(0).unwrap();
        kill(worker, Signal::SIGKILL).unwrap();
        cluster.replaced(0, worker);
    }
    assert_eq!(cluster.status()["guest_metrics"].as_array().unwrap().len(), 1024);
    // The newest are there.
    assert_eq!(value(&cluster, "of_4_0"), 1);
    cluster.stderr.find("no longer fit in memory");
    tell(&cluster, "/metric?name=z&count=1").await;
    assert_eq!(value(&cluster, "z"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_break_a_rule_are_dropped() {
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(1).start();
        let worker = cluster.worker(0);
        tell(&cluster, "/metric?name=good&count=1").await;
        let bad = [
            ("its name is not valid", "/metric?name=not+a+name&count=1"),
            ("its name is not valid", "/metric?name=&count=1"),
            ("its name is not valid", "/metric?name=wasmcluster_requests_total&count=1"),
            ("its name is not valid", "/metric?name=good_count&count=1"),
            ("labels", "/metric?name=good&label=le&value=1&count=1"),
            ("labels", "/metric?name=good&label=a-b&value=1&count=1"),
            ("its value", "/metric?name=queue&set=NaN"),
            ("its value", "/metric?name=queue&add=inf"),
            ("its value", "/metric?name=seconds&observe=-1"),
            ("another kind", "/metric?name=good&set=1"),
            ("another kind", "/metric?name=good&label=a&value=1&observe=1"),
        ];
        for (number, (reason, path)) in bad.into_iter().enumerate() {
            tell(&cluster, path).await;
            assert_eq!(dropped(&cluster), number as u64 + 1, "{name} {path}");
            cluster.stderr.find(reason);
        }
        // Names, labels and label values of megabytes, and a hundred thousand labels.
        tell(&cluster, "/giant-metric").await;
        assert_eq!(dropped(&cluster), bad.len() as u64 + 4, "{name}");
        let expected = json!([{"name": "good", "kind": "counter", "labels": {}, "value": 1}]);
        assert_eq!(cluster.status()["guest_metrics"], expected, "{name}");
        // What is too much for any call.
        assert_eq!(get(cluster.address(), "/giant-metric?mib=20").await.unwrap().status, 500);
        // One line for each of name, labels, value and kind.
        assert_eq!(said(&cluster).len(), 4, "{name}: {:?}", said(&cluster));
        assert!(said(&cluster).iter().all(|line| line.len() < 1000), "{name}");
        assert_eq!(cluster.worker(0), worker, "{name}");
    }
}

/// By the SDK.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_in_rust_keeps_metrics() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    for kind in ["book", "pen", "book"] {
        assert_eq!(get(cluster.address(), &format!("/order?kind={kind}")).await.unwrap().status, 200);
    }
    let orders = metrics(&cluster, "orders_total");
    let found: Vec<_> = orders.iter().map(|metric| (&metric["labels"]["kind"], &metric["value"])).collect();
    assert_eq!(found, [(&json!("book"), &json!(2)), (&json!("pen"), &json!(1))]);
    assert_eq!(metrics(&cluster, "order_seconds")[0]["count"], 3);
    assert_eq!((value(&cluster, "orders_open"), value(&cluster, "last_order")), (json!(0.0), json!(7.0)));
    assert_eq!(dropped(&cluster), 0);
}

/// A guest that counts nothing has nothing of it: no table in memory, and no import.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_counts_nothing_pays_nothing() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    assert_eq!(cluster.status()["guest_metrics"], json!([]));
    let page = |pid: Pid| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let mapping = maps.split_once("wasmcluster-stats").expect("the page is mapped").1;
        let rss = mapping.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let worker = cluster.worker(0).unwrap();
    let (in_worker, in_primary) = (page(worker), page(cluster.pid()));
    let one = sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64 / 1024;
    // The server's own counters and distributions come first, and have less than 8 KiB.
    let own = 8_u64.next_multiple_of(one);
    assert_eq!((in_worker, in_primary), (own, own));
    let inspected = cluster.command(&["inspect", guest("hello").to_str().unwrap()]);
    assert!(!inspected.stdout.contains("wasmcluster:worker"), "{}", inspected.stdout);
    let inspected = cluster.command(&["inspect", "--json", guest("hostile_p2").to_str().unwrap()]);
    let inspected: Value = serde_json::from_str(&inspected.stdout).unwrap();
    let imports = inspected["imports"].as_array().unwrap();
    let found = imports.iter().find(|import| import["name"] == "wasmcluster:worker/metrics@0.1.0").expect("its import");
    assert_eq!(found["access"], "given");
}
