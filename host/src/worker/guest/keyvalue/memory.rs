//! A store in the worker's own memory, as long as that lives: for development.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::StoreError;
use crate::keyvalue::file::{KeyPage, too_much};
use crate::keyvalue::{Write, Written, sum};
use crate::settings::{MAX_PAGE, size};

/// What a pair takes up beside its bytes.
const OVERHEAD: usize = 64;

#[derive(Debug, Default)]
struct MemoryPairs {
    by_key: BTreeMap<String, Vec<u8>>,
    bytes: usize,
}

/// All instances of a worker share it.
#[derive(Debug)]
pub(super) struct MemoryStore {
    pairs: Mutex<MemoryPairs>,
    max_size: usize,
}

impl MemoryStore {
    pub(super) fn new(max_size: u64) -> Self {
        Self { pairs: Mutex::default(), max_size: usize::try_from(max_size).unwrap_or(usize::MAX) }
    }

    fn lock(&self) -> MutexGuard<'_, MemoryPairs> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.lock().by_key.get(key).cloned()
    }

    pub(super) fn get_all(&self, keys: &[String], max: usize) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
        let pairs = self.lock();
        let found = || keys.iter().map(|key| pairs.by_key.get(key));
        let bytes = found().flatten().map(Vec::len).fold(0, usize::saturating_add);
        if bytes > max { Err(too_much(max)) } else { Ok(found().map(Option::<&Vec<u8>>::cloned).collect()) }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.lock().by_key.contains_key(key)
    }

    pub(super) fn keys(&self, after: Option<&str>) -> KeyPage {
        let pairs = self.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut keys: Vec<String> = pairs
            .by_key
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(key, _)| key.clone())
            .take(MAX_PAGE + 1)
            .collect();
        let has_more = keys.len() > MAX_PAGE;
        keys.truncate(MAX_PAGE);
        let next = keys.last().filter(|_| has_more).cloned();
        (keys, next)
    }

    pub(super) fn write(&self, write: Write) -> Result<Written, StoreError> {
        let mut pairs = self.lock();
        Ok(match write {
            Write::Set(new) => {
                let more = new.iter().map(|(key, value)| pairs.more(key, value)).sum();
                self.check(&pairs, more)?;
                new.into_iter().for_each(|(key, value)| pairs.put(key, value));
                Written::Done
            }
            Write::Delete(keys) => {
                keys.iter().for_each(|key| pairs.remove(key));
                Written::Done
            }
            Write::Increment { key, by } => {
                let sum = sum(pairs.by_key.get(&key).map(Vec::as_slice), by).map_err(StoreError::Other)?;
                let value = sum.to_string().into_bytes();
                self.check(&pairs, pairs.more(&key, &value))?;
                pairs.put(key, value);
                Written::Sum(sum)
            }
            Write::Swap { key, from, to } => {
                let is_expected = pairs.by_key.get(&key) == from.as_ref();
                if is_expected {
                    self.check(&pairs, pairs.more(&key, &to))?;
                    pairs.put(key, to);
                }
                Written::Swapped(is_expected)
            }
        })
    }

    fn check(&self, pairs: &MemoryPairs, more: usize) -> Result<(), StoreError> {
        if pairs.bytes.saturating_add(more) <= self.max_size {
            return Ok(());
        }
        let most = size(self.max_size as u64);
        Err(StoreError::Other(format!("the store is full: --kv-max-size {most} is reached")))
    }
}

impl MemoryPairs {
    /// By how much it would grow.
    fn more(&self, key: &str, value: &[u8]) -> usize {
        let old = self.by_key.get(key).map(|value| key.len() + value.len() + OVERHEAD);
        (key.len() + value.len() + OVERHEAD).saturating_sub(old.unwrap_or(0))
    }

    fn put(&mut self, key: String, value: Vec<u8>) {
        self.remove(&key);
        self.bytes += key.len() + value.len() + OVERHEAD;
        self.by_key.insert(key, value);
    }

    fn remove(&mut self, key: &str) {
        if let Some(value) = self.by_key.remove(key) {
            self.bytes -= key.len() + value.len() + OVERHEAD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: &[u8]) -> Write {
        Write::Set(vec![(key.into(), value.to_vec())])
    }

    #[test]
    fn a_store_in_memory_does_what_one_in_a_file_does() {
        let store = MemoryStore::new(1 << 20);
        store.write(set("b", b"1")).unwrap();
        assert_eq!((store.get("b"), store.get("a"), store.has("b")), (Some(b"1".to_vec()), None, true));
        assert_eq!(store.write(Write::Increment { key: "b".into(), by: 41 }).unwrap(), Written::Sum(42));
        let swap = |from: Option<&[u8]>| Write::Swap { key: "b".into(), from: from.map(Vec::from), to: b"x".into() };
        assert_eq!(store.write(swap(None)).unwrap(), Written::Swapped(false));
        assert_eq!(store.write(swap(Some(b"42"))).unwrap(), Written::Swapped(true));
        assert!(store.write(Write::Increment { key: "b".into(), by: 1 }).is_err());
        store.write(Write::Delete(vec!["b".into(), "none".into()])).unwrap();
        assert_eq!((store.has("b"), store.lock().bytes), (false, 0));
    }

    #[test]
    fn a_store_in_memory_has_a_limit_and_pages() {
        let store = MemoryStore::new(100_000);
        assert!(store.write(set("k", &[0; 100_000])).is_err() && !store.has("k"));
        for number in 0..MAX_PAGE + 5 {
            store.write(set(&format!("{number:04}"), b"")).unwrap();
        }
        let (first, next) = store.keys(None);
        assert_eq!((first.len(), next.as_deref()), (MAX_PAGE, Some("0999")));
        let (last, end) = store.keys(next.as_deref());
        assert_eq!((last.len(), last[0].as_str(), end), (5, "1000", None));
        let sum = store.lock().bytes;
        store.write(set("0000", b"")).unwrap();
        assert_eq!(store.lock().bytes, sum);
    }
}
