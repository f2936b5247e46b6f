//! What goes wrong is said once, in one message, with the right exit code, and nothing is left running.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use harness::{Ended, Setup, fixture, guest};

/// Backtraces stay out even for people who ask for them everywhere.
fn outcome(setup: Setup) -> Ended {
    setup.env("RUST_BACKTRACE", "1").run()
}

#[track_caller]
fn check(ended: &Ended, code: i32, parts: &[&str]) {
    let Ended { code: got, stdout, stderr } = ended;
    assert_eq!(*got, Some(code), "{stderr}");
    assert_eq!(stdout, "", "errors belong on stderr");
    // Before it, there may be what took long.
    let message = stderr.lines().find(|line| !line.starts_with("Compiling ")).unwrap_or_default();
    assert!(message.starts_with("error: "), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "more than one message: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "expected {part:?} in: {stderr}");
    }
    for inside in ["panicked", "stack backtrace", ".rs:"] {
        assert!(!stderr.contains(inside), "{inside:?} in: {stderr}");
    }
}

/// Serves a file with these contents and expects a refusal.
#[track_caller]
fn check_file(name: &str, contents: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    check(&outcome(Setup::new(&path)), 1, &[&["cannot serve", name], parts].concat());
}

#[test]
fn a_file_that_is_not_there() {
    check(&outcome(Setup::new(Path::new("no.wasm"))), 1, &["cannot serve no.wasm: no such file"]);
}

#[test]
fn a_folder() {
    check(&outcome(Setup::new(Path::new("."))), 1, &["cannot build .", "neither a Cargo.toml", "[build]"]);
}

#[test]
fn a_core_module() {
    let parts = ["core module, and only components can be served", "--target wasm32-wasip2"];
    check_file("core.wat", b"(module)", &parts);
    check_file("core.wasm", b"\0asm\x01\0\0\0", &parts);
}

#[test]
fn a_component_of_another_world() {
    let command = br#"(component (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#;
    check_file("command.wat", command, &["exports no HTTP handler", "wasi:cli/run@0.2.0", "wasi:http/proxy"]);
    check_file("empty.wat", b"(component)", &["exports no HTTP handler", "exports nothing"]);
}

#[test]
fn an_import_that_nobody_provides() {
    let text = br#"(component
        (import "acme:db/query@1.0.0" (instance))
        (instance $i) (export "wasi:http/incoming-handler@0.2.0" (instance $i)))"#;
    check_file("import.wat", text, &["imports acme:db/query@1.0.0", "no flag grants", "wasi:clocks"]);
}

#[test]
fn an_import_of_the_wrong_shape() {
    let text = br#"(component
        (import "wasi:clocks/monotonic-clock@0.2.0" (instance (export "now" (func (result string)))))
        (instance $i) (export "wasi:http/incoming-handler@0.2.0" (instance $i)))"#;
    check_file("shape.wat", text, &["wasi:clocks/monotonic-clock@0.2.0"]);
}

/// `inspect` compiles nothing, and `serve`, `compile` and `reload` find out as early.
#[test]
fn every_command_says_the_same_of_what_cannot_be_served() {
    let v2 = r#"(instance $i) (export "wasi:http/incoming-handler@0.2.0" (instance $i))"#;
    let v3 = r#"(instance $i) (export "wasi:http/handler@0.3.0" (instance $i))"#;
    let import = |name: &str| format!(r#"(import "{name}" (instance))"#);
    let cluster = Setup::new(&guest("hello")).start();
    for (number, (contents, part)) in [
        (format!("{} {v3}", import("wasi:http/handler@0.3.0")), "Compose it with a handler first: `wac plug "),
        (format!("{} {v2}", import("wasi:http/incoming-handler@0.2.3")), "Compose it with a handler first: `wac plug "),
        (format!("{} {v2}", import("wasi:io/polls@0.2.6")), "Of wasi:io@0.2 it provides error, poll, streams"),
        (format!("{} {v2}", import("wasi:random/random@0.3.0")), "may import wasi:cli@0.2, wasi:clocks@0.2"),
        (format!("{} {v2}", import("acme:db/query@1.0.0")), "imports acme:db/query@1.0.0, which wasmcluster does not"),
        (
            format!(r#"(import "wasi:io/poll@0.2.6" (instance (export "no" (func)))) {v2}"#),
            "instance export `no` has the wrong type",
        ),
        (v2.to_owned(), "does not have export `handle`"),
        (format!("(core module (func (result i32))) {v2}"), "not a valid component: type mismatch"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = cluster.folder.path().join(format!("{number}.wat"));
        std::fs::write(&path, format!("(component {contents})")).unwrap();
        let path = path.to_str().unwrap();
        let message = |ended: Ended| {
            assert_ne!(ended.code, Some(0), "{contents}: {ended:?}");
            let message = ["cannot serve ", "cannot compile "].iter().find_map(|verb| ended.stderr.split_once(verb));
            message.unwrap_or_else(|| panic!("{ended:?}")).1.trim_end().to_owned()
        };
        let inspected = message(Setup::bare(&["inspect", path]).run());
        assert!(inspected.contains(part), "{inspected}");
        let store = cluster.folder.path().join("store");
        assert_eq!(message(Setup::bare(&["compile", path, "-o", store.to_str().unwrap()]).run()), inspected);
        assert_eq!(message(Setup::new(Path::new(path)).run()), inspected);
        assert_eq!(message(cluster.command(&["reload", path])), inspected);
    }
}

#[test]
fn files_that_are_no_components_at_all() {
    let other = "it is neither a WebAssembly component nor the text form of one";
    check_file("text.wasm", b"hello", &[other]);
    check_file("text.wat", b"(component", &["it is not valid WebAssembly text: line 1, column 11: "]);
    check_file("empty.wasm", b"", &["the file is empty"]);
    check_file("zeros.wasm", &[0; 100], &[other]);
    check_file("other.wasm", b"\x7fELF\x02\x01\x01\0", &[other]);
    let whole = std::fs::read(guest("hello")).unwrap();
    check_file("cut.wasm", &whole[..whole.len() / 2], &["not a valid component"]);
    let mut broken = whole;
    let middle = broken.len() / 2;
    broken[middle..middle + 64].fill(0xff);
    check_file("broken.wasm", &broken, &["not a valid component"]);
}

#[test]
fn native_code() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Setup::new(&guest("hello")).args(&["--store", folder.path().join("store").to_str().unwrap()]).start();
    let entry = std::fs::read_dir(folder.path().join("store")).unwrap().next().unwrap().unwrap();
    let native = std::fs::read(entry.path().join("component.cwasm")).unwrap();
    drop(cluster);
    check_file("native.cwasm", &native, &["precompiled native code; pass the component"]);
}

#[test]
fn names_that_other_files_have() {
    for (flag, value) in [("--control", "precious"), ("--listen", "unix:precious")] {
        let setup = Setup::new(&guest("hello")).args(&[flag, value]);
        let path = setup.folder.path().join("precious");
        std::fs::write(&path, "precious").unwrap();
        let cluster = setup.launch();
        assert_eq!(cluster.wait().code(), Some(1));
        cluster.stderr.find("a file exists there and is not a socket");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "precious");
    }
}

#[test]
fn a_component_that_traps_while_it_is_instantiated() {
    let ended = outcome(Setup::new(&fixture("traps-at-start.wat")));
    check(&ended, 1, &["cannot serve", "cannot instantiate the component", "unreachable"]);
}

/// It is given five seconds, the least that there is.
#[test]
fn a_component_that_is_never_instantiated() {
    let ended = outcome(Setup::new(&fixture("spins-at-start.wat")).args(&["--request-timeout", "500ms"]));
    check(&ended, 1, &["cannot serve", "instantiated"]);
}

/// The other server stays for the whole three seconds in which a busy port is tried again.
#[test]
fn a_port_in_use() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let setup = Setup::bare(&["serve", guest("hello").to_str().unwrap(), "--listen", &address]);
    let mut ended = outcome(setup);
    // What takes three seconds is said at once.
    let (waiting, rest) = ended.stderr.split_once('\n').unwrap();
    assert_eq!(waiting, format!("{address} is in use; trying again for 3s"));
    ended.stderr = rest.to_owned();
    check(&ended, 1, &[&format!("cannot listen on {address}: the address is in use"), "--listen"]);
}

/// A server that is about to go gives its port to the next.
#[test]
fn a_port_that_is_in_use_for_a_moment() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let cluster = Setup::bare(&["serve", guest("hello").to_str().unwrap(), "--listen", &address]).launch();
    harness::until("it has started", || cluster.folder.path().join("wasmcluster/default.sock").exists().then_some(()));
    drop(other);
    assert_eq!(cluster.stderr.find("Serving"), format!("Serving HTTP on http://{address}/"));
}

#[test]
fn a_privileged_port() {
    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first_free.trim().parse::<u16>().unwrap() <= 80 {
        println!("skipped: this machine lets everybody bind port 80");
        return;
    }
    let mut setup = Setup::bare(&["serve", "app.wasm", "--listen", "127.0.0.1:80"]);
    if nix::unistd::geteuid().is_root() {
        // As somebody else, who can reach neither the target folder nor root's files.
        let binary = setup.folder.path().join("wasmcluster");
        std::fs::copy(env!("CARGO_BIN_EXE_wasmcluster"), &binary).unwrap();
        let mut command = std::process::Command::new(&binary);
        command.args(setup.command.get_args()).uid(65_534).gid(65_534).current_dir("/");
        for variable in ["XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"] {
            command.env(variable, setup.folder.path().join("run"));
        }
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        setup.command = command;
        std::fs::set_permissions(setup.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let run = setup.folder.path().join("run");
        std::fs::create_dir(&run).unwrap();
        std::os::unix::fs::chown(&run, Some(65_534), Some(65_534)).unwrap();
    }
    let parts = ["cannot listen on 127.0.0.1:80: permission denied", "below 1024", "setcap"];
    check(&outcome(setup), 1, &parts);
}

#[test]
fn wrong_usage() {
    for (args, part) in [
        (&["serve"][..], "name the component to use"),
        (&["serve", "app.wasm", "--wokers", "2"], "--workers"),
        (&["serve", "app.wasm", "--workers", "0"], "--workers"),
        (&["serve", "app.wasm", "--workers", "9999"], "over the limit"),
        (&["serve", "app.wasm", "--listen", "8080"], "expected HOST:PORT"),
        (&["serve", "app.wasm", "--env", "NOVALUE"], "NAME=VALUE"),
        (&["serve", "app.wasm", "--log-level", "loud"], "possible values"),
        (&["serve", "app.wasm", "--allow-host", "example.org"], "expected a URL"),
        (&["serve", "app.wasm", "--config", "missing.toml"], "cannot read missing.toml"),
        (&["frobnicate"], "unrecognized subcommand"),
    ] {
        let ended = outcome(Setup::bare(args));
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains("error: ") && ended.stderr.contains(part), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(outcome(Setup::bare(&["--help"])).code, Some(0));
    assert_eq!(outcome(Setup::bare(&["serve", "--help"])).code, Some(0));
}

#[test]
fn mistakes_in_the_configuration_file() {
    let setup = Setup::bare(&["serve", "app.wasm"]);
    std::fs::write(setup.folder.path().join("wasmcluster.toml"), "workers = 2\nworker = 3\n").unwrap();
    check(
        &outcome(setup),
        2,
        &["wasmcluster.toml", "line 2: unknown key `worker`; did you mean `workers`?", "2 | worker = 3"],
    );
}

#[test]
fn a_store_that_others_can_write_to() {
    let setup = Setup::new(&guest("hello")).args(&["--store", "store"]);
    let store = setup.folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o777)).unwrap();
    check(&outcome(setup), 1, &["artifact store", "other users can write to", "chmod go-w", "--store"]);
}

#[test]
fn an_internal_command_by_hand() {
    for role in ["worker", "compiler", "builder"] {
        check(&outcome(Setup::bare(&[role])), 1, &["started by wasmcluster itself"]);
    }
}
