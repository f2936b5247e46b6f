//! What can change while a cluster runs: `wasmcluster config`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::logging::LogLevel;

/// Values for guests: how many, and bytes of all of them with their keys.
const MAX_VALUES: usize = 1024;
const MAX_BYTES: usize = 256 * 1024;
/// Bytes of a key.
const MAX_KEY: usize = 256;
/// What the host's own keys begin with.
const OWN: &str = "wasmcluster.";
const LOG_LEVEL: &str = "wasmcluster.log-level";

/// What changes of a configuration: a key with its new value, or without one.
pub(crate) type Changes = BTreeMap<String, Option<String>>;

/// What can change while a cluster runs. Keys that begin with `wasmcluster.` are the host's own; all others are values for
/// guests (`wasi:config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LiveConfig {
    pub(crate) log_level: LogLevel,
    pub(crate) values: BTreeMap<String, String>,
    /// Which of the values were changed since the start, also by a primary before this one.
    #[serde(skip)]
    pub(crate) changed: Changes,
}

impl LiveConfig {
    /// What a cluster starts with.
    pub(crate) fn new(log_level: LogLevel, values: &[(String, String)]) -> Result<Self, String> {
        let config = Self { log_level, values: values.iter().cloned().collect(), changed: Changes::new() };
        config.values.keys().try_for_each(|key| check_key(key))?;
        config.check()?;
        Ok(config)
    }

    /// Every key with its value.
    pub(crate) fn entries(&self) -> BTreeMap<String, String> {
        let own = [(LOG_LEVEL.to_owned(), self.log_level.to_string())];
        own.into_iter().chain(self.values.clone()).collect()
    }

    /// This configuration with other values for some keys, or what is wrong with one.
    pub(crate) fn with(&self, changes: &Changes) -> Result<Self, String> {
        let mut config = self.clone();
        for (key, value) in changes {
            match (key.as_str(), value) {
                (LOG_LEVEL, Some(value)) => {
                    config.log_level = value.parse().map_err(|error| format!("{key}: {error}"))?;
                }
                (LOG_LEVEL, None) => return Err(format!("{key} always has a value; set another")),
                (own, _) if own.starts_with(OWN) => {
                    return Err(format!(
                        "unknown key {key:?}; of those that begin with {OWN} there is only {LOG_LEVEL}"
                    ));
                }
                (_, None) if !config.values.contains_key(key) => {
                    return Err(format!("{key:?} is not set; `wasmcluster config get` lists what is"));
                }
                (_, value) => {
                    check_key(key)?;
                    config.put(key, value.as_deref());
                }
            }
        }
        config.check()?;
        Ok(config)
    }

    /// With what a primary before this one had changed.
    pub(crate) fn resumed(mut self, changed: &Changes) -> Self {
        for (key, value) in changed {
            self.put(key, value.as_deref());
        }
        self
    }

    fn put(&mut self, key: &str, value: Option<&str>) {
        match value {
            Some(value) => drop(self.values.insert(key.to_owned(), value.to_owned())),
            None => drop(self.values.remove(key)),
        }
        self.changed.insert(key.to_owned(), value.map(ToOwned::to_owned));
    }

    fn check(&self) -> Result<(), String> {
        let bytes: usize = self.values.iter().map(|(key, value)| key.len() + value.len()).sum();
        match self.values.len() {
            count if count > MAX_VALUES => Err(format!("guests would have {count} values; the limit is {MAX_VALUES}")),
            _ if bytes > MAX_BYTES => {
                Err(format!("the values for guests would take {bytes} bytes; the limit is {MAX_BYTES}"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a value for guests may be called so.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    match key {
        "" => Err("the key is empty".into()),
        _ if key.starts_with(OWN) => Err(format!("{key:?}: keys that begin with {OWN} are the server's own")),
        _ if key.len() > MAX_KEY => Err(format!("a key has {} bytes; the limit is {MAX_KEY}", key.len())),
        _ if key.contains(|char: char| char == '=' || char.is_control()) => Err(format!("{key:?} is not a valid key")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(changes: &[(&str, Option<&str>)]) -> Changes {
        changes.iter().map(|&(key, value)| (key.into(), value.map(Into::into))).collect()
    }

    fn started() -> LiveConfig {
        LiveConfig::new(LogLevel::Info, &[("greeting".into(), "hello".into())]).unwrap()
    }

    #[test]
    fn live_configuration_changes_as_a_whole_or_not_at_all() {
        let with = |entries: &[(&str, Option<&str>)]| started().with(&changes(entries));
        assert_eq!(with(&[]), Ok(started()));
        let changed = with(&[("wasmcluster.log-level", Some("debug")), ("a.b", Some("")), ("greeting", None)]).unwrap();
        assert_eq!(changed.entries()["wasmcluster.log-level"], "debug");
        assert_eq!(changed.values, BTreeMap::from([("a.b".into(), String::new())]));
        for (wrong, said) in [
            (&[("wasmcluster.log-level", Some("loud"))][..], "expected off, error"),
            (&[("wasmcluster.log-level", None)], "always has a value"),
            (&[("greeting", Some("hi")), ("wasmcluster.loglevel", Some("debug"))], "wasmcluster.log-level"),
            (&[("greeting", Some("hi")), ("none", None)], "\"none\" is not set"),
            (&[("", Some("hi"))], "empty"),
            (&[("a=b", Some("hi"))], "not a valid key"),
            (&[("a", Some(&"x".repeat(MAX_BYTES)))], "the limit is 262144"),
        ] {
            assert!(with(wrong).unwrap_err().contains(said), "{wrong:?}");
        }
        let many: Changes = (0..=MAX_VALUES).map(|number| (number.to_string(), Some(String::new()))).collect();
        assert!(started().with(&many).unwrap_err().contains("the limit is 1024"));
    }

    #[test]
    fn what_was_changed_is_there_after_a_resume_and_nothing_else() {
        let changed = started().with(&changes(&[("greeting", Some("hi")), ("new", Some("1"))])).unwrap();
        let changed = changed.with(&changes(&[("new", None)])).unwrap();
        // Started with other values than before.
        let again =
            LiveConfig::new(LogLevel::Info, &[("greeting".into(), "welcome".into()), ("new".into(), "2".into())]);
        let resumed = again.unwrap().resumed(&changed.changed);
        assert_eq!(resumed.values, BTreeMap::from([("greeting".into(), "hi".into())]));
        assert_eq!(resumed.changed, changed.changed);
    }
}
