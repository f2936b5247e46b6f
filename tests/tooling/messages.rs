//! What the program says: errors, help, tables, log lines.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use http_body_util::BodyExt;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use harness::client::{Connection, get};
use harness::websocket::handshake;
use harness::{Ended, Lines, Setup, guest, until};

#[track_caller]
fn parse(line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    for name in ["timestamp", "level", "message"] {
        assert!(value[name].is_string(), "no {name} in {line}");
    }
    value
}

#[track_caller]
fn find(lines: &Lines, text: &str) -> Value {
    parse(&lines.find(text))
}

/// Guests, workers, the primary and the announcement: one schema.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_json_has_the_same_schema() {
    let args = ["--log-format", "json", "--log-level", "debug", "--drain-timeout", "1s"];
    let cluster = Setup::new(&guest("scenarios")).workers(1).args(&args).start();
    let address = cluster.address();
    let first = parse(&cluster.stderr.lines()[0]);
    assert_eq!(first["message"], format!("Serving HTTP on http://{address}/"));
    assert_eq!((&first["level"], &first["url"]), (&json!("INFO"), &json!(format!("http://{address}/"))));

    let query = "out=%7B%22level%22:%22warn%22,%22message%22:%22books%22,%22stock%22:2%7D&err=plain";
    get(address, &format!("/print?{query}")).await.unwrap();
    get(address, "/trap").await.unwrap();
    let object = find(&cluster.stdout, "books");
    assert_eq!((&object["level"], &object["message"]), (&json!("WARN"), &json!("books")));
    assert_eq!(object["guest"], json!({"level": "warn", "message": "books", "stock": 2}));
    let plain = find(&cluster.stderr, "plain");
    assert_eq!((&plain["level"], &plain["stream"]), (&json!("INFO"), &json!("stderr")));
    let trapped = find(&cluster.stderr, "the guest trapped");
    for line in [&object, &plain, &trapped] {
        assert_eq!((&line["worker"], &line["generation"]), (&json!(1), &json!(1)), "{line}");
    }
    // What is allowed and hardly meant.
    let doubt = find(&cluster.stderr, "--drain-timeout 1s is shorter than --request-timeout 30s");
    assert_eq!(doubt["level"], "WARN");
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    cluster.wait();
    until("its output ends", || (cluster.stderr.ended() && cluster.stdout.ended()).then_some(()));
    for line in cluster.stderr.lines().iter().chain(&cluster.stdout.lines()) {
        parse(line);
    }
}

/// A build, also the second, and an error at the end.
#[test]
fn builds_and_errors_of_serve_are_json_too() {
    let project = tempfile::tempdir().unwrap();
    let component = guest("hello");
    let recipe = |text: &str| {
        let command = format!("echo said by a tool >&2; {text} cp {} app.wasm", component.display());
        let file = format!("[build]\ncommand = \"{command}\"\ncomponent = \"app.wasm\"\n");
        fs::write(project.path().join("wasmcluster.toml"), file).unwrap();
    };
    recipe("");
    let serve = || Setup::new(project.path()).workers(1).args(&["--log-format", "json"]);
    let cluster = serve().args(&["--watch"]).start_from_sources();
    let said = find(&cluster.stderr, "said by a tool");
    assert_eq!((&said["level"], &said["stream"]), (&json!("INFO"), &json!("build")));
    let built = || cluster.stderr.lines().iter().filter(|line| line.contains("Built ")).count();
    recipe("true;");
    until("it is built again", || (built() > 1).then_some(()));
    recipe("exit 1;");
    assert_eq!(find(&cluster.stderr, "cannot build")["level"], "ERROR");
    cluster.stderr.lines().iter().for_each(|line| drop(parse(line)));
    drop(cluster);

    let Ended { code, stderr, .. } = serve().run();
    assert_eq!(code, Some(1), "{stderr}");
    let lines: Vec<Value> = stderr.lines().map(parse).collect();
    let last = lines.last().unwrap();
    assert!(last["message"].as_str().unwrap().starts_with("cannot build "), "{last}");
}

/// What `serve` says of a wrong flag or file, with the place and what to write.
#[test]
fn mistakes_are_answered_with_what_to_write() {
    for (args, parts) in [
        (&["serve", "app.wasm", "--port", "80"][..], &["unexpected argument '--port'", "'--listen'"][..]),
        (&["serve", "app.wasm", "--listen", "8080"], &["expected HOST:PORT", "127.0.0.1:8080"]),
        (&["serve", "app.wasm", "--workers", "0"], &["expected a whole number, 1 or more"]),
        (&["serve", "app.wasm", "--max-memory", "1"], &["--max-memory 1B", "64KiB", "128MiB"]),
        (&["serve", "app.wasm", "--max-worker-rss", "500"], &["--max-worker-rss 500B", "500MiB"]),
        (&["complier"], &["unrecognized subcommand 'complier'"]),
    ] {
        let ended = Setup::bare(args).run();
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(parts.iter().all(|part| ended.stderr.contains(part)), "{args:?}: {}", ended.stderr);
        for bad in ["-- --", "'compiler'", "'worker'"] {
            assert!(!ended.stderr.contains(bad), "{args:?}: {}", ended.stderr);
        }
    }
    for (file, said) in [
        ("workers = 2\nlog_level = \"info\"", "line 2: unknown key `log_level`; did you mean `log-level`?"),
        ("listen = \"127.0.0.1:80\"", "`listen` takes a list; write listen = [\"127.0.0.1:8080\"]"),
        ("env = [\"A=B\"]", "`env` takes a table; write [env] and below it NAME = \"value\""),
    ] {
        let setup = Setup::bare(&["serve", "app.wasm"]);
        fs::write(setup.folder.path().join("wasmcluster.toml"), file).unwrap();
        let ended = setup.run();
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
        assert!(ended.stderr.lines().count() == 2 && ended.stderr.len() < 300, "{}", ended.stderr);
    }
}

/// The names that other tools have for commands, and completions that know no hidden ones.
#[test]
fn commands_have_usual_names_and_completions() {
    for (alias, command) in [("ls", "status"), ("start", "serve"), ("restart", "reload")] {
        let [one, other] = [alias, command].map(|name| Setup::bare(&[name, "--help"]).run());
        assert_eq!((one.code, one.stdout), (Some(0), other.stdout));
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = Setup::bare(&["completions", shell]).run();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("rollback") && ended.stdout.contains("max-memory"), "{shell}");
        assert!(!ended.stdout.contains("builder"), "{shell}");
    }
}

#[test]
fn help_is_short_or_long_and_has_headings() {
    let [short, long] = ["-h", "--help"].map(|flag| Setup::bare(&["serve", flag]).run().stdout);
    for help in [&short, &long] {
        for heading in ["Cluster:", "What guests may use:", "Timeouts:", "Limits:", "Drain and stop:", "Logging:"] {
            assert!(help.contains(heading), "no {heading} in {help}");
        }
    }
    let detail = "give `docker stop` or Kubernetes a grace period";
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(one_line(&long).contains(detail) && !one_line(&short).contains(detail));
    assert!(short.lines().count() < long.lines().count() * 2 / 3);
}

#[test]
fn limits_are_named_by_their_flags_and_units() {
    let args = ["--max-memory", "64KiB"];
    let ended = Setup::new(&guest("hello")).args(&args).run();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said = &ended.stderr;
    assert!(said.contains("of memory to start, but --max-memory is 64KiB") && !said.contains("pages"), "{said}");
}

#[test]
fn more_pinned_workers_than_cpus_are_warned_of() {
    let cpus = std::thread::available_parallelism().unwrap().get() as u32;
    let workers = cpus + 1;
    let cluster = Setup::new(&guest("hello")).workers(workers).args(&["--pin-cpus"]).start();
    let line = cluster.stderr.find("--pin-cpus");
    assert!(line.contains("WARN") && line.contains(&format!("--workers {workers}")), "{line}");
}

#[test]
fn what_new_says_can_be_pasted() {
    let setup = Setup::bare(&["new", "My Shop!"]);
    let made = setup.run();
    assert!(made.stdout.contains("\n  cd 'My Shop!'\n"), "{made:?}");
    assert!(!Path::new("My Shop!").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_fits_a_terminal_and_speaks_of_quantiles() {
    let cluster = Setup::new(&guest("hello")).start();
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    let table = until("the request is counted", || {
        let table = cluster.command(&["status"]).stdout;
        table.contains("\n1 request, 0 errors,").then_some(table)
    });
    assert!(table.contains("\nlatency: p50 ") && table.contains(" ms, p99 "), "{table}");
    // The path of the component is as long as it is.
    let lines = || table.lines().filter(|line| !line.contains('/'));
    assert!(lines().all(|line| line.chars().count() <= 80), "{table}");
}

/// While a canary waits, the table tells the time of the reload, which is not that of the cluster.
#[test]
fn status_tells_for_how_long_a_reload_takes() {
    let cluster = Setup::new(&guest("hello")).args(&["--min-ready", "1h"]).start();
    let reload = cluster.follow(&["reload"]);
    let status = until("a canary waits", || Some(cluster.status()).filter(|it| it["reload"]["phase"] == "canary"));
    let uptime = until("the cluster is older", || {
        let status = cluster.status();
        let (uptime, elapsed) = (&status["uptime_ms"], &status["reload"]["elapsed_ms"]);
        Some(uptime.as_u64()).filter(|_| elapsed.as_u64() > Some(0) && elapsed.as_u64() < uptime.as_u64())
    });
    assert!(uptime > status["uptime_ms"].as_u64());
    let table = cluster.command(&["status"]).stdout;
    assert!(
        table.contains("\nreloading to generation 2, ") && table.contains(" so far: canary, 0 of 2 slots"),
        "{table}"
    );
    assert_eq!(cluster.command(&["stop", "--now"]).code, Some(0));
    assert_eq!(reload.wait().code(), Some(1));
}

/// What a stop cuts is told by the command and by the log, with a number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stop_cuts_is_said() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).args(&["--shutdown-timeout", "500ms"]).start();
    let doubt = cluster.stderr.find("--shutdown-timeout 500ms is shorter than --request-timeout 30s");
    assert!(doubt.contains("WARN"), "{doubt}");
    let mut connection = Connection::open(cluster.address()).await;
    let body = connection.begin("/drip?chunks=1000000&ms=50").await;
    let stopped = cluster.command(&["stop"]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert!(stopped.stderr.starts_with("1 request was cut when --shutdown-timeout was over"), "{stopped:?}");
    assert!(body.collect().await.is_err(), "an answer that was cut is seen as cut");
    cluster.stderr.find("stopping; 1 request has to finish within --shutdown-timeout 500ms");
    assert!(cluster.stderr.find("stopped; 1 request was cut").contains("WARN"));
}

/// By default a stop waits for every request that is in its time.
#[test]
fn the_time_of_a_stop_follows_that_of_a_request() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    assert!(!cluster.stderr.lines().iter().any(|line| line.contains("is shorter than")));
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
    let last = cluster.stderr.find("stopped");
    assert!(!last.contains("cut"), "{last}");
}

/// Of a cluster that was stopped, no file is left that only it needs.
#[test]
fn a_stop_leaves_no_lock_and_no_socket_behind() {
    let cluster = Setup::new(&guest("hello")).workers(1).args(&["--listen", "unix:app.sock"]).start();
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    assert_eq!(cluster.wait().code(), Some(0));
    let mut folders = vec![cluster.folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let is_left = ["sock", "lock"].iter().any(|end| path.extension().is_some_and(|it| it == *end));
            assert!(!is_left, "{}", path.display());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
}

/// A WebSocket is refused, since its client takes nothing else for an answer; other protocols are ignored, as by any server
/// that does not speak them.
#[test]
fn a_guest_without_websocket_answers_an_upgrade_as_any_request() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    for protocol in ["websocket", "h2c", "foo, WebSocket"] {
        let mut stream = TcpStream::connect(cluster.address()).unwrap();
        let head = handshake("/", "")
            .replace("websocket\r\n", &format!("{protocol}\r\n"))
            .replace("Upgrade\r\n", "upgrade, close\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("Hello from wasmcluster!\n"),
            "{protocol}: {answer}"
        );
        assert!(!answer.to_lowercase().contains("upgrade"), "{answer}");
    }
}
