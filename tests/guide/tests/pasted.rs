//! Each example of the guide and of README, pasted into a new project that has nothing but what the example says it needs.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const GUIDE: &str = include_str!("../../../docs/guests.md");
const README: &str = include_str!("../../../README.md");
const MANIFEST: &str = include_str!("../../../templates/hello/Cargo.toml.in");
const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-sdk");
const LOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");

/// The examples in Rust, as they are written.
fn examples() -> Vec<&'static str> {
    let blocks = [GUIDE, README].into_iter().flat_map(|page| page.split("\n```rust\n").skip(1));
    blocks.map(|block| block.split_once("\n```\n").expect("a block has an end").0).collect()
}

/// The manifest of a new project, with the lines that the example names: new ones, or in place of those that are there.
fn manifest(example: &str) -> String {
    let mut lines: Vec<&str> = MANIFEST.lines().collect();
    for added in example.lines().filter_map(|line| line.strip_prefix("// Cargo.toml: ")) {
        let name = added.split(" = ").next().expect("a line has a beginning");
        lines.retain(|line| line.split(" = ").next() != Some(name));
        let dependencies = lines.iter().position(|line| *line == "[dependencies]").expect("the template has some");
        lines.insert(dependencies + 1, added);
    }
    let manifest = lines.join("\n").replace("{{name}}", "pasted").replace("{{sdk}}", &format!("path = \"{SDK}\""));
    // What the guide's own lines say of it.
    manifest.replace("path = \"wasmcluster-guest\"", &format!("path = \"{SDK}\""))
}

/// One test, as cargo builds one of them at a time in a target folder.
#[test]
fn examples_compile_when_pasted_into_a_new_project() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pasted");
    fs::create_dir_all(folder.join("src")).expect("a folder");
    for example in examples() {
        fs::write(folder.join("Cargo.toml"), manifest(example)).expect("a manifest");
        fs::write(folder.join("src/lib.rs"), example).expect("a source");
        // The versions that are here already.
        fs::copy(LOCK, folder.join("Cargo.lock")).expect("a lock file");
        let mut cargo = Command::new(env::var("CARGO").unwrap_or("cargo".into()));
        cargo.args(["check", "--quiet", "--offline", "--tests"]).current_dir(&folder);
        let output = cargo.env("CARGO_TARGET_DIR", folder.join("target")).output().expect("cargo starts");
        assert!(output.status.success(), "{example}\n\n{}", String::from_utf8_lossy(&output.stderr));
    }
}
