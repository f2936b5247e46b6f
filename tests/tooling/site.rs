//! The pages do what they say: every command of README and site is run, links lead somewhere, what is generated is current.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::page::{Block, Player, blocks};
use harness::tools::Tool;
use harness::{Setup, guest, root};

use super::pages::{commands, help};

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// README, and the pages of `docs/SUMMARY.md`, as paths in the repository.
fn pages_of_site() -> BTreeSet<String> {
    let mut pages = BTreeSet::from(["README.md".to_owned()]);
    for link in page("docs/SUMMARY.md").split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        pages.insert(if let Some(path) = link.strip_prefix("../") { path.into() } else { format!("docs/{link}") });
    }
    pages
}

#[track_caller]
fn play(name: &str) {
    let page = page(name);
    let Some(player) = Player::new(name, &page) else { return };
    println!("{name}: {} commands", player.play());
}

/// A test for each page that has commands.
macro_rules! played {
    ($($test:ident: $page:literal,)*) => {
        const PLAYED: &[&str] = &[$($page),*];
        $(#[test] fn $test() { play($page) })*
    };
}

played! {
    // The first hour of somebody new, from the project to the end of the cluster.
    the_first_hour_goes_as_the_quick_start_says: "docs/quick-start.md",
    the_commands_of_the_readme_do_it: "README.md",
    what_others_call_by_another_name_is_there: "docs/coming-from.md",
    the_commands_of_the_guide_to_guests_do_it: "docs/guests.md",
    the_commands_of_operations_do_it: "docs/operations.md",
    the_commands_of_the_reference_do_it: "docs/reference.md",
    the_commands_of_the_page_on_security_do_it: "docs/security.md",
    the_readme_of_api_does_it: "examples/api/README.md",
    the_readme_of_chat_does_it: "examples/chat/README.md",
    the_readme_of_counter_does_it: "examples/counter/README.md",
    the_readme_of_echo_does_it: "examples/echo/README.md",
    the_readme_of_events_does_it: "examples/events/README.md",
    the_readme_of_grpc_does_it: "examples/grpc/README.md",
    the_readme_of_proxy_does_it: "examples/proxy/README.md",
    the_readme_of_sessions_does_it: "examples/sessions/README.md",
    the_readme_of_whoami_does_it: "examples/whoami/README.md",
}

#[test]
fn every_command_on_a_page_is_run_or_says_why_not() {
    for name in pages_of_site() {
        let page = page(&name);
        let blocks = blocks(&page).into_iter().filter(Block::is_commands);
        let (not_run, run): (Vec<Block>, Vec<Block>) = blocks.partition(|block| block.is_not_run().is_some());
        assert!(run.is_empty() || PLAYED.contains(&name.as_str()), "{name} has commands: it belongs into PLAYED");
        for block in not_run {
            let reason = block.is_not_run().unwrap_or_default();
            assert!(reason.split_whitespace().count() > 2, "{name}:{}: that is no reason: {reason:?}", block.line);
        }
    }
    let strays = PLAYED.iter().find(|name| !pages_of_site().contains(**name));
    assert_eq!(strays, None, "it is not in docs/SUMMARY.md");
}

/// What is compared, and what is not: this is what all pages are held to.
#[test]
fn a_page_that_says_something_else_is_noticed() {
    let console = |said: &str, printed: &str| format!("```console\n$ printf '%s\\n' {said}\n{printed}\n```\n");
    let is_right = |page: &str| {
        let played = std::panic::catch_unwind(|| Player::new("a page", page).map(Player::play));
        played.map_or(Some(false), |commands| commands.map(|commands| commands > 0))
    };
    let cases = [
        (console("'generation 2'", "generation 2"), true),
        (console("'generation 2'", "generation 3"), false),
        (console("'served 41s ago, pid 4711'", "served 3s ago, pid 12345"), true),
        (console("one two three", "one\n…\nthree"), true),
        (console("one two three", "one\nthree"), false),
        (console("one two", "one"), false),
        (console("'Compiling app.wasm (1 KiB)…' two", "two"), true),
        (console("'sha256:33521ed7c1e3 is it'", "sha256:c9fc8bbc4d55 …"), true),
        ("```sh\ntrue\n```\n".into(), true),
        ("```sh\nfalse\n```\n".into(), false),
        ("<!-- fails: to show it -->\n```sh\nfalse\n```\n".into(), true),
        ("<!-- before: touch there -->\n```sh\nls there\n```\n".into(), true),
        (
            "<!-- tried: -->\n| a | b |\n| --- | --- |\n| x | `wasmcluster serve --no-such-flag app.wasm` |\n".into(),
            false,
        ),
        ("<!-- tried: -->\n| a | b |\n| --- | --- |\n| x | `wasmcluster serve app.wasm` |\n".into(), true),
    ];
    for (page, expected) in &cases {
        // None where a machine has no namespaces.
        assert!(is_right(page).is_none_or(|is_right| is_right == *expected), "{page}");
    }
}

/// Cargo keeps what it built by the path of its sources, in one folder for all pages: two projects in one place would be taken
/// for each other.
#[test]
fn no_two_pages_make_projects_of_one_name() {
    let pages: String = PLAYED.iter().map(|name| page(name)).collect();
    let commands = pages.split(['`', '\n', '$']).filter_map(|command| command.trim().strip_prefix("wasmcluster new "));
    let mut names = BTreeSet::new();
    for name in commands.filter(|name| !name.contains("--template")) {
        assert!(names.insert(name), "{name}");
    }
    assert!(names.len() > 3, "{names:?}");
}

/// All of `docs/` is in the site.
#[test]
fn the_site_has_every_page() {
    let pages = pages_of_site();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_page = name.ends_with(".md") && name != "SUMMARY.md";
        assert!(!is_page || pages.contains(&format!("docs/{name}")), "{name} is not in docs/SUMMARY.md");
    }
}

/// How browsers are led to a heading: small letters, `-` for blanks, nothing for other signs.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim();
    // Of a link, only its text.
    let text = text.replace("](", "\u{0}").split('\u{0}').enumerate().fold(String::new(), |all, (at, part)| {
        all + if at == 0 { part } else { part.split_once(')').map_or("", |(_, rest)| rest) }
    });
    let signs = text.chars().flat_map(char::to_lowercase).filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    signs.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The page without its code.
fn prose(page: &str) -> String {
    let mut is_code = false;
    let lines = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn anchors(page: &str) -> BTreeSet<String> {
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(anchor);
    let named = prose.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    headings.chain(named).collect()
}

#[test]
fn every_link_on_a_page_leads_somewhere() {
    let mut links = 0;
    for name in pages_of_site() {
        let text = page(&name);
        let folder = root().join(&name).parent().unwrap().to_owned();
        // What is between backquotes is code.
        let prose: String = prose(&text).split('`').step_by(2).collect::<Vec<_>>().join("code");
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { root().join(&name) } else { folder.join(path) };
            assert!(target.is_file(), "{name}: there is no file {link}");
            let has_anchor = || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor);
            assert!(anchor.is_empty() || has_anchor(), "{name}: there is no place {link}");
            let is_page = || {
                pages_of_site()
                    .iter()
                    .any(|page| root().join(page).canonicalize().unwrap() == target.canonicalize().unwrap())
            };
            assert!(!path.ends_with(".md") || is_page(), "{name}: {link} is not in docs/SUMMARY.md");
        }
    }
    assert!(links > 200, "{links}");
}

/// What `--help` says of every command, as `docs/cli.md` has it.
fn page_of_commands() -> String {
    let mut page = "# Commands\n\nWhat `--help` says of each command. `make pages` writes this page, and nothing here is edited by \
                    hand; the [reference](reference.md) says more about flags, files and formats.\n"
        .to_owned();
    for command in [""].into_iter().map(str::to_owned).chain(commands("")) {
        let name = format!("wasmcluster {command}");
        page += &format!("\n## {}\n\n```text\n{}\n```\n", name.trim(), help(&command).trim_end());
    }
    page
}

#[test]
fn the_page_of_commands_is_what_help_says() {
    let path = root().join("docs/cli.md");
    if std::env::var_os("WASMCLUSTER_PAGES").is_some() {
        fs::write(&path, page_of_commands()).unwrap();
    }
    // In lines, to show where.
    let (found, written) = (page("docs/cli.md"), page_of_commands());
    let differs = found.lines().zip(written.lines()).find(|(found, written)| found != written);
    assert_eq!(differs, None, "docs/cli.md is not what --help says: `make pages` writes it");
    assert_eq!(found.len(), written.len(), "docs/cli.md is not what --help says: `make pages` writes it");
}

/// What files on a page would be read as: settings by the server, everything else by what reads JSON and TOML.
#[test]
fn files_on_a_page_are_right() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("static")).unwrap();
    let (file, app) = (folder.path().join("wasmcluster.toml"), guest("hello"));
    let [file_arg, app] = [&file, &app].map(|path| path.to_str().unwrap());
    let mut files = 0;
    for name in pages_of_site() {
        for block in blocks(&page(&name)) {
            let place = format!("{name}:{}", block.line);
            let is_settings = block.text.contains("# wasmcluster.toml") || name == "docs/reference.md";
            files += 1;
            match block.language.as_str() {
                "json" => {
                    // One object, one in each line, or fields of one; `…` is anything.
                    let text = block.text.replace(",…", "");
                    let text = if text.starts_with('"') { format!("{{{text}}}") } else { text };
                    let values = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
                    values.for_each(|value| drop(value.unwrap_or_else(|error| panic!("{place}: {error}"))));
                }
                "toml" if is_settings => {
                    fs::write(&file, &block.text).unwrap();
                    let mut setup = Setup::bare(&["inspect", app, "--config", file_arg]);
                    setup.command.current_dir(folder.path());
                    let ended = setup.run();
                    assert_eq!(ended.code, Some(0), "{place}: {ended:?}");
                }
                "toml" => assert!(toml::from_str::<toml::Table>(&block.text).is_ok(), "{place}"),
                _ => files -= 1,
            }
        }
    }
    assert!(files > 7, "{files}");
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The values of an attribute in HTML.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!(" {name}=\"");
    let values: Vec<&str> = html.split(begin.as_str()).skip(1).filter_map(|rest| rest.split('"').next()).collect();
    values
}

#[test]
fn the_site_is_whole_and_loads_nothing_from_elsewhere() {
    if Tool::find("mdbook").is_none() {
        return println!("skipped: mdbook is not installed; scripts/book --install does that");
    }
    let built = Command::new(root().join("scripts/book")).output().unwrap();
    assert!(built.status.success(), "{built:?}");
    let html = root().join("target/book/html");
    let texts: BTreeMap<PathBuf, String> =
        files(&html).into_iter().filter_map(|path| Some((path.clone(), fs::read_to_string(path).ok()?))).collect();
    let pages = texts.iter().filter(|(path, _)| path.extension().is_some_and(|it| it == "html"));
    for (path, text) in pages {
        let is_extra = ["print.html", "toc.html", "404.html"].iter().any(|name| path.ends_with(name));
        for link in if is_extra { Vec::new() } else { attributes(text, "href") } {
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            if target.contains(':') {
                continue;
            }
            let target = if target.is_empty() { path.clone() } else { path.parent().unwrap().join(target) };
            let target = target.canonicalize().unwrap_or_else(|_| panic!("{}: there is no {link}", path.display()));
            let has_anchor = || attributes(&texts[&target], "id").contains(&anchor);
            assert!(anchor.is_empty() || has_anchor(), "{}: there is no place {link}", path.display());
        }
        let heads =
            text.split('<').filter(|tag| ["link ", "script ", "img ", "iframe "].iter().any(|it| tag.starts_with(it)));
        let loaded = heads.flat_map(|tag| [attributes(tag, "href"), attributes(tag, "src")].concat());
        let elsewhere: Vec<&str> = loaded.filter(|url| url.contains("//")).collect();
        assert!(elsewhere.is_empty(), "{}: {elsewhere:?}", path.display());
    }
    for (path, text) in texts.iter().filter(|(path, _)| path.extension().is_some_and(|it| it == "css")) {
        assert!(!text.contains("url(http") && !text.contains("@import"), "{}", path.display());
    }
}

/// What stands between backquotes, single or double ones.
fn quoted(text: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find('`') {
        let fence = if rest[at..].starts_with("``") { "``" } else { "`" };
        let Some((inside, after)) = rest[at + fence.len()..].split_once(fence) else { break };
        found.push(inside);
        rest = after;
    }
    found
}

/// The sources of the server without comments and unit tests, and with strings in one line as they are printed.
fn sources() -> String {
    let (mut sources, mut folders) = (String::new(), vec![root().join("host/src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let source = fs::read_to_string(path).unwrap();
                let (code, _) = source.split_once("\n#[cfg(test)]\nmod tests {").unwrap_or((&source, ""));
                let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                sources.extend(lines.flat_map(|line| [line, "\n"]));
            }
        }
    }
    let mut parts = sources.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |joined, part| joined + part.trim_start())
}

#[test]
fn messages_that_troubleshooting_quotes_are_in_the_sources() {
    let (page, sources) = (page("docs/troubleshooting.md"), sources());
    let rows = page.lines().filter(|line| line.starts_with('|')).filter_map(|row| row.split(" | ").next());
    let mut messages = 0;
    for message in rows.flat_map(quoted) {
        messages += 1;
        // What differs stands for itself between parts that must be there as they are.
        let parts = message.split(['…', '\'']).flat_map(|part| part.split(" N ")).flat_map(|part| part.split(": "));
        for part in parts.map(|part| part.split(" SIG").next().unwrap_or(part).trim()).filter(|part| part.len() > 2) {
            assert!(sources.contains(part), "no message has {part:?}, of {message:?}");
        }
    }
    assert!(messages > 60, "{messages}");
}
