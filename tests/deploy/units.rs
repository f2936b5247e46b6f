//! The units of `deploy/systemd`: what systemd thinks of them, and whether what they forbid is needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::client::get;
use harness::tools::Tool;
use harness::{Setup, binary, guest, root};

use super::reload::{AT_ONCE, another_version};

/// What systemd calls them.
const UNITS: [&str; 2] = ["wasmcluster@.service", "wasmcluster@.socket"];

fn unit(name: &str) -> String {
    fs::read_to_string(root().join("deploy/systemd").join(name)).unwrap()
}

/// The units, with the binary that is tested.
fn copies(folder: &Path) -> [PathBuf; 2] {
    UNITS.map(|name| {
        let path = folder.join(name);
        fs::write(&path, unit(name).replace("/usr/bin/wasmcluster", binary().to_str().unwrap())).unwrap();
        path
    })
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let Some(analyze) = Tool::find("systemd-analyze") else {
        println!("skipped: systemd-analyze is not installed");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let [service, socket] = copies(folder.path());
    // The name of an application, between the @ and the point.
    let [shop, address] = [&service, &socket].map(|path| path.to_str().unwrap().replace("@.", "@shop."));
    let verified = analyze.run(["verify", "--man=no", "--recursive-errors=no", &shop, &address]);
    assert_eq!((verified.code, &*verified.stderr), (Some(0), ""), "{verified:?}");
    // Of 100, as a hundred is exposed to all.
    let secured = analyze.run(["security", "--offline=yes", "--threshold=20", "--no-pager", service.to_str().unwrap()]);
    assert_eq!(secured.code, Some(0), "{secured:?}");
}

/// The names in a group of system calls, as `@system-service`, and in those that it names.
fn group(analyze: &Tool, name: &str) -> BTreeSet<String> {
    let listed = analyze.run(["syscall-filter", "--no-pager", name]);
    assert_eq!(listed.code, Some(0), "{listed:?}");
    let mut calls = BTreeSet::new();
    for line in listed.stdout.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#')) {
        match line.starts_with('@') {
            true => calls.extend(group(analyze, line)),
            false => drop(calls.insert(line.to_owned())),
        }
    }
    calls
}

/// The system calls in what strace has written, and where each was refused for want of a right.
fn called(trace: &str) -> BTreeSet<String> {
    let calls = trace.lines().filter_map(|line| {
        let call = line.split_once(' ')?.1.trim_start();
        let name = call.strip_prefix("<... ").unwrap_or(call);
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        Some(name[..end].to_owned()).filter(|name| !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()))
    });
    calls.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unit_allows_every_system_call_that_is_made() {
    let (Some(analyze), Some(strace)) = (Tool::find("systemd-analyze"), Tool::find("strace")) else {
        println!("skipped: systemd-analyze or strace is not installed");
        return;
    };
    let text = unit("wasmcluster@.service");
    let filters: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).collect();
    let [allowed, forbidden] = filters[..] else { panic!("{filters:?}") };
    let mut may = group(&analyze, allowed);
    for call in group(&analyze, forbidden.strip_prefix('~').unwrap()) {
        may.remove(&call);
    }
    let setup =
        Setup::new(&guest("counter")).args(&AT_ONCE).args(&["--admin", "127.0.0.1:0", "--access-log", "access.log"]);
    let trace = setup.folder.path().join("trace");
    // Compiled anew, as that is part of it.
    let cache = setup.folder.path().join("cache");
    let setup = setup.env("XDG_CACHE_HOME", cache.to_str().unwrap());
    let before = format!("exec {} -f -qq -o {} \"$@\"", strace.path().display(), trace.display());
    let cluster = setup.behind(&["sh", "-c"], &before).start();
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    let version = another_version("counter", cluster.folder.path());
    assert_eq!(cluster.reload(&[version.to_str().unwrap()]).code, Some(0));
    assert_eq!(cluster.command(&["scale", "1"]).code, Some(0));
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    assert!(cluster.wait().success());
    let made = called(&fs::read_to_string(trace).unwrap());
    assert!(made.contains("accept4") && made.contains("memfd_create") && made.len() > 60, "{made:?}");
    let refused: Vec<&String> = made.difference(&may).collect();
    assert!(refused.is_empty(), "the unit forbids {refused:?}");
}

/// As the unit starts it: without a capability, as a user of its own, with the folders that systemd makes.
#[tokio::test(flavor = "multi_thread")]
async fn it_serves_without_a_single_capability() {
    let Some(setpriv) = Tool::find("setpriv").filter(|_| nix::unistd::geteuid().is_root()) else {
        println!("skipped: this is not root with setpriv");
        return;
    };
    let text = unit("wasmcluster@.service");
    assert!(text.contains("\nCapabilityBoundingSet=\n") && text.contains("\nNoNewPrivileges=yes\n"));
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let nobody = 65534;
    let folders = ["RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CACHE_DIRECTORY"].map(|name| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(nobody), Some(nobody)).unwrap();
        (name, path)
    });
    let reachable =
        |path: &Path| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    reachable(folder.path());
    let app = folder.path().join("app.wasm");
    fs::copy(guest("hello-p2"), &app).unwrap();
    reachable(&app);
    let program = folder.path().join("wasmcluster");
    // Where the other user can reach it.
    fs::copy(binary(), &program).unwrap();
    let script = format!(
        "umask 077; shift; exec {} --reuid={nobody} --regid={nobody} --clear-groups --no-new-privs --bounding-set=-all \
         --inh-caps=-all --ambient-caps=-all {} \"$@\"",
        setpriv.path().display(),
        program.display()
    );
    let mut setup = Setup::new(&app).args(&["--name", "shop", "--resume"]);
    for (name, path) in &folders {
        setup = setup.env(name, path.to_str().unwrap());
    }
    setup.command.env_remove("XDG_RUNTIME_DIR").env_remove("XDG_STATE_HOME").env_remove("XDG_CACHE_HOME");
    reachable(setup.folder.path());
    let cluster = setup.behind(&["sh", "-c"], &script).start();
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    let socket = folders[0].1.join("shop.sock");
    let ask = |args: &[&str]| {
        let output = Command::new(binary()).args(args).arg("--control").arg(&socket).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = ask(&["reload", "--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    assert_eq!(ask(&["stop"]).0, Some(0));
    assert!(cluster.wait().success());
}

/// What a systemd of its own is told to do with the units, and says. It has a tmpfs for /run, and process numbers of its own.
const TRIAL: &str = r#"
set -u
mount -t tmpfs tmpfs /run
# A systemd takes all control groups that it sees for its own: it sees those from a group of its own on.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# It runs for a user, as there is one for the machine already, or none at all.
mkdir -p /run/systemd/system /run/x /run/etc /run/srv /run/config/systemd/user
chmod 700 /run/x
export XDG_RUNTIME_DIR=/run/x HOME=/run XDG_CONFIG_HOME=/run/config XDG_STATE_HOME=/run/state XDG_CACHE_HOME=/run/cache
cp "$units"/* /run/config/systemd/user/
: >/run/etc/shop.toml
cp "$component" /run/srv/shop.wasm
/usr/lib/systemd/systemd --user --log-target=null </dev/null >/dev/null 2>&1 &
unit=wasmcluster@shop.service
main() { systemctl --user show "$unit" -p MainPID --value; }
state() { systemctl --user is-active "$unit"; }
ask() { echo "$1: $(curl -sS --max-time 30 --unix-socket /run/x/wasmcluster-shop.http.sock http://shop/ 2>&1)"; }
until_so() { for _ in $(seq 600); do "$@" && return; sleep 0.1; done; echo "never: $*"; }
until_so systemctl --user is-system-running --quiet
systemctl --user start wasmcluster@shop.socket && echo "socket: $(systemctl --user is-active wasmcluster@shop.socket)"
ask "first request, which starts it"
echo "state: $(state), $(systemctl --user show "$unit" -p StatusText --value)"
systemctl --user reload "$unit"; echo "reload: $?, $(systemctl --user show "$unit" -p StatusText --value)"
echo "no component" >/run/srv/shop.wasm
systemctl --user reload "$unit" 2>/dev/null; echo "bad reload: $?, $(state)"
ask "after a bad reload"
cp "$component" /run/srv/shop.wasm
before=$(main)
kill -STOP "$before"
is_new() { [ "$(main)" != "$before" ] && [ "$(main)" != 0 ] && [ "$(state)" = active ]; }
until_so is_new
ask "after the watchdog bit"
before=$(main)
kill -KILL "$before"
# Connections that its workers took go with them; those that come now wait for the next.
until_so is_new
ask "after a kill"
systemctl --user stop wasmcluster@shop.socket "$unit"; echo "stop: $?, $(systemctl --user show "$unit" -p Result --value)"
systemctl --user exit
"#;

#[test]
fn a_real_systemd_starts_reloads_watches_and_stops_it() {
    let programs = ["unshare", "curl", "systemctl"].map(Tool::find);
    let [Some(unshare), Some(_), Some(_)] = programs else {
        println!("skipped: unshare, curl or systemctl is not installed");
        return;
    };
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/lib/systemd/systemd").exists() {
        println!("skipped: this is not root, or there is no systemd");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        // Walls that need a mount namespace cannot be had for a user's units; the others stay.
        let needs_mounts = |line: &&str| !["Protect", "Private", "DynamicUser"].iter().any(|key| line.starts_with(key));
        let text: Vec<String> = unit(name)
            .lines()
            .filter(needs_mounts)
            .map(|line| line.replace("WatchdogSec=10", "WatchdogSec=1"))
            .collect();
        let moved = [
            ("/usr/bin/wasmcluster", binary().to_str().unwrap()),
            ("/etc/wasmcluster", "/run/etc"),
            ("/srv/wasmcluster", "/run/srv"),
            ("/run/wasmcluster-%i/", "/run/x/wasmcluster-%i/"),
            ("/run/wasmcluster-%i.", "/run/x/wasmcluster-%i."),
        ];
        let text = moved.iter().fold(text.join("\n"), |text, (from, to)| text.replace(from, to));
        fs::write(folder.path().join(name), text + "\n").unwrap();
    }
    let Some(group) = Group::make() else {
        println!("skipped: no control group can be made for it");
        return;
    };
    let mut trial = Command::new("timeout");
    trial.args(["--kill-after=5", "120", "bash", "-c", "echo $$ >\"$0\"/cgroup.procs && exec \"$@\""]).arg(&group.0);
    trial.arg(unshare.path()).args([
        "--cgroup",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
        "bash",
        "-c",
        TRIAL,
    ]);
    let output = trial.env("units", folder.path()).env("component", guest("hello-p2")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if said.is_empty() && !output.status.success() {
        println!("skipped: no namespace of its own is allowed: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let hello = "Hello from wasmcluster!";
    let expected = format!(
        "socket: active\nfirst request, which starts it: {hello}\n\
         state: active, serving generation 1 of /run/srv/shop.wasm, WORKERS\n\
         reload: 0, serving generation 2 of /run/srv/shop.wasm, WORKERS\n\
         bad reload: 1, active\nafter a bad reload: {hello}\n\
         after the watchdog bit: {hello}\nafter a kill: {hello}\nstop: 0, success\n"
    );
    assert_eq!(without_numbers(&said), expected, "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// A control group of version 2, gone with this.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Self> {
        // Where there are those of version 1 too, they are beside each other.
        let hierarchy = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let hierarchy = hierarchy.into_iter().find(|path| path.join("cgroup.procs").exists())?;
        let path = hierarchy.join(format!("wasmcluster-test-{}", std::process::id()));
        fs::create_dir(&path).ok().map(|()| Self(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut folders = vec![self.0.clone()];
        let mut at = 0;
        while let Some(folder) = folders.get(at).cloned() {
            at += 1;
            folders.extend(
                fs::read_dir(folder).into_iter().flatten().flatten().map(|it| it.path()).filter(|it| it.is_dir()),
            );
        }
        // Those inside first. Whoever was in there has ended.
        for folder in folders.iter().rev() {
            harness::until("the group is empty", || fs::remove_dir(folder).ok());
        }
    }
}

/// However many workers this machine has.
fn without_numbers(said: &str) -> String {
    said.lines().fold(String::new(), |text, line| {
        let line = match line.rsplit_once(", ") {
            Some((head, tail)) if tail.ends_with(" workers") || tail.ends_with(" worker") => format!("{head}, WORKERS"),
            _ => line.to_owned(),
        };
        text + &line + "\n"
    })
}
