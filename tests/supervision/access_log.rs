//! The access log: a line for each request, whatever becomes of it, in files that others rotate.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use harness::client::{Connection, get};
use harness::load::{Load, Reuse};
use harness::{Cluster, Setup, guest, until};

fn serve(name: &str, args: &[&str]) -> (Cluster, PathBuf) {
    let setup = Setup::new(&guest(name));
    let path = setup.folder.path().join("access.log");
    let cluster = setup.args(&["--access-log", path.to_str().unwrap()]).args(args).start();
    (cluster, path)
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
}

#[track_caller]
fn until_there_are(path: &Path, count: usize) -> Vec<String> {
    until("all lines are there", || Some(lines(path)).filter(|lines| lines.len() >= count))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_has_a_line_that_says_what_became_of_it() {
    let args = ["--access-log-format", "json", "--request-timeout", "500ms", "--trust-proxy", "127.0.0.0/8"];
    for name in ["scenarios", "hello_p3"] {
        let (cluster, path) = serve(name, &args);
        let mut asked = 0;
        let mut ask = async |path: &str| {
            asked += 1;
            let _ = get(cluster.address(), path).await;
        };
        ask("/headers?password=hush").await;
        let mut expected = vec![("GET", "/headers", Some(200), "complete")];
        if name == "scenarios" {
            ask("/none").await;
            ask("/trap").await;
            ask("/error").await;
            expected.push(("GET", "/none", Some(404), "complete"));
            expected.push(("GET", "/trap", Some(500), "trapped"));
            expected.push(("GET", "/error", Some(500), "complete"));
        }
        let lines = until_there_are(&path, expected.len());
        assert_eq!(lines.len(), asked);
        assert!(!lines.concat().contains("hush"), "{lines:?}");
        let told: BTreeMap<String, Value> = lines
            .iter()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|line| (line["path"].as_str().unwrap().to_owned(), line))
            .collect();
        for (method, path, status, ended) in expected {
            let line = &told[path];
            assert_eq!((&line["method"], &line["ended"]), (&method.into(), &ended.into()), "{line}");
            if name == "scenarios" {
                assert_eq!(line["status"].as_u64(), status, "{line}");
            }
            assert_eq!(
                (&line["peer"], &line["protocol"], &line["tls"]),
                (&"127.0.0.1".into(), &"HTTP/1.1".into(), &false.into()),
                "{line}"
            );
            assert_eq!(
                (&line["generation"], line["request"].as_str().unwrap().contains('-')),
                (&1.into(), true),
                "{line}"
            );
            assert!(line["duration_ms"].as_f64().unwrap() > 0.0, "{line}");
            assert!(line["guest_ms"].as_f64().unwrap() <= line["duration_ms"].as_f64().unwrap(), "{line}");
            assert!(humantime_is(&line["time"]), "{line}");
        }
    }
}

fn humantime_is(time: &Value) -> bool {
    time.as_str().is_some_and(|time| time.len() == 27 && time.ends_with('Z'))
}

/// In the forms that other tools read, with who the client is behind a proxy, and nothing that a client forged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_have_the_forms_of_other_servers() {
    let (cluster, path) = serve("hello", &["--trust-proxy", "127.0.0.0/8"]);
    let request = http::Request::builder()
        .uri("/a?b=c")
        .header("x-forwarded-for", "203.0.113.7")
        .header("user-agent", "a \"tool\" \\ 1")
        .header("referer", "http://x.test/")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let mut connection = Connection::open(cluster.address()).await;
    let answer = harness::client::whole(connection.send_request(request).await.unwrap()).await.unwrap();
    let line = until_there_are(&path, 1).remove(0);
    let (before, rest) = line.split_once(" - - [").unwrap();
    let (time, rest) = rest.split_once("] ").unwrap();
    assert_eq!((before, time.len()), ("203.0.113.7", "10/Oct/2000:13:55:36 +0000".len()), "{line}");
    let bytes = answer.text().len();
    let expected = format!("\"GET /a HTTP/1.1\" 200 {bytes} \"http://x.test/\" \"a \\x22tool\\x22 \\x5C 1\"");
    assert_eq!(rest, expected);
    let common = serve("hello", &["--access-log-format", "common"]);
    get(common.0.address(), "/").await.unwrap();
    assert!(
        until_there_are(&common.1, 1)[0].ends_with(&format!("\"GET / HTTP/1.1\" 200 {bytes}")),
        "{:?}",
        lines(&common.1)
    );
}

/// Renamed, removed, or said by a signal: as logrotate and others do it, under load. No line is lost, and none is torn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_rotated_is_opened_again_and_no_line_is_lost() {
    let (cluster, path) = serve("hello", &["--access-log-format", "json"]);
    let load = Load::start(cluster.address(), 8, Reuse::KeepAlive);
    load.goes_on();
    let rotated = |number: u32| path.with_extension(format!("log.{number}"));
    for number in 1..=3 {
        fs::rename(&path, rotated(number)).unwrap();
        if number > 1 {
            cluster.signal(Signal::SIGUSR1);
        }
        until("there is another", || path.exists().then_some(()));
        load.goes_on();
        until("it is written to", || (!lines(&path).is_empty()).then_some(()));
        if number == 2 {
            // Workers to come write to it as well.
            assert_eq!(cluster.reload(&[]).code, Some(0));
            load.goes_on();
        }
    }
    let answered = load.end_well().await;
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    let all: Vec<String> = (1..=3).map(rotated).chain([path.clone()]).flat_map(|path| lines(&path)).collect();
    let complete =
        all.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(|line| line["status"] == 200);
    assert!(complete.count() as u64 >= answered, "{} lines of {answered}", all.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_costs_lines_and_no_request() {
    // A device that is always full.
    let cluster = Setup::new(&guest("hello")).args(&["--access-log", "/dev/full"]).start();
    for _ in 0..20 {
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    }
    cluster.stderr.find("the access log cannot be written, so lines of it are lost: No space left on device");
    until("they are counted", || (cluster.status()["totals"]["access_dropped"].as_u64()? >= 1).then_some(()));
    drop(cluster);
    // Nor does a reader that does not read.
    let setup = Setup::new(&guest("hello"));
    let fifo = setup.folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let cluster = setup.args(&["--access-log", fifo.to_str().unwrap()]).start();
    let load = Load::start(cluster.address(), 8, Reuse::KeepAlive);
    load.goes_on();
    until("lines are lost", || (cluster.status()["totals"]["access_dropped"].as_u64()? >= 1).then_some(()));
    load.goes_on();
    load.end_well().await;
    drop((cluster, reader));
    for (flags, said) in [
        (&["--access-log", "/no/such/folder/log"][..], "cannot open the access log /no/such/folder/log"),
        (&["--access-log", "/"], "cannot open the access log /"),
    ] {
        let refused = Setup::new(&guest("hello")).args(flags).run();
        assert!(refused.code == Some(1) && refused.stderr.contains(said), "{flags:?}: {refused:?}");
    }
    let refused = Setup::bare(&["serve", "app.wasm", "--access-log-format", "json"]).run();
    assert!(refused.code == Some(2) && refused.stderr.contains("add --access-log FILE"), "{refused:?}");
}

/// With the lines of guests, which are no less whole for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_may_go_to_standard_output() {
    let cluster = Setup::new(&guest("scenarios")).args(&["--access-log", "-", "--access-log-format", "json"]).start();
    for _ in 0..50 {
        get(cluster.address(), "/print?out=hello&err=x").await.unwrap();
    }
    until("all lines are there", || {
        let lines = cluster.stdout.lines();
        let json = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        (json.filter(|line| line["path"] == "/print").count() == 50).then_some(())
    });
    let old = cluster.worker(0).unwrap();
    kill(old, Signal::SIGKILL).unwrap();
    cluster.replaced(0, old);
}
