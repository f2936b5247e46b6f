//! `docs/reference.md` says of the command line what the binary says of itself: commands, flags, defaults, exit codes,
//! and every field of the JSON that it prints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use harness::{Setup, guest, root};

/// Flags of other programs that the pages name.
const OF_OTHERS: [&str; 11] = [
    "--addr",
    "--authfile",
    "--deploy-hook",
    "--plug",
    "--read-only",
    "--release",
    "--stop-timeout",
    "--strip-components",
    "--target",
    "--tmpfs",
    "--unix-socket",
];

/// By command and flag, the default that is told for it.
type Flags = BTreeMap<(String, String), Option<String>>;

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What a command says of itself; without a name, the program.
pub(super) fn help(command: &str) -> String {
    let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
    let ended = Setup::bare(&args).run();
    assert_eq!(ended.code, Some(0), "{command}: {ended:?}");
    ended.stdout
}

/// The commands that can be run: `config get`, not `config`.
pub(super) fn commands(of: &str) -> Vec<String> {
    let help = help(of);
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![of.to_owned()] };
    let listed = list.lines().take_while(|line| !line.is_empty());
    // What is said of a command may go on in the next line, further in.
    let names = listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").flat_map(|name| commands(format!("{of} {name}").trim())).collect()
}

/// The flags that `--help` lists, and their defaults.
fn flags_of_binary() -> Flags {
    let mut flags = Flags::new();
    for command in commands("") {
        let mut told: Vec<(String, String)> = Vec::new();
        for line in help(&command).lines() {
            let text = line.trim_start();
            // What is said of a flag is further in, and may begin with another flag.
            let is_flag = line.len() - text.len() <= 6 && text.starts_with('-');
            match text.split([' ', ',']).find(|word| word.starts_with("--")).filter(|_| is_flag) {
                Some(flag) => told.push((flag.to_owned(), text.to_owned())),
                None => {
                    if let Some((_, said)) = told.last_mut() {
                        said.push(' ');
                        said.push_str(text);
                    }
                }
            }
        }
        for (flag, said) in told.into_iter().filter(|(flag, _)| flag != "--help") {
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            let default = said.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
            flags.insert((command.clone(), flag), default.map(|(default, _)| default.replace('`', "")));
        }
    }
    flags
}

/// The rows between `<!-- flags -->` and `<!-- /flags -->`: flag, default, the commands if they are not `serve` and
/// `inspect`, and a meaning.
fn flags_of_page(page: &str) -> Flags {
    let (_, rest) = page.split_once("<!-- flags -->").expect("the flags begin somewhere");
    let (tables, _) = rest.split_once("<!-- /flags -->").expect("the flags end somewhere");
    let mut flags = Flags::new();
    for row in tables.lines().filter(|line| line.starts_with("| `-")) {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let flag = cells[0].split(['`', ' ', ',']).find(|word| word.starts_with("--"));
        let commands = match cells[..] {
            [_, _, _] => vec!["serve", "inspect"],
            [_, _, commands, _] => commands.split('`').skip(1).step_by(2).collect(),
            _ => panic!("neither three nor four cells: {row}"),
        };
        let default = cells[1].replace('`', "");
        let default = Some(default).filter(|default| default != "none" && default != "off");
        for command in commands {
            let key = (command.to_owned(), flag.expect("a long flag").to_owned());
            assert!(flags.insert(key, default.clone()).is_none(), "twice for {command}: {row}");
        }
    }
    flags
}

#[test]
fn the_reference_has_every_command_and_flag_with_its_default() {
    let reference = page("docs/reference.md");
    for command in commands("") {
        assert!(reference.contains(&format!("| `wasmcluster {command}")), "no command {command}");
    }
    let (told, documented) = (flags_of_binary(), flags_of_page(&reference));
    for (flag, default) in &told {
        assert_eq!(documented.get(flag), Some(default), "{flag:?}");
    }
    for flag in documented.keys() {
        assert!(told.contains_key(flag), "there is no {flag:?}");
    }
}

#[test]
fn every_flag_that_a_page_names_exists() {
    let flags: BTreeSet<String> = flags_of_binary().into_keys().map(|(_, flag)| flag).collect();
    let names = ["coming-from", "concepts", "faq", "guests", "operations", "quick-start", "reference", "security"];
    let names = names.iter().chain(&["troubleshooting"]).map(|name| format!("docs/{name}.md"));
    for name in names.chain(["README.md".to_owned()]) {
        let page = page(&name);
        let words = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let is_flag = |word: &&str| {
            word.strip_prefix("--").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
        };
        for word in words.filter(is_flag) {
            let is_known = ["--help", "--version"].contains(&word) || OF_OTHERS.contains(&word) || flags.contains(word);
            assert!(is_known, "{name} names {word}");
        }
    }
}

#[test]
fn the_reference_has_every_exit_code_that_help_names() {
    let mut told = BTreeSet::new();
    for command in commands("") {
        let help = help(&command);
        let list = help.split_once("\nExit codes:\n").map_or("", |(_, list)| list);
        let codes = list.lines().take_while(|line| !line.is_empty());
        told.extend(codes.filter_map(|line| line.trim().split(' ').next()?.parse::<u8>().ok()));
    }
    let reference = page("docs/reference.md");
    let (_, section) = reference.split_once("\n## Exit codes\n").expect("a section");
    let (section, _) = section.split_once("\n## ").expect("another section");
    let codes = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse::<u8>().ok());
    assert_eq!(codes.collect::<BTreeSet<_>>(), told);
    assert!(told.len() > 8, "{told:?}");
}

/// The names of all fields, those of objects in objects and lists too.
fn fields(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            names.insert(name.clone());
            fields(value, names);
        }),
        Value::Array(list) => list.iter().for_each(|value| fields(value, names)),
        _ => {}
    }
}

#[test]
fn the_reference_has_every_field_of_the_json_that_commands_print() {
    let cluster = Setup::new(&guest("hello")).args(&["--min-ready", "0s", "--soak", "0s"]).start();
    let mut printed = vec![cluster.command(&["inspect", &guest("hello").display().to_string(), "--json"]).stdout];
    printed.push(cluster.command(&["reload", "--json"]).stdout);
    printed.push(cluster.command(&["doctor", "--json"]).stdout);
    printed.push(cluster.command(&["status", "--json"]).stdout);
    let mut names = BTreeSet::new();
    for line in printed.iter().flat_map(|text| text.lines()) {
        fields(&serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")), &mut names);
    }
    assert!(names.contains("phase") && names.contains("rss_bytes") && names.contains("grants"), "{names:?}");
    let reference = page("docs/reference.md");
    for name in names {
        // Limits by flag are named as the flags.
        let is_there = [format!("`{name}`"), format!("`--{name} ")].iter().any(|text| reference.contains(text));
        assert!(is_there, "{name} is in no table");
    }
}
