//! The configuration file as it was when the cluster started. It is read only then: whoever changes it later is told what
//! waits for a restart.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::DEFAULT_FILE;
use crate::os::files;

/// The table that says how a folder is built: read anew before every build.
const BUILD: &str = "build";

/// The file, or that there was none.
#[derive(Clone, Debug)]
pub(crate) struct SettingsFile {
    path: PathBuf,
    table: toml::Table,
    /// A thread is at it. A file system that hangs keeps one, not one for every look.
    is_looked_at: Arc<AtomicBool>,
}

impl SettingsFile {
    /// The file as it is now. One that cannot be read has been complained of already.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let path = files::absolute(path)?;
        let table = read(&path).unwrap_or_default();
        Ok(Self { path, table, is_looked_at: Arc::default() })
    }

    /// The one that belongs to `app`, if no other is named, whether it is there or not.
    pub(crate) fn default_for(app: &Path) -> io::Result<Self> {
        let in_app = app.join(DEFAULT_FILE);
        let has_none = !in_app.exists() && (!app.is_dir() || Path::new(DEFAULT_FILE).exists());
        Self::at(if has_none { Path::new(DEFAULT_FILE) } else { &in_app })
    }

    /// An error about a flag's value, with the line that says it, if it is this file that does.
    pub(crate) fn locate(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        let is_part_of_key = |c: char| c.is_ascii_lowercase() || c == '-';
        let Some(key) = text.strip_prefix("--").and_then(|rest| rest.split(|c| !is_part_of_key(c)).next()) else {
            return error;
        };
        let is_flag = |word: &str| word.strip_prefix("--").is_some_and(|word| word.split('=').next() == Some(key));
        if std::env::args_os().any(|word| word.to_str().is_some_and(is_flag)) {
            return error;
        }
        let says_it = |line: &str| line.split_once('=').is_some_and(|(said, _)| said.trim() == key);
        let file = fs::read_to_string(&self.path).unwrap_or_default();
        match file.lines().position(says_it) {
            Some(index) => anyhow::anyhow!("{}, line {}: {text}", self.path.display(), index + 1),
            None => error,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What in the file has changed since, if anything has that needs a restart.
    pub(crate) fn changes(&self) -> Option<String> {
        let needs = "restart the cluster to apply this";
        match read(&self.path) {
            Ok(now) => {
                let keys = changed_keys(&self.table, &now).join(", ");
                (!keys.is_empty()).then(|| format!("{} has changed ({keys}); {needs}", self.path.display()))
            }
            Err(reason) => Some(format!("{} has changed and cannot be read: {reason}; {needs}", self.path.display())),
        }
    }

    /// Looks on a thread of its own, and tells if there is something to tell.
    pub(crate) fn look(&self, tell: impl FnOnce(String) + Send + 'static) {
        if self.is_looked_at.swap(true, Ordering::Relaxed) {
            return;
        }
        let file = self.clone();
        let looking = std::thread::Builder::new().name("settings".into()).spawn(move || {
            if let Some(changes) = file.changes() {
                tell(changes);
            }
            file.is_looked_at.store(false, Ordering::Relaxed);
        });
        if looking.is_err() {
            self.is_looked_at.store(false, Ordering::Relaxed);
        }
    }
}

/// An error is one line.
fn read(path: &Path) -> Result<toml::Table, String> {
    match fs::read_to_string(path) {
        Ok(text) => text.parse().map_err(|error: toml::de::Error| error.message().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(toml::Table::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// As they stand in the file: tables in brackets.
fn changed_keys(before: &toml::Table, now: &toml::Table) -> Vec<String> {
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).filter(|key| *key != BUILD).collect();
    let changed = keys.into_iter().filter(|key| before.get(*key) != now.get(*key));
    changed
        .map(|key| {
            let is_table = before.get(key).or(now.get(key)).is_some_and(toml::Value::is_table);
            if is_table { format!("[{key}]") } else { key.clone() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_in_the_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DEFAULT_FILE);
        let write = |text: &str| fs::write(&path, text).unwrap();
        let none = SettingsFile::default_for(folder.path()).unwrap();
        assert_eq!(none.changes(), None);
        let first = "workers = 2\nsoak = \"1s\"\n[env]\nA = \"1\"\n[build]\ncommand = \"make\"\n";
        write(first);
        assert!(none.changes().unwrap().contains("([env], soak, workers)"), "{:?}", none.changes());
        let file = SettingsFile::default_for(folder.path()).unwrap();
        for (text, expected) in [
            (first.to_owned(), None),
            (first.replace("workers = 2", "# more\nworkers  =  2"), None),
            (first.replace("make", "just"), None),
            (first.replace("workers = 2", "workers = 3"), Some("(workers)")),
            (first.replace("soak", "min-ready"), Some("(min-ready, soak)")),
            (first.replace("A = \"1\"", "A = \"2\""), Some("([env])")),
            ("workers =".to_owned(), Some("cannot be read")),
        ] {
            write(&text);
            let changes = file.changes();
            assert_eq!(changes.is_some(), expected.is_some(), "{text}: {changes:?}");
            assert!(changes.unwrap_or_default().contains(expected.unwrap_or_default()), "{text}");
        }
        write("soak = \"1s\"\nworkers = 5000");
        let located = |text: &str| file.locate(anyhow::anyhow!("{text}")).to_string();
        assert!(located("--workers 5000 is over the limit").ends_with(", line 2: --workers 5000 is over the limit"));
        for text in ["--name is too long", "no flag", "--"] {
            assert_eq!(located(text), text);
        }
        fs::remove_file(&path).unwrap();
        assert!(file.changes().unwrap().contains("([env], soak, workers)"));
    }
}
