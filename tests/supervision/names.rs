//! One name, one cluster, wherever its files are and whoever removes them; where these files are; and whose word is taken.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use harness::client::get;
use harness::{Cluster, Ended, Setup, guest, until};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn hello() -> Setup {
    Setup::new(&guest("hello")).workers(1)
}

fn runtime(cluster: &Cluster) -> PathBuf {
    cluster.folder.path().join("wasmcluster")
}

/// Waits until a command reaches this very cluster.
#[track_caller]
fn reached(cluster: &Cluster) {
    let pid = cluster.pid().as_raw();
    until("the cluster is reached", || {
        let ended = cluster.command(&["status", "--json"]);
        (ended.code == Some(0) && ended.stdout.contains(&format!("\"pid\":{pid},"))).then_some(())
    });
}

/// A second cluster of this name, with the same control socket.
fn second(cluster: &Cluster) -> Setup {
    hello().env("XDG_RUNTIME_DIR", text(cluster.folder.path()))
}

#[track_caller]
fn refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "expected {part:?} in: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_removed_of_a_name_is_made_again_and_nobody_gets_the_name() {
    let state = tempfile::tempdir().unwrap();
    let cluster = hello().args(&["--state-dir", text(state.path())]).start();
    let address = cluster.address().to_string();

    // As at a logout. Whoever comes now has the lock beside the state against it.
    fs::remove_dir_all(runtime(&cluster)).unwrap();
    let ended = second(&cluster).args(&["--state-dir", text(state.path())]).run();
    refused(&ended, &["a cluster named 'default' is running already", "default.sock"]);
    reached(&cluster);
    cluster.stderr.find("which had been removed");

    // Only the lock is gone: the socket answers, so it is no leftover, whatever state the other has.
    fs::remove_file(runtime(&cluster).join("default.sock.lock")).unwrap();
    refused(&second(&cluster).run(), &["a cluster named 'default' is running already"]);
    until("the lock is made again", || runtime(&cluster).join("default.sock.lock").exists().then_some(()));

    // One that has the name for a moment, and fails, takes nothing along that is not its own.
    fs::remove_dir_all(runtime(&cluster)).unwrap();
    refused(&second(&cluster).args(&["--listen", &address]).run(), &["error: "]);
    reached(&cluster);
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);

    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    cluster.wait();
    let left: Vec<_> = fs::read_dir(runtime(&cluster)).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!state.path().join("default.lock").exists());
}

#[test]
fn a_runtime_folder_that_cannot_be_made_for_a_while_is_told_once() {
    let state = tempfile::tempdir().unwrap();
    let cluster = hello().args(&["--state-dir", text(state.path())]).start();
    fs::remove_dir_all(runtime(&cluster)).unwrap();
    fs::write(runtime(&cluster), "in the way").unwrap();
    cluster.stderr.find("commands may not reach this cluster");
    assert_eq!(cluster.command(&["status"]).code, Some(1));
    fs::remove_file(runtime(&cluster)).unwrap();
    cluster.stderr.find("commands reach this cluster again");
    reached(&cluster);
    let told = cluster.stderr.lines().iter().filter(|line| line.contains("may not reach")).count();
    assert!(told < 3, "{:#?}", cluster.stderr.lines());
}

#[test]
fn a_name_and_a_state_folder_have_one_cluster_wherever_its_control_socket_is() {
    let state = tempfile::tempdir().unwrap();
    let state = text(state.path());
    let first = hello().args(&["--state-dir", state, "--name", "shop", "--control", "a.sock"]).start();
    let committed = Path::new(state).join("shop.json");
    until("it is committed", || committed.exists().then_some(()));
    let before = fs::metadata(&committed).unwrap().ino();
    let other = hello().args(&["--state-dir", state, "--name", "shop", "--control", "b.sock"]);
    refused(
        &other.run(),
        &["a cluster named 'shop' is running already", &format!("process {}", first.pid()), "a.sock"],
    );
    assert_eq!(fs::metadata(&committed).unwrap().ino(), before, "the state is not overwritten");
    let _other = hello().args(&["--state-dir", state, "--name", "another", "--control", "b.sock"]).start();
}

/// Before that, whoever waited for nobody to answer waited for ever: a supervisor starts the next at once.
#[test]
fn stop_waits_for_the_process_and_not_for_the_name() {
    let mut setup = hello();
    let mut command = Command::new("sh");
    command.args(["-c", r#""$0" "$@"; exec "$0" "$@""#, env!("CARGO_BIN_EXE_wasmcluster")]);
    command.args(setup.command.get_args()).current_dir(setup.folder.path());
    command.envs(setup.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    setup.command = command;
    let cluster = setup.start();
    let first = cluster.status()["pid"].clone();
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    let next = until("the next is there", || {
        let ended = cluster.command(&["status", "--json"]);
        serde_json::from_str::<serde_json::Value>(&ended.stdout).ok()
    });
    assert_ne!(next["pid"], first);
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    assert_eq!(cluster.wait().code(), Some(0));
}

#[test]
fn all_clusters_of_a_user_are_listed_in_80_columns() {
    let first = hello().args(&["--listen", "unix:a-socket-in-a-place-with-a-long-path.sock"]).start();
    let (folder, long) = (text(first.folder.path()), "a-cluster-with-quite-a-long-name-that-does-not-fit");
    let other = |args: &[&str]| hello().env("XDG_RUNTIME_DIR", folder).env("XDG_STATE_HOME", folder).args(args).start();
    let _beside = other(&["--name", long]);
    let elsewhere = other(&["--name", "elsewhere", "--control", "elsewhere.sock"]);
    let list = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wasmcluster"));
        command.args(args).env("XDG_RUNTIME_DIR", folder).env("XDG_STATE_HOME", folder);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let table = list(&["status", "--all"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{table}");
    for part in ["NAME", "default ", "a-cluster-with-qu…", "elsewhere ", "running", " +1"] {
        assert!(table.contains(part), "expected {part:?} in: {table}");
    }
    let json: serde_json::Value = serde_json::from_str(&list(&["status", "--all", "--json"])).unwrap();
    let named = |name: &str| json.as_array().unwrap().iter().find(|it| it["status"]["name"] == name).cloned().unwrap();
    assert_eq!(named("elsewhere")["status"]["pid"], elsewhere.pid().as_raw());
    assert!(named("elsewhere")["control"].as_str().unwrap().ends_with("/elsewhere.sock"));
    named(long);
}

/// Root's own folders hold nothing of it: the socket is said outright.
#[test]
fn root_may_use_the_cluster_of_another_user() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can start a cluster as somebody else");
        return;
    }
    let mut setup = hello();
    let folder = setup.folder.path().to_owned();
    let [binary, app] = ["wasmcluster", "app.wasm"].map(|name| folder.join(name));
    fs::copy(env!("CARGO_BIN_EXE_wasmcluster"), &binary).unwrap();
    fs::copy(guest("hello"), &app).unwrap();
    fs::set_permissions(&app, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let home = folder.join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65_534), Some(65_534)).unwrap();
    let mut command = Command::new(&binary);
    command.arg("serve").arg(&app).args(["--listen", "127.0.0.1:0"]).uid(65_534).gid(65_534).current_dir("/");
    for variable in ["XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"] {
        command.env(variable, &home);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    setup.command = command;
    let cluster = setup.start();
    let socket = home.join("wasmcluster/default.sock");
    assert_eq!(fs::metadata(&socket).unwrap().uid(), 65_534);
    for args in [&["status"][..], &["scale", "2"], &["stop"]] {
        let ended = cluster.command(&[args, &["--control", text(&socket)]].concat());
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    }
    cluster.wait();
}

#[test]
fn a_state_that_others_can_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |args: &[&str]| hello().args(&["--state-dir", text(folder.path())]).args(args);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    refused(&serve(&[]).run(), &["state folder", "other users can write to", "chmod go-w", "--state-dir"]);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(folder.path().join("default.json"), "{\"schema\": 9}").unwrap();
    refused(&serve(&["--resume"]).run(), &["default.json", "another version of wasmcluster (schema 9, not 1)"]);
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
        refused(&serve(&[]).run(), &["state folder", "belongs to user 65534; it must belong to user 0", "chown 0 "]);
    }
}

#[test]
fn a_lock_that_another_user_made_is_no_cluster() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root can make a file another user's");
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, lock) = (folder.path().join("x.sock"), folder.path().join("x.sock.lock"));
    fs::write(&lock, "{\"pid\":1,\"control\":\"\\u001b[2J\"}").unwrap();
    std::os::unix::fs::chown(&lock, Some(65_534), None).unwrap();
    refused(&hello().args(&["--control", text(&socket)]).run(), &["x.sock.lock", "is not a regular file of yours"]);
}

#[test]
fn a_configuration_that_others_can_write_is_refused() {
    let serve = |mode: u32, owner: Option<u32>| {
        let setup = Setup::bare(&["inspect", text(&guest("hello"))]);
        let file = setup.folder.path().join("wasmcluster.toml");
        fs::write(&file, "workers = 2\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&file, owner, None).unwrap();
        setup.run()
    };
    assert_eq!(serve(0o644, None).code, Some(0));
    let ended = serve(0o666, None);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for part in ["cannot read wasmcluster.toml", "other users can write to it (mode 666)", "chmod"] {
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
    if nix::unistd::geteuid().is_root() {
        let ended = serve(0o644, Some(65_534));
        assert!(ended.code == Some(2) && ended.stderr.contains("it belongs to user 65534"), "{ended:?}");
    }
}

/// As releases are switched: `reload` is to read what the link leads to by then.
#[test]
fn a_release_behind_a_link_is_read_anew_when_the_link_is_turned() {
    let mut setup = Setup::bare(&["serve", "app.wasm", "--listen", "127.0.0.1:0", "--workers", "1"]);
    let folder = setup.folder.path().to_owned();
    for (release, component) in [("1", "hello"), ("2", "bare-p2")] {
        fs::create_dir_all(folder.join(release).join("files")).unwrap();
        fs::copy(guest(component), folder.join(release).join("app.wasm")).unwrap();
    }
    let current = folder.join("current");
    symlink("1", &current).unwrap();
    setup.command.args(["--dir", "files::/files", "--min-ready", "0s", "--soak", "0s"]);
    setup.command.current_dir(&current).env("PWD", &current);
    let cluster = setup.start();
    assert_eq!(cluster.status()["generation"]["source"], text(&current.join("app.wasm")));
    let digest = || cluster.status()["generation"]["digest"].clone();
    let before = digest();
    symlink("2", folder.join("next")).unwrap();
    fs::rename(folder.join("next"), &current).unwrap();
    assert_eq!(cluster.command(&["reload"]).code, Some(0));
    assert_ne!(digest(), before);
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
}

#[test]
fn folders_of_a_unit_are_used_without_a_home() {
    let mut setup = hello();
    let folder = setup.folder.path().to_owned();
    for variable in ["HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "TMPDIR"] {
        setup.command.env_remove(variable);
    }
    for (variable, name) in [("RUNTIME_DIRECTORY", "run"), ("STATE_DIRECTORY", "state"), ("CACHE_DIRECTORY", "cache")] {
        let several = format!("{}:{}", text(&folder.join(name)), text(&folder.join("more")));
        setup.command.env(variable, several);
    }
    let cluster = setup.start();
    let socket = folder.join("run/default.sock");
    assert_eq!(cluster.command(&["status", "--control", text(&socket)]).code, Some(0));
    until("it is committed", || folder.join("state/default.json").exists().then_some(()));
    assert_eq!(fs::read_dir(folder.join("cache")).unwrap().count(), 1);
    assert!(!folder.join("more").exists());
}

/// The user's home is in passwd then.
#[test]
fn a_command_needs_no_variables_at_all() {
    let mut setup = Setup::bare(&["inspect", text(&guest("hello"))]);
    setup.command.env_clear();
    let ended = setup.run();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn folders_that_cannot_be_made_are_named_in_one_message() {
    let setup = hello().args(&["--store", "file/a", "--state-dir", "file/b", "--control", "file/c/x.sock"]);
    fs::write(setup.folder.path().join("file"), "").unwrap();
    let parts = ["cannot use 3 of the folders", "--store", "--state-dir", "--control", "$CACHE_DIRECTORY", "read-only"];
    let ended = setup.run();
    refused(&ended, &parts);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
}

#[test]
fn without_proc_it_says_what_is_missing() {
    let mut setup = hello();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", r#"umount -l /proc && exec "$0" "$@""#, env!("CARGO_BIN_EXE_wasmcluster")]);
    command.args(setup.command.get_args()).current_dir(setup.folder.path());
    command.envs(setup.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    setup.command = command;
    if !Command::new("unshare").args(["--mount", "umount", "-l", "/proc"]).output().is_ok_and(|it| it.status.success())
    {
        println!("skipped: /proc cannot be unmounted for one process here");
        return;
    }
    refused(&setup.run(), &["/proc is not mounted", "mount -t proc"]);
}

/// A control group of version 1, which is gone with its processes.
struct Group(PathBuf);

impl Group {
    /// Of a controller, with one setting; none where no such group can be made.
    fn new(controller: &str, file: &str, value: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.split_once(&format!(":{controller}:/"))).map(|(_, group)| group)?;
        let parent = Path::new("/sys/fs/cgroup").join(controller).join(own);
        let group = Self(parent.join(format!("wasmcluster-test-{}-{value}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(file), value.to_string()).ok()?;
        Some(group)
    }

    /// `setup`, started in this group.
    fn around(&self, setup: Setup) -> Setup {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(&self.0);
        started_by(command, setup)
    }
}

/// `setup`, started by a command that takes it as its last arguments.
fn started_by(mut command: Command, mut setup: Setup) -> Setup {
    command.arg(env!("CARGO_BIN_EXE_wasmcluster")).args(setup.command.get_args());
    command.current_dir(setup.folder.path());
    command.envs(setup.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    setup.command = command;
    setup
}

impl Drop for Group {
    fn drop(&mut self) {
        until("the group is empty", || fs::remove_dir(&self.0).ok());
    }
}

/// Without `--workers`.
fn by_default(args: &[&str]) -> Setup {
    Setup::bare(&[&["serve", text(&guest("hello")), "--listen", "127.0.0.1:0"], args].concat())
}

/// Without a store, so that the compiler works within its share as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_a_control_group_is_shared_out() {
    // Two fifths of it for the workers and one to spare, and as much for the compiler.
    for (mebibytes, args, share) in [(512, &["--workers", "2"][..], "68MiB"), (256, &[], "51MiB")] {
        let Some(group) = Group::new("memory", "memory.limit_in_bytes", mebibytes << 20) else {
            println!("skipped: no control group of version 1 with a limit on memory can be made here");
            return;
        };
        let cluster = group.around(by_default(&[args, &["--store", "store"]].concat())).start();
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
        let limits = cluster.status()["limits"].clone();
        assert_eq!((&limits["max-worker-memory"], &limits["max-memory"]), (&share.into(), &share.into()));
        assert_eq!(cluster.ready().len(), if args.is_empty() { 1 } else { 2 });
        drop(cluster);
    }
}

/// A folder stands in for the group: there is such a file only where version 2 shares out memory.
#[test]
fn a_control_group_that_ends_as_one_is_told_of() {
    let mask = "place=$(awk '/ - cgroup2 / { print $5; exit }' /proc/self/mountinfo) && mount -t tmpfs none \"$place\" && \
                echo 1 > \"$place/memory.oom.group\"";
    let apart = |then: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &format!("{mask} && {then}"), "sh"]);
        command
    };
    if !apart("true").output().is_ok_and(|it| it.status.success()) {
        println!("skipped: nothing can be put in the place of a control group of version 2 here");
        return;
    }
    let cluster = started_by(apart("exec \"$@\""), by_default(&[])).start();
    cluster.stderr.find("memory.oom.group is set for this control group");
}

#[test]
fn a_control_group_with_one_processors_time_has_one_worker() {
    let Some(group) = Group::new("cpu", "cpu.cfs_quota_us", 100_000) else {
        println!("skipped: no control group of version 1 with a limit on processors can be made here");
        return;
    };
    let cluster = group.around(by_default(&[])).start();
    assert_eq!(cluster.ready().len(), 1);
}

/// As from one container to another: the process cannot be seen, so its number says nothing.
#[test]
fn stop_waits_for_a_process_that_it_cannot_see() {
    let cluster = hello().start();
    let outside = ["--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_wasmcluster"), "stop"];
    if !Command::new("unshare").args(&outside[..3]).arg("true").output().is_ok_and(|it| it.status.success()) {
        println!("skipped: no namespace of processes can be made here");
        return;
    }
    let stopped = Command::new("unshare").args(outside).env("XDG_RUNTIME_DIR", cluster.folder.path()).output().unwrap();
    assert!(stopped.status.success(), "{stopped:?}");
    assert_eq!(cluster.wait().code(), Some(0));
}
