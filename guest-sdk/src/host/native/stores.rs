//! Key-value stores of tests, in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kv::KvError;

/// What a store of a test has.
pub(crate) type Pairs = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Bytes of a key, as with wasmcluster.
const MAX_KEY: usize = 511;
/// Keys of a page.
const PAGE: usize = 1000;

#[derive(Clone, Debug)]
pub(crate) struct Bucket(Pairs);

#[derive(Debug)]
pub(crate) struct Swap {
    bucket: Bucket,
    key: String,
    current: Option<Vec<u8>>,
}

pub(crate) enum Swapped {
    Done,
    Again(Swap),
}

fn check(key: &str) -> Result<(), KvError> {
    match key.len() {
        1..=MAX_KEY => Ok(()),
        length => Err(KvError::Other(format!("a key has 1 to {MAX_KEY} bytes, and this one {length}"))),
    }
}

impl Bucket {
    pub(crate) fn open(name: &str) -> Result<Self, KvError> {
        super::store(name).map(Self).ok_or(KvError::NoSuchStore)
    }

    fn pairs(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KvError> {
        check(key)?;
        Ok(self.pairs().get(key).cloned())
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), KvError> {
        check(key)?;
        self.pairs().insert(key.into(), value.into());
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), KvError> {
        check(key)?;
        self.pairs().remove(key);
        Ok(())
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, KvError> {
        Ok(self.get(key)?.is_some())
    }

    pub(crate) fn list_keys(&self, cursor: Option<String>) -> Result<(Vec<String>, Option<String>), KvError> {
        let pairs = self.pairs();
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut keys: Vec<String> =
            pairs.range((from, Bound::Unbounded)).take(PAGE + 1).map(|(key, _)| key.clone()).collect();
        let has_more = keys.len() > PAGE;
        keys.truncate(PAGE);
        let next = keys.last().filter(|_| has_more).cloned();
        Ok((keys, next))
    }

    pub(crate) fn increment(&self, key: &str, by: i64) -> Result<i64, KvError> {
        let number = match self.get(key)? {
            None => Some(0),
            Some(digits) => str::from_utf8(&digits).ok().and_then(|digits| digits.parse::<i64>().ok()),
        };
        let sum = number.and_then(|number| number.checked_add(by));
        let sum = sum.ok_or_else(|| KvError::Other("the value is no number, or would be too large".into()))?;
        self.set(key, sum.to_string().as_bytes())?;
        Ok(sum)
    }

    pub(crate) fn begin_swap(&self, key: &str) -> Result<Swap, KvError> {
        Ok(Swap { bucket: self.clone(), key: key.into(), current: self.get(key)? })
    }

    pub(crate) fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    pub(crate) fn set_many(&self, pairs: &[(String, Vec<u8>)]) -> Result<(), KvError> {
        pairs.iter().try_for_each(|(key, _)| check(key))?;
        pairs.iter().try_for_each(|(key, value)| self.set(key, value))
    }

    pub(crate) fn delete_many(&self, keys: &[String]) -> Result<(), KvError> {
        keys.iter().try_for_each(|key| self.delete(key))
    }
}

impl Swap {
    pub(crate) fn current(&self) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.current.clone())
    }

    pub(crate) fn finish(self, value: &[u8]) -> Result<Swapped, KvError> {
        if self.bucket.get(&self.key)? != self.current {
            return Ok(Swapped::Again(self.bucket.begin_swap(&self.key)?));
        }
        self.bucket.set(&self.key, value)?;
        Ok(Swapped::Done)
    }
}
