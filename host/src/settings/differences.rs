//! What differs between the settings of two generations, for people: pure.

use std::collections::BTreeSet;

use super::{Application, Options};

/// The table that says how a folder is built: read anew before every build.
const BUILD: &str = "build";
/// Keys that cannot change while a cluster serves, or are changed by another command.
const NEED_RESTART: [&str; 21] = [
    "access-log",
    "access-log-format",
    "admin",
    "backlog",
    "control",
    "listen",
    "log-file",
    "log-format",
    "log-level",
    "name",
    "otlp",
    "otlp-header",
    "pin-cpus",
    "ready-min",
    "registry-ca",
    "registry-plain-http",
    "resume",
    "state-dir",
    "store",
    "watch",
    "workers",
];
/// Tables whose entries are settings of their own.
const TABLES: [&str; 3] = ["config", "env", "secrets"];
/// Keys whose values may hold a password.
const HIDDEN: [&str; 4] = ["env", "kv", "otlp", "otlp-header"];

/// One setting that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SettingChange {
    /// As it stands in the file: `max-body`, or `[env] GREETING`.
    pub(crate) what: String,
    /// What the file said and says. None if it says nothing, or nobody is to see it.
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
}

impl SettingChange {
    pub(super) fn needs_restart(&self) -> bool {
        NEED_RESTART.contains(&self.what.as_str())
    }

    fn unshown(what: String) -> Self {
        Self { what, from: None, to: None }
    }

    /// With the name of its table, if it is an entry of one.
    fn parts(&self) -> (Option<&str>, &str) {
        match self.what.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((table, key)) => (Some(table), key),
            None => (None, &self.what),
        }
    }
}

impl Options {
    /// Whether these say what the change is about.
    pub(super) fn say(&self, change: &SettingChange) -> bool {
        let among = |pairs: &[(String, String)], key: &str| pairs.iter().any(|(said, _)| said == key);
        match change.parts() {
            (Some("config"), key) => among(&self.set, key),
            (Some("env"), key) => among(&self.env, key),
            (Some(_), key) => self.set_secret.iter().any(|secret| secret.key == key),
            (None, key) => self.said().contains(&key.replace('-', "_").as_str()),
        }
    }
}

/// What differs between two versions of the file.
pub(super) fn between(before: &toml::Table, now: &toml::Table) -> Vec<SettingChange> {
    let mut changes = Vec::new();
    for key in both(before, now).into_iter().filter(|key| *key != BUILD) {
        let (from, to) = (before.get(key), now.get(key));
        if TABLES.contains(&key.as_str()) {
            let empty = toml::Table::new();
            let table =
                |value: Option<&'_ toml::Value>| value.and_then(toml::Value::as_table).unwrap_or(&empty).clone();
            let (from, to) = (table(from), table(to));
            let entries = both(&from, &to).into_iter();
            let entries = entries.filter_map(|entry| change(key, from.get(entry), to.get(entry), Some(entry)));
            changes.extend(entries);
        } else {
            changes.extend(change(key, from, to, None));
        }
    }
    changes
}

fn both<'a>(before: &'a toml::Table, now: &'a toml::Table) -> BTreeSet<&'a String> {
    before.keys().chain(now.keys()).collect()
}

fn change(
    key: &str,
    from: Option<&toml::Value>,
    to: Option<&toml::Value>,
    entry: Option<&String>,
) -> Option<SettingChange> {
    if from == to {
        return None;
    }
    let what = entry.map_or_else(|| key.to_owned(), |entry| format!("[{key}] {entry}"));
    if HIDDEN.contains(&key) {
        return Some(SettingChange::unshown(what));
    }
    Some(SettingChange { what, from: from.map(shown), to: to.map(shown) })
}

fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(values) => format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", ")),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(is_so) => is_so.to_string(),
        // No key takes any.
        toml::Value::Datetime(_) | toml::Value::Table(_) => String::new(),
    }
}

/// What differs although the file says the same, without what is `known`: secrets and passwords, which nobody is told, places
/// of stores, and limits that follow from the machine.
pub(super) fn of_itself(before: &Application, now: &Application, known: &[SettingChange]) -> Vec<SettingChange> {
    let secrets = before.values.changed_secrets(&now.values).map(|key| format!("[secrets] {key}"));
    let passwords = before.granted.changed_passwords(&now.granted).map(|store| format!("the password of --kv {store}"));
    let is_known = |what: &str| known.iter().any(|change| change.what == what);
    let unshown = secrets.chain(passwords.filter(|_| !is_known("kv"))).map(SettingChange::unshown);
    let moved = before.granted.moved_stores(&now.granted).map(|(store, from, to)| SettingChange {
        what: format!("--kv {store}"),
        from: Some(from.to_string()),
        to: Some(to.to_string()),
    });
    let (limits, before) = (now.limits.in_force().by_flag, before.limits.in_force().by_flag);
    let limits = limits.into_iter().filter_map(|(what, to)| {
        let from = before.get(&what).filter(|from| **from != to)?.clone();
        Some(SettingChange { what, from: Some(from), to: Some(to) })
    });
    let all = unshown.chain(moved.filter(|_| !is_known("kv"))).chain(limits);
    all.filter(|change| !is_known(&change.what)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::super::Settings;
    use super::*;

    fn changes(before: &str, now: &str) -> Vec<String> {
        let changes = between(&before.parse().unwrap(), &now.parse().unwrap());
        let said = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        changes.into_iter().map(|it| format!("{}: {} to {}", it.what, said(it.from), said(it.to))).collect()
    }

    #[test]
    fn what_has_changed_is_named_as_it_stands_in_the_file() {
        let first =
            "workers = 2\nsoak = \"1s\"\nkv = [\"a=redis://:hush@x\"]\n[env]\nA = \"1\"\n[build]\ncommand = \"x\"\n";
        assert_eq!(changes(first, first), [""; 0]);
        let spaced = first.replace("workers = 2", "# more\nworkers  =  2").replace("\"x\"", "\"y\"");
        assert_eq!(changes(first, &spaced), [""; 0]);
        let second = "workers = 3\nmin-ready = \"2s\"\nkv = []\n[env]\nA = \"2\"\n[config]\ng = \"hi\"\n[secrets]\ns = \"env:X\"";
        assert_eq!(
            changes(first, second),
            [
                "[config] g: - to hi",
                "[env] A: - to -",
                "kv: - to -",
                "min-ready: - to 2s",
                "[secrets] s: - to env:X",
                "soak: 1s to -",
                "workers: 2 to 3",
            ]
        );
    }

    #[test]
    fn the_command_line_wins() {
        let flags = Options {
            set: vec![("g".into(), "1".into())],
            soak: "1s".parse().ok(),
            set_secret: vec!["s=env:X".parse().unwrap()],
            ..Options::default()
        };
        for (what, is_said) in
            [("[config] g", true), ("[env] g", false), ("soak", true), ("min-ready", false), ("[secrets] s", true)]
        {
            assert_eq!(flags.say(&SettingChange::unshown(what.into())), is_said, "{what}");
        }
    }

    /// A key that is said to need a restart changes the cluster, and none of the others does.
    #[test]
    fn what_needs_a_restart_is_what_a_generation_does_not_have() {
        let command = Options::augment_args(clap::Command::new("serve"));
        let keys: Vec<String> = command.get_arguments().filter_map(|flag| flag.get_long().map(str::to_owned)).collect();
        assert!(NEED_RESTART.iter().all(|key| keys.iter().any(|known| known == key)));
        let cluster = |text: &str| {
            let options = super::super::file::parse(text).unwrap();
            Settings::new("app.wasm".into(), &options).map(|settings| format!("{:?}", settings.cluster))
        };
        let usual = cluster("").unwrap();
        let mut seen = 0;
        for key in keys.iter().filter(|key| !["env", "set", "set-secret"].contains(&key.as_str())) {
            // Some need others, or are as usual.
            let Ok(changed) = cluster(&super::super::file::example(key).unwrap()) else { continue };
            let is_listed = NEED_RESTART.contains(&key.as_str());
            assert!(is_listed || changed == usual, "{key}");
            seen += usize::from(is_listed && changed != usual);
        }
        assert!(seen >= 8, "{seen}");
    }
}
