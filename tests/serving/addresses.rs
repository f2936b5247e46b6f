//! Where a cluster listens: names with several addresses, both families, sockets with a mode and a group.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use harness::client::{Connection, get};
use harness::{Setup, guest};

fn serve(addresses: &[&str]) -> Setup {
    let mut args = vec!["serve", "hello.wasm", "--workers", "1"];
    args.extend(addresses.iter().flat_map(|address| ["--listen", *address]));
    let setup = Setup::bare(&args);
    fs::copy(guest("hello"), setup.folder.path().join("hello.wasm")).unwrap();
    setup
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_families_of_one_port_are_bound() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        println!("skipped: there is no IPv6 here");
        return;
    }
    for addresses in [["0.0.0.0", "[::]"], ["[::]", "0.0.0.0"]] {
        // Free again at once. Should another test have it meanwhile, it is tried again for a while.
        let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let [one, two] = addresses.map(|address| format!("{address}:{port}"));
        let cluster = serve(&[&one, &two]).start();
        assert_eq!(get((Ipv4Addr::LOCALHOST, port).into(), "/").await.unwrap().status, 200);
        assert_eq!(get((Ipv6Addr::LOCALHOST, port).into(), "/").await.unwrap().status, 200);
        let listen = cluster.status()["listen"].as_array().unwrap().len();
        assert_eq!(listen, 2);
    }
}

/// One of this cluster's own is no other server: nobody has to be stopped, and nothing comes of waiting.
#[test]
fn an_address_that_is_said_twice_is_named_as_such() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let [one, two] = ["127.0.0.1", "0.0.0.0"].map(|address| format!("{address}:{port}"));
    let ended = serve(&[&one, &two]).run();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let expected = format!(
        "cannot listen on {two}: this cluster already listens there, on http://{one}. Leave one of the two out"
    );
    assert!(ended.stderr.contains(&expected), "{ended:?}");
}

/// The name is in a file of names that only this cluster sees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_addresses_of_a_name_are_bound_on_one_port() {
    let mut setup = serve(&["two.test:0"]);
    let names = setup.folder.path().join("names");
    // The last is not one of this machine's.
    fs::write(&names, "127.0.0.1 two.test\n127.0.0.2 two.test\n198.51.100.1 two.test\n").unwrap();
    let mount = r#"mount --bind names /etc/hosts && exec "$0" "$@""#;
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", mount, program]).args(args).current_dir(setup.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    if !run("true", &[]).output().is_ok_and(|it| it.status.success()) {
        println!("skipped: no file can be mounted for one process here");
        return;
    }
    let args: Vec<_> = setup.command.get_args().collect();
    let mut command = run(env!("CARGO_BIN_EXE_wasmcluster"), &args);
    command.envs(setup.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    setup.command = command;
    let cluster = setup.start();
    let (one, two) = (cluster.address_of(0), cluster.address_of(1));
    assert_eq!((one.ip().to_string(), two.ip().to_string()), ("127.0.0.1".into(), "127.0.0.2".into()));
    assert_eq!(one.port(), two.port());
    for address in [one, two] {
        assert_eq!(get(address, "/").await.unwrap().status, 200);
    }
    assert_eq!(cluster.status()["listen"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_has_the_mode_and_the_group_of_its_address() {
    let group = nix::unistd::getegid();
    let open = format!("unix:open.sock?mode=0666&group={group}");
    let cluster = serve(&["unix:closed.sock", &open, &format!("unix:group.sock?group={group}")]).start();
    for (name, mode) in [("closed.sock", 0o600), ("open.sock", 0o666), ("group.sock", 0o660)] {
        let path = cluster.folder.path().join(name);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (mode, group.as_raw()), "{name}");
        let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        assert_eq!(Connection::over(stream).await.get("/").await.unwrap().status, 200);
    }
    cluster.stderr.find("Serving HTTP on unix:open.sock");
    for (address, code, part) in [
        ("unix:a.sock?mode=rw", 2, "'rw' is not a valid socket mode; write three or four octal digits, such as 0660"),
        ("unix:a.sock?owner=me", 2, "'owner=me' is not mode=MODE, group=GROUP or proxy-protocol"),
        ("unix:a.sock?group=no-such-group", 1, "there is no group no-such-group"),
    ] {
        let ended = serve(&[address]).run();
        assert!(ended.code == Some(code) && ended.stderr.contains(part), "{address}: {ended:?}");
    }
}
