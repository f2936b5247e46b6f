//! Where settings come from: the command line and a file. They are read at the start, and again with every reload: what can
//! change while a cluster serves becomes part of the new generation.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;

use super::differences::{self, SettingChange};
use super::{App, Application, Cluster, DEFAULT_FILE, Options, Settings, doubts, file};
use crate::os::files;

/// The command line, and which file belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct SettingsSources {
    app: App,
    flags: Options,
    /// The file, as it was named, and as an absolute path.
    named: PathBuf,
    file: PathBuf,
    /// By --config, so that it must be there.
    is_named: bool,
    /// A thread is at it. A file system that hangs keeps one, not one for every reload.
    is_read: Arc<AtomicBool>,
}

/// What was read while the cluster serves.
#[derive(Debug)]
pub(crate) struct Reread {
    pub(crate) application: Application,
    pub(crate) table: toml::Table,
    /// What is allowed and hardly meant, a line each.
    pub(crate) doubts: Vec<String>,
}

/// Lasts as long as a thread reads.
struct Reading<'a>(&'a AtomicBool);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl SettingsSources {
    /// What `serve APP` is told: by flags, and by a file, the default one if none is named.
    pub(crate) fn new(app: App, flags: Options, config: Option<&Path>) -> io::Result<Self> {
        // What is in a registry has no folder.
        let in_app = app.path().map(|path| path.join(DEFAULT_FILE));
        let is_there = |file: &PathBuf| file.exists() || (app.folder().is_some() && !Path::new(DEFAULT_FILE).exists());
        let default = in_app.filter(is_there).unwrap_or_else(|| DEFAULT_FILE.into());
        let named = config.map_or(default, Path::to_owned);
        let file = files::absolute(&named)?;
        Ok(Self { app, flags, named, file, is_named: config.is_some(), is_read: Arc::default() })
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Does what reads settings and secrets, unless a thread is still at that.
    pub(crate) fn alone<T>(&self, read: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        ensure!(
            !self.is_read.swap(true, Ordering::Relaxed),
            "{} and the secrets are still being read for a reload before this one; does their file system hang?",
            self.file.display()
        );
        let _reading = Reading(&self.is_read);
        read()
    }

    /// Reads all of them, for a cluster that is to start.
    pub(crate) fn read(&self) -> anyhow::Result<Settings> {
        let (options, table) = self.options(self.is_named, None)?;
        let settings = Settings::new(self.app.clone(), &options).map_err(|error| self.locate(error))?;
        Ok(Settings { table, ..settings })
    }

    /// The same for somebody who only looks: without secrets, which may be elsewhere.
    pub(crate) fn inspect(&self) -> anyhow::Result<Settings> {
        let (options, _) = self.options(self.is_named, None)?;
        Settings::new(self.app.clone(), &options.without_secrets()).map_err(|error| self.locate(error))
    }

    /// Reads all of them again, for a cluster that serves by these settings. A file that is gone is an error then: it
    /// would take all grants and limits with it.
    pub(crate) fn read_again(&self, cluster: &Cluster, before: &toml::Table) -> anyhow::Result<Reread> {
        let (options, table) = self.options(self.is_named || !before.is_empty(), Some(cluster.watch))?;
        let mut doubts = doubts::of(&options, cluster.workers);
        let application = Application::new(&options, cluster, &mut doubts);
        Ok(Reread { application: application.map_err(|error| self.locate(error))?, table, doubts })
    }

    /// What the command line and the file say together, and the file alone. `watches` is whether a cluster that serves
    /// already does.
    fn options(&self, must_be_there: bool, watches: Option<bool>) -> anyhow::Result<(Options, toml::Table)> {
        // Whoever starts it is told of the file as they named it.
        let path = if watches.is_none() { &self.named } else { &self.file };
        let (said, table) = if must_be_there || self.file.exists() {
            file::read(path)?
        } else {
            (Options::default(), toml::Table::new())
        };
        let options = self.flags.clone().or(said);
        let is_development = watches.unwrap_or(options.watch) && self.app.folder().is_some();
        Ok((if is_development { options.for_development() } else { options }, table))
    }

    /// What differs between two generations, as far as it is in force: the command line wins over the file.
    pub(crate) fn changes(
        &self,
        before: (&Application, &toml::Table),
        now: (&Application, &toml::Table),
    ) -> Vec<SettingChange> {
        let mut changes = differences::between(before.1, now.1);
        changes.retain(|change| !change.needs_restart() && !self.flags.say(change));
        let known = changes.clone();
        changes.extend(differences::of_itself(before.0, now.0, &known));
        changes
    }

    /// What the file says now that nobody will go by before the next start.
    pub(crate) fn waiting(&self, start: &toml::Table, now: &toml::Table) -> Option<String> {
        let changes = differences::between(start, now);
        let waiting = changes.iter().filter(|change| change.needs_restart() && !self.flags.say(change));
        let keys: Vec<&str> = waiting.map(|change| change.what.as_str()).collect();
        (!keys.is_empty()).then(|| {
            format!(
                "{} has changed ({}), which cannot change while the cluster serves: restart it to apply this",
                self.file.display(),
                keys.join(", ")
            )
        })
    }

    /// An error about a flag's value, with the line that says it, if it is the file that does.
    fn locate(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        let is_part_of_key = |c: char| c.is_ascii_lowercase() || c == '-';
        let Some(key) = text.strip_prefix("--").and_then(|rest| rest.split(|c| !is_part_of_key(c)).next()) else {
            return error;
        };
        if self.flags.said().contains(&key.replace('-', "_").as_str()) {
            return error;
        }
        let says_it = |line: &str| line.split_once('=').is_some_and(|(said, _)| said.trim() == key);
        let file = std::fs::read_to_string(&self.file).unwrap_or_default();
        match file.lines().position(says_it) {
            Some(index) => anyhow::anyhow!("{}, line {}: {text}", self.file.display(), index + 1),
            None => error,
        }
    }
}
