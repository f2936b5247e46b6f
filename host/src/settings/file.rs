//! Reads the configuration file, and says what is wrong with it: where, what was meant perhaps, and what to write instead.
//! The keys and the form of their values come from the flags, so that neither can say what the other does not.

use std::path::Path;

use anyhow::Context;
use clap::{Arg, ArgAction, Args};

use super::{App, DEFAULT_FILE, Options};
use crate::os::files;

/// Words that people look for, and the key that they mean.
pub(crate) const OTHER_WORDS: [(&str, &str); 19] = [
    ("address", "listen"),
    ("bind", "listen"),
    ("host", "listen"),
    ("port", "listen"),
    ("unix", "listen"),
    ("processes", "workers"),
    ("threads", "workers"),
    ("timeout", "request-timeout"),
    ("memory", "max-memory"),
    ("cache", "store"),
    ("cache-dir", "store"),
    ("mount", "dir"),
    ("volume", "dir"),
    ("allow", "allow-host"),
    ("graceful-timeout", "shutdown-timeout"),
    ("grace-period", "shutdown-timeout"),
    ("certificate", "tls-cert"),
    ("cert", "tls-cert"),
    ("private-key", "tls-key"),
];
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// How alike a word must be to a key to be a slip of the pen; clap asks for as much of flags.
const ALIKE: f64 = 0.7;

/// The options that the file's text says, or where and how it is wrong: `line 2: …`, and the line itself below.
pub(super) fn parse(text: &str) -> Result<Options, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let Some(place) = error.span().map(|span| Place::of(text, span.start)) else {
            return error.message().trim_end().to_owned();
        };
        let Place { number, line, .. } = &place;
        let explained = format!("line {number}: {}", explain(error.message(), &place));
        if may_hold_secret(&place) { explained } else { format!("{explained}\n  {number} | {}", line.trim_end()) }
    })
}

impl Options {
    /// What the file says that belongs to `app`: the default file in it, if it is a folder that has one, or else the one
    /// in the current folder, if there is one.
    pub(crate) fn from_default_file(app: &App) -> anyhow::Result<Self> {
        let files = [app.path().map(|path| path.join(DEFAULT_FILE)), Some(DEFAULT_FILE.into())];
        files
            .iter()
            .flatten()
            .find(|file| file.exists())
            .map_or_else(|| Ok(Self::default()), |file| Self::from_file(file))
    }

    pub(crate) fn from_file(path: &Path) -> anyhow::Result<Self> {
        Ok(read(path)?.0)
    }
}

/// The options that the file says, and the same as it says them.
pub(super) fn read(path: &Path) -> anyhow::Result<(Options, toml::Table)> {
    let text = read_trusted(path).with_context(|| format!("cannot read {}", path.display()))?;
    let options = parse(&text).map_err(|reason| anyhow::anyhow!("{}, {reason}", path.display()))?;
    // What has become options is a table.
    Ok((options, text.parse().unwrap_or_default()))
}

/// A file that others could have written is not gone by: it says what is run, and what it may do.
fn read_trusted(path: &Path) -> anyhow::Result<String> {
    let bytes = files::contents_if(path, MAX_FILE, files::check_trusted)?;
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("it is not UTF-8"))
}

/// Where in the file it is.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    number: usize,
    line: &'a str,
    table: Option<&'a str>,
    key: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn of(text: &'a str, offset: usize) -> Self {
        // A value may take several lines, of which the first has the key.
        let lines: Vec<&str> = text.get(..offset).unwrap_or(text).split('\n').collect();
        let line = text.split('\n').nth(lines.len() - 1).unwrap_or_default();
        let above = || lines[..lines.len() - 1].iter().rev().copied();
        let table = |line: &'a str| line.trim().strip_prefix('[')?.split(']').next().map(str::trim);
        let key = |line: &'a str| line.split_once('=').map(|(key, _)| key.trim().trim_matches('"'));
        Self {
            number: lines.len(),
            line,
            table: std::iter::once(line).chain(above()).find_map(table),
            // What is wrong with a whole table is nothing of the key above it.
            key: key(line).or_else(|| above().find_map(key)).filter(|_| !line.trim_start().starts_with('[')),
        }
    }
}

/// Whether somebody may have written a password there, be it by mistake.
fn may_hold_secret(place: &Place<'_>) -> bool {
    let line = place.line.to_ascii_lowercase();
    let keys = place.key.into_iter().chain(line.split('.').next());
    let mut names = place.table.into_iter().chain(keys).map(|name| name.trim_matches(['"', '\'', ' ', '[', '{']));
    let is_variable = place.table == Some("env") && place.key.and_then(example).is_none();
    is_variable
        || names.any(|name| ["secrets", "set-secret", "kv"].contains(&name) || name.starts_with("secrets"))
        || ["@", "password", "secret", "token"].iter().any(|sign| line.contains(sign))
}

fn explain(message: &str, place: &Place<'_>) -> String {
    // The parser's own words, with names between backquotes: first what it found, then what it would have taken.
    let mut names = message.split('`').skip(1).step_by(2);
    let found = names.next().unwrap_or_default();
    if message.starts_with("unknown field") {
        if place.line.trim_start().starts_with('[') {
            return unknown_table(found);
        }
        return unknown(found, &names.collect::<Vec<_>>());
    }
    if message.starts_with("missing field") {
        return format!("`{found}` is missing; write {}", example(found).unwrap_or_else(|| format!("{found} = …")));
    }
    if message.starts_with("duplicate key") {
        return "this key is set twice".into();
    }
    if place.line.trim_start().starts_with("[[") {
        let name = place.line.trim().trim_matches(['[', ']']);
        return format!("this is a list of tables; write [{name}]");
    }
    let Some(key) = place.key else { return message.trim_end().to_owned() };
    let has_no_value = place.line.split_once('=').is_some_and(|(_, value)| value.trim().is_empty());
    if let Some(example) = example(key).filter(|_| has_no_value) {
        return format!("`{key}` has no value; write {example}");
    }
    let is_type =
        ["invalid type", "invalid value: integer", "wanted string"].iter().any(|start| message.starts_with(start));
    match (place.table, example(key)) {
        (Some(table @ ("env" | "config" | "secrets")), _) if is_type => {
            let misplaced =
                if example(key).is_some() { format!(", or put the key above [{table}]") } else { String::new() };
            format!("the values of [{table}] are strings; write {key} = \"…\"{misplaced}")
        }
        (_, Some(example)) if is_type => format!("`{key}` takes {}; write {example}", form(key)),
        _ if message.starts_with("unknown variant") => {
            let others: Vec<String> = names.map(|name| format!("`{name}`")).collect();
            format!("`{key}`: `{found}` is not one of {}", others.join(", "))
        }
        (_, Some(_)) => format!("`{key}`: {}", message.trim_end()),
        _ => message.trim_end().to_owned(),
    }
}

fn unknown_table(name: &str) -> String {
    match name {
        "settings" | "set" | "values" => format!("unknown table [{name}]; did you mean [config]?"),
        "secret" | "set-secret" | "credentials" => format!("unknown table [{name}]; did you mean [secrets]?"),
        "environment" | "vars" | "variables" => format!("unknown table [{name}]; did you mean [env]?"),
        _ => format!(
            "unknown table [{name}]; the tables are [env], [config], [secrets] and [build], and all other keys go above them"
        ),
    }
}

fn unknown(key: &str, keys: &[&str]) -> String {
    match meant(key, keys) {
        Some(meant) => format!("unknown key `{key}`; did you mean `{meant}`?"),
        // Those of [build] are few.
        None if keys.len() < 4 => format!("unknown key `{key}`; the keys are {}", keys.join(", ")),
        None => format!("unknown key `{key}`; the keys are the flags of `wasmcluster serve --help`"),
    }
}

/// What of `keys` was meant by something else, if that can be told.
pub(crate) fn meant<'a>(word: &str, keys: &[&'a str]) -> Option<&'a str> {
    let word = word.replace('_', "-").to_ascii_lowercase();
    let known = OTHER_WORDS.iter().find(|(other, _)| *other == word).map(|(_, key)| *key);
    if let Some(key) = keys.iter().copied().find(|&key| key == word || Some(key) == known) {
        return Some(key);
    }
    let alike = keys.iter().map(|key| (strsim::jaro(&word, key), *key)).filter(|(alike, _)| *alike > ALIKE);
    alike.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, key)| key)
}

fn flag(key: &str) -> Option<Arg> {
    let flags = Options::augment_args(clap::Command::new("serve"));
    flags.get_arguments().find(|flag| flag.get_long() == Some(key)).cloned()
}

/// The name that `--help` gives to the value.
fn value_name(flag: &Arg) -> String {
    flag.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default()
}

/// What kind of value it takes.
fn form(key: &str) -> &'static str {
    let Some(flag) = flag(key) else {
        return if ["build", "config", "secrets"].contains(&key) { "a table" } else { "a string" };
    };
    match (flag.get_action(), value_name(&flag).as_str()) {
        (ArgAction::SetTrue, _) => "true or false",
        (_, "K=V" | "K=SOURCE") => "a table",
        (ArgAction::Append, _) => "a list",
        (_, "N") => "a whole number, 1 or more",
        (_, "TIME") => "a time",
        (_, "SIZE") => "a size",
        (_, "PERCENT") => "a number from 0 to 100",
        _ => "a string",
    }
}

/// A line as it could stand in the file.
pub(super) fn example(key: &str) -> Option<String> {
    match key {
        "config" => return Some("[config] and below it KEY = \"value\"".into()),
        "secrets" => return Some("[secrets] and below it KEY = \"file:/run/secrets/key\"".into()),
        "build" => return Some("[build] and below it command = \"…\" and component = \"…\"".into()),
        "command" => return Some("command = \"npm run build\"".into()),
        "component" => return Some("component = \"dist/app.wasm\"".into()),
        _ => {}
    }
    let flag = flag(key)?;
    let value = match (key, value_name(&flag).as_str()) {
        (_, "K=V") => return Some("[env] and below it NAME = \"value\"".into()),
        ("health-path", _) => "\"/health\"",
        ("control", _) => "\"/run/shop.sock\"",
        ("store", _) => "\"/var/cache/wasmcluster\"",
        ("tls-key", _) => "\"/etc/ssl/private/shop.key\"",
        ("otlp", _) => "\"http://localhost:4318\"",
        ("otlp-header", _) => "\"authorization=file:/run/secrets/otlp\"",
        ("access-log", _) => "\"/var/log/wasmcluster/access.log\"",
        ("log-file", _) => "\"/var/log/wasmcluster/wasmcluster.log\"",
        ("state-dir", _) => "\"/var/lib/wasmcluster\"",
        (_, "FILE") => "\"/etc/ssl/certs/shop.pem\"",
        (_, "WHETHER") => "\"optional\"",
        (_, "HOST") => "\"registry.internal:5000\"",
        (_, "NETWORK") => "\"10.0.0.0/8\"",
        (_, "ADDR") => "\"127.0.0.1:8080\"",
        (_, "N") => "4",
        (_, "NAME") => "\"shop\"",
        (_, "K") => "\"HOME\"",
        (_, "HOST::GUEST[:ro]") => "\"./data::/data\"",
        (_, "NAME=URL") => "\"sessions=file:./sessions\"",
        (_, "HOST:PORT") => "\"db.example.com:5432\"",
        (_, "URL") => "\"https://api.example.com\"",
        (_, "TIME") => "\"30s\"",
        (_, "SIZE") => "\"64MiB\"",
        (_, "LEVEL") => "\"info\"",
        (_, "FORMAT") => "\"json\"",
        // A switch, or a number of another kind.
        _ if matches!(flag.get_action(), ArgAction::SetTrue) => "true",
        _ => "2",
    };
    Some(match flag.get_action() {
        ArgAction::Append => format!("{key} = [{value}]"),
        _ => format!("{key} = {value}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_with_their_line_and_what_to_write() {
        for (text, said) in [
            ("workers = 2\nworker = 3\n", "line 2: unknown key `worker`; did you mean `workers`?\n  2 | worker = 3"),
            ("port = 80", "line 1: unknown key `port`; did you mean `listen`?\n  1 | port = 80"),
            (
                "log_level = \"info\"",
                "line 1: unknown key `log_level`; did you mean `log-level`?\n  1 | log_level = \"info\"",
            ),
            (
                "zzz = 1",
                "line 1: unknown key `zzz`; the keys are the flags of `wasmcluster serve --help`\n  1 | zzz = 1",
            ),
            (
                "listen = \"8080\"",
                "line 1: `listen` takes a list; write listen = [\"127.0.0.1:8080\"]\n  1 | listen = \"8080\"",
            ),
            (
                "env = \"A=B\"",
                "line 1: `env` takes a table; write [env] and below it NAME = \"value\"\n  1 | env = \"A=B\"",
            ),
            ("\nsoak = 10", "line 2: `soak` takes a time; write soak = \"30s\"\n  2 | soak = 10"),
            ("max-body = 10", "line 1: `max-body` takes a size; write max-body = \"64MiB\"\n  1 | max-body = 10"),
            ("watch = \"yes\"", "line 1: `watch` takes true or false; write watch = true\n  1 | watch = \"yes\""),
            (
                "[env]\nA = \"1\"\nworkers = 4",
                "line 3: the values of [env] are strings; write workers = \"…\", or put the key above [env]\n  3 | workers = 4",
            ),
            ("[[env]]\nA = 1", "line 1: this is a list of tables; write [env]\n  1 | [[env]]"),
            (
                "[server]\nworkers = 2",
                "line 1: unknown table [server]; the tables are [env], [config], [secrets] and [build]",
            ),
            ("[environment]\nA = \"1\"", "line 1: unknown table [environment]; did you mean [env]?"),
            ("[build]\ncommand = [\"npm\"]", "line 2: `command` takes a string; write command = \"npm run build\""),
            ("soak = \"1s\"\n[secrets]\ndb = \"hush\"", "line 2: the secret \"db\" has no source that is known"),
            ("secrets = { db = \"hush\" }", "line 1: "),
            ("secrets.db = \"hush\"", "line 1: "),
            ("[\"secrets\"]\ndb = hush", "line 2: "),
            ("[env]\nDB_PASSWORD = hush", "line 2: "),
            ("[env]\nTHING = hush", "line 2: "),
            ("kv = [\n\"a=redis://:hush@x\"\n\"b=memory:\"]", "line "),
            ("workers =", "line 1: `workers` has no value; write workers = 4"),
            ("log-format = 1", "line 1: `log-format` takes a string; write log-format = \"json\""),
            ("dir = [\n  \"./data::/data\",\n  \"data\",\n]", "line 1: `dir`: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(said) && !error.contains("hush"), "{text}: {error}");
        }
    }

    #[test]
    fn every_key_has_an_example_that_is_right() {
        let flags = Options::augment_args(clap::Command::new("serve"));
        for key in
            flags.get_arguments().filter_map(Arg::get_long).filter(|key| !["env", "set", "set-secret"].contains(key))
        {
            let example = example(key).unwrap();
            assert!(parse(&example).is_ok(), "{example}: {:?}", parse(&example));
        }
        let keys: Vec<&str> = flags.get_arguments().filter_map(Arg::get_long).collect();
        for (word, key) in OTHER_WORDS {
            assert!(keys.contains(&key) && !keys.contains(&word), "{word}");
        }
    }
}
