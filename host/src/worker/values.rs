//! The values that guests are configured with, which the guardian changes while the executor works.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::settings::{Changes, GuestValues};

/// What an instance has.
pub(crate) type Values = Arc<BTreeMap<String, String>>;

/// The values of a worker.
#[derive(Debug)]
pub(crate) struct LiveValues {
    /// As its generation has them.
    own: GuestValues,
    current: RwLock<Values>,
}

impl LiveValues {
    pub(crate) fn new(own: GuestValues, changed: &Changes) -> Self {
        let current = RwLock::new(Arc::new(own.all(changed)));
        Self { own, current }
    }

    pub(crate) fn current(&self) -> Values {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nothing has changed since somebody has got these.
    pub(crate) fn are(&self, values: &Values) -> bool {
        Arc::ptr_eq(&self.current.read().unwrap_or_else(PoisonError::into_inner), values)
    }

    /// Changes them, unless they are the same then: no instance is given up for that.
    pub(crate) fn change(&self, changed: &Changes) {
        let values = self.own.all(changed);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
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
        let to = |value: &str| Changes::from([("key".to_owned(), Some(value.to_owned()))]);
        let live = LiveValues::new(GuestValues::default(), &to("1"));
        let first = live.current();
        live.change(&to("1"));
        assert!(live.are(&first));
        live.change(&to("2"));
        assert!(!live.are(&first) && first["key"] == "1" && live.current()["key"] == "2");
    }
}
