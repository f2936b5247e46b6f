//! From sources to a component: what builds are started with, what is looked at, and where commands find a project.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;

use harness::client::get;
use harness::{Setup, guest, until};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A project that is built by `command`, which is to leave a component at `out/app.wasm`.
fn project(command: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("out")).unwrap();
    fs::copy(guest("hello"), folder.path().join("app.wasm")).unwrap();
    let file = format!("[build]\ncommand = \"\"\"{command}\"\"\"\ncomponent = \"out/app.wasm\"\n");
    fs::write(folder.path().join("wasmcluster.toml"), file).unwrap();
    folder
}

/// What a shell script does with children and traps works in every build, whoever started us with which signals ignored.
#[test]
fn builds_begin_with_default_signals() {
    let project = project(
        "grep -E '^Sig(Blk|Ign)' /proc/self/status >> .signals; trap 'echo trapped >> .traps' TERM; \
         kill -TERM $$; sleep 0.01 & sleep 0.02 & wait; cp app.wasm out/app.wasm; echo >> .builds",
    );
    let mut setup = Setup::new(project.path()).args(&["--watch"]);
    // SAFETY: between fork and exec, it makes system calls alone.
    unsafe {
        setup.command.pre_exec(|| {
            nix::sys::signal::signal(nix::sys::signal::Signal::SIGTERM, nix::sys::signal::SigHandler::SigIgn)?;
            Ok(())
        });
    }
    let cluster = setup.start_from_sources();
    let lines = |name: &str| fs::read_to_string(project.path().join(name)).unwrap_or_default().lines().count();
    for builds in 2..4 {
        fs::write(project.path().join("source"), builds.to_string()).unwrap();
        until("it is built again", || (lines(".builds") >= builds).then_some(()));
    }
    assert!(lines(".traps") >= 3, "{}", lines(".traps"));
    let signals = fs::read_to_string(project.path().join(".signals")).unwrap();
    assert!(signals.lines().all(|line| line.ends_with("\t0000000000000000")), "{signals}");
    drop(cluster);
}

/// Only that it is there, how long it is and when it was written: it costs neither memory nor time.
#[test]
fn a_huge_file_beside_the_sources_is_not_read() {
    let project = project("cp app.wasm out/app.wasm; echo >> .builds");
    let data = project.path().join("data.bin");
    File::create(&data).unwrap().set_len(1 << 34).unwrap();
    let watching = Setup::bare(&["build", "--watch", text(project.path())]).launch();
    let builds = || fs::read_to_string(project.path().join(".builds")).unwrap_or_default().lines().count();
    until("it is built", || (builds() >= 1).then_some(()));
    File::options().write(true).open(&data).unwrap().set_len((1 << 34) + 1).unwrap();
    until("it is built again", || (builds() >= 2).then_some(()));
    let status = fs::read_to_string(format!("/proc/{}/status", watching.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 256 * 1024, "{peak}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_is_served_and_inspected_from_inside_of_it() {
    let project = project("cp app.wasm out/app.wasm");
    let inside = |args: &[&str]| {
        let mut setup = Setup::bare(args);
        setup.command.current_dir(project.path());
        setup
    };
    let cluster = inside(&["serve", "--listen", "127.0.0.1:0", "--workers", "1"]).start_from_sources();
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    let inspected = inside(&["inspect", "--json"]).run();
    assert_eq!(inspected.code, Some(0), "{inspected:?}");
    let compiled = inside(&["compile", "-o", text(&project.path().join("store"))]).run();
    assert_eq!(compiled.code, Some(0), "{compiled:?}");
    for command in ["serve", "inspect"] {
        let ended = Setup::bare(&[command]).run();
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("name the component to use"), "{ended:?}");
    }
}
