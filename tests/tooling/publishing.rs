//! The crates as packages for crates.io: each has all that it is built from, and a project is built with what they would be
//! there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::root;

use crate::projects::{CARGO_TARGET, empty_folder, run};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Packs crates as `cargo publish` would, those that need each other together, and unpacks them.
fn packaged<const CRATES: usize>(names: [&str; CRATES], folder: &Path) -> [PathBuf; CRATES] {
    let mut cargo = Command::new("cargo");
    // Without building them from their packages, which takes minutes; the release's workflow does.
    cargo.args(["package", "--offline", "--no-verify", "--allow-dirty", "--quiet"]);
    cargo.args(names.iter().flat_map(|name| ["-p", name]));
    let target = folder.join("target");
    let packed = cargo.current_dir(root()).env("CARGO_TARGET_DIR", &target).output().unwrap();
    assert!(packed.status.success(), "{names:?}: {}", String::from_utf8_lossy(&packed.stderr));
    names.map(|name| {
        let file = target.join(format!("package/{name}-{VERSION}.crate"));
        assert!(Command::new("tar").arg("-xzf").arg(file).arg("-C").arg(folder).status().unwrap().success());
        folder.join(format!("{name}-{VERSION}"))
    })
}

/// All files below a folder, by their paths in it. Links are followed.
fn files(folder: &Path, below: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder.join(below)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if folder.join(&path).is_dir() {
            files(folder, &path, found);
        } else {
            found.insert(path);
        }
    }
}

#[test]
fn the_hosts_package_has_what_it_is_built_from() {
    let folder = tempfile::tempdir().unwrap();
    let [package] = packaged(["wasmcluster"], folder.path());
    let mut found = BTreeSet::new();
    files(&package, "", &mut found);
    let mut expected = BTreeSet::new();
    for part in ["src", "wit", "templates", "guest-wit"] {
        files(&root().join("host"), part, &mut expected);
    }
    for file in ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "build.rs", "templates/hello/Cargo.toml.in"] {
        expected.insert(file.into());
    }
    assert!(expected.is_subset(&found), "{:#?}", expected.difference(&found).collect::<Vec<_>>());
    let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap();
    for part in ["description = ", "license = ", "readme = ", "categories = ", "keywords = "] {
        assert!(manifest.contains(part), "{part}");
    }
    let is_outside = |line: &&str| line.contains("path = \"..") || line.starts_with("path = \"/");
    assert_eq!(manifest.lines().find(is_outside), None);
    // What only tests may name, and the sources of the SDK that a checkout has.
    for name in expected.iter().filter(|name| name.ends_with(".rs") && !name.ends_with("fuzz.rs")) {
        let text = fs::read_to_string(package.join(name)).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let leads_out =
            |line: &&str| line.contains("bindgen!({ path: \"..") || line.contains("include_str!(\"../../../");
        assert_eq!(code.lines().find(leads_out), None, "{name}");
    }
}

#[test]
fn a_project_is_built_with_the_sdk_as_it_would_be_on_crates_io() {
    let folder = empty_folder("published-sdk");
    let [sdk, macros] = packaged(["wasmcluster-guest", "wasmcluster-guest-macros"], &folder);
    for package in [&sdk, &macros] {
        for file in ["LICENSE", "README.md"] {
            assert!(package.join(file).exists(), "{} has no {file}", package.display());
        }
    }
    assert!(sdk.join("guests.md").exists());

    let project = folder.join("shop");
    let made = run(&["new", project.to_str().unwrap(), "--sdk", "registry"]);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""), "{made:?}");
    assert!(!project.join("wasmcluster-guest").exists(), "the sources are not copied");
    let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("\nwasmcluster-guest = {{ version = \"{VERSION}\" }}\n")), "{manifest}");
    // In place of the registry, which has them once they are released.
    fs::create_dir(project.join(".cargo")).unwrap();
    let patch = format!(
        "[patch.crates-io]\nwasmcluster-guest = {{ path = {sdk:?} }}\nwasmcluster-guest-macros = {{ path = {macros:?} }}\n"
    );
    fs::write(project.join(".cargo/config.toml"), patch).unwrap();
    fs::copy(root().join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    let built = run(&["build", project.to_str().unwrap()]);
    if ["failed to download", "Unable to update registry"].iter().any(|it| built.stderr.contains(it)) {
        return println!("skipped: crates cannot be had: {}", built.stderr);
    }
    assert_eq!((built.code, built.stdout.as_str()), (Some(0), ""), "{}", built.stderr);
    assert!(Path::new(CARGO_TARGET).join("wasm32-wasip2/release/shop.wasm").exists());
}

/// Runs the build script of the host in `FOLDER/host`; what it tells cargo.
fn told(script: &Path, folder: &Path, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(script);
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.current_dir(folder.join("host")).env_clear().env("PATH", path);
    command.env("TARGET", "x86_64-unknown-linux-gnu").env("PROFILE", "release").envs(variables.iter().copied());
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

#[test]
fn the_build_script_knows_the_commit_with_git_and_without() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "-o"]).arg(&script).arg(root().join("host/build.rs"));
    assert!(rustc.status().unwrap().success());
    let commit = |variables: &[(&str, &str)], folder: &Path| {
        let told = told(&script, folder, variables);
        let line = told.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=WASMCLUSTER_COMMIT="));
        line.unwrap().to_owned()
    };

    let bare = folder.path().join("bare");
    fs::create_dir_all(bare.join("host")).unwrap();
    assert_eq!(commit(&[], &bare), "unknown");
    assert_eq!(commit(&[("WASMCLUSTER_COMMIT", "0123456789ab")], &bare), "0123456789ab");
    assert!(!told(&script, &bare, &[]).contains("cfg=sdk_sources"));
    let features = told(&script, &bare, &[("CARGO_FEATURE_B_C", "1"), ("CARGO_FEATURE_A", "1")]);
    assert!(features.contains("\ncargo::rustc-env=WASMCLUSTER_FEATURES=a b-c\n"), "{features}");

    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]).args(args);
        let ended = git.current_dir(folder.path().join("cloned")).output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        String::from_utf8(ended.stdout).unwrap().trim().to_owned()
    };
    let cloned = folder.path().join("cloned");
    fs::create_dir_all(cloned.join("host")).unwrap();
    fs::write(cloned.join("a"), "a").unwrap();
    git(&["init", "-q"]);
    git(&["add", "a"]);
    git(&["commit", "-q", "-m", "first"]);
    assert_eq!(commit(&[], &cloned), "unknown", "the repository is not this one");
    fs::create_dir(cloned.join("guest-sdk")).unwrap();
    fs::write(cloned.join("guest-sdk/Cargo.toml"), "").unwrap();
    let head = git(&["rev-parse", "--short=12", "HEAD"]);
    assert_eq!(commit(&[], &cloned), head);
    assert_eq!(told(&script, &cloned, &[]), told(&script, &cloned, &[]), "it is the same each time");
    assert_eq!(commit(&[("PROFILE", "debug")], &cloned), "unknown", "a commit alone compiles nothing anew");
    assert!(told(&script, &cloned, &[]).contains("cfg=sdk_sources"));
    assert!(!told(&script, &cloned, &[("WASMCLUSTER_SDK", "registry")]).contains("cfg=sdk_sources"));
    fs::write(cloned.join("a"), "b").unwrap();
    assert_eq!(commit(&[], &cloned), format!("{head}+changes"));

    let of_cargo = "{\n  \"git\": {\n    \"sha1\": \"4f3b52e80edfa0a8868e92abade4ca26cc272f1f\"\n  }\n}";
    fs::write(bare.join("host/.cargo_vcs_info.json"), of_cargo).unwrap();
    assert_eq!(commit(&[], &bare), "4f3b52e80edf");
}

#[test]
fn the_release_workflow_is_sound() {
    let checked = Command::new(root().join("scripts/check-workflows")).output().unwrap();
    let [stdout, stderr] = [checked.stdout, checked.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(checked.status.success(), "{stdout}{stderr}");
    for line in stdout.lines().filter(|line| line.starts_with("skipped: ")) {
        println!("{line}");
    }
}

#[test]
fn a_build_by_profile_says_first_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let rustc = folder.path().join("rustc");
    // A compiler of tomorrow, for whose LLVM nothing is installed.
    fs::write(&rustc, "#!/bin/sh\necho 'host: x86_64-unknown-linux-gnu'\necho 'LLVM version: 9999.1.2'\n").unwrap();
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let said = |arguments: &[&str]| {
        let mut command = Command::new(root().join("scripts/pgo"));
        let ended = command.args(arguments).env("PATH", &path).env("CARGO_TARGET_DIR", folder.path()).output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let (code, stderr) = said(&[]);
    assert_eq!(code, Some(1), "{stderr}");
    for part in
        ["there is no llvm-profdata of LLVM 9999\n", "rustup component add llvm-tools", "apt-get install llvm-9999"]
    {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert_eq!(said(&["--prefile"]), (Some(2), "usage: scripts/pgo [--profile | --check PROGRAM]\n".into()));
}

#[test]
fn a_tag_fits_what_it_tags() {
    let folder = tempfile::tempdir().unwrap();
    let copied = |name: &str| {
        let to = folder.path().join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(root().join(name), to).unwrap();
    };
    let needed = ["scripts/check-version", "Cargo.toml", "guest-sdk/Cargo.toml", "guest-sdk/macros/Cargo.toml"];
    needed.into_iter().for_each(copied);
    let said = |tag: &str, changelog: &str| {
        fs::write(folder.path().join("CHANGELOG.md"), changelog).unwrap();
        let ended = Command::new(folder.path().join("scripts/check-version")).arg(tag).output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let (tag, heading) = (format!("v{VERSION}"), format!("## [{VERSION}] - 2027-01-31\n"));
    assert_eq!(said(&tag, &heading), (Some(0), String::new()));
    for (tag, changelog, part) in [
        (&tag[..], "## [Unreleased]\n", "CHANGELOG.md has no line"),
        ("v9.9.9", &heading, "Cargo.toml says"),
        (VERSION, &heading, "begins with v"),
    ] {
        let (code, stderr) = said(tag, changelog);
        assert!(code == Some(1) && stderr.contains(part), "{tag}: {stderr}");
    }
}
