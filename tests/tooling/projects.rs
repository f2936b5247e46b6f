//! From sources to answers: `new`, `build`, and `serve` and `reload` of a folder. What is about builds alone is tested with
//! projects that copy a component, which takes no compiler; a few are built by cargo, in one target folder for all.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use http_body_util::BodyExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use harness::client::{Connection, get};
use harness::load::{Load, Reuse};
use harness::{Cluster, Ended, Setup, guest, is_gone, root, until};

/// A folder that each run empties: cargo keeps what it built by the path of its sources, which must not be new each time.
pub(crate) fn empty_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("projects").join(name);
    // There may be none.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The target folder of all projects that cargo builds.
pub(crate) const CARGO_TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/projects-target");

/// A command that may take as long as cargo takes.
pub(crate) fn run(args: &[&str]) -> Ended {
    finish(Setup::bare(args).env("CARGO_TARGET_DIR", CARGO_TARGET).command)
}

fn finish(mut command: Command) -> Ended {
    let output = command.output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Ended { code: output.status.code(), stdout, stderr }
}

/// Makes a project, and has it built for the first time. `None` if its crates cannot be had.
fn new_project(name: &str, template: &str) -> Option<PathBuf> {
    let folder = empty_folder(name);
    let made = run(&["new", text(&folder), "--template", template]);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""), "{made:?}");
    // The versions that this repository is tested with, which are here already.
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let built = run(&["build", text(&folder)]);
    let lock = fs::read_to_string(folder.join("Cargo.lock")).unwrap();
    if ["failed to download", "failed to get `", "Unable to update registry"].iter().any(|it| built.stderr.contains(it))
    {
        println!("skipped: the template {template}: its crates cannot be had: {}", built.stderr);
        return None;
    }
    assert_eq!((built.code, built.stdout.as_str()), (Some(0), ""), "{}", built.stderr);
    let name = name.replace('-', "_");
    assert!(built.stderr.lines().last().unwrap().contains(&format!("/release/{name}.wasm (")), "{}", built.stderr);
    // It would take most of the first build.
    assert!(!["wit-parser", "wit-bindgen-rust"].iter().any(|it| lock.contains(it)), "a generator of bindings: {lock}");
    Some(folder)
}

/// Cargo's own command in the project.
fn cargo_test(folder: &Path) {
    let mut cargo = Command::new("cargo");
    cargo.arg("test").current_dir(folder).env("CARGO_TARGET_DIR", CARGO_TARGET);
    let tested = finish(cargo);
    assert_eq!(tested.code, Some(0), "{tested:?}");
    assert!(tested.stdout.contains("test result: ok. 1 passed"), "{tested:?}");
}

/// A project that is built by copying `src/app.wasm`; each build is a line in `.builds`, and lasts while there is a `.hold`.
fn copying_project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let command = "echo begun >> .builds && mkdir -p out && cp src/app.wasm out/app.wasm && \
                   while [ -e .hold ]; do sleep 0.05; done && [ ! -e src/mistake ]";
    let file = format!("[build]\ncommand = \"{command}\"\ncomponent = \"out/app.wasm\"\n");
    write(folder.path().join("wasmcluster.toml"), &file);
    save(folder.path(), "hello");
    folder
}

/// Makes a guest the source of a copying project.
fn save(folder: &Path, package: &str) {
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::copy(guest(package), folder.join("src/app.wasm")).unwrap();
}

fn builds(folder: &Path) -> usize {
    fs::read_to_string(folder.join(".builds")).unwrap_or_default().lines().count()
}

/// Serves a folder with these flags.
#[track_caller]
fn serve(folder: &Path, flags: &[&str]) -> Cluster {
    Setup::new(folder).args(flags).env("CARGO_TARGET_DIR", CARGO_TARGET).start_from_sources()
}

async fn answers(cluster: &Cluster) -> String {
    get(cluster.address(), "/").await.unwrap().text().to_owned()
}

/// Waits for an answer that contains `part`.
async fn answer_becomes(cluster: &Cluster, part: &str) {
    // Cargo builds meanwhile, beside other tests that make it do so too.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(600);
    loop {
        let answer = answers(cluster).await;
        if answer.contains(part) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "waited for {part:?}, and got {answer:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

const HELLO: &str = "Hello from wasmcluster!\n";
/// Part of what `whoami` answers.
const WHOAMI: &str = "\"generation\"";

/// All processes below `pid`, whichever of its threads started them.
fn descendants(pid: Pid) -> BTreeSet<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: String = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    let children = children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()));
    children.flat_map(|pid| descendants(pid).into_iter().chain([pid])).collect()
}

/// The process that builds for a cluster.
#[track_caller]
fn builder(cluster: &Cluster) -> Pid {
    let is_builder =
        |pid: &Pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0builder\0"));
    until("there is a builder", || cluster.children().into_iter().find(is_builder))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_project_passes_its_test_and_is_served() {
    let Some(folder) = new_project("new-hello", "hello") else { return };
    cargo_test(&folder);
    let inspected = run(&["inspect", text(&folder), "--json"]);
    assert_eq!(inspected.code, Some(0), "{}", inspected.stderr);
    let report: serde_json::Value = serde_json::from_str(&inspected.stdout).unwrap();
    assert_eq!(report["wasi"], "0.2");
    let cluster = serve(&folder, &[]);
    assert_eq!(answers(&cluster).await, HELLO);
}

#[test]
fn a_crate_that_no_guest_can_have_is_answered_with_what_it_can() {
    let Some(folder) = new_project("new-tokio", "hello") else { return };
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let with = |line: &str| manifest.replace("[dependencies]\n", &format!("[dependencies]\n{line}\n"));
    // Its versions and what else it needs are here, as the server has it too.
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    fs::write(folder.join("Cargo.toml"), with("tokio = { version = \"1\", features = [\"net\"] }")).unwrap();
    let failed = run(&["build", text(&folder)]);
    let last = failed.stderr.lines().last().unwrap();
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), ""), "{}", failed.stderr);
    assert!(last.contains("`tokio` does not work in a guest") && last.contains("time::sleep"), "{last}");
    // Without the features that need a system, it is no hindrance, and a mistake is only a mistake.
    fs::write(folder.join("Cargo.toml"), with("tokio = { version = \"1\", features = [\"sync\"] }")).unwrap();
    fs::write(folder.join("src/lib.rs"), "compile_error!(\"a mistake\");").unwrap();
    let failed = run(&["build", text(&folder)]);
    assert!(
        failed.stderr.contains("a mistake") && !failed.stderr.contains("does not work in a guest"),
        "{}",
        failed.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_streaming_project_passes_its_test_and_streams() {
    let Some(folder) = new_project("new-stream", "stream") else { return };
    cargo_test(&folder);
    let cluster = serve(&folder, &[]);
    let mut connection = Connection::open(cluster.address()).await;
    let mut body = connection.begin("/").await;
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "event: count\ndata: 10\n\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_projects_with_axum_pass_their_tests_and_are_served() {
    let Some(folder) = new_project("new-axum", "axum") else { return };
    cargo_test(&folder);
    let cluster = serve(&folder, &[]);
    let answer = get(cluster.address(), "/hello/Ada").await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, "Hello, Ada!\n"));

    let Some(folder) = new_project("new-api", "api") else { return };
    cargo_test(&folder);
    let cluster = serve(&folder, &[]);
    let answer = get(cluster.address(), "/").await.unwrap();
    assert_eq!((answer.status, answer.headers["content-type"].as_bytes()), (404, &b"application/json"[..]));
    assert_eq!(get(cluster.address(), "/health").await.unwrap().text(), "well\n");
}

/// A project in another language. What it fetched for the run before is kept (`tools`): else it takes a minute.
async fn foreign(template: &str, tools: &str, programs: &[&str], test: &[&str], expected: &str) {
    for program in programs {
        if Command::new(program).arg("--version").output().is_err() {
            println!("skipped: the template {template}: there is no {program} on the PATH");
            return;
        }
    }
    let name = format!("new-{template}");
    let projects = empty_folder("kept").parent().unwrap().to_owned();
    let (folder, kept) = (projects.join(&name), projects.join(format!("{name}-tools")));
    if folder.join(tools).exists() {
        fs::rename(folder.join(tools), &kept).unwrap();
    }
    let folder = empty_folder(&name);
    assert_eq!(run(&["new", text(&folder), "--template", template]).code, Some(0));
    if kept.exists() {
        fs::rename(&kept, folder.join(tools)).unwrap();
    }
    let mut command = Command::new(test[0]);
    command.args(&test[1..]).current_dir(&folder).env("PYTHONDONTWRITEBYTECODE", "1");
    let tested = finish(command);
    assert_eq!(tested.code, Some(0), "{tested:?}");

    let built = run(&["build", text(&folder)]);
    // npm's and pip's words for what only a network can mend, and Debian's Python without its venv.
    if ["npm error network", "npm error code E", "No matching distribution", "ensurepip is not available"]
        .iter()
        .any(|it| built.stderr.contains(it))
    {
        println!("skipped: the template {template}: its tools cannot be had: {}", built.stderr);
        return;
    }
    assert_eq!(built.code, Some(0), "{}", built.stderr);
    let component = folder.join("dist/app.wasm");
    let cluster = Setup::new(&component).start();
    assert_eq!(answers(&cluster).await, expected);
    assert_eq!(get(cluster.address(), "/nowhere").await.unwrap().status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_project_in_javascript_passes_its_test_and_is_served() {
    foreign("js", "node_modules", &["node", "npm"], &["npm", "test"], "Hello from JavaScript!\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_project_in_python_passes_its_test_and_is_served() {
    foreign("python", ".venv", &["python3"], &["python3", "-m", "unittest"], "Hello from Python!\n").await;
}

/// A change is served without losing a request; a mistake is shown, and the old version goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_saved_is_built_by_cargo_and_served() {
    let Some(folder) = new_project("watched", "hello") else { return };
    let source = folder.join("src/lib.rs");
    let original = fs::read_to_string(&source).unwrap();
    let cluster = serve(&folder, &["--watch"]);
    let load = Load::start(cluster.address(), 8, Reuse::KeepAlive);
    assert_eq!(answers(&cluster).await, HELLO);

    write(&source, &original.replace("Hello", "Good morning"));
    answer_becomes(&cluster, "Good morning").await;
    write(&source, &original.replace("-> &'static str", "-> Nonsense"));
    cluster.stderr.find("cannot find type `Nonsense`");
    cluster.stderr.find("error: cannot build");
    assert_eq!(answers(&cluster).await, "Good morning from wasmcluster!\n");
    load.goes_on();
    write(&source, &original.replace("Hello", "Good evening"));
    answer_becomes(&cluster, "Good evening").await;
    load.goes_on();
    let answered = load.end_well().await;
    println!("two changes under load: {answered} requests answered, 0 lost");

    // Whatever is at work ends with the primary: here cargo, and a build script that would never end.
    write(folder.join("build.rs"), "fn main() { std::thread::sleep(std::time::Duration::from_secs(1000)) }");
    let builder = builder(&cluster);
    let is_script =
        |pid: &Pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"build-script-build\0"));
    let all = until("a build script runs", || {
        let all = descendants(builder);
        all.iter().any(is_script).then_some(all)
    });
    assert!(all.len() >= 2, "{all:?}");
    cluster.signal(Signal::SIGKILL);
    until("builder, cargo and script are gone", || {
        (is_gone(builder) && all.iter().all(|&pid| is_gone(pid))).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_served_as_its_own_file_says() {
    let project = copying_project();
    let cluster = serve(project.path(), &["--min-ready", "0s", "--soak", "0s"]);
    assert_eq!(answers(&cluster).await, HELLO);
    let status = cluster.status();
    let component = project.path().join("out/app.wasm");
    assert_eq!(status["generation"]["source"], text(&component));

    // Without --watch nothing is built unasked. A reload asks for it, whether it names the folder or not.
    save(project.path(), "whoami");
    assert_eq!((answers(&cluster).await.as_str(), builds(project.path())), (HELLO, 1));
    let reloaded = cluster.command(&["reload"]);
    assert_eq!((reloaded.code, reloaded.stdout.as_str()), (Some(0), "generation 2 is served\n"), "{reloaded:?}");
    assert!(reloaded.stderr.contains("Built "), "{reloaded:?}");
    assert!(answers(&cluster).await.contains(WHOAMI));
    // What is served already stays, with its workers, unless it is forced.
    let workers = cluster.ready();
    for args in [&["reload"][..], &["reload", text(project.path())]] {
        let reloaded = cluster.command(args);
        let said = "unchanged: generation 2 serves this component with these settings already\n";
        assert_eq!((reloaded.code, reloaded.stdout.as_str()), (Some(0), said), "{args:?}: {reloaded:?}");
    }
    assert_eq!((cluster.ready(), builds(project.path())), (workers, 4));
    let reloaded = cluster.command(&["reload", "--force"]);
    let said = "generation 3 is served: the component is the same as before, its workers are new\n";
    assert_eq!((reloaded.code, reloaded.stdout.as_str()), (Some(0), said), "{reloaded:?}");
    let builds_now = builds(project.path());
    assert_eq!(run(&["reload", text(project.path())]).code, Some(7));
    assert_eq!(builds(project.path()), builds_now, "nothing is built for a cluster that does not run");
    // One that cannot be built is not asked for.
    write(project.path().join("src/mistake"), "");
    let ended = cluster.command(&["reload", text(project.path())]);
    refused(&ended, 3, &["refused, nothing was changed: cannot build", "its output is above"]);
    let ended = cluster.command(&["reload", text(project.path()), "--json"]);
    let line: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &line["event"], &line["result"]), (Some(3), &"reload_ended".into(), &"refused".into()));
    assert!(line["generation"].is_null() && line["reason"].as_str().unwrap().starts_with("cannot build "), "{line}");
    assert_eq!(cluster.status()["generation"]["current"], 3);
}

#[test]
fn a_folder_brings_its_own_settings() {
    let project = copying_project();
    let file = fs::read_to_string(project.path().join("wasmcluster.toml")).unwrap();
    write(project.path().join("wasmcluster.toml"), &format!("name = \"shop\"\nmax-headers = 7\n{file}"));
    let cluster = serve(project.path(), &[]);
    let status = cluster.command(&["status", "--name", "shop"]);
    assert!(status.stdout.contains("max-headers 7"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_during_a_build_makes_another_build() {
    let project = copying_project();
    let folder = project.path();
    let cluster = serve(folder, &["--watch"]);
    let before = builds(folder);
    write(folder.join(".hold"), "");
    save(folder, "scenarios");
    until("a build begins", || (builds(folder) > before).then_some(()));
    save(folder, "whoami");
    fs::remove_file(folder.join(".hold")).unwrap();
    answer_becomes(&cluster, WHOAMI).await;

    write(folder.join("src/mistake"), "");
    save(folder, "hello");
    let said = cluster.stderr.find("error: cannot build");
    assert!(said.ends_with("; the previous build is still served"), "{said}");
    fs::remove_file(folder.join("src/mistake")).unwrap();
    answer_becomes(&cluster, HELLO).await;
    // What is written anew as it was is no change.
    let builds_now = builds(folder);
    save(folder, "hello");
    write(folder.join("src/more"), "");
    until("it is built", || (builds(folder) > builds_now).then_some(()));
    assert_eq!(builds(folder), builds_now + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_survives_its_builder_and_another_may_stand_in() {
    let project = copying_project();
    let cluster = serve(project.path(), &["--watch"]);
    // In the middle of a build: that ends as well.
    write(project.path().join(".hold"), "");
    save(project.path(), "whoami");
    let builder = builder(&cluster);
    let all = until("a build is at work", || Some(descendants(builder)).filter(|all| !all.is_empty()));
    kill(builder, Signal::SIGKILL).unwrap();
    let said = cluster.stderr.find("changes are no longer built");
    assert!(said.contains("was killed by SIGKILL") && said.contains("wasmcluster build --watch"), "{said}");
    until("what it started is gone", || all.iter().all(|&pid| is_gone(pid)).then_some(()));
    fs::remove_file(project.path().join(".hold")).unwrap();
    save(project.path(), "scenarios");
    let _other = cluster.follow(&["build", "--watch", text(project.path())]);
    save(project.path(), "whoami");
    answer_becomes(&cluster, WHOAMI).await;
}

#[test]
fn a_builder_ends_with_its_primary() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let project = copying_project();
        let cluster = serve(project.path(), &["--watch"]);
        write(project.path().join(".hold"), "");
        save(project.path(), "whoami");
        let builder = builder(&cluster);
        let all = until("a build is at work", || Some(descendants(builder)).filter(|all| !all.is_empty()));
        cluster.signal(signal);
        until("builder and build are gone", || (is_gone(builder) && all.iter().all(|&pid| is_gone(pid))).then_some(()));
    }
}

/// What cargo says that it used, it watches, wherever that is.
#[test]
fn build_watches_packages_beside_the_folder() {
    let [app, beside] = ["watched-app", "watched-beside"].map(empty_folder);
    let manifest =
        |name: &str, more: &str| format!("[package]\nname = \"{name}\"\nedition = \"2024\"\n{more}\n[workspace]\n");
    let library = "[lib]\ncrate-type = [\"cdylib\"]\n[dependencies]\nwatched-beside = { path = \"../watched-beside\" }";
    write(app.join("Cargo.toml"), &manifest("watched-app", library));
    write(app.join("src/lib.rs"), "pub use watched_beside::*;");
    write(beside.join("Cargo.toml"), &manifest("watched-beside", ""));
    write(beside.join("src/lib.rs"), "pub fn one() {}");
    let watching = Setup::bare(&["build", "--watch", text(&app)]).env("CARGO_TARGET_DIR", CARGO_TARGET).launch();
    watching.stderr.find("Built ");
    write(beside.join("src/lib.rs"), "pub fn one() { two() }");
    watching.stderr.find("cannot find function `two`");
    watching.stderr.find("error: cannot build");
    write(beside.join("src/lib.rs"), "pub fn one() {}\npub fn two() {}");
    let built = || watching.stderr.lines().iter().rposition(|line| line.starts_with("Built "));
    let failed = || watching.stderr.lines().iter().rposition(|line| line.starts_with("error: cannot build"));
    until("it is built again", || (built() > failed()).then_some(()));
}

#[track_caller]
fn refused(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{}", ended.stderr);
    let (_, message) = ended.stderr.rsplit_once("error: ").expect("a message of ours");
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {}", ended.stderr);
    }
}

#[test]
fn what_cannot_be_built_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let project = |file: &str| write(folder.path().join("wasmcluster.toml"), file);
    let build = || run(&["build", text(folder.path())]);
    refused(&build(), 1, &["neither a Cargo.toml", "wasmcluster.toml with a [build]", "wasmcluster new"]);
    refused(&run(&["build", "/nowhere/at/all"]), 1, &["cannot build /nowhere/at/all", "No such file"]);
    refused(&run(&["build", "/dev/null"]), 1, &["it is not a folder"]);
    project("workers = 2\n");
    refused(&build(), 1, &["neither a Cargo.toml"]);
    project("[build]\ncommand = \"make\"\n");
    refused(&build(), 2, &["wasmcluster.toml", "`component` is missing"]);
    project("[build]\ncommand = \"echo no >&2; exit 3\"\ncomponent = \"app.wasm\"\n");
    let ended = build();
    refused(&ended, 1, &["exit status: 3", "its output is above"]);
    assert!(ended.stderr.starts_with("no\n"), "{}", ended.stderr);
    project("[build]\ncommand = \"true\"\ncomponent = \"app.wasm\"\n");
    refused(&build(), 1, &["`true` succeeded, but did not create", "app.wasm"]);
    refused(&run(&["serve", text(folder.path()), "--listen", "127.0.0.1:0"]), 1, &["`true` succeeded"]);
}

#[test]
fn a_crate_that_is_no_component_says_what_is_missing() {
    let folder = empty_folder("no-cdylib");
    write(folder.join("Cargo.toml"), "[package]\nname = \"no-cdylib\"\nedition = \"2024\"\n[workspace]\n");
    write(folder.join("src/lib.rs"), "");
    refused(&run(&["build", text(&folder)]), 1, &["cannot build", "crate-type = [\"cdylib\"]"]);
    write(folder.join("src/lib.rs"), "fn");
    let ended = run(&["build", text(&folder)]);
    refused(&ended, 1, &[]);
    assert!(ended.stderr.contains("src/lib.rs:1") && ended.stderr.contains("its output is above"), "{}", ended.stderr);
}

#[test]
fn without_a_toolchain_every_way_out_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("Cargo.toml"), "[package]\nname = \"app\"\n");
    let programs = tempfile::tempdir().unwrap();
    let build = || finish(Setup::bare(&["build", text(folder.path())]).env("PATH", text(programs.path())).command);
    refused(&build(), 1, &["no `rustc` on the PATH", "https://rustup.rs"]);
    // A Rust without rustup and without the target.
    let program = |name: &str, script: &str| {
        let path = programs.path().join(name);
        write(&path, &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("rustc", "echo /nowhere");
    let parts = ["wasm32-wasip2", "`rustup target add wasm32-wasip2` cannot be started", "scripts/guest-toolchain"];
    refused(&build(), 1, &parts);
    // A rustup that cannot download; it is said that it is tried.
    program("rustup", "echo 'info: downloading component' >&2\necho 'error: could not download file' >&2\nexit 1");
    let ended = build();
    refused(&ended, 1, &["wasm32-wasip2", "failed: could not download file", "with a connection to the internet"]);
    assert!(
        ended.stderr.starts_with("The target wasm32-wasip2 is not installed: rustup target add"),
        "{}",
        ended.stderr
    );
}

#[test]
fn new_writes_over_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [taken, file, fresh] = ["taken", "file", "a/b/My Shop"].map(|name| folder.path().join(name));
    write(taken.join(".keep"), "");
    write(&file, "");
    refused(&run(&["new", text(&taken)]), 1, &["cannot create a project in", "the folder is not empty"]);
    refused(&run(&["new", text(&file)]), 1, &["a file of that name exists"]);
    refused(&run(&["new", text(&fresh), "--template", "cobol"]), 2, &["invalid value 'cobol'"]);
    assert!(!fresh.exists());
    let made = run(&["new", text(&fresh)]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(
        made.stdout.contains("Created my-shop in") && made.stdout.contains("wasmcluster serve --watch ."),
        "{made:?}"
    );
    assert!(fs::read_to_string(fresh.join("Cargo.toml")).unwrap().contains("name = \"my-shop\""));
    assert_eq!(run(&["new", text(&fresh)]).code, Some(1));
}
