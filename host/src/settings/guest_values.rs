//! The values that the guests of a generation get by `wasi:config`: what flags and file say, with what `config set` changed
//! since.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::secrets::Secret;

/// Values for guests: how many, and bytes of all of them with their keys.
const MAX_VALUES: usize = 1024;
const MAX_BYTES: usize = 256 * 1024;

/// What changes of the values: a key with its new value, or without one.
pub(crate) type Changes = BTreeMap<String, Option<String>>;

/// What flags and file say. No key is both a plain value and a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestValues {
    plain: BTreeMap<String, String>,
    secrets: BTreeMap<String, Secret>,
}

impl GuestValues {
    pub(super) fn new(plain: &[(String, String)], secrets: BTreeMap<String, Secret>) -> Result<Self, String> {
        let values = Self { plain: plain.iter().cloned().collect(), secrets };
        if let Some(key) = values.plain.keys().find(|key| values.is_secret(key)) {
            return Err(format!("{key} is a value and a secret; leave out one of them"));
        }
        values.check(&Changes::new())?;
        Ok(values)
    }

    pub(crate) fn is_secret(&self, key: &str) -> bool {
        self.secrets.contains_key(key)
    }

    /// What is no secret, with what was changed since.
    pub(crate) fn shown(&self, changed: &Changes) -> BTreeMap<String, String> {
        let mut values = self.plain.clone();
        for (key, value) in changed.iter().filter(|(key, _)| !self.is_secret(key)) {
            match value {
                Some(value) => drop(values.insert(key.clone(), value.clone())),
                None => drop(values.remove(key)),
            }
        }
        values
    }

    /// What guests get.
    pub(crate) fn all(&self, changed: &Changes) -> BTreeMap<String, String> {
        let secrets = self.secrets.iter().map(|(key, secret)| (key.clone(), secret.reveal().to_owned()));
        self.shown(changed).into_iter().chain(secrets).collect()
    }

    /// Whether guests can be given that much.
    pub(crate) fn check(&self, changed: &Changes) -> Result<(), String> {
        let values = self.all(changed);
        let bytes: usize = values.iter().map(|(key, value)| key.len() + value.len()).sum();
        match values.len() {
            count if count > MAX_VALUES => Err(format!("guests would have {count} values; the limit is {MAX_VALUES}")),
            _ if bytes > MAX_BYTES => {
                Err(format!("the values for guests would take {bytes} bytes; the limit is {MAX_BYTES}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether it says so, which a change wins over.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.plain.contains_key(key)
    }

    /// The keys of secrets that have another value, or are in one of both alone.
    pub(super) fn changed_secrets<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a String> {
        let all = self.secrets.keys().chain(other.secrets.keys().filter(|key| !self.is_secret(key)));
        all.filter(|key| self.secrets.get(*key) != other.secrets.get(*key))
    }

    /// These values with other secrets.
    pub(super) fn with_secrets(&self, secrets: BTreeMap<String, Secret>) -> Self {
        Self { plain: self.plain.clone(), secrets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_wins_but_over_secrets() {
        let plain = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        let secrets = BTreeMap::from([("s".to_owned(), Secret::of("hush"))]);
        let values = GuestValues::new(&plain(&[("a", "1"), ("b", "2")]), secrets.clone()).unwrap();
        let changed = |key: &str, value: Option<&str>| (key.to_owned(), value.map(ToOwned::to_owned));
        let changed = Changes::from([changed("a", Some("3")), changed("b", None), changed("s", Some("x"))]);
        assert_eq!(values.shown(&changed), BTreeMap::from([("a".to_owned(), "3".to_owned())]));
        let all = values.all(&changed);
        assert_eq!((all.len(), &*all["a"], &*all["s"]), (2, "3", "hush"));
        let both = GuestValues::new(&plain(&[("s", "1")]), secrets).unwrap_err();
        assert!(both.contains("s is a value and a secret"), "{both}");
        let many = (0..=MAX_VALUES).map(|number| (number.to_string(), Some(String::new()))).collect();
        assert!(values.check(&many).unwrap_err().contains("the limit is 1024"));
        let large = Changes::from([("a".to_owned(), Some("x".repeat(MAX_BYTES)))]);
        assert!(values.check(&large).unwrap_err().contains("the limit is 262144"));
    }
}
