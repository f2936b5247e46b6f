//! What scripts/package makes of the binary: manual, completions, a tarball, and a Debian package that is installed, used and
//! removed in a root folder of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use harness::client::get;
use harness::tools::Tool;
use harness::{Ended, Setup, binary, guest, root};

/// What a command printed, if it ended well.
#[track_caller]
fn output(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}: {stderr}");
    String::from_utf8(stdout).unwrap()
}

/// All files below a folder, by their paths in it.
fn files_below(folder: &Path) -> BTreeSet<String> {
    let mut left = vec![folder.to_owned()];
    let mut found = BTreeSet::new();
    while let Some(next) = left.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() && !path.is_symlink() {
                left.push(path.clone());
            }
            found.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn the_version_is_one_line_that_says_what_the_binary_consists_of() {
    let said = |flag: &str| Setup::bare(&[flag]).run().stdout;
    let short = format!("wasmcluster {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(said("-V"), short);
    let long = said("--version");
    let (_, rest) = long.split_once(&format!("{short} (wasmtime 48.")).unwrap_or_else(|| panic!("{long}"));
    assert!(rest.ends_with(", features: none)") && !rest.contains('\n'), "{long}");
    for part in [", commit ", ", target ", "-linux-gnu", ", build: "] {
        assert!(rest.contains(part), "{long}");
    }
}

#[test]
fn the_manual_has_a_page_for_each_command_that_man_shows_without_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let ended = Setup::bare(&["man", folder.path().to_str().unwrap()]).run();
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
    let pages = files_below(folder.path());
    for page in ["wasmcluster.1", "wasmcluster-serve.1", "wasmcluster-config.1", "wasmcluster-config-schema.1"] {
        assert!(pages.contains(page), "{pages:?}");
    }
    assert!(!pages.iter().any(|page| page.contains("help") || page.contains("worker")), "{pages:?}");
    let page = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    for part in ["\\-\\-request\\-timeout", ".SH EXAMPLES\n.nf\nwasmcluster serve app.wasm\n"] {
        assert!(page("wasmcluster-serve.1").contains(part), "{part}");
    }
    assert!(page("wasmcluster-reload.1").contains(".SH \"EXIT CODES\"\n.nf\n0 committed\n"));

    let shown = |tool: &Tool, args: &[&str], page: &str| {
        let page = folder.path().join(page);
        let mut command = tool.command();
        // Without it, man takes `-` for a hyphen.
        command.args(args).arg(&page).env("LC_ALL", "C.UTF-8").env("MANWIDTH", "100").env_remove("MANROFFOPT");
        let output = command.output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Ended { code: output.status.code(), stdout, stderr }
    };
    match Tool::find("man") {
        // On a machine without manuals, as a container is, it may be a script that says so.
        Some(man) if man.run(["--version"]).code == Some(0) => {
            for page in &pages {
                let ended = shown(&man, &["--warnings", "-E", "UTF-8", "-l"], page);
                assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{page}");
                assert!(ended.stdout.contains("NAME") && ended.stdout.contains("wasmcluster"), "{page}: {ended:?}");
            }
        }
        _ => println!("skipped: there is no man"),
    }
    match Tool::find("mandoc") {
        Some(mandoc) => {
            for page in &pages {
                let ended = shown(&mandoc, &["-T", "lint", "-W", "error"], page);
                assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{page}");
            }
        }
        None => println!("skipped: there is no mandoc"),
    }
}

#[test]
fn completions_are_taken_by_their_shells() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let script = folder.path().join(shell);
        fs::write(&script, Setup::bare(&["completions", shell]).run().stdout).unwrap();
        let Some(tool) = Tool::find(shell) else {
            println!("skipped: there is no {shell}");
            continue;
        };
        let ended = tool.run([check, script.to_str().unwrap()]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{shell}");
    }
    // What bash would do for `wasmcluster config s<Tab>`.
    let asked = format!(
        "source {}; COMP_WORDS=(wasmcluster config s) COMP_CWORD=2; _wasmcluster wasmcluster s config; echo ${{COMPREPLY[@]}}",
        folder.path().join("bash").display()
    );
    assert_eq!(output(Command::new("bash").args(["-c", &asked])), "set schema\n");
}

/// The tarball and the Debian package, made once for all tests of this process. `None` if there is no cargo-deb, and it cannot be
/// had.
fn packages() -> Option<&'static [PathBuf; 2]> {
    static MADE: OnceLock<Option<[PathBuf; 2]>> = OnceLock::new();
    let make = || {
        for tool in ["dpkg", "dpkg-shlibdeps"] {
            if Tool::find(tool).is_none() {
                println!("skipped: there is no {tool}");
                return None;
            }
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        // There may be none.
        let _ = fs::remove_dir_all(&folder);
        let made = package(&folder, &[]);
        let stderr = String::from_utf8_lossy(&made.stderr);
        if ["failed to download", "Could not resolve", "Unable to update registry"].iter().any(|it| stderr.contains(it))
        {
            println!("skipped: cargo-deb cannot be had: {stderr}");
            return None;
        }
        assert!(made.status.success(), "{stderr}");
        let said = String::from_utf8(made.stdout).unwrap();
        let made: Vec<PathBuf> = said.lines().map(PathBuf::from).collect();
        Some(made.try_into().unwrap())
    };
    MADE.get_or_init(make).as_ref()
}

/// Runs scripts/package.
fn package(folder: &Path, formats: &[&str]) -> Output {
    let mut command = Command::new(root().join("scripts/package"));
    command.args(formats).arg(binary()).arg(folder).env("PACKAGE_FAST", "1").output().unwrap()
}

#[test]
fn the_tarball_is_whole_and_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let made = package(folder.path(), &["--tarball"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let tarball = String::from_utf8(made.stdout).unwrap();
    let tarball = Path::new(tarball.trim_end());
    if let Some([other, _]) = packages() {
        assert!(fs::read(tarball).unwrap() == fs::read(other).unwrap(), "two tarballs of one binary differ");
    }
    let unpacked = folder.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    output(Command::new("tar").arg("-xzf").arg(tarball).arg("-C").arg(&unpacked).args(["--strip-components", "1"]));
    let found = files_below(&unpacked);
    for file in [
        "share/bash-completion/completions/wasmcluster",
        "share/doc/wasmcluster/CHANGELOG.md",
        "share/doc/wasmcluster/LICENSE",
        "share/doc/wasmcluster/README.md",
        "share/doc/wasmcluster/THIRD-PARTY",
        "share/doc/wasmcluster/examples/wasmcluster.toml",
        "share/fish/vendor_completions.d/wasmcluster.fish",
        "share/man/man1/wasmcluster-serve.1",
        "share/wasmcluster/wasmcluster.schema.json",
        "share/zsh/site-functions/_wasmcluster",
    ] {
        assert!(found.contains(file), "{file}: {found:#?}");
    }
    for unit in ["service", "socket"] {
        let of_repository = root().join("deploy/systemd");
        let names = fs::read_dir(of_repository).into_iter().flatten().map(|entry| entry.unwrap().file_name());
        for name in names.map(|name| name.into_string().unwrap()).filter(|name| name.ends_with(unit)) {
            assert!(found.contains(&format!("lib/systemd/system/{name}")), "{name}: {found:#?}");
        }
    }
    let program = unpacked.join("bin/wasmcluster");
    let version = output(Command::new(&program).arg("-V"));
    assert_eq!(version, concat!("wasmcluster ", env!("CARGO_PKG_VERSION"), "\n"));
    let third_party = fs::read_to_string(unpacked.join("share/doc/wasmcluster/THIRD-PARTY")).unwrap();
    for part in ["  tokio 1.", "Copyright (c) Tokio Contributors", "Permission is hereby granted"] {
        assert!(third_party.contains(part), "{part}");
    }
}

/// A root folder in which dpkg can install: with a shell for the package's scripts, what the binary is linked with, and a
/// database that has libc as it is here, so that the dependency on it is checked.
fn small_root(folder: &Path) {
    for name in [
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
        "var/cache",
        "etc",
        "usr/bin",
        "proc",
        "dev",
        "run",
        "root",
        "tmp",
    ] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    fs::write(folder.join("dev/null"), "").unwrap();
    let version = output(Command::new("dpkg-query").args(["-W", "-f", "${Version} ${Architecture}", "libc6"]));
    let (version, architecture) = version.split_once(' ').unwrap();
    let status = format!(
        "Package: libc6\nStatus: install ok installed\nMaintainer: nobody\nArchitecture: {architecture}\nMulti-Arch: same\n\
         Version: {version}\nDescription: as it is here\n\n"
    );
    fs::write(folder.join("var/lib/dpkg/status"), status).unwrap();
    fs::write(folder.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    for program in ["/bin/sh", "/bin/rm", binary().to_str().unwrap()] {
        for file in output(Command::new("ldd").arg(program)).split_whitespace().filter(|word| word.starts_with('/')) {
            copy_into(folder, file);
        }
        if program.starts_with("/bin/") {
            copy_into(folder, program);
        }
    }
}

/// A file at the same place in another root.
fn copy_into(folder: &Path, file: &str) {
    let to = folder.join(&file[1..]);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(file, to).unwrap();
}

/// A command that sees nothing but the folder, and its own processes.
fn inside(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--root"]).arg(folder);
    command.args(["--wd", "/root"]).args(args).env_clear().env("HOME", "/root").env("PATH", "/usr/bin:/bin");
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_debian_package_is_installed_serves_and_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() || Tool::find("dpkg").is_none() || Tool::find("ldd").is_none() {
        return println!("skipped: only root installs packages, with dpkg, and finds libraries with ldd");
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    small_root(folder);
    let tried = inside(folder, &["/bin/sh", "-c", "true"]).output().unwrap();
    if !tried.status.success() {
        return println!(
            "skipped: nothing can be run in a root of its own: {}",
            String::from_utf8_lossy(&tried.stderr)
        );
    }
    let Some([_, package]) = packages() else { return };
    let depends = output(Command::new("dpkg-deb").arg("-f").arg(package).arg("Depends"));
    assert!(depends.starts_with("libc6 (>= 2."), "{depends}");

    let dpkg = |args: &[&str]| {
        let mut command = Command::new("dpkg");
        // Its PATH is looked through for programs of Debian that scripts may call. Ours do not.
        command.arg("--root").arg(folder).arg("--force-bad-path").args(args).env("LC_ALL", "C.UTF-8");
        output(&mut command)
    };
    let before = files_below(folder);
    dpkg(&["--install", package.to_str().unwrap()]);
    let version = output(&mut inside(folder, &["wasmcluster", "-V"]));
    assert_eq!(version, concat!("wasmcluster ", env!("CARGO_PKG_VERSION"), "\n"));
    let doctor = inside(folder, &["wasmcluster", "doctor"]).output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.status.success() && said.contains("toolchain"), "{said}");
    fs::copy(guest("hello"), folder.join("tmp/hello.wasm")).unwrap();
    let serve = ["wasmcluster", "serve", "/tmp/hello.wasm", "--listen", "127.0.0.1:0", "--workers", "2"];
    let mut setup = Setup::bare(&[]);
    setup.command = inside(folder, &serve);
    setup.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let cluster = setup.start();
    let answer = get(cluster.address(), "/").await.unwrap();
    println!("the first answer came after {:.1?}, a component that was never compiled before", begun.elapsed());
    assert_eq!((answer.status, answer.text()), (200, "Hello from wasmcluster!\n"));
    drop(cluster);

    dpkg(&["--remove", "wasmcluster"]);
    assert!(folder.join("etc/wasmcluster/README").exists(), "configuration stays until it is purged");
    assert!(!folder.join("usr/bin/wasmcluster").exists());
    // As systemd would have made it for a cluster.
    fs::create_dir_all(folder.join("var/lib/wasmcluster/shop")).unwrap();
    dpkg(&["--purge", "wasmcluster"]);
    let after = files_below(folder);
    // What people made themselves is theirs, as is what dpkg keeps for itself.
    let of_others = ["var/lib/dpkg", "var/log", "root/", "tmp/", "run/"];
    let left: Vec<_> =
        after.difference(&before).filter(|file| !of_others.iter().any(|other| file.starts_with(other))).collect();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn lintian_has_nothing_to_say_of_the_debian_package() {
    let Some(lintian) = Tool::find("lintian") else { return println!("skipped: there is no lintian") };
    let Some([_, package]) = packages() else { return };
    let ended = lintian.run(["--fail-on", "error,warning", package.to_str().unwrap()]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{ended:?}");
}

/// What tests are run with is linked for the machine that they run on.
#[test]
fn a_program_that_needs_a_newer_libc_is_no_release() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(root().join("scripts/release"));
    let refused = command.arg("--built").arg(binary()).arg(folder.path().join("dist")).output().unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr);
    let said = "release: the program needs glibc 2.";
    assert!(!refused.status.success() && stderr.contains(said) && stderr.contains("2.28 at most"), "{stderr}");
    assert!(!folder.path().join("dist").exists());
}
