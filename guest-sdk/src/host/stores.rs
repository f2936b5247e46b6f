//! Key-value stores of the host.

use super::keyvalue_bindings::wasi::keyvalue::{atomics, batch, store};
use crate::kv::KvError;

/// How the host says that the outcome of a write is not known: the interface has no error of its own for that.
const UNKNOWN: &str = "unknown outcome: ";

#[derive(Debug)]
pub(crate) struct Bucket(store::Bucket);

/// A compare-and-set that has begun.
#[derive(Debug)]
pub(crate) struct Swap(atomics::Cas);

/// What came of it.
pub(crate) enum Swapped {
    Done,
    /// Another writer was faster.
    Again(Swap),
}

impl From<store::Error> for KvError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NoSuchStore => Self::NoSuchStore,
            store::Error::AccessDenied => Self::AccessDenied,
            store::Error::Other(reason) => match reason.strip_prefix(UNKNOWN) {
                Some(reason) => Self::Unknown(reason.into()),
                None => Self::Other(reason),
            },
        }
    }
}

impl Bucket {
    pub(crate) fn open(name: &str) -> Result<Self, KvError> {
        Ok(Self(store::open(name)?))
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.get(key)?)
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), KvError> {
        Ok(self.0.set(key, value)?)
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), KvError> {
        Ok(self.0.delete(key)?)
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, KvError> {
        Ok(self.0.exists(key)?)
    }

    pub(crate) fn list_keys(&self, cursor: Option<String>) -> Result<(Vec<String>, Option<String>), KvError> {
        let store::KeyResponse { keys, cursor } = self.0.list_keys(cursor.as_deref())?;
        Ok((keys, cursor))
    }

    pub(crate) fn increment(&self, key: &str, by: i64) -> Result<i64, KvError> {
        Ok(atomics::increment(&self.0, key, by)?)
    }

    pub(crate) fn begin_swap(&self, key: &str) -> Result<Swap, KvError> {
        Ok(Swap(atomics::Cas::new(&self.0, key)?))
    }

    pub(crate) fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        Ok(batch::get_many(&self.0, keys)?.into_iter().map(|(_, value)| value).collect())
    }

    pub(crate) fn set_many(&self, pairs: &[(String, Vec<u8>)]) -> Result<(), KvError> {
        Ok(batch::set_many(&self.0, pairs)?)
    }

    pub(crate) fn delete_many(&self, keys: &[String]) -> Result<(), KvError> {
        Ok(batch::delete_many(&self.0, keys)?)
    }
}

impl Swap {
    pub(crate) fn current(&self) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.current()?)
    }

    pub(crate) fn finish(self, value: &[u8]) -> Result<Swapped, KvError> {
        match atomics::swap(self.0, value) {
            Ok(()) => Ok(Swapped::Done),
            Err(atomics::CasError::CasFailed(newer)) => Ok(Swapped::Again(Self(newer))),
            Err(atomics::CasError::StoreError(error)) => Err(error.into()),
        }
    }
}
