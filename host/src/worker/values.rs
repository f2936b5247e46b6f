//! The values that guests are configured with, which the guardian replaces while the executor works.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// What an instance has.
pub(crate) type Values = Arc<BTreeMap<String, String>>;

/// The values of a worker, which its guardian replaces.
#[derive(Debug, Default)]
pub(crate) struct LiveValues(RwLock<Values>);

impl LiveValues {
    pub(crate) fn new(values: BTreeMap<String, String>) -> Self {
        Self(RwLock::new(Arc::new(values)))
    }

    pub(crate) fn current(&self) -> Values {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nothing has changed since somebody has got these.
    pub(crate) fn are(&self, values: &Values) -> bool {
        Arc::ptr_eq(&self.0.read().unwrap_or_else(PoisonError::into_inner), values)
    }

    /// Replaces them, unless they are the same: then no instance is given up.
    pub(crate) fn replace(&self, values: BTreeMap<String, String>) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if **current != values {
            *current = Arc::new(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_the_same_are_not_new() {
        let values = |value: &str| BTreeMap::from([("key".to_owned(), value.to_owned())]);
        let live = LiveValues::new(values("1"));
        let first = live.current();
        live.replace(values("1"));
        assert!(live.are(&first));
        live.replace(values("2"));
        assert!(!live.are(&first) && first["key"] == "1" && live.current()["key"] == "2");
    }
}
