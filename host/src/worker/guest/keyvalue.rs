//! The key-value stores that guests may open, whatever they are kept in.

mod interface;
mod memory;
mod redis;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::outbound::dialer::Dialer;
use crate::grants::StorePlace;
use crate::keyvalue::file::{FileReader, KeyPage};
use crate::keyvalue::{Write, WriteFailure, Written, check_key};
use crate::settings::{Granted, Limits, MAX_HOSTCALL};
use crate::worker::keeper::KeeperLink;
use memory::MemoryStore;
use redis::RedisStore;

pub(super) use interface::{Bucket, Swap, add_to_linker};

/// What a component imports that may open stores.
pub(super) const KEYVALUE: &str = "wasi:keyvalue/";

/// Why a store did not do what it was asked for: the error of the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StoreError {
    /// No store of that name was granted.
    NoSuchStore,
    /// For a person.
    Other(String),
}

impl From<WriteFailure> for StoreError {
    fn from(failure: WriteFailure) -> Self {
        Self::Other(match failure {
            WriteFailure::Refused(reason) => reason,
            // The SDK knows such errors by their beginning.
            WriteFailure::Unknown(reason) => format!("unknown outcome: {reason}"),
        })
    }
}

impl From<anyhow::Error> for StoreError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(format!("{error:#}"))
    }
}

/// All that guests may open.
#[derive(Debug)]
pub(super) struct Stores {
    by_name: BTreeMap<String, Arc<GuestStore>>,
}

impl Stores {
    pub(super) fn new(granted: &Granted, limits: &Limits, keeper: Arc<KeeperLink>) -> Self {
        let files: BTreeMap<PathBuf, u16> = granted.file_stores().into_iter().cloned().zip(0..).collect();
        let mut readers: BTreeMap<PathBuf, Arc<OnceLock<FileReader>>> = BTreeMap::new();
        let mut dialer: Option<Arc<Dialer>> = None;
        let mut store = |place: &StorePlace| match place {
            StorePlace::File(path) => {
                let reader = readers.entry(path.clone()).or_default().clone();
                let (path, number, keeper) = (path.clone(), files[path], keeper.clone());
                StoreKind::File(MappedStore { path, number, reader, keeper, timeout: limits.kv_timeout })
            }
            StorePlace::Redis(place) => {
                let dialer = dialer.get_or_insert_default().clone();
                StoreKind::Redis(RedisStore::new(place.clone(), dialer, limits.kv_max_value, limits.kv_timeout))
            }
            StorePlace::Memory => StoreKind::Memory(MemoryStore::new(limits.kv_max_size)),
        };
        let mut named = |(name, place): (&String, &StorePlace)| {
            (name.clone(), Arc::new(GuestStore { kind: store(place), max_value: limits.kv_max_value }))
        };
        Self { by_name: granted.stores.iter().map(&mut named).collect() }
    }

    fn find(&self, name: &str) -> Result<Arc<GuestStore>, StoreError> {
        self.by_name.get(name).cloned().ok_or(StoreError::NoSuchStore)
    }

    /// Whether one of them is written by the keeper.
    pub(super) fn need_keeper(&self) -> bool {
        self.by_name.values().any(|store| matches!(store.kind, StoreKind::File(_)))
    }
}

/// One that may be opened.
#[derive(Debug)]
pub(super) struct GuestStore {
    kind: StoreKind,
    max_value: u64,
}

#[derive(Debug)]
enum StoreKind {
    File(MappedStore),
    Redis(Arc<RedisStore>),
    Memory(MemoryStore),
}

/// One in a file, which is read here and written by the keeper.
#[derive(Debug)]
struct MappedStore {
    path: PathBuf,
    /// By which the keeper knows it.
    number: u16,
    /// Shared by all names that it has.
    reader: Arc<OnceLock<FileReader>>,
    keeper: Arc<KeeperLink>,
    timeout: Duration,
}

impl MappedStore {
    /// Once it is open, nobody is asked.
    async fn reader(&self) -> Result<&FileReader, StoreError> {
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        // One that was there before can be read, keeper or not.
        let opened = match FileReader::open(&self.path) {
            Ok(opened) => opened,
            Err(_) => {
                self.keeper.opened(self.number, self.timeout).await.map_err(StoreError::Other)?;
                // Somebody else may have been faster.
                if let Some(reader) = self.reader.get() {
                    return Ok(reader);
                }
                FileReader::open(&self.path).map_err(|error| StoreError::Other(error.to_string()))?
            }
        };
        Ok(self.reader.get_or_init(|| opened))
    }
}

impl GuestStore {
    async fn open(&self) -> Result<(), StoreError> {
        if let StoreKind::File(store) = &self.kind {
            store.reader().await?;
        }
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_key(key).map_err(StoreError::Other)?;
        Ok(match &self.kind {
            StoreKind::File(store) => store.reader().await?.get(key)?,
            StoreKind::Redis(store) => store.get(key).await?,
            StoreKind::Memory(store) => store.get(key),
        })
    }

    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        keys.iter().try_for_each(|key| check_key(key)).map_err(StoreError::Other)?;
        Ok(match &self.kind {
            StoreKind::File(store) => store.reader().await?.get_all(keys, MAX_HOSTCALL)?,
            StoreKind::Redis(store) => store.get_all(keys).await?,
            StoreKind::Memory(store) => store.get_all(keys, MAX_HOSTCALL)?,
        })
    }

    async fn has(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key).map_err(StoreError::Other)?;
        Ok(match &self.kind {
            StoreKind::File(store) => store.reader().await?.has(key)?,
            StoreKind::Redis(store) => store.has(key).await?,
            StoreKind::Memory(store) => store.has(key),
        })
    }

    async fn keys(&self, after: Option<&str>) -> Result<KeyPage, StoreError> {
        Ok(match &self.kind {
            StoreKind::File(store) => store.reader().await?.keys(after)?,
            StoreKind::Redis(store) => store.keys(after).await?,
            StoreKind::Memory(store) => store.keys(after),
        })
    }

    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        write.check(self.max_value).map_err(StoreError::Other)?;
        match &self.kind {
            StoreKind::File(store) => Ok(store.keeper.write(store.number, write, store.timeout).await?),
            StoreKind::Redis(store) => Ok(store.write(write).await?),
            StoreKind::Memory(store) => store.write(write),
        }
    }
}
