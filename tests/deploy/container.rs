//! The image that `deploy/Containerfile` makes, built by buildah and run by crun, as process 1, with limits and without rights.
//!
//! Its base is a root of this machine's libraries instead of the distroless one, and its binary the one that is tested: this
//! machine may reach no registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use harness::tools::Tool;
use harness::{Ended, binary, guest, root, until};

/// The user of the distroless images.
const NONROOT: u32 = 65532;

/// What is needed to build and to run, and a folder for all of it.
struct Workshop {
    folder: tempfile::TempDir,
    buildah: Tool,
}

impl Workshop {
    fn open() -> Option<Self> {
        let programs = ["buildah", "crun", "unshare", "nsenter", "curl", "strip"].map(Tool::find);
        if programs.iter().any(Option::is_none) || !nix::unistd::geteuid().is_root() {
            println!("skipped: this is not root with buildah, crun, unshare, nsenter, curl and strip");
            return None;
        }
        let [buildah, ..] = programs;
        // Not where it might be in memory.
        Some(Self { folder: tempfile::tempdir_in("/var/tmp").unwrap(), buildah: buildah? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn buildah(&self, args: &[&str]) -> String {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "100"]).arg(self.buildah.path());
        command.arg("--root").arg(self.path("images")).arg("--runroot").arg(self.path("run"));
        // Without kernel modules, and without namespaces that a container may not have.
        command
            .args(["--storage-driver", "vfs"])
            .args(args)
            .env("BUILDAH_ISOLATION", "chroot")
            .env("HOME", self.folder.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// An image without parents that has what is in a folder.
    fn image(&self, name: &str, folder: &Path, owned: Option<&str>) {
        let container = self.buildah(&["from", "scratch"]);
        self.buildah(&["copy", "-q", &container, folder.to_str().unwrap(), "/"]);
        if let Some(home) = owned {
            let (from, owner) = (folder.join(home), format!("{NONROOT}:{NONROOT}"));
            self.buildah(&["copy", "-q", "--chown", &owner, &container, from.to_str().unwrap(), &format!("/{home}")]);
            self.buildah(&["config", "--env", "PATH=/usr/bin", &container]);
        }
        self.buildah(&["commit", "-q", "--rm", &container, name]);
    }

    /// The binary, stripped, as a release has it, in an image of its own, and a base for it.
    fn prepare(&self) {
        let out = self.path("binary/out");
        fs::create_dir_all(&out).unwrap();
        let program = out.join("wasmcluster");
        let stripped = Command::new("strip").arg("-o").arg(&program).arg(binary()).status().unwrap();
        assert!(stripped.success());
        self.image("localhost/binary", &self.path("binary"), None);
        let base = self.path("base");
        let listed = Command::new("ldd").arg(&program).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            let place = base.join(&library[1..]);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(library, place).unwrap();
        }
        for folder in ["etc", "home/nonroot", "tmp", "proc", "dev", "sys", "app"] {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        let mode = |folder: &str, mode| {
            fs::set_permissions(base.join(folder), std::os::unix::fs::PermissionsExt::from_mode(mode))
        };
        mode("tmp", 0o1777).and(mode("home/nonroot", 0o700)).unwrap();
        fs::write(base.join("etc/passwd"), format!("nonroot:x:{NONROOT}:{NONROOT}::/home/nonroot:/sbin/nologin\n"))
            .unwrap();
        self.image("localhost/base", &base, Some("home/nonroot"));
    }

    /// Builds an image, and returns how it is to be run.
    fn build(&self, name: &str, containerfile: &Path, context: &Path, args: &[&str]) -> Value {
        let files = ["build", "-q", "--format", "docker", "-t", name, "-f", containerfile.to_str().unwrap()];
        self.buildah(&[&files, args, &[context.to_str().unwrap()]].concat());
        let inspected: Value = serde_json::from_str(&self.buildah(&["inspect", "--type", "image", name])).unwrap();
        inspected["Docker"]["config"].clone()
    }
}

/// A container that crun runs, ended with this.
struct Container<'a> {
    workshop: &'a Workshop,
    name: String,
    /// The variables of the image.
    env: Vec<String>,
    child: std::process::Child,
}

impl<'a> Container<'a> {
    /// Runs an image as its configuration says, with a processor and so many bytes of memory, and a root that nobody writes to.
    fn run(workshop: &'a Workshop, image: &str, config: &Value, memory: u64) -> Self {
        let name = format!("wasmcluster-test-{}-{}", std::process::id(), image.rsplit('/').next().unwrap());
        let bundle = workshop.path(&name);
        fs::create_dir_all(&bundle).unwrap();
        let container = workshop.buildah(&["from", image]);
        let rootfs = workshop.buildah(&["mount", &container]);
        let list = |field: &str| config[field].as_array().cloned().unwrap_or_default();
        let args: Vec<Value> = list("Entrypoint").into_iter().chain(list("Cmd")).collect();
        assert_eq!(config["User"].as_str().unwrap().split(':').next().unwrap(), NONROOT.to_string());
        let mut env = list("Env");
        env.push(json!("HOME=/home/nonroot"));
        let mount = |place: &str, kind: &str, options: &[&str]| json!({ "destination": place, "type": kind, "source": kind, "options": options });
        let ours = format!("uid={NONROOT}");
        let spec = json!({
            "ociVersion": "1.0.0",
            "process": {
                "user": { "uid": NONROOT, "gid": NONROOT }, "args": args, "env": env, "cwd": "/", "noNewPrivileges": true,
                "capabilities": { "bounding": [], "effective": [], "permitted": [] },
            },
            "root": { "path": rootfs, "readonly": true },
            "mounts": [
                mount("/proc", "proc", &[]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
                mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
                mount("/home/nonroot", "tmpfs", &["nosuid", "nodev", "mode=700", &ours]),
                mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            "linux": {
                "cgroupsPath": format!("/{name}"),
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "network" }],
                "resources": { "cpu": { "quota": 100_000, "period": 100_000 }, "memory": { "limit": memory } },
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let mut command = crun(workshop, &["run", "--bundle", bundle.to_str().unwrap(), &name]);
        let out = fs::File::create(bundle.join("out")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        let env = list("Env").iter().map(|variable| variable.as_str().unwrap().to_owned()).collect();
        Self { workshop, name, env, child }
    }

    fn output(&self) -> String {
        fs::read_to_string(self.workshop.path(&self.name).join("out")).unwrap()
    }

    /// What `crun` says of it.
    fn crun(&self, args: &[&str]) -> Ended {
        ended(crun(self.workshop, args))
    }

    /// Runs a command inside, as health checks are run.
    fn exec(&self, args: &[&str]) -> Ended {
        let user = format!("{NONROOT}:{NONROOT}");
        let mut all = vec!["exec", "--user", &user, "--env", "HOME=/home/nonroot"];
        all.extend(self.env.iter().flat_map(|variable| ["--env", variable]));
        all.push(&self.name);
        self.crun(&[&all, args].concat())
    }

    fn pid(&self) -> Option<u64> {
        serde_json::from_str::<Value>(&self.crun(&["state", &self.name]).stdout).ok()?["pid"].as_u64()
    }

    /// What a client in the container's network is answered.
    fn asks(&self, path: &str) -> Ended {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid().unwrap().to_string(), "-n", "curl", "-sS", "--max-time", "30"]);
        command.arg(format!("http://127.0.0.1:8080{path}"));
        ended(command)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.crun(&["delete", "--force", &self.name]);
        let _ = self.child.wait();
    }
}

/// Crun does not know what to do where control groups of both versions are mounted: it is shown those of version 1 then.
fn crun(workshop: &Workshop, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    let script = "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec crun \"$@\"";
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
        "--cgroup-manager=cgroupfs",
        "--root",
    ]);
    command.arg(workshop.path("crun")).args(args);
    command
}

fn ended(mut command: Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn the_image_serves_as_process_1_within_its_limits_and_stops_in_time() {
    let Some(workshop) = Workshop::open() else { return };
    workshop.prepare();
    let bases = ["--build-arg", "BASE=localhost/base", "--build-arg", "BINARY=localhost/binary"];
    workshop.build("localhost/wasmcluster", &root().join("deploy/Containerfile"), &root().join("deploy"), &bases);
    let app = workshop.path("context");
    fs::create_dir(&app).unwrap();
    fs::copy(guest("whoami"), app.join("app.wasm")).unwrap();
    // As the file's own comment says it.
    let text = fs::read_to_string(root().join("deploy/Containerfile")).unwrap();
    let example =
        text.lines().skip_while(|line| *line != "#   FROM wasmcluster").take_while(|line| line.starts_with("#   "));
    let example: Vec<String> = example.map(|line| line[4..].replace("FROM ", "FROM localhost/")).collect();
    fs::write(app.join("Containerfile"), example.join("\n")).unwrap();
    let config = workshop.build("localhost/shop", &app.join("Containerfile"), &app, &[]);
    assert_eq!(config["StopSignal"], "SIGTERM");

    let memory = 512 * 1024 * 1024;
    let mut container = Container::run(&workshop, "localhost/shop", &config, memory);
    let health: Vec<&str> =
        config["Healthcheck"]["Test"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(health[0], "CMD");
    until("it is healthy", || {
        let exited = container.child.try_wait().unwrap();
        if let Some(status) = exited {
            panic!("{status}: {}", container.output());
        }
        (container.exec(&health[1..]).code == Some(0)).then_some(())
    });
    let answer = container.asks("/");
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.stdout.contains("\"generation\""), "{answer:?}");
    let status = container.exec(&["/usr/bin/wasmcluster", "status", "--json"]);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((&status["pid"], &status["state"]), (&json!(1), &json!("running")));
    // One processor, one worker, who has its share of the memory.
    assert_eq!(status["workers"].as_array().unwrap().len(), 1, "{status}");
    let worker_memory = status["limits"]["max-worker-memory"].as_str().unwrap();
    assert!(worker_memory.ends_with("MiB"), "{worker_memory}");
    assert!(
        !container.output().contains("compiling"),
        "it was compiled when the image was made: {}",
        container.output()
    );

    let killed = container.crun(&["kill", &container.name, "TERM"]);
    assert_eq!(killed.code, Some(0), "{killed:?}");
    assert_eq!(container.child.wait().unwrap().code(), Some(0), "{}", container.output());
}
