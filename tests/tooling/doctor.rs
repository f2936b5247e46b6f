//! `wasmcluster doctor`: what it finds on this machine, and under limits and with folders that a test makes worse.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use harness::{Ended, Setup};

/// What a check found, by its name.
fn found<'a>(diagnosis: &'a Value, check: &str) -> Option<&'a Value> {
    diagnosis["checks"].as_array().unwrap().iter().find(|found| found["check"] == check)
}

/// The verdict of a check, with all that is said.
#[track_caller]
fn verdict(ended: &Ended, check: &str) -> (String, String) {
    let diagnosis: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let found = found(&diagnosis, check).unwrap_or_else(|| panic!("nothing about {check}: {diagnosis}"));
    let word = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (word("verdict"), format!("{}: {}", word("says"), word("advice")))
}

fn doctor(args: &[&str]) -> Setup {
    Setup::bare(&[&["doctor", "--json"], args].concat())
}

#[test]
fn a_machine_that_runs_these_tests_has_no_fault() {
    let setup = Setup::bare(&["doctor"]);
    let folder = setup.folder.path().to_owned();
    let cluster = setup.launch();
    let code = cluster.wait().code();
    let (said, left) = (cluster.stdout.lines(), fs::read_dir(&folder).unwrap().count());
    assert_eq!((code, cluster.stderr.lines().len(), left), (Some(0), 0, 0), "{said:#?}: it makes no folder");
    for line in &said {
        let is_begun = ["ok  ", "note  ", "warning  ", "    "].iter().any(|start| line.starts_with(start));
        // A path may be longer than there is room.
        let is_a_word = line.split_whitespace().count() == 1;
        assert!(is_begun && (line.chars().count() <= 80 || is_a_word), "{line:?}");
    }
    for check in ["kernel", "native code", "memory", "open files", "threads", "store", "state", "toolchain"] {
        assert!(said.iter().any(|line| line[9..].starts_with(check)), "nothing about {check}: {said:#?}");
    }
}

#[test]
fn doctor_prints_json_for_programs() {
    let ended = doctor(&[]).run();
    let diagnosis: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&diagnosis["schema"], &diagnosis["faults"]), (&1.into(), &0.into()));
    for found in diagnosis["checks"].as_array().unwrap() {
        let verdict = found["verdict"].as_str().unwrap();
        assert!(["ok", "note", "warning"].contains(&verdict), "{found}");
        assert_eq!(found["advice"].is_null(), verdict == "ok", "{found}");
    }
}

#[test]
fn doctor_tells_limits_that_are_low() {
    let files = doctor(&[]).behind(&["sh", "-c"], "ulimit -n 300 && exec \"$@\"").run();
    let (said, why) = verdict(&files, "open files");
    assert_eq!((files.code, said.as_str()), (Some(0), "warning"));
    assert!(why.contains("at most 225 connections, not 4096") && why.contains("LimitNOFILE="), "{why}");
    // For what a worker reserves there is room for a part, and then not even for one instance.
    let addresses = doctor(&[]).behind(&["sh", "-c"], "ulimit -v 200000000 && exec \"$@\"").run();
    let (said, why) = verdict(&addresses, "native code");
    assert_eq!((addresses.code, said.as_str()), (Some(0), "warning"));
    assert!(why.contains("not for 1000") && why.contains("`ulimit -v` (190.7GiB)"), "{why}");
    let none = doctor(&[]).behind(&["sh", "-c"], "ulimit -v 1000000 && exec \"$@\"").run();
    let (said, why) = verdict(&none, "native code");
    assert_eq!((none.code, said.as_str(), none.stderr.as_str()), (Some(1), "fault", "error: 1 fault"));
    assert!(why.contains("raise the limit of its addresses"), "{why}");
}

/// Root is held to no limit of threads: the test becomes nobody.
#[test]
fn doctor_tells_that_a_user_may_have_few_threads() {
    if !Command::new("unshare")
        .args(["--user", "prlimit", "--nproc=20", "true"])
        .output()
        .is_ok_and(|tried| tried.status.success())
    {
        println!("skipped: there can be no user of another name space");
        return;
    }
    let ended = doctor(&[]).behind(&["unshare", "--user", "prlimit", "--nproc=20", "sh", "-c"], "exec \"$@\"").run();
    let (said, why) = verdict(&ended, "threads");
    // Whoever runs this may have more than these already, and then can start none.
    assert!(["warning", "fault"].contains(&said.as_str()) && why.contains("LimitNPROC="), "{said}: {why}");
}

#[test]
fn folders_that_serve_would_refuse_are_faults() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "").unwrap();
    for name in ["open-store", "open-state", "open-run"] {
        fs::create_dir(path(name)).unwrap();
        fs::set_permissions(path(name), Permissions::from_mode(0o777)).unwrap();
    }
    let inside = path("file/inside");
    let socket = path("file/x.sock");
    let ended = doctor(&["--store", &inside, "--state-dir", &inside, "--control", &socket]).run();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), "error: 3 faults"));
    for (check, flag) in [("store", "--store"), ("state", "--state-dir"), ("control socket", "--control")] {
        let (said, why) = verdict(&ended, check);
        assert!(said == "fault" && why.contains(flag), "{check}: {said}: {why}");
    }
    let (store, state, socket) = (path("open-store"), path("open-state"), path("open-run/x.sock"));
    let ended = doctor(&["--store", &store, "--state-dir", &state, "--control", &socket]).run();
    for check in ["store", "state", "control socket"] {
        let (said, why) = verdict(&ended, check);
        assert!(said == "fault" && why.contains("other users can write to"), "{check}: {said}: {why}");
    }
}

/// `serve` takes a store that was filled ahead of time and cannot be written to. Of the state it needs to write.
#[test]
fn a_read_only_store_is_warned_of_and_a_read_only_state_is_a_fault() {
    let before = ["unshare", "--map-root-user", "--mount", "sh", "-c"];
    let script = "mkdir -m 700 disk && mount -t tmpfs -o size=1m,mode=700 none disk && mkdir -m 700 disk/store disk/state && \
                  mount -o remount,ro disk";
    let folder = tempfile::tempdir().unwrap();
    let mut tried = Command::new(before[0]);
    tried.args(&before[1..]).arg(script).current_dir(folder.path());
    if !tried.output().is_ok_and(|tried| tried.status.success()) {
        println!("skipped: there can be no read-only disk for one process");
        return;
    }
    let args = ["--store", "disk/store", "--state-dir", "disk/state"];
    let ended = doctor(&args).behind(&before, &format!("{script} && exec \"$@\"")).run();
    let (said, why) = verdict(&ended, "store");
    assert!(said == "warning" && why.contains("compiled again at each start"), "{said}: {why}");
    let (said, why) = verdict(&ended, "state");
    assert!(said == "fault" && why.contains("disk/state cannot be written to"), "{said}: {why}");
    // What is not there cannot be made.
    let args = ["--store", "disk/new", "--state-dir", "state"];
    let ended = doctor(&args).behind(&before, &format!("{script} && exec \"$@\"")).run();
    let (said, why) = verdict(&ended, "store");
    assert!(said == "fault" && why.contains("cannot be made: disk: Read-only"), "{said}: {why}");
}

#[test]
fn doctor_says_when_a_disk_is_nearly_full() {
    let before = ["unshare", "--map-root-user", "--mount", "sh", "-c"];
    let script = "mkdir -m 700 disk && mount -t tmpfs -o size=1m,mode=700 none disk";
    let folder = tempfile::tempdir().unwrap();
    let mut tried = Command::new(before[0]);
    tried.args(&before[1..]).arg(script).current_dir(folder.path());
    if !tried.output().is_ok_and(|tried| tried.status.success()) {
        println!("skipped: there can be no small disk for one process");
        return;
    }
    let ended = doctor(&["--store", "disk"]).behind(&before, &format!("{script} && exec \"$@\"")).run();
    let (said, why) = verdict(&ended, "store");
    assert!(said == "warning" && why.contains("only 1MiB are free"), "{said}: {why}");
}

#[test]
fn without_rust_doctor_says_who_needs_it() {
    let ended = doctor(&[]).env("PATH", "/nowhere").run();
    let (said, why) = verdict(&ended, "toolchain");
    assert_eq!((ended.code, said.as_str()), (Some(0), "note"));
    assert!(why.contains("no `rustc` on the PATH") && why.contains("rustup target add wasm32-wasip2"), "{why}");
}
