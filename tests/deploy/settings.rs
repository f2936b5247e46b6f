//! Settings that are read again: what a reload changes, refuses, and takes back; and secrets, which nobody is shown.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use http::Method;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use harness::client::{Answer, Connection};
use harness::tls::{Authority, TlsClient};
use harness::{Cluster, Ended, Setup, guest, until};

const FILE: &str = "wasmcluster.toml";
const AT_ONCE: &str = "min-ready = \"0s\"\nsoak = \"0s\"\n";

/// Two workers of the guest, with what the file says beside that nothing is to be waited for.
fn serve(name: &str, says: &str, args: &[&str]) -> Cluster {
    let setup = Setup::new(&guest(name)).args(args);
    fs::write(setup.folder.path().join(FILE), format!("{AT_ONCE}{says}")).unwrap();
    setup.start()
}

fn say(cluster: &Cluster, says: &str) {
    // As an editor does: there is always a whole file.
    let new = cluster.folder.path().join("new.toml");
    fs::write(&new, format!("{AT_ONCE}{says}")).unwrap();
    fs::rename(new, cluster.folder.path().join(FILE)).unwrap();
}

#[tokio::main(flavor = "current_thread")]
async fn ask(cluster: &Cluster, method: Method, path: &str, body: String) -> Answer {
    use http_body_util::Full;
    let mut connection = Connection::<Full<bytes::Bytes>>::open(cluster.address()).await;
    let answer = connection.send(method, path, Full::from(body)).await.unwrap();
    harness::client::whole(answer).await.unwrap()
}

fn get(cluster: &Cluster, path: &str) -> String {
    ask(cluster, Method::GET, path, String::new()).text().to_owned()
}

#[track_caller]
fn succeeds(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_reload_brings_the_settings_of_the_file_and_a_rollback_those_before() {
    for name in ["sdk", "sdk_p3"] {
        let first = "max-body = \"1KiB\"\n[env]\nGREETING = \"hello\"\n[config]\nword = \"one\"\ngone = \"1\"\n";
        let second = "max-body = \"4KiB\"\n[env]\nGREETING = \"welcome\"\n[config]\nword = \"two\"\n";
        let cluster = serve(name, first, &[]);
        let check = |greeting: &str, config: &str, largest: &str, status: u16| {
            assert_eq!(get(&cluster, "/env?GREETING"), format!("Some({greeting:?})"));
            assert_eq!(get(&cluster, "/config?"), format!("None of {config}"));
            assert_eq!(cluster.status()["limits"]["max-body"], largest);
            assert_eq!(ask(&cluster, Method::POST, "/count", "x".repeat(2000)).status, status);
        };
        let before = || check("hello", r#"{"gone": "1", "word": "one"}"#, "1KiB", 413);
        let after = || check("welcome", r#"{"word": "two"}"#, "4KiB", 200);
        before();
        say(&cluster, second);
        // Not before somebody wants it.
        before();
        let reloaded = cluster.reload(&[]);
        succeeds(&reloaded);
        let lines: Vec<&str> = reloaded.stdout.lines().collect();
        assert_eq!(
            lines,
            [
                "[config] gone: no longer 1",
                "[config] word: one → two",
                "[env] GREETING: changed",
                "max-body: 1KiB → 4KiB",
                "generation 2 is served: the component is the same as before, its settings are new",
            ]
        );
        after();
        let old = cluster.worker(0).unwrap();
        kill(old, Signal::SIGKILL).unwrap();
        cluster.replaced(0, old);
        after();
        succeeds(&cluster.command(&["rollback"]));
        before();
        assert_eq!(cluster.command(&["config", "get", "word"]).stdout, "one\n");
        // The file still says the other, and a reload goes by it.
        succeeds(&cluster.reload(&[]));
        after();
    }
}

#[test]
fn wrong_settings_are_refused_with_their_line_and_bad_ones_are_rolled_back() {
    let good = "[env]\nGREETING = \"hello\"\n";
    let cluster = serve("sdk", good, &[]);
    let serves_on = || assert_eq!(get(&cluster, "/env?GREETING"), "Some(\"hello\")");
    let file = cluster.folder.path().join(FILE);
    for (says, said) in [
        ("max-boddy = \"1KiB\"\n", "line 3: unknown key `max-boddy`; did you mean `max-body`?"),
        ("max-header-bytes = \"1KiB\"\n", "line 3: --max-header-bytes must be from 8KiB to 16MiB"),
        ("dir = [\"/no/such::/x\"]\n", "there is no folder /no/such"),
        ("[secrets]\ndb = \"file:/no/such\"\n", "the secret db: cannot read /no/such"),
        ("[secrets]\ndb = \"hush\"\n", "line 3: the secret \"db\" has no source that is known"),
        ("tls-cert = [\"a.pem\"]\n", "--tls-cert has no effect without an https listener"),
    ] {
        say(&cluster, says);
        let refused = cluster.reload(&[]);
        assert_eq!(refused.code, Some(3), "{says}: {refused:?}");
        assert!(refused.stderr.contains("refused, nothing was changed"), "{says}: {refused:?}");
        assert!(refused.stderr.contains(said) && !refused.stderr.contains("hush"), "{says}: {refused:?}");
        serves_on();
    }
    // A file that is gone would take all grants and limits with it.
    fs::rename(&file, cluster.folder.path().join("away")).unwrap();
    let refused = cluster.reload(&[]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("cannot read") && refused.stderr.contains("No such file"), "{refused:?}");
    // Nobody else may say what is served.
    say(&cluster, good);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = cluster.reload(&[]);
    assert!(refused.code == Some(3) && refused.stderr.contains("other users can write to it"), "{refused:?}");
    serves_on();
    // These only show when a worker goes by them.
    for says in ["max-memory = \"64KiB\"\n", "health-path = \"/conflict\"\n"] {
        say(&cluster, &format!("{says}{good}"));
        let rolled_back = cluster.reload(&[]);
        assert_eq!(rolled_back.code, Some(4), "{says}: {rolled_back:?}");
        serves_on();
    }
    assert_eq!(cluster.status()["generation"]["current"], 1);
    say(&cluster, "[env]\nGREETING = \"again\"\n");
    succeeds(&cluster.reload(&[]));
    assert_eq!(get(&cluster, "/env?GREETING"), "Some(\"again\")");
}

#[test]
fn what_cannot_change_while_serving_is_named_in_one_line() {
    let cluster = serve("sdk", "", &["--shutdown-timeout", "3s"]);
    let says = "listen = [\"127.0.0.1:1\"]\nbacklog = 7\nshutdown-timeout = \"9s\"\nmax-headers = 60\n";
    say(&cluster, says);
    let told = "wasmcluster.toml has changed (backlog), which cannot change while the cluster serves: restart it to apply this";
    for _ in 0..2 {
        let reloaded = cluster.reload(&[]);
        succeeds(&reloaded);
        // The command line says the others, and wins.
        let notes: Vec<&str> = reloaded.stderr.lines().filter(|line| line.starts_with("note: ")).collect();
        assert!(notes.len() == 1 && notes[0].ends_with(told), "{reloaded:?}");
    }
    cluster.stderr.find(told);
    let status = cluster.status();
    assert_eq!((&status["name"], &status["limits"]["max-headers"]), (&"default".into(), &"60".into()));
    assert_eq!(status["workers"].as_array().unwrap().len(), 2);
}

#[test]
fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let cluster = serve("sdk", "max-headers = 50\nkv = [\"a=redis://:hush@127.0.0.1\"]\n", &[]);
    let events = cluster.follow(&["events"]);
    let workers = cluster.ready();
    let dry = |args: &[&str]| cluster.reload(&[&["--dry-run"], args].concat());
    let unchanged = dry(&[]);
    succeeds(&unchanged);
    assert!(unchanged.stdout.starts_with("unchanged: generation 1 serves this component"), "{unchanged:?}");
    say(&cluster, "backlog = 3\nmax-headers = 60\nkv = [\"a=redis://:hash@127.0.0.1\"]\nmin-rate = \"2B\"\n");
    let changed = dry(&[guest("sdk_p3").to_str().unwrap()]);
    succeeds(&changed);
    let lines: Vec<&str> = changed.stdout.lines().collect();
    assert!(lines[0].starts_with("component: sha256:") && lines[0].contains(" → sha256:"), "{changed:?}");
    let rest = [
        "kv: changed",
        "max-headers: 50 → 60",
        "min-rate: 2B, which is new",
        "nothing was changed: this was a dry run",
    ];
    assert_eq!(lines[1..], rest);
    assert!(changed.stderr.contains("has changed (backlog)"), "{changed:?}");
    let json = dry(&["--json"]);
    succeeds(&json);
    let lines: Vec<Value> = json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let headers = lines.iter().find(|line| line["what"] == "max-headers").unwrap();
    assert_eq!((&headers["event"], &headers["from"], &headers["to"]), (&"change".into(), &"50".into(), &"60".into()));
    assert_eq!(
        (&lines.last().unwrap()["event"], &lines.last().unwrap()["result"]),
        (&"reload_ended".into(), &"dry_run".into())
    );
    let refused = dry(&["/no/such.wasm"]);
    assert!(refused.code == Some(3) && refused.stderr.contains("/no/such.wasm"), "{refused:?}");
    say(&cluster, "max-headers = 0\n");
    let refused = dry(&[]);
    assert!(
        refused.code == Some(3) && refused.stderr.contains("line 3: `max-headers` takes a whole number"),
        "{refused:?}"
    );
    let status = cluster.status();
    assert_eq!((cluster.ready(), &status["generation"]["current"]), (workers, &1.into()));
    assert_eq!((&status["last_reload"], &status["totals"]["reloads"]), (&Value::Null, &0.into()));
    // Whoever follows the events sees the next real change first.
    succeeds(&cluster.command(&["scale", "1"]));
    let seen = events.stdout.find("\"scaling\"");
    assert!(!events.stdout.lines().iter().any(|line| line.contains("reload") || line.contains("change\"")), "{seen}");
    for lines in [&cluster.stderr.lines(), &events.stdout.lines()] {
        assert!(!lines.iter().any(|line| line.contains("hush") || line.contains("hash")), "{lines:?}");
    }
}

#[test]
fn who_watches_gets_new_settings_as_soon_as_they_are_written() {
    let cluster = serve("sdk", "[env]\nGREETING = \"1\"\n", &["--watch"]);
    for round in 2..4 {
        say(&cluster, &format!("[env]\nGREETING = \"{round}\"\n"));
        until("they are served", || (get(&cluster, "/env?GREETING") == format!("Some(\"{round}\")")).then_some(()));
    }
    // What changes nothing brings no new workers.
    let is_committed = |generation: u64| {
        until("it is committed", || {
            let status = cluster.status();
            (status["generation"]["current"] == generation && status["reload"].is_null()).then_some(())
        });
    };
    is_committed(3);
    say(&cluster, "# the same\n[env]\nGREETING = \"3\"\n");
    cluster.stderr.find("unchanged: this is already being served");
    is_committed(3);
    // They are for what is served, also if that is not what `serve` was given.
    let other = guest("sdk_p3");
    succeeds(&cluster.reload(&[other.to_str().unwrap()]));
    say(&cluster, "[env]\nGREETING = \"4\"\n");
    is_committed(5);
    assert_eq!(cluster.status()["generation"]["source"], other.to_str().unwrap());
    say(&cluster, "[env]\nGREETING = \"3\"\n");
    is_committed(6);
    // Nor does a mistake, which is told.
    say(&cluster, "nonsense");
    cluster.stderr.find("the reload failed: ");
    assert_eq!(get(&cluster, "/env?GREETING"), "Some(\"3\")");
}

#[test]
fn a_value_that_was_set_by_hand_outlives_new_settings() {
    let cluster = serve("sdk", "[config]\na = \"1\"\nb = \"1\"\n", &[]);
    succeeds(&cluster.command(&["config", "set", "a=2"]));
    say(&cluster, "[config]\na = \"3\"\nb = \"3\"\n[secrets]\nc = \"env:PATH\"\n");
    let reloaded = cluster.reload(&[]);
    succeeds(&reloaded);
    assert!(reloaded.stderr.contains("note: `config set` has the last word on a,"), "{reloaded:?}");
    assert!(get(&cluster, "/config?").starts_with(r#"None of {"a": "2", "b": "3", "c": "#));
    let refused = cluster.command(&["config", "set", "c=4"]);
    assert!(refused.code != Some(0) && refused.stderr.contains("c is a secret"), "{refused:?}");
    // With the old settings it is no secret, and not there.
    succeeds(&cluster.command(&["rollback"]));
    assert_eq!(get(&cluster, "/config?"), r#"None of {"a": "2", "b": "1"}"#);
    succeeds(&cluster.command(&["config", "set", "c=4"]));
    assert_eq!(get(&cluster, "/config?c"), r#"Some("4") of {"a": "2", "b": "1", "c": "4"}"#);
}

#[test]
fn stores_and_certificates_come_and_go_with_a_generation() {
    let authority = Authority::new("tests");
    let setup = Setup::new(&guest("stores")).args(&["--listen", "https://127.0.0.1:0"]);
    let folder = setup.folder.path().to_owned();
    for name in ["one", "two"] {
        authority.issue(&[&format!("{name}.test")]).write(&folder, name);
    }
    let with =
        |cert: &str, kv: &str| format!("{AT_ONCE}tls-cert = [\"{cert}.pem\"]\ntls-key = [\"{cert}.key\"]\n{kv}\n");
    fs::write(folder.join(FILE), with("one", "")).unwrap();
    let cluster = setup.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let shows = |name: &str| {
        let (client, name) = (TlsClient::new(&authority), format!("{name}.test"));
        assert!(runtime.block_on(client.connect(cluster.address_of(1), &name)).is_ok(), "{name}");
        assert_eq!(cluster.status()["certificates"][0]["names"][0], name);
    };
    shows("one");
    assert_ne!(ask(&cluster, Method::PUT, "/more/key", "1".into()).status, 200);
    fs::write(folder.join(FILE), with("two", "kv = [\"more=memory:\"]")).unwrap();
    succeeds(&cluster.reload(&[]));
    shows("two");
    assert_eq!(ask(&cluster, Method::PUT, "/more/key", "1".into()).status, 200);
    // Certificates that cannot be used are no settings to go by.
    fs::write(folder.join(FILE), with("three", "")).unwrap();
    let refused = cluster.reload(&[]);
    assert!(refused.code == Some(3) && refused.stderr.contains("cannot read the certificate"), "{refused:?}");
    shows("two");
    succeeds(&cluster.command(&["rollback"]));
    shows("one");
    assert_ne!(ask(&cluster, Method::PUT, "/more/key", "1".into()).status, 200);
    // What is renewed is served, whichever generation it is.
    authority.issue(&["one.test", "new.test"]).write(&folder, "one");
    succeeds(&cluster.reload(&["--tls"]));
    assert_eq!(cluster.status()["certificates"][0]["names"][1], "new.test");
}

/// What a canary that failed was to go by is in force for nobody, and a store is the same by whichever path.
#[test]
fn stores_stay_as_they_are_while_settings_fail() {
    let setup = Setup::new(&guest("stores"));
    let folder = setup.folder.path().to_owned();
    fs::create_dir(folder.join("release-1")).unwrap();
    symlink("release-1", folder.join("current")).unwrap();
    let kv = "kv = [\"more=file:./current/not-yet\"]\n";
    fs::write(folder.join(FILE), format!("{AT_ONCE}{kv}")).unwrap();
    let cluster = setup.start();
    let large = "x".repeat(900_000);
    let put = |store: &str, key: &str| ask(&cluster, Method::PUT, &format!("/{store}/{key}"), large.clone()).status;
    assert_eq!([put("more", "a"), put("default", "a")], [200, 200]);
    let bad = format!("{AT_ONCE}{kv}kv-max-size = \"1MiB\"\nhealth-path = \"/nobody/has/this\"\n");
    fs::write(folder.join(FILE), bad).unwrap();
    assert_eq!(cluster.reload(&[]).code, Some(4));
    for key in ["b", "c", "d"] {
        assert_eq!([put("more", key), put("default", key)], [200, 200], "{key}");
    }
    fs::write(folder.join(FILE), format!("{AT_ONCE}{kv}max-headers = 60\n")).unwrap();
    succeeds(&cluster.reload(&[]));
    for key in ["e", "f"] {
        assert_eq!([put("more", key), put("default", key)], [200, 200], "{key}");
    }
    // One that a link leads to from now on is told.
    fs::create_dir(folder.join("release-2")).unwrap();
    symlink("release-2", folder.join("next")).unwrap();
    fs::rename(folder.join("next"), folder.join("current")).unwrap();
    let told = cluster.reload(&["--dry-run"]);
    assert!(told.stdout.starts_with("--kv more: file:") && told.stdout.contains("release-2/not-yet"), "{told:?}");
}

/// Workers of a version that was rolled back still drain when nobody else knows their settings any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_generation_drains_in_peace() {
    let authority = Authority::new("tests");
    let setup = Setup::new(&guest("sdk")).args(&["--listen", "https://127.0.0.1:0", "--soak", "60s"]);
    let folder = setup.folder.path().to_owned();
    authority.issue(&["one.test"]).write(&folder, "one");
    let tls = "min-ready = \"0s\"\ntls-cert = [\"one.pem\"]\ntls-key = [\"one.key\"]\n";
    fs::write(folder.join(FILE), tls).unwrap();
    let cluster = setup.start();
    let reload = cluster.follow(&["reload", "--timeout", "2s"]);
    cluster.reload_is("soaking");
    let address = cluster.address();
    let long = tokio::spawn(async move { harness::client::get(address, "/keeps-config?ms=6000").await.unwrap() });
    assert_eq!(reload.wait().code(), Some(5));
    let set = cluster.command(&["config", "set", "a=1"]);
    succeeds(&set);
    assert_eq!(long.await.unwrap().text(), "{} {}");
    let totals = cluster.status()["totals"].clone();
    assert_eq!((&totals["crashes"], &totals["aborted"]), (&0.into(), &0.into()));
}

/// Files of secrets, as Kubernetes mounts them: all of them change at once.
fn mount(folder: &Path, version: u32, secrets: &[(&str, &str)]) {
    let data = folder.join(format!("..{version}"));
    fs::create_dir_all(&data).unwrap();
    for (name, secret) in secrets {
        fs::write(data.join(name), secret).unwrap();
        let link = folder.join(name);
        if !link.exists() {
            symlink(format!("..data/{name}"), link).unwrap();
        }
    }
    symlink(format!("..{version}"), folder.join("new")).unwrap();
    fs::rename(folder.join("new"), folder.join("..data")).unwrap();
}

const SECRETS: [&str; 5] =
    ["hush-of-a-file", "hush-of-a-variable", "hush-of-systemd", "hush-of-a-folder", "hush-changed"];

#[test]
fn secrets_reach_guests_and_nobody_else() {
    let setup = Setup::new(&guest("sdk")).env("DB_PASSWORD", SECRETS[1]).args(&["--log-level", "trace"]);
    let folder = setup.folder.path().to_owned();
    let setup = setup.env("CREDENTIALS_DIRECTORY", folder.join("credentials").to_str().unwrap());
    fs::create_dir(folder.join("credentials")).unwrap();
    fs::write(folder.join("credentials/token"), SECRETS[2]).unwrap();
    fs::write(folder.join("key"), format!("{}\n", SECRETS[0])).unwrap();
    mount(&folder.join("mounted"), 1, &[("user", "ada"), ("password", SECRETS[3])]);
    let secrets = "[secrets]\nkey = \"file:key\"\ndb = \"env:DB_PASSWORD\"\ntoken = \"credential:token\"\nmounted = \"file:mounted\"\n";
    let state = folder.join("state");
    let setup = setup.args(&["--set", "plain=1", "--state-dir", state.to_str().unwrap()]);
    fs::write(folder.join(FILE), format!("{AT_ONCE}{secrets}")).unwrap();
    let cluster = setup.start();
    let events = cluster.follow(&["events"]);
    let has = |key: &str, secret: &str| {
        assert!(get(&cluster, &format!("/config?{key}")).starts_with(&format!("Some({secret:?}) of ")), "{key}");
    };
    let [file, variable, systemd, mounted, changed] = SECRETS;
    for (key, secret) in
        [("key", file), ("db", variable), ("token", systemd), ("mounted.password", mounted), ("mounted.user", "ada")]
    {
        has(key, secret);
    }
    assert_eq!(get(&cluster, "/env?DB_PASSWORD"), "None");
    // No process of the cluster leaves a core dump, to a file or a program.
    let mut processes = cluster.children();
    processes.push(cluster.pid());
    for pid in &processes {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let limit: u64 = core.split_whitespace().nth(4).unwrap().parse().unwrap();
        assert!(limit <= 1, "{pid}: {core}");
    }
    // Those that are brought back are those of now.
    mount(&folder.join("mounted"), 2, &[("user", "ada"), ("password", changed)]);
    has("mounted.password", mounted);
    let told = cluster.reload(&["--dry-run"]);
    assert!(told.stdout.starts_with("[secrets] mounted.password: changed\n"), "{told:?}");
    succeeds(&cluster.reload(&[]));
    has("mounted.password", changed);
    succeeds(&cluster.command(&["rollback"]));
    has("mounted.password", changed);
    // Without its file, a generation comes back with what it had.
    fs::remove_file(folder.join("key")).unwrap();
    let refused = cluster.reload(&[]);
    assert!(refused.code == Some(3) && refused.stderr.contains("the secret key: cannot read"), "{refused:?}");
    let back = cluster.command(&["rollback", "--to", "2"]);
    succeeds(&back);
    assert!(back.stderr.contains("comes back with the secrets that it had"), "{back:?}");
    has("key", file);
    let old = cluster.worker(1).unwrap();
    kill(old, Signal::SIGKILL).unwrap();
    cluster.replaced(1, old);
    has("key", file);

    let shown = [
        &["status"][..],
        &["status", "--json"],
        &["config", "get"],
        &["reload", "--dry-run"],
        &["reload", "--json"],
        &["config", "set", "plain=2"],
    ];
    let commands = shown.map(|args| format!("{:?}", cluster.command(args))).concat();
    let inspected = Setup::bare(&["inspect", guest("sdk").to_str().unwrap(), "--set-secret", "db=env:DB_PASSWORD"]);
    let inspected = inspected.env("DB_PASSWORD", variable).run();
    assert_eq!(inspected.code, Some(0), "{inspected:?}");
    until("the last command is an event", || {
        events.stdout.lines().iter().any(|line| line.contains("configured")).then_some(())
    });
    let mut texts =
        vec![commands, format!("{inspected:?}"), cluster.stderr.lines().concat(), cluster.stdout.lines().concat()];
    texts.push(events.stdout.lines().concat());
    texts.extend(fs::read_dir(&state).unwrap().filter_map(|file| fs::read_to_string(file.unwrap().path()).ok()));
    for pid in processes.iter().filter(|pid| **pid != cluster.pid()) {
        texts.extend(
            ["cmdline", "environ"].map(|part| fs::read_to_string(format!("/proc/{pid}/{part}")).unwrap_or_default()),
        );
    }
    for (secret, text) in SECRETS.iter().flat_map(|secret| texts.iter().map(move |text| (secret, text))) {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert_eq!(cluster.command(&["config", "get", "db"]).code, Some(1));
}

/// Where the kernel would write one to a file.
#[test]
fn a_worker_that_knows_a_secret_leaves_no_core_dump() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if pattern.starts_with('|') || pattern.contains('/') {
        println!("skipped: the kernel writes core dumps elsewhere than to the working folder: {}", pattern.trim());
        return;
    }
    for (args, leaves_one) in [(&[][..], true), (&["--set-secret", "key=env:PATH"], false)] {
        let setup = Setup::new(&guest("hello")).workers(1).args(args);
        let cluster = setup.behind(&["sh", "-c"], "ulimit -c unlimited || exit 1; exec \"$@\"").start();
        let old = cluster.worker(0).unwrap();
        kill(old, Signal::SIGABRT).unwrap();
        cluster.replaced(0, old);
        let files = fs::read_dir(cluster.folder.path()).unwrap().map(|file| file.unwrap().file_name());
        let dumps: Vec<_> = files.filter(|name| name.to_str().unwrap().starts_with("core")).collect();
        assert_eq!(!dumps.is_empty(), leaves_one, "{args:?}: {dumps:?}");
    }
}
