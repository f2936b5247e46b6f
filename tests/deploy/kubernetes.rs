//! deploy/kubernetes: what it renders to, a pod under the restrictions that it names, and the life of pods behind HAProxy as
//! Kubernetes has it, by its own order and timings: a pod is a cluster of its own here, and the test is kubelet, controller
//! and endpoints.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::client::get;
use harness::haproxy::Haproxy;
use harness::network::{Machine, Network};
use harness::tools::Tool;
use harness::traffic::{Fates, Traffic};
use harness::{Cluster, Follower, Setup, binary, guest, root, until};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::registry::{HTPASSWD, PASSWORD, basic};
use super::reload::another_version;

/// For the installation of what renders and checks, and for that itself.
const PATIENCE: &str = "400";
const REPLICAS: usize = 3;
/// The period of the readiness probe.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// That of wasmcluster.toml, in which the balancer has to hear of the end of a pod.
const SHUTDOWN_DELAY: Duration = Duration::from_secs(5);
/// How long the balancer hears nothing of what has become of a pod.
const PROPAGATION: Duration = Duration::from_millis(500);

fn kubernetes(path: &str) -> String {
    std::fs::read_to_string(root().join("deploy/kubernetes").join(path)).unwrap()
}

/// A number of seconds in the manifest of a pod.
fn seconds(key: &str) -> Duration {
    let manifest = kubernetes("base/deployment.yaml");
    let line = manifest.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
    Duration::from_secs(line.unwrap().parse().unwrap())
}

/// What the script printed, and the pods that were rendered. None if there are no tools for it.
fn rendered(folder: &Path) -> Option<(String, Vec<Value>)> {
    let (script, pods) = (root().join("scripts/kubernetes-manifests"), folder.join("pods.json"));
    let mut command = Command::new("timeout");
    let done = command.args(["--foreground", PATIENCE]).arg(script).arg("--pods").arg(&pods).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    print!("{said}");
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    let pods = std::fs::read_to_string(pods).ok()?;
    Some((said, serde_json::from_str(&pods).unwrap()))
}

/// Arguments of a pod's container, with another configuration file and component.
fn args(pod: &Value, config: &Path) -> Vec<String> {
    let args = pod["pod"]["containers"][0]["args"].as_array().unwrap();
    let mut args: Vec<String> = args.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect();
    assert_eq!((&*args[0], &*args[2], &*args[3]), ("serve", "--config", "/etc/wasmcluster/wasmcluster.toml"));
    args[3] = config.to_str().unwrap().to_owned();
    args
}

/// Against the schemas of Kubernetes, by the script; and each flag and setting against the program.
#[test]
fn manifests_are_valid_and_their_flags_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_, pods)) = rendered(folder.path()) else { return };
    let password = folder.path().join("password");
    std::fs::write(&password, "secret").unwrap();
    for pod in &pods {
        let config = folder.path().join("wasmcluster.toml");
        std::fs::write(&config, pod["config"].as_str().unwrap()).unwrap();
        let mut args = args(pod, &config);
        args[1] = guest("hello").to_str().unwrap().to_owned();
        let here = |arg: &String| arg.replace("/run/secrets/redis/password", password.to_str().unwrap());
        let args: Vec<String> = args[1..].iter().map(here).collect();
        let shown = Command::new(binary()).arg("inspect").args(&args).output().unwrap();
        let errors = String::from_utf8_lossy(&shown.stderr);
        assert!(shown.status.success(), "{}: {errors}", pod["what"]);
        assert!(!errors.contains("--request-timeout"), "{}: {errors}", pod["what"]);
    }
}

/// The file system of a pod as the kubelet makes it, below a root that cannot be written, for a user without rights: volumes
/// whose own folder everybody may write, and a ConfigMap behind two links. Its files are in FROM.
const POD: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs none /run
cp -L /etc/ssl/certs/ca-certificates.crt /run/ || true
for folder in /etc /var/lib; do mount -t tmpfs none $folder; done
mkdir -p /etc/ssl/certs /etc/wasmcluster/..2026 /run/program
mv /run/ca-certificates.crt /etc/ssl/certs/ || true
install -m 644 "$FROM/wasmcluster.toml" /etc/wasmcluster/..2026/
ln -s ..2026 /etc/wasmcluster/..data
ln -s ..data/wasmcluster.toml /etc/wasmcluster/wasmcluster.toml
chmod 777 /etc/wasmcluster
for folder in /run/wasmcluster /var/lib/wasmcluster; do
    mkdir $folder && mount -t tmpfs -o mode=777 none $folder
done
install -m 755 "$FROM/wasmcluster" /run/program/
install -m 644 "$FROM/app.wasm" /run/program/
mkdir -p /run/secrets/registry /run/secrets/redis
if [ -e "$FROM/config.json" ]; then install -m 644 "$FROM/config.json" /run/secrets/registry/; fi
echo secret >/run/secrets/redis/password
for folder in / /etc /run /var/lib; do mount -o remount,bind,ro $folder; done
if setpriv --reuid 65532 touch /run/x 2>/dev/null; then exit 99; fi
export PATH=/run/program
exec "$SETPRIV" --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set -all --inh-caps -all "$@"
"#;

/// A registry in the middle of a network, which asks who pulls.
fn registry(machine: &Machine, folder: &Path) -> Option<Follower> {
    let Some(program) = Tool::find("docker-registry") else {
        println!("skipped: there is no docker-registry");
        return None;
    };
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {}}}\n\
         auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
        path("registry"),
        registry_of(machine),
        path("htpasswd"),
    );
    std::fs::write(path("registry.yml"), config).unwrap();
    let mut command = machine.command(program.path());
    // Where it says that blobs are not there yet.
    command.arg("serve").arg(path("registry.yml")).stderr(Stdio::null());
    Some(Follower::start(&mut command).unwrap())
}

fn registry_of(machine: &Machine) -> String {
    format!("{}:5000", machine.address)
}

/// What a pull secret is when it is mounted.
fn pull_secret(registry: &str, folder: &Path) {
    let auth = basic("deploy", PASSWORD);
    let config = serde_json::json!({ "auths": { registry: { "auth": auth } } });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// A pod as its manifest has it, but for its component and further flags. Files of its volumes are in `folder`.
fn start_pod(pod: &Value, machine: &Machine, folder: &Path, app: &str, more: &[&str]) -> Option<Cluster> {
    let Some(setpriv) = Tool::find("setpriv") else {
        println!("skipped: there is no setpriv");
        return None;
    };
    let mut args = args(pod, Path::new("/etc/wasmcluster/wasmcluster.toml"));
    args[1] = app.into();
    let container = &pod["pod"]["containers"][0];
    let mut command = machine.command("unshare");
    command
        .args(["--mount", "sh", "-c", POD, "sh"])
        .arg(container["command"][0].as_str().unwrap())
        .args(args)
        .args(more);
    // Nothing of the test's own.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("FROM", folder).env("SETPRIV", setpriv.path());
    for variable in container["env"].as_array().unwrap() {
        command.env(variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut setup = Setup::bare(&[]);
    setup.command = command;
    let cluster = setup.launch();
    cluster.stderr.find("Serving HTTP on ");
    Some(cluster)
}

/// What is answered on a machine's port.
fn ask(machine: &Machine, port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
    let script = r#"exec 3<>"/dev/tcp/$1/$2"; printf '%s' "$3" >&3; cat <&3"#;
    let args = ["-c", script, "bash", &machine.address.to_string(), &port.to_string(), &request];
    let asked = machine.command("bash").args(args).output().unwrap();
    String::from_utf8_lossy(&asked.stdout).into_owned()
}

/// One with its component in a volume, and one that pulls it with a pull secret.
#[test]
fn a_pod_serves_under_the_restrictions_of_its_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_, pods)) = rendered(folder.path()) else { return };
    let find = |what: &str| pods.iter().find(|pod| pod["what"] == what);
    let (Some(base), Some(everything)) = (find("kustomize base"), find("kustomize everything")) else { return };
    // Which has its ports and folders for itself.
    let Some(network) = Network::start(2) else { return };
    let [machine, other] = &network.machines[..] else { unreachable!("there are two") };
    for (from, to) in [(binary(), "wasmcluster"), (&guest("hello"), "app.wasm")] {
        std::os::unix::fs::symlink(from, folder.path().join(to)).unwrap();
    }
    std::fs::write(folder.path().join("wasmcluster.toml"), base["config"].as_str().unwrap()).unwrap();
    let Some(cluster) = start_pod(base, machine, folder.path(), "/run/program/app.wasm", &[]) else { return };
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid())).unwrap();
    let has = |line: &str| status.lines().any(|it| it.split_whitespace().eq(line.split_whitespace()));
    assert!(has("Uid: 65532 65532 65532 65532") && has("NoNewPrivs: 1") && has("CapEff: 0000000000000000"), "{status}");
    assert!(ask(machine, 8080, "/").ends_with("Hello from wasmcluster!\n"));
    for path in ["/livez", "/readyz"] {
        assert!(ask(machine, 9090, path).starts_with("HTTP/1.1 200"), "{path}");
    }

    let registry_address = registry_of(&network.middle);
    if let Some(_registry) = registry(&network.middle, folder.path()) {
        pull_secret(&registry_address, folder.path());
        let app = format!("oci://{registry_address}/app:1");
        let plain = ["--registry-plain-http", &registry_address];
        until("the component is pushed", || {
            let mut push = other.command(binary());
            push.arg("push").arg(guest("hello")).arg(&app).args(plain).env("DOCKER_CONFIG", folder.path());
            push.output().unwrap().status.success().then_some(())
        });
        let puller = start_pod(everything, other, folder.path(), &app, &plain).unwrap();
        assert!(ask(other, 8080, "/").ends_with("Hello from wasmcluster!\n"));
        puller.signal(Signal::SIGINT);
        puller.signal(Signal::SIGINT);
        puller.wait();
    }

    cluster.signal(Signal::SIGTERM);
    until("the probe says so", || ask(machine, 9090, "/readyz").starts_with("HTTP/1.1 503").then_some(()));
    assert!(ask(machine, 8080, "/").ends_with("Hello from wasmcluster!\n"));
    assert_eq!(cluster.wait().code(), Some(0));
}

/// A pod: a cluster with the settings of the ConfigMap, as process of its own, at a place of the balancer.
struct Pod {
    cluster: Cluster,
    place: usize,
}

/// What is first when a pod is deleted. Kubernetes begins both at the same time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    /// The balancer hears of it, and the kubelet is late.
    Endpoint,
    /// The kubelet has sent SIGTERM, and the balancer only hears of it when probes have failed.
    Signal,
}

impl Pod {
    /// Starts it, and gives it to the balancer when its probe says that it is ready.
    async fn start(app: &Path, place: usize, balancer: &Haproxy) -> Self {
        let config = root().join("deploy/kubernetes/base/wasmcluster.toml");
        let setup = Setup::new(app).workers(1).args(&["--admin", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
        let pod = Self { cluster: setup.launch(), place };
        while !pod.is_ready().await {
            tokio::time::sleep(PROBE_EVERY).await;
        }
        tokio::time::sleep(PROPAGATION).await;
        balancer.add(place, pod.cluster.address());
        pod
    }

    fn admin(&self) -> SocketAddr {
        let line = self.cluster.stderr.find("Admin at http://");
        let (_, rest) = line.split_once("Admin at http://").unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    }

    /// What the kubelet's probe says.
    async fn is_ready(&self) -> bool {
        TcpStream::connect(self.admin()).is_ok() && get(self.admin(), "/readyz").await.is_ok_and(|it| it.status == 200)
    }

    /// Ends it within its grace, or kills it: then it has no exit code.
    async fn delete(self, first: First, balancer: &Haproxy) -> Deleted {
        let begun = Instant::now();
        let deadline = begun + seconds("terminationGracePeriodSeconds");
        match first {
            First::Endpoint => {
                balancer.remove(self.place);
                tokio::time::sleep(PROPAGATION).await;
                self.cluster.signal(Signal::SIGTERM);
            }
            First::Signal => {
                self.cluster.signal(Signal::SIGTERM);
                // Two probes in a row.
                for _ in 0..2 {
                    while self.is_ready().await {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    tokio::time::sleep(PROBE_EVERY).await;
                }
                tokio::time::sleep(PROPAGATION).await;
                balancer.remove(self.place);
            }
        }
        let heard_after = begun.elapsed();
        while !self.cluster.has_exited() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if !self.cluster.has_exited() {
            self.cluster.signal(Signal::SIGKILL);
        }
        Deleted { code: self.cluster.wait().code(), heard_after }
    }
}

struct Deleted {
    code: Option<i32>,
    /// How long it took until the balancer had heard of it.
    heard_after: Duration,
}

/// Requests that are answered at once, and some that take a while.
const PATHS: [&str; 6] = ["/headers", "/headers", "/headers", "/sleep?ms=50", "/sleep?ms=700", "/drip?chunks=4&ms=100"];

/// Replaces all pods as a Deployment does with maxSurge 1 and maxUnavailable 0: one more becomes ready, one of the old is
/// deleted, and the next is started while that one still ends.
async fn rolling_update(first: First) {
    let Some(balancer) = Haproxy::start(None, "retries 0", &[]) else { return };
    let balancer = std::sync::Arc::new(balancer);
    let folder = tempfile::tempdir().unwrap();
    let mut pods = Vec::new();
    for place in 1..=REPLICAS {
        pods.push(Pod::start(&guest("scenarios"), place, &balancer).await);
    }
    let traffic = Traffic::start(&balancer.front(), PATHS);
    traffic.goes_on(100);
    let new = another_version("scenarios", folder.path());
    let mut ends = Vec::new();
    for surge in 0..REPLICAS {
        let pod = Pod::start(&new, REPLICAS + 1 + surge, &balancer).await;
        tokio::time::sleep(seconds("minReadySeconds")).await;
        let (old, balancer) = (pods.remove(0), balancer.clone());
        pods.push(pod);
        ends.push(tokio::spawn(async move { old.delete(first, &balancer).await }));
    }
    assert!(kubernetes("base/wasmcluster.toml").contains(&format!("shutdown-delay = \"{SHUTDOWN_DELAY:?}\"")));
    let mut heard_after = Duration::ZERO;
    for end in ends {
        let deleted = end.await.unwrap();
        assert_eq!(deleted.code, Some(0), "a pod was killed");
        heard_after = heard_after.max(deleted.heard_after);
    }
    traffic.goes_on(100);
    let fates = traffic.end().await;
    if heard_after > SHUTDOWN_DELAY {
        return println!("skipped: this machine took {heard_after:?} to tell the balancer, so something may be lost");
    }
    assert_eq!(fates.lost(), 0, "{fates:?}");
    for pod in &pods {
        assert_eq!(pod.cluster.status()["totals"]["errors"], 0);
    }
    println!("rolling update of {REPLICAS} pods, {first:?} first: {} requests answered, 0 lost", fates.all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rolling_update_that_removes_endpoints_first_loses_nothing() {
    rolling_update(First::Endpoint).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rolling_update_that_signals_first_loses_nothing() {
    rolling_update(First::Signal).await;
}

/// Tries a request that had no answer on another server.
pub(super) const RETRIES: &str = "retries 3
    option redispatch 1
    retry-on conn-failure empty-response response-timeout
    timeout connect 300ms
    timeout server 2s";
pub(super) const NO_RETRIES: &str = "retries 0\n    timeout connect 300ms\n    timeout server 2s";

/// Kills a pod with all its processes at once, as when its node loses its power or its memory.
pub(super) fn kill_all(cluster: &Cluster) {
    for process in cluster.children().into_iter().chain([cluster.pid()]) {
        // A worker may have ended with its primary.
        let _ = kill(process, Signal::SIGKILL);
    }
}

/// What is lost of a pod that is killed while it is at work. An answer that had begun cannot be tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_pod_costs_nothing_that_the_balancer_may_try_again() {
    for (what, settings) in [("without retries", NO_RETRIES), ("with retries", RETRIES)] {
        let lost = killed(settings).await;
        let Some(fates) = lost else { return };
        println!("a pod is killed, {what}: {} of {} requests lost: {fates:?}", fates.lost(), fates.all());
        if settings == RETRIES {
            assert!(fates.answers.keys().eq(&[200]) && fates.broken <= 24 / REPLICAS as u64, "{fates:?}");
        }
    }
}

async fn killed(settings: &str) -> Option<Fates> {
    let balancer = Haproxy::start(None, settings, &[])?;
    let mut pods = Vec::new();
    for place in 1..=REPLICAS {
        pods.push(Pod::start(&guest("scenarios"), place, &balancer).await);
    }
    let traffic = Traffic::start(&balancer.front(), ["/sleep?ms=20"; 24]);
    traffic.goes_on(200);
    kill_all(&pods[0].cluster);
    // The probes of the kubelet fail, or the node's heartbeats do: until then the balancer sends to it.
    traffic.goes_on(500);
    balancer.remove(pods[0].place);
    traffic.goes_on(100);
    assert!(!pods[0].cluster.wait().success());
    Some(traffic.end().await)
}
