//! What can change while a cluster runs: `wasmcluster config`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::guest_values::{Changes, GuestValues};
use super::values::{OWN, check_key};
use crate::logging::LogLevel;

/// Values that flags and file say, and that were taken away.
const MAX_REMOVED: usize = 1024;
/// The key of the log level.
pub(crate) const LOG_LEVEL: &str = "wasmcluster.log-level";

/// What can change while a cluster runs. Keys that begin with `wasmcluster.` are the host's own; all others are values for
/// guests (`wasi:config`), which win over those that a generation has by its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LiveConfig {
    pub(crate) log_level: LogLevel,
    /// Values that were changed since the start, also by a primary before this one.
    pub(crate) changed: Changes,
}

impl LiveConfig {
    /// Every key with its value, but for secrets.
    pub(crate) fn entries(&self, values: &GuestValues) -> BTreeMap<String, String> {
        let own = [(LOG_LEVEL.to_owned(), self.log_level.to_string())];
        own.into_iter().chain(values.shown(&self.changed)).collect()
    }

    /// This configuration with other values for some keys of what is served, or what is wrong with one.
    pub(crate) fn with(&self, values: &GuestValues, changes: &Changes) -> Result<Self, String> {
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
                // From before it was one.
                (secret, None) if config.changed.contains_key(secret) && values.is_secret(secret) => {
                    config.changed.remove(secret);
                }
                (secret, _) if values.is_secret(secret) => {
                    return Err(format!("{key} is a secret; change it where it comes from, then reload"));
                }
                (_, None) if !values.shown(&self.changed).contains_key(key) => {
                    return Err(format!("{key:?} is not set; `wasmcluster config get` lists what is"));
                }
                (_, None) if !values.has(key) => drop(config.changed.remove(key)),
                (_, value) => {
                    check_key(key)?;
                    config.changed.insert(key.clone(), value.clone());
                }
            }
        }
        values.check(&config.changed)?;
        // Also of what a generation to come may have again.
        GuestValues::default().check(&config.changed)?;
        let removed = config.changed.values().filter(|value| value.is_none()).count();
        if removed > MAX_REMOVED {
            return Err(format!("{removed} values of the settings would be removed; the limit is {MAX_REMOVED}"));
        }
        Ok(config)
    }

    /// Forgets changes of what has become a secret.
    pub(crate) fn forget_secrets(&mut self, values: &GuestValues) {
        self.changed.retain(|key, _| !values.is_secret(key));
    }
}

#[cfg(test)]
mod tests {
    use super::super::secrets::Secret;
    use super::*;

    fn changes(changes: &[(&str, Option<&str>)]) -> Changes {
        changes.iter().map(|&(key, value)| (key.into(), value.map(Into::into))).collect()
    }

    #[test]
    fn live_configuration_changes_as_a_whole_or_not_at_all() {
        let secrets = BTreeMap::from([("secret".to_owned(), Secret::of("hush"))]);
        let values = GuestValues::new(&[("greeting".into(), "hello".into())], secrets).unwrap();
        let started = LiveConfig::default();
        let with = |entries: &[(&str, Option<&str>)]| started.with(&values, &changes(entries));
        assert_eq!(with(&[]), Ok(started.clone()));
        let changed = with(&[("wasmcluster.log-level", Some("debug")), ("a.b", Some("")), ("greeting", None)]).unwrap();
        let shown = changed.entries(&values).into_iter().map(|(key, value)| format!("{key}={value}"));
        assert_eq!(shown.collect::<Vec<_>>(), ["a.b=", "wasmcluster.log-level=debug"]);
        let none = changed.with(&values, &changes(&[("a.b", None)])).unwrap();
        assert!(none.with(&values, &changes(&[("a.b", None)])).unwrap_err().contains("\"a.b\" is not set"));
        // What was set before it became a secret can be taken away, and is.
        let early = LiveConfig { changed: changes(&[("secret", Some("old"))]), ..LiveConfig::default() };
        let forgotten = early.with(&values, &changes(&[("secret", None)])).unwrap();
        assert!(forgotten.changed.is_empty());
        let mut forgets = early.clone();
        forgets.forget_secrets(&values);
        assert!(forgets.changed.is_empty() && early.entries(&values).len() == 2);
        // Names that come and go leave nothing behind.
        let mut busy = started.clone();
        for number in 0..3000 {
            let key = number.to_string();
            busy = busy.with(&values, &changes(&[(&key, Some("1"))])).unwrap();
            busy = busy.with(&values, &changes(&[(&key, None)])).unwrap();
        }
        assert_eq!(busy, started);
        for (wrong, said) in [
            (&[("wasmcluster.log-level", Some("loud"))][..], "expected off, error"),
            (&[("wasmcluster.log-level", None)], "always has a value"),
            (&[("greeting", Some("hi")), ("wasmcluster.loglevel", Some("debug"))], "wasmcluster.log-level"),
            (&[("greeting", Some("hi")), ("none", None)], "\"none\" is not set"),
            (&[("secret", Some("hi"))], "secret is a secret"),
            (&[("secret", None)], "secret is a secret"),
            (&[("", Some("hi"))], "empty"),
            (&[("a=b", Some("hi"))], "not a valid key"),
            (&[("a", Some(&"x".repeat(300_000)))], "the limit is 262144"),
        ] {
            assert!(with(wrong).unwrap_err().contains(said), "{wrong:?}");
        }
    }
}
