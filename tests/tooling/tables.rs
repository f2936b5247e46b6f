//! The tables in tests/ are true: `node-cluster.md`, `hostile.md` and `field.md` name tests that are there, and the guests'
//! README has them all, with paths that they answer.

use std::collections::BTreeSet;
use std::path::PathBuf;

use harness::root;

/// All that a table can name: the tests here, the units' own, and those of the SDK and its guide.
fn sources() -> String {
    let folders = ["bindings/src", "deploy", "guide/tests", "safety", "serving", "supervision", "tooling"];
    let folders = folders.map(|folder| root().join("tests").join(folder));
    let mut sources = String::new();
    for folder in folders.into_iter().chain([root().join("guest-sdk"), root().join("host/src")]) {
        add_sources(folder, &mut sources);
    }
    sources
}

/// Adds all files of a folder, and of those in it.
fn add_sources(folder: PathBuf, sources: &mut String) {
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                *sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
}

fn in_backquotes(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What the first column of each row says, and how many tests the last one names.
fn rows(table: &str) -> Vec<(&str, usize)> {
    let sources = sources();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")).skip(2);
    rows.map(|row| (row.split(" | ").next().unwrap(), tests_in(row.rsplit(" | ").next().unwrap(), &sources))).collect()
}

/// How many tests are named between backquotes. There is exactly one of each name.
fn tests_in(text: &str, sources: &str) -> usize {
    in_backquotes(text)
        .inspect(|name| {
            let is_one = sources.matches(&format!("fn {name}(")).count() == 1;
            assert!(is_one, "there is no test {name}, or more than one");
        })
        .count()
}

#[test]
fn the_table_of_nodes_cases_is_true() {
    let named: usize = rows(include_str!("../node-cluster.md")).iter().map(|(_, tests)| tests).sum();
    assert!(named > 30, "{named}");
}

#[test]
fn the_table_of_hostile_cases_is_true_and_whole() {
    let rows = rows(include_str!("../hostile.md"));
    let numbers: Vec<String> = rows.iter().map(|(number, _)| (*number).to_owned()).collect();
    assert_eq!(numbers, (1..=42).chain([46]).map(|number: u32| number.to_string()).collect::<Vec<_>>());
    assert!(rows.iter().all(|(_, tests)| *tests > 0), "{rows:?}");
}

#[test]
fn the_table_of_faults_from_the_field_is_true_and_whole() {
    let sources = sources();
    let paragraphs = include_str!("../field.md").split("\n\n").filter_map(|it| it.trim().strip_prefix("**"));
    let faults: Vec<(&str, &str)> = paragraphs.map(|it| it.split_once("**: ").unwrap()).collect();
    let expected: Vec<String> = [('P', 22), ('H', 26), ('U', 19)]
        .iter()
        .flat_map(|&(part, of)| (1..=of).map(move |n| format!("{part}{n}")))
        .collect();
    assert_eq!(faults.iter().map(|(name, _)| *name).collect::<Vec<_>>(), expected);
    for (name, says) in faults {
        // A fault that is mended in part says so, and names what holds that part.
        assert!(tests_in(says, &sources) > 0 || says == "open.", "{name}: {says}");
    }
}

#[test]
fn the_table_of_guests_is_true_and_whole() {
    let guests = root().join("tests/guests");
    let mut sources = String::new();
    for entry in std::fs::read_dir(&guests).unwrap().map(|entry| entry.unwrap()) {
        if entry.path().is_dir() {
            add_sources(entry.path(), &mut sources);
        }
    }
    let table = std::fs::read_to_string(guests.join("README.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let (mut named, mut paths) = (BTreeSet::new(), 0);
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        named.extend(in_backquotes(cells[0]).map(str::to_owned));
        for path in in_backquotes(cells[3]) {
            let is_answered = [path, &path[1..]].iter().any(|path| sources.contains(&format!("\"{path}\"")));
            assert!(is_answered, "{}: no guest answers {path}", cells[0]);
            paths += 1;
        }
    }
    let folders = std::fs::read_dir(&guests).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir());
    let folders: BTreeSet<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(named, folders);
    assert!(paths > 100, "{paths}");
}

#[test]
fn the_tests_that_hold_the_invariants_exist() {
    let (_, page) = include_str!("../../ARCHITECTURE.md").split_once("\n## Invariants\n").unwrap();
    let (invariants, _) = page.split_once("\n## ").unwrap();
    // Other names between backquotes have fewer words.
    let names = invariants.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() > 2);
    let named: String = names.map(|name| format!("`{name}`")).collect();
    assert!(tests_in(&named, &sources()) > 20, "{named}");
}
