//! Compiled components: who can touch them, and what survives another wasmtime.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::client::get;
use harness::{Cluster, Ended, Setup, guest};

fn entries(store: &Path) -> Vec<PathBuf> {
    fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn one_entry(store: &Path) -> PathBuf {
    let [entry] = &entries(store)[..] else { panic!("one entry") };
    entry.clone()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn in_store(app: &Path, store: &Path) -> Setup {
    Setup::new(app).args(&["--log-level", "debug", "--store", text(store)])
}

/// The descriptors of a process that are the artifact.
fn artifacts_of(pid: Pid) -> Vec<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let is_artifact = |path: &PathBuf| fs::read_link(path).is_ok_and(|it| text(&it).contains("wasmcluster-artifact"));
    descriptors.filter(is_artifact).collect()
}

/// A worker that is taken over could write to all files of its user: none of them is what its siblings run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_code_is_shared_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = in_store(&guest("hello"), folder.path()).start();
    let worker = cluster.worker(0).unwrap();
    let mapped = fs::read_to_string(format!("/proc/{worker}/maps")).unwrap();
    let executable = |line: &&str| line.contains(" r-xp ") && line.contains("/memfd:wasmcluster-artifact");
    assert!(mapped.lines().any(|line| executable(&line)), "{mapped}");
    assert!(!mapped.contains(text(folder.path())), "{mapped}");

    let held = artifacts_of(cluster.pid());
    assert!(!held.is_empty());
    for path in held.iter().chain(&artifacts_of(worker)) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        let found = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap();
        assert!(SealFlag::from_bits_truncate(found).contains(seals), "{path:?}: {found:x}");
        let refused =
            |outcome: io::Result<()>| assert_eq!(outcome.unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        refused(file.write_all_at(b"\xcc", 0));
        refused(file.set_len(0));
    }

    // In place, as no compiler does it.
    for name in ["component.cwasm", "component.wasm", "manifest.json"] {
        let file = File::options().write(true).open(one_entry(folder.path()).join(name)).unwrap();
        let length = file.metadata().unwrap().len() as usize;
        file.write_all_at(&vec![0xcc; length], 0).unwrap();
    }
    kill(worker, Signal::SIGKILL).unwrap();
    cluster.replaced(0, worker);
    for _ in 0..10 {
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    }
}

/// Makes the entry one that is for another wasmtime or another CPU: it has another name, and its code does not fit.
fn make_foreign(entry: &Path, name: &str) {
    fs::write(entry.join("component.cwasm"), "for another machine").unwrap();
    fs::rename(entry, entry.with_file_name(name)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resume_and_rollback_survive_a_change_of_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let [store, state, app] = ["store", "state", "app.wasm"].map(|name| folder.path().join(name));
    let serve = || {
        let flags = ["--state-dir", text(&state), "--resume", "--min-ready", "0s", "--soak", "0s"];
        in_store(&app, &store).args(&flags).workers(1).start()
    };
    fs::copy(guest("whoami"), &app).unwrap();
    let cluster = serve();
    let first = cluster.status()["generation"]["digest"].clone();
    fs::copy(guest("hello"), &app).unwrap();
    assert_eq!(cluster.command(&["reload"]).code, Some(0));
    let second = cluster.status()["generation"]["digest"].clone();
    drop(cluster);

    for (number, entry) in entries(&store).iter().enumerate() {
        make_foreign(entry, &format!("{number}"));
    }
    fs::write(&app, "another").unwrap();
    let cluster = serve();
    assert_eq!(cluster.status()["generation"]["digest"], second);
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "Hello from wasmcluster!\n");
    let back = cluster.command(&["rollback"]);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert_eq!(cluster.status()["generation"]["digest"], first);
    assert!(get(cluster.address(), "/").await.unwrap().text().contains("\"generation\""));
    assert_eq!(entries(&store).len(), 4, "both were compiled again, and the old code is kept as long as there is room");
}

fn compile(args: &[&str]) -> Ended {
    Setup::bare(&[&["compile"], args].concat()).run()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compiled_store_is_used_by_those_who_cannot_write_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("image/store");
    let app = guest("hello");
    let made = compile(&[text(&app), "-o", text(&store)]);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""), "{made:?}");
    let entry = one_entry(&store);
    let said: Vec<&str> = made.stdout.lines().collect();
    assert!(said[0].starts_with("sha256:") && said[0].ends_with(", WASI 0.2"), "{said:?}");
    assert_eq!(said[1], text(&entry));
    assert!(said[2].contains("of native code, compiled in "), "{said:?}");
    let again = compile(&[text(&app), "-o", text(&store)]);
    assert!(again.stdout.contains("already in the store"), "{again:?}");

    // Readable by another user, writable by none.
    for path in [store.clone(), entry.clone(), entry.join("component.cwasm"), entry.join("manifest.json")] {
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!((mode & 0o044, mode & 0o022), (0o044, 0), "{path:?}");
    }
    let cluster = serve_as_another_user(&app, &store);
    assert!(cluster.stderr.find("the component is compiled").contains("cached=true"));
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    // What the store does not have is compiled, and not kept.
    if nix::unistd::geteuid().is_root() {
        let cluster = serve_as_another_user(&guest("whoami"), &store);
        cluster.stderr.find("is not writable, so every start compiles it again");
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
        assert_eq!(entries(&store).len(), 1);
    }
}

/// As far as the tests may become another user; else as the same.
fn serve_as_another_user(app: &Path, store: &Path) -> Cluster {
    let mut setup = in_store(app, store).args(&["--min-ready", "0s", "--soak", "0s"]).workers(1);
    if nix::unistd::geteuid().is_root() {
        const NOBODY: u32 = 65534;
        setup.command.uid(NOBODY).gid(NOBODY);
        for folder in [setup.folder.path(), store.ancestors().nth(2).unwrap()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        nix::unistd::chown(setup.folder.path(), Some(NOBODY.into()), Some(NOBODY.into())).unwrap();
    }
    setup.start()
}

#[test]
fn compile_refuses_as_reload_does() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let empty = folder.path().join("empty.wat");
    fs::write(&empty, "(component)").unwrap();
    for (app, code, part) in
        [(empty, 3, "error: cannot compile"), (folder.path().join("nowhere.wasm"), 3, "no such file")]
    {
        let ended = compile(&[text(&app), "-o", text(&store)]);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
    assert!(entries(&store).is_empty());
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).unwrap();
    let ended = compile(&[text(&guest("hello")), "-o", text(&store)]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("other users can write to"), "{ended:?}");
    // Here is no project.
    let ended = compile(&[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("name the component to use"), "{ended:?}");
}
