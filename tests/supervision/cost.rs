//! What a request cost: in the access log, in the metrics, and as its client is told.

use std::fs;

use serde_json::Value;

use harness::{Cluster, Setup, guest, until};

use super::admin::{admin, says, value};

fn serve(name: &str, args: &[&str]) -> (Cluster, std::path::PathBuf) {
    let setup = Setup::new(&guest(name)).workers(1);
    let log = setup.folder.path().join("access.log");
    let args = [&["--access-log", log.to_str().unwrap(), "--access-log-format", "json"], args].concat();
    (setup.args(&args).start(), log)
}

/// The line of the request that asked for that path last.
#[track_caller]
fn line(log: &std::path::Path, path: &str) -> Value {
    until("the request has a line", || {
        let lines = fs::read_to_string(log).ok()?;
        let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.rfind(|line| line["path"] == path)
    })
}

/// Who computes pays for it, and not who waits meanwhile; who allocates as well.
#[test]
fn guests_pay_for_what_they_compute_and_have() {
    let args = ["--admin", "127.0.0.1:0", "--max-instance-reuse-count", "1"];
    let (cluster, log) = serve("scenarios", &args);
    says(cluster.address(), "/headers");
    says(cluster.address(), "/spin?ms=300");
    says(cluster.address(), "/sleep?ms=300");
    says(cluster.address(), "/allocate?mib=20");
    says(cluster.address(), "/none");
    let number = |line: &Value, field: &str| line[field].as_f64().unwrap_or_else(|| panic!("{field}: {line}"));
    let [headers, spins, sleeps, allocates] = ["/headers", "/spin", "/sleep", "/allocate"].map(|path| line(&log, path));
    // It spins for so long by the clock, and gives way meanwhile.
    assert!(number(&spins, "cpu_ms") >= 150.0, "{spins}");
    assert!(number(&spins, "cpu_ms") <= number(&spins, "duration_ms"), "{spins}");
    assert!(number(&sleeps, "duration_ms") >= 300.0 && number(&sleeps, "cpu_ms") < 250.0, "{sleeps}");
    assert!(number(&headers, "cpu_ms") > 0.0, "{headers}");
    assert!(number(&headers, "memory_bytes") >= 64.0 * 1024.0, "{headers}");
    assert!(
        number(&allocates, "memory_bytes") >= number(&headers, "memory_bytes") + 20.0 * 1024.0 * 1024.0,
        "{allocates}"
    );
    for line in [&headers, &spins, &sleeps, &allocates] {
        assert_eq!(
            (&line["instance"], &line["outbound"], &line["store_calls"]),
            (&"fresh".into(), &0.into(), &0.into())
        );
    }
    let address = admin(&cluster);
    let text = until("all are counted", || {
        let text = says(address, "/metrics").1;
        (value(&text, "wasmcluster_guest_cpu_seconds_count{generation=\"1\"}") == Some(5.0)).then_some(text)
    });
    let cpu = value(&text, "wasmcluster_guest_cpu_seconds_sum{generation=\"1\"}").unwrap();
    let all: f64 = [&headers, &spins, &sleeps, &allocates].map(|line| number(line, "cpu_ms")).iter().sum();
    assert!(cpu * 1000.0 >= all - 1.0, "{cpu} s, {all} ms");
    assert_eq!(value(&text, "wasmcluster_guest_memory_bytes_count{generation=\"1\"}"), Some(5.0), "{text}");
    assert!(value(&text, "wasmcluster_guest_memory_bytes_sum{generation=\"1\"}").unwrap() >= 20.0 * 1024.0 * 1024.0);
    let uses =
        |kind: &str| value(&text, &format!("wasmcluster_instance_uses_total{{generation=\"1\",kind=\"{kind}\"}}"));
    assert_eq!((uses("fresh"), uses("reused")), (Some(5.0), Some(0.0)), "{text}");
}

/// Under both versions of WASI: the first is fresh, the second is not, and its memory is what the instance has.
#[test]
fn instances_that_are_reused_are_told_from_fresh_ones() {
    for name in ["hello", "hello_p3"] {
        let args = ["--admin", "127.0.0.1:0", "--max-instance-reuse-count", "100"];
        let (cluster, log) = serve(name, &args);
        says(cluster.address(), "/first");
        let first = line(&log, "/first");
        says(cluster.address(), "/second");
        let second = line(&log, "/second");
        assert_eq!((&first["instance"], &second["instance"]), (&"fresh".into(), &"reused".into()), "{name}");
        // What the host keeps for it is in it, and is not always the same.
        let [had, has] = [&first, &second].map(|line| line["memory_bytes"].as_f64().unwrap());
        assert!(has > had / 2.0, "{name}: {first} {second}");
        let has_one = |status: &Value| {
            let worker = &status["workers"][0];
            worker["instances"] == 1 && worker["guest_memory_bytes"].as_f64().unwrap() > had / 2.0
        };
        until("the worker says what its instance has", || has_one(&cluster.status()).then_some(()));
        until("so do the metrics", || {
            (value(&says(admin(&cluster), "/metrics").1, "wasmcluster_instances") == Some(1.0)).then_some(())
        });
    }
}

#[test]
fn calls_of_stores_and_outbound_requests_are_counted() {
    let (cluster, log) = serve("stores", &["--admin", "127.0.0.1:0", "--kv", "cache=memory:"]);
    says(cluster.address(), "/cache/key");
    says(cluster.address(), "/absent/key");
    let calls = |path: &str| line(&log, path)["store_calls"].as_u64().unwrap();
    // It is opened, and read.
    assert_eq!((calls("/cache/key"), calls("/absent/key")), (2, 1));
    let has = |cluster: &Cluster, expected: &[(&str, f64)]| {
        until("the calls are counted", || {
            let text = says(admin(cluster), "/metrics").1;
            expected
                .iter()
                .all(|(name, count)| value(&text, &format!("{name}{{generation=\"1\"}}")) == Some(*count))
                .then_some(())
        });
    };
    has(&cluster, &[("wasmcluster_store_call_duration_seconds_count", 3.0), ("wasmcluster_store_failures_total", 1.0)]);

    let upstream = Setup::new(&guest("hello")).workers(1).start();
    let grant = format!("http://{}", upstream.address());
    let (cluster, log) = serve("sdk", &["--admin", "127.0.0.1:0", "--allow-host", &grant]);
    assert_eq!(says(cluster.address(), &format!("/fetch?url={grant}/")).0, 200);
    assert!(says(cluster.address(), "/outcome?url=http://denied.example/").1.starts_with("denied"));
    assert_eq!((&line(&log, "/fetch")["outbound"], &line(&log, "/outcome")["outbound"]), (&1.into(), &1.into()));
    let expected =
        [("wasmcluster_outbound_request_duration_seconds_count", 1.0), ("wasmcluster_outbound_failures_total", 1.0)];
    has(&cluster, &expected);
}

#[test]
fn traps_are_told_apart() {
    let args = ["--admin", "127.0.0.1:0", "--max-memory", "64MiB"];
    let (cluster, _) = serve("scenarios", &args);
    for path in ["/trap", "/trap", "/exit"] {
        assert_eq!(says(cluster.address(), path).0, 500);
    }
    let address = admin(&cluster);
    let kind = |text: &str, kind: &str| {
        value(text, &format!("wasmcluster_guest_traps_total{{generation=\"1\",kind=\"{kind}\"}}"))
    };
    until("both kinds are counted", || {
        let text = says(address, "/metrics").1;
        (kind(&text, "unreachable") == Some(2.0) && kind(&text, "exit") == Some(1.0)).then_some(())
    });
}

/// Off by default: a client learns nothing of the inside that it was not meant to.
#[test]
fn clients_are_told_what_took_how_long_where_that_is_wanted() {
    let timing = |cluster: &Cluster, path: &str| {
        let answer = super::admin::ask(cluster.address(), path);
        let all: Vec<String> =
            answer.headers.get_all("server-timing").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
        all
    };
    let (cluster, _) = serve("scenarios", &[]);
    assert!(timing(&cluster, "/headers").is_empty());
    let (cluster, _) = serve("scenarios", &["--server-timing", "--max-instance-reuse-count", "1"]);
    let told = timing(&cluster, "/spin?ms=50");
    let [told] = &told[..] else { panic!("{told:?}") };
    let parts: Vec<&str> = told.split(", ").collect();
    assert!(parts[0].starts_with("queue;dur="), "{told}");
    assert!(parts[1].starts_with("guest;dur=") && parts[1].ends_with(";desc=fresh"), "{told}");
    let cpu: f64 = parts[2].strip_prefix("cpu;dur=").unwrap().parse().unwrap();
    let guest: f64 = parts[1].trim_start_matches("guest;dur=").trim_end_matches(";desc=fresh").parse().unwrap();
    assert!(cpu >= 20.0 && guest >= cpu, "{told}");
}
