//! The schema, looked at by a validator that is not ours: it is a JSON Schema, and says of files what the parser says of them.

#![expect(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::file::parse;
use super::schema::schema;

/// What may stand behind a key: right for some of them, and wrong for others.
const VALUES: [&str; 31] = [
    "true",
    "0",
    "4",
    "-1",
    "2.5",
    "101",
    "5000000000",
    "1979-05-27",
    "\"\"",
    "\"x\"",
    "\"4\"",
    "\"30s\"",
    "\"1h 30min\"",
    "\"0\"",
    "\"64MiB\"",
    "\"1.5 gib\"",
    "\"2.5%\"",
    "\"info\"",
    "\"json\"",
    "\"optional\"",
    "\"common\"",
    "\"127.0.0.1:9090\"",
    "\"/health\"",
    "\"http://localhost:4318\"",
    "[]",
    "[1]",
    "[\"x\"]",
    "[\"127.0.0.1:8080\", \"./a::/b:ro\"]",
    "{}",
    "{ x = \"y\" }",
    "{ x = \"file:/run/x\", \"wasmcluster.x\" = \"env:Y\" }",
];
/// The items of lists, each alone.
const ITEMS: [&str; 12] = [
    "127.0.0.1:8080",
    "unix:/run/app.sock",
    "https://[::1]:8443?proxy-protocol",
    "10.0.0.0/8",
    "/etc/ssl/certs/shop.pem",
    "HOME",
    "./data::/data:ro",
    "https://*.example.com",
    "http://10.0.0.0:8080/8",
    "sessions=redis://127.0.0.1:6379/0",
    "*.example.com:5432",
    "authorization=credential:otlp",
];
/// Files that the parser refuses for what no schema tells: 2.0 is a whole number to JSON, and what is in a text is up to its type.
const BEYOND_A_SCHEMA: [&str; 3] = ["dir-missing.toml", "env-nul.toml", "float.toml"];

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// What the validator says of each file, by its name. `None` if there is none here.
fn verdicts(files: &[(String, Vec<u8>)]) -> Option<BTreeMap<String, String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("schema.json"), schema().to_string()).unwrap();
    files.iter().for_each(|(name, text)| fs::write(path(name), text).unwrap());
    let mut command = Command::new(repository().join("scripts/check-schema"));
    command.arg(path("schema.json")).args(files.iter().map(|(name, _)| path(name)));
    let checked = command.output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stderr));
    if said.starts_with("skipped: ") {
        println!("{said}");
        return None;
    }
    let lines = said.lines().map(|line| line.split_once(' ').unwrap());
    Some(lines.map(|(name, verdict)| (name.to_owned(), verdict.to_owned())).collect())
}

#[test]
fn schema_and_parser_agree_on_every_key() {
    let schema = schema();
    let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    let mut files = vec![
        ("build.right.toml".into(), "[build]\ncommand = \"make\"\ncomponent = \"app.wasm\"\n".into()),
        ("worker.0.toml".into(), "worker = 4\n".into()),
    ];
    for key in &keys {
        // A table that is written as a list of its values: serde reads it, and nobody means it.
        let values = VALUES.iter().filter(|value| *key != "build" || !value.starts_with("[\"1"));
        let items = ITEMS.iter().filter(|_| schema["properties"][key]["type"] == "array");
        let all = values.map(|value| (*value).to_owned()).chain(items.map(|item| format!("[\"{item}\"]")));
        files.extend(
            all.enumerate().map(|(at, value)| (format!("{key}.{at}.toml"), format!("{key} = {value}\n").into())),
        );
    }
    let Some(verdicts) = verdicts(&files) else { return };
    assert!(verdicts["worker.0.toml"].starts_with("is refused"), "{verdicts:?}");

    let (mut right, mut wrong) = (BTreeMap::<&str, u32>::new(), BTreeMap::<&str, u32>::new());
    for (name, text) in &files {
        let key = name.split('.').next().unwrap();
        let text = std::str::from_utf8(text).unwrap();
        match (parse(text).is_ok(), verdicts[name].as_str()) {
            (true, "fits") => *right.entry(key).or_default() += 1,
            (true, verdict) => panic!("the parser takes {text}, and the schema says: {verdict}"),
            (false, "fits") => {}
            (false, _) => *wrong.entry(key).or_default() += 1,
        }
    }
    for key in keys {
        assert!(right.contains_key(key.as_str()), "no value of {key} is right for both");
        assert!(wrong.get(key.as_str()) > Some(&10), "nearly everything is right for {key}");
    }
}

#[test]
fn schema_and_parser_agree_on_whole_files() {
    let corpus = fs::read_dir(repository().join("tests/corpora/config")).unwrap().map(|entry| entry.unwrap().path());
    let of_packages = repository().join("deploy/packages/example.toml");
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut files: Vec<(String, Vec<u8>)> =
        corpus.chain([of_packages]).map(|path: PathBuf| (name(&path), fs::read(&path).unwrap())).collect();
    let reference = fs::read_to_string(repository().join("docs/reference.md")).unwrap();
    let (_, example) = reference.split_once("```toml\n# wasmcluster.toml\nlisten").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    files.push(("reference.toml".into(), format!("listen{example}").into()));
    let Some(verdicts) = verdicts(&files) else { return };
    for whole in ["example.toml", "reference.toml", "everything.toml"] {
        assert_eq!(verdicts[whole], "fits", "{whole}");
    }
    for (name, text) in &files {
        let (fits, is_right) =
            (verdicts[name] == "fits", std::str::from_utf8(text).is_ok_and(|text| parse(text).is_ok()));
        let may_differ = BEYOND_A_SCHEMA.contains(&name.as_str()) && fits;
        assert!(fits == is_right || may_differ, "{name} {}, and the parser takes it: {is_right}", verdicts[name]);
    }
}
