//! The tables in tests/ name tests that are there: `node-cluster.md`, `hostile.md` and `field.md`.

use std::path::Path;

/// All that a table can name: the tests here, the units' own, and those of the SDK and its guide.
fn sources() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["bindings/src", "deploy", "guide/tests", "safety", "serving", "supervision", "tooling"];
    let folders = folders.map(|folder| root.join("../tests").join(folder));
    let mut folders: Vec<_> = folders.into_iter().chain([root.join("../guest-sdk"), root.join("src")]).collect();
    let mut sources = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    sources
}

/// What the first column of each row says, and how many tests the last one names.
fn rows(table: &str) -> Vec<(&str, usize)> {
    let sources = sources();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")).skip(2);
    rows.map(|row| (row.split(" | ").next().unwrap(), tests_in(row.rsplit(" | ").next().unwrap(), &sources))).collect()
}

/// How many tests are named between backquotes. There is exactly one of each name.
fn tests_in(text: &str, sources: &str) -> usize {
    let tests = text.split('`').skip(1).step_by(2);
    tests
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
    assert_eq!(numbers, (1..=28).map(|number: u32| number.to_string()).collect::<Vec<_>>());
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
