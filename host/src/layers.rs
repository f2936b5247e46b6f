//! The tests that hold the house together: which folder may know which, that files of one folder go round in no circle, that
//! a name means one thing, and that ARCHITECTURE.md shows what is here.
//!
//! What counts is the code without its tests: these may know everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up. A folder may use those below it; those of one floor do not know each other.
const FLOORS: &[&[&str]] = &[
    &["os"],
    &["grants", "logging"],
    &["settings"],
    &["wire"],
    &["control", "component", "build", "tls", "keyvalue"],
    &["primary", "worker", "admin", "exporter", "registry"],
    &["cli"],
];

/// Inside of a folder, from the ground up likewise. Files that are not named may be used by all of the folder.
const ROOMS: &[(&str, &[&[&str]])] = &[
    ("worker", &[&["requests"], &["guest", "process"], &["http"]]),
    ("primary", &[&["supervisor"], &["fleet"], &["deploy", "desk"], &["driver", "startup"], &["boot"]]),
];

/// What the primary must not link: all of `component` compiles or looks at components.
const NOT_OF_THE_PRIMARY: &str = "component";

/// What decides and does nothing else: it is tested in virtual time, by properties and by simulation.
const PURE: &[&str] = &[
    "primary::supervisor",
    "primary::supervisor::errors",
    "primary::supervisor::swap",
    "cli::top::monitor",
    "cli::top::occurrence",
    "cli::top::view",
    "primary::desk::ledger",
    "worker::http::drain",
    "worker::http::forwarded",
    "worker::http::frames",
    "worker::http::framing",
    "worker::http::websocket::machine",
    "grants",
    "grants::address",
    "grants::store",
    "grants::connect",
    "settings::differences",
    "settings::guest_values",
    "settings::live",
    "settings::proxies",
    "settings::values",
    "exporter::encode",
    "tls::names",
    "tls::rotation",
];
/// What would be I/O or a clock.
const IMPURE: &[&str] = &["tokio", "nix::", "libc", "std::io", "std::fs", "Instant", "SystemTime", "unsafe", "async "];

/// A file of the crate: its module, as `worker::http::accept`, and the modules that it uses.
struct Module {
    name: String,
    uses: BTreeSet<String>,
    /// The types that it declares.
    types: Vec<String>,
    /// Without comments and tests.
    code: String,
}

fn source() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
}

/// All files but those of tests.
fn modules() -> Vec<Module> {
    let mut folders = vec![source().to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let name_of = |path: &Path| {
        let name = path.strip_prefix(source()).unwrap().with_extension("");
        let name = name.to_str().unwrap().replace('/', "::");
        name.strip_suffix("::mod").map_or(name.clone(), str::to_owned)
    };
    let of_tests = ["layers", "fuzz", "main", "lib"];
    let is_test = |name: &str| {
        let last = name.rsplit("::").next().unwrap();
        of_tests.contains(&last) || name.starts_with("fuzz::") || last.ends_with("tests") || last == "simulation"
    };
    let named = files.iter().map(|path| (name_of(path), path)).filter(|(name, _)| !is_test(name));
    let named: BTreeMap<String, _> = named.collect();
    let known: BTreeSet<&str> = named.keys().map(String::as_str).collect();
    let module = |(name, path): (&String, &&std::path::PathBuf)| {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let is_comment = |line: &&str| line.trim_start().starts_with("//");
        let uses = paths(code, name).into_iter().filter_map(|path| module_of(&path, &known)).collect();
        let types = code.lines().filter_map(declared).map(str::to_owned).collect();
        let code = code.lines().filter(|line| !is_comment(line)).collect::<Vec<_>>().join("\n");
        Module { name: name.clone(), uses, types, code }
    };
    named.iter().map(module).collect()
}

/// The name of the type that a line declares, at the top of a file.
fn declared(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let (_, rest) =
        line.split_once(' ').filter(|(kind, _)| ["struct", "enum", "trait", "type", "union"].contains(kind))?;
    rest.split(|c: char| !c.is_alphanumeric()).next()
}

/// The longest beginning of a path that is a module.
fn module_of(path: &str, known: &BTreeSet<&str>) -> Option<String> {
    let mut path = path;
    loop {
        if known.contains(path) {
            return Some(path.to_owned());
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// The paths inside of the crate that a file names, from the crate's root on.
fn paths(code: &str, module: &str) -> Vec<String> {
    let lines: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found = Vec::new();
    for (prefix, base) in [("crate::", ""), ("super::", parent)] {
        for (at, _) in lines.match_indices(prefix) {
            // `super::super` is found at its second part, and too far down: none is left in the house.
            let rest = &lines[at + prefix.len()..];
            let base = if base.is_empty() { String::new() } else { format!("{base}::") };
            found.extend(expanded(rest).into_iter().map(|path| format!("{base}{path}")));
        }
    }
    found
}

/// What stands behind `crate::`, as far as it is a path: `a::{b, c::D}` is two.
fn expanded(text: &str) -> Vec<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(text.len());
    let path = text[..end].trim_end_matches(':');
    let Some(list) = text[end..].strip_prefix('{').filter(|_| text[..end].ends_with("::")) else {
        return vec![path.to_owned()];
    };
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&list[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(expanded).map(|part| format!("{path}::{part}")).collect()
}

fn folder(module: &str) -> &str {
    module.split("::").next().unwrap()
}

fn floor(floors: &[&[&str]], room: &str) -> Option<usize> {
    floors.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn a_folder_knows_those_below_it_alone() {
    let floor_of = |module: &str| floor(FLOORS, folder(module)).unwrap_or_else(|| panic!("{module} is on no floor"));
    let mut wrong = Vec::new();
    for Module { name, uses, .. } in modules() {
        let others = uses.iter().filter(|used| folder(used) != folder(&name));
        let is_wrong = |used: &&String| {
            floor_of(used) >= floor_of(&name) || (folder(&name) == "primary" && folder(used) == NOT_OF_THE_PRIMARY)
        };
        wrong.extend(others.filter(is_wrong).map(|used| format!("{name} uses {used}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_room_knows_those_below_it_in_its_folder() {
    let mut wrong = Vec::new();
    for Module { name, uses, .. } in modules() {
        let Some((of, floors)) = ROOMS.iter().find(|(of, _)| name.starts_with(&format!("{of}::"))) else { continue };
        let room = |module: &str| module.split("::").nth(1).and_then(|room| floor(floors, room));
        let Some(own) = room(&name) else { continue };
        for used in uses.iter().filter(|used| folder(used) == *of) {
            let is_same = used.split("::").nth(1) == name.split("::").nth(1);
            let is_below = room(used).is_none_or(|other| other < own);
            if !is_same && !is_below {
                wrong.push(format!("{name} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A folder's files may lean on each other, but not in a circle; a file and those in the folder of its name are one idea.
#[test]
fn no_files_go_round_in_a_circle() {
    let modules = modules();
    let idea = |name: &str| -> String {
        let rooms = ["worker", "primary"];
        let parts: Vec<&str> = name.split("::").collect();
        let depth = if rooms.contains(&parts[0]) { 3 } else { 2 };
        parts[..parts.len().min(depth)].join("::")
    };
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Module { name, uses, .. } in &modules {
        // What a folder's own file re-exports is that of its files.
        let is_root = |module: &str| modules.iter().any(|other| other.name.starts_with(&format!("{module}::")));
        let targets = uses.iter().filter(|used| idea(used) != idea(name) && !is_root(used)).map(|used| idea(used));
        if !is_root(name) {
            edges.entry(idea(name)).or_default().extend(targets);
        }
    }
    let mut done = BTreeSet::new();
    for start in edges.keys() {
        visit(start, &edges, &mut Vec::new(), &mut done);
    }
}

fn visit(module: &str, edges: &BTreeMap<String, BTreeSet<String>>, way: &mut Vec<String>, done: &mut BTreeSet<String>) {
    if let Some(at) = way.iter().position(|passed| passed == module) {
        panic!("a circle: {} → {module}", way[at..].join(" → "));
    }
    if done.contains(module) {
        return;
    }
    way.push(module.to_owned());
    for next in edges.get(module).into_iter().flatten() {
        visit(next, edges, way, done);
    }
    way.pop();
    done.insert(module.to_owned());
}

#[test]
fn uses_are_read_as_written() {
    let code = "use crate::a::{b, c::{D, e}};\nuse super::f::g;\n// crate::not::this\nlet x = crate::h::i(1);";
    let expected = ["a::b", "a::c::D", "a::c::e", "h::i", "k::f::g"];
    assert_eq!(paths(code, "k::l"), expected);
}

#[test]
fn what_decides_is_pure() {
    let modules = modules();
    for pure in PURE {
        let module = modules.iter().find(|module| module.name == *pure).unwrap_or_else(|| panic!("no module {pure}"));
        for foreign in IMPURE {
            assert!(!module.code.contains(foreign), "{pure} mentions {foreign:?}");
        }
    }
}

/// Types of one name that mean the same in several places, or nothing outside of theirs.
const ONE_NAME: &[(&str, &str)] = &[
    ("Time", "of a pure machine: since it began"),
    ("Failure", "of a command, and of a guest"),
    ("Phase", "of what a command shows, and of a worker"),
    ("Report", "what `inspect` prints, and what the supervisor tells"),
];

#[test]
fn a_type_has_a_name_of_its_own() {
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Module { name, types, .. } in modules() {
        for found in types {
            places.entry(found).or_default().insert(name.clone());
        }
    }
    let is_known = |name: &str| ONE_NAME.iter().any(|(known, _)| *known == name);
    let twice: Vec<_> = places.iter().filter(|(name, of)| of.len() > 1 && !is_known(name)).collect();
    assert!(twice.is_empty(), "{twice:#?}");
    for (name, reason) in ONE_NAME {
        assert!(places.get(*name).is_some_and(|of| of.len() > 1), "{name} ({reason}) is one type now");
    }
}

fn architecture() -> PathBuf {
    source().join("../../ARCHITECTURE.md")
}

/// The box of the picture that a module is in: its folder, or its room where the folder has some.
fn box_of(module: &str) -> String {
    let mut parts = module.split("::");
    let folder = parts.next().unwrap();
    let room = parts.next().filter(|_| ROOMS.iter().any(|(of, _)| *of == folder));
    room.map_or_else(|| folder.to_owned(), |room| format!("{folder}_{room}"))
}

/// All boxes that can be reached from one by its arrows and those of others.
fn reach<'a>(from: &'a str, arrows: &'a BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&'a str> {
    let (mut found, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(next) = left.pop() {
        for used in arrows.get(next).into_iter().flatten() {
            if found.insert(used.as_str()) {
                left.push(used);
            }
        }
    }
    found
}

/// Folders and rooms, and who uses whom, in the language of mermaid. An arrow that follows from others is left out.
fn picture() -> String {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Module { name, uses, .. } in modules() {
        let own = box_of(&name);
        let folder = folder(&name).to_owned();
        // A folder has its rooms, and uses what they use. What it has itself is there for its rooms.
        let used = uses.iter().map(|used| box_of(used)).filter(|used| *used != own && *used != folder);
        arrows.entry(own.clone()).or_default().extend(used);
        if own != folder {
            arrows.entry(folder).or_default().insert(own);
        }
    }
    let mut lines = vec!["```mermaid".to_owned(), "flowchart TD".to_owned()];
    for (folder, _) in ROOMS {
        lines.push(format!("    subgraph {folder}"));
        let rooms = arrows.keys().filter_map(|it| it.strip_prefix(*folder)?.strip_prefix('_'));
        let rooms: Vec<String> = rooms.map(|room| format!("{folder}_{room}[{room}]")).collect();
        lines.push(format!("        {}", rooms.join("; ")));
        lines.push("    end".to_owned());
    }
    for (from, direct) in &arrows {
        let is_implied = |to: &str| direct.iter().any(|other| other != to && reach(other, &arrows).contains(to));
        let is_inside = |to: &str| folder_of_box(to) == from;
        let drawn = direct.iter().map(String::as_str).filter(|to| !is_inside(to) && !is_implied(to));
        let drawn: Vec<&str> = drawn.collect();
        if !drawn.is_empty() {
            lines.push(format!("    {from} --> {}", drawn.join(" & ")));
        }
    }
    lines.push("```\n".to_owned());
    lines.join("\n")
}

fn folder_of_box(name: &str) -> &str {
    name.split('_').next().unwrap()
}

/// `make map` is this test with a variable, by which it puts the picture into the page instead of comparing: what draws and
/// what compares cannot differ.
#[test]
fn the_map_is_that_of_the_code() {
    let page = fs::read_to_string(architecture()).unwrap();
    let (before, rest) = page.split_once("<!-- map -->\n").expect("the map begins somewhere");
    let (map, after) = rest.split_once("<!-- /map -->").expect("the map ends somewhere");
    let picture = picture();
    if std::env::var_os("WASMCLUSTER_MAP").is_some() {
        fs::write(architecture(), format!("{before}<!-- map -->\n{picture}<!-- /map -->{after}")).unwrap();
    } else {
        assert_eq!(map, picture, "ARCHITECTURE.md does not show this code: run `make map`");
    }
}

/// The map says a folder once, and then the files in it.
#[test]
fn the_page_names_every_file_and_none_that_is_not_there() {
    let page = fs::read_to_string(architecture()).unwrap();
    let root = source().join("../..");
    let (mut folder, mut named) = ("", BTreeSet::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("- **`") {
            folder = rest.split('`').next().unwrap();
        } else if line.starts_with('#') {
            folder = "";
        }
        for name in line.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs") || name.ends_with('/')) {
            let paths =
                [source().join(folder).join(name), source().join(name), root.join(folder).join(name), root.join(name)];
            let path = paths.iter().find(|path| path.exists());
            let path = path.unwrap_or_else(|| panic!("ARCHITECTURE.md names {name}, which is not there"));
            named.insert(path.canonicalize().unwrap());
        }
    }
    for Module { name, .. } in modules() {
        let path = source().canonicalize().unwrap().join(name.replace("::", "/"));
        let is_named = [path.with_extension("rs"), path.join("mod.rs"), path].iter().any(|path| named.contains(path));
        assert!(is_named, "ARCHITECTURE.md does not say what {name} is for");
    }
}
