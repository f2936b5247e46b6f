//! What can change while a cluster runs: `wasmcluster config`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::logging::LogLevel;

/// What can change while a cluster runs: `wasmcluster config`. Keys that begin with `wasmcluster.` are the host's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LiveConfig {
    pub(crate) log_level: LogLevel,
}

const LOG_LEVEL: &str = "wasmcluster.log-level";

impl LiveConfig {
    /// Every key with its value.
    pub(crate) fn entries(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([(LOG_LEVEL, self.log_level.to_string())])
    }

    /// This configuration with other values for some keys, or what is wrong with one.
    pub(crate) fn with(mut self, entries: &BTreeMap<String, String>) -> Result<Self, String> {
        for (key, value) in entries {
            match key.as_str() {
                LOG_LEVEL => self.log_level = value.parse().map_err(|error| format!("{key}: {error}"))?,
                _ => {
                    let keys: Vec<_> = self.entries().into_keys().collect();
                    return Err(format!("unknown key {key:?}; the keys are {}", keys.join(", ")));
                }
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_configuration_changes_as_a_whole_or_not_at_all() {
        let with = |entries: &[(&str, &str)]| {
            let entries = entries.iter().map(|&(key, value)| (key.into(), value.into())).collect();
            LiveConfig::default().with(&entries)
        };
        assert_eq!(with(&[]), Ok(LiveConfig::default()));
        let changed = with(&[("wasmcluster.log-level", "debug")]).unwrap();
        assert_eq!(changed.entries()["wasmcluster.log-level"], "debug");
        assert!(with(&[("wasmcluster.log-level", "loud")]).unwrap_err().contains("expected off, error"));
        let unknown = with(&[("greeting", "hello"), ("wasmcluster.log-level", "debug")]).unwrap_err();
        assert!(unknown.contains("wasmcluster.log-level"), "{unknown}");
    }
}
