//! Key-value stores: what outlives a request, its worker, and with a server such as Redis the machine. `wasi:keyvalue`.
//!
//! ```
//! use wasmcluster_guest::testing::Host;
//! use wasmcluster_guest::{Request, Result, kv};
//!
//! #[wasmcluster_guest::main]
//! async fn count(_: Request) -> Result<String> {
//!     let visits = kv::open("default").await?.increment("visits", 1).await?;
//!     Ok(format!("visit {visits}"))
//! }
//!
//! let host = Host::new();
//! assert_eq!(host.call(count, Request::default()).text(), "visit 1");
//! assert_eq!(host.call(count, Request::default()).text(), "visit 2");
//! ```
//!
//! Values are JSON ([`Store::get`], [`Store::set`]), or bytes ([`Store::get_bytes`], [`Store::set_bytes`]). A key is a text
//! of 1 to 511 bytes.
//!
//! With wasmcluster, the store `default` is always there: on the disk of the machine, shared by all workers. The operator
//! adds others with `--kv NAME=URL`. What was written is on the disk when `set` returns. If the outcome of a write is not
//! known, because something failed between, the error is [`KvError::Unknown`].
//!
//! The interface has no asynchronous form yet: while a store works, all requests of the instance wait. A guest that calls
//! these functions runs on hosts that have `wasi:keyvalue@0.2.0-draft2`. The component of any other guest has no trace of
//! it.

use std::error::Error as StdError;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::stores::{Bucket, Swapped};

/// How often [`Store::update`] begins anew.
const MAX_TRIES: usize = 100;

/// Why a store did not do what it was asked for.
#[derive(Debug)]
#[non_exhaustive]
pub enum KvError {
    /// No store of that name was granted.
    NoSuchStore,
    /// The store may not be used.
    AccessDenied,
    /// The value may have been written, or not: why that is not known.
    Unknown(String),
    /// [`Store::update`] met another writer each of a hundred times.
    Contended,
    /// The value is not what it was to be read as, or what was to be written is no JSON.
    Json(serde_json::Error),
    /// Anything else, in words. Nothing was written.
    Other(String),
}

impl fmt::Display for KvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchStore => f.write_str("there is no key-value store of that name"),
            Self::AccessDenied => f.write_str("the key-value store may not be used"),
            Self::Unknown(reason) => write!(f, "it is not known whether the value was written: {reason}"),
            Self::Contended => write!(f, "others changed the value {MAX_TRIES} times meanwhile"),
            Self::Json(error) => write!(f, "the value: {error}"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

impl StdError for KvError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        if let Self::Json(error) = self { Some(error) } else { None }
    }
}

impl From<serde_json::Error> for KvError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

type Result<T> = std::result::Result<T, KvError>;

/// Opens a store.
///
/// ```
/// use wasmcluster_guest::{kv, testing};
/// # testing::block_on(async {
/// assert!(kv::open("default").await.is_ok());
/// assert!(matches!(kv::open("another").await, Err(kv::KvError::NoSuchStore)));
/// # });
/// ```
pub async fn open(name: &str) -> Result<Store> {
    Ok(Store { bucket: Bucket::open(name)? })
}

/// An open store: see [`open`].
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use wasmcluster_guest::{kv, testing};
///
/// #[derive(Serialize, Deserialize)]
/// struct User {
///     name: String,
/// }
///
/// # testing::block_on(async {
/// let users = kv::open("default").await?;
/// users.set("user:7", &User { name: "Ada".into() }).await?;
/// let user: Option<User> = users.get("user:7").await?;
/// assert_eq!(user.unwrap().name, "Ada");
/// users.delete("user:7").await?;
/// assert!(!users.exists("user:7").await?);
/// # Ok::<_, kv::KvError>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Store {
    bucket: Bucket,
}

impl Store {
    /// The value of a key, read from JSON; `None` if there is none.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        read(self.bucket.get(key)?)
    }

    /// Sets the value of a key, as JSON.
    pub async fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<()> {
        self.bucket.set(key, &serde_json::to_vec(value)?)
    }

    /// The value of a key as it is.
    pub async fn get_bytes(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.bucket.get(key)
    }

    /// Sets the value of a key as it is.
    pub async fn set_bytes(&self, key: &str, value: impl AsRef<[u8]>) -> Result<()> {
        self.bucket.set(key, value.as_ref())
    }

    /// Removes a key and its value, if they are there.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.bucket.delete(key)
    }

    /// Whether a key is there.
    pub async fn exists(&self, key: &str) -> Result<bool> {
        self.bucket.exists(key)
    }

    /// Adds to a number, which is 0 if the key is not there; the new number. No other writer comes between.
    ///
    /// The value is the number in decimal digits, so that [`Store::get`] reads it as an `i64`.
    pub async fn increment(&self, key: &str, by: i64) -> Result<i64> {
        self.bucket.increment(key, by)
    }

    /// Changes a value in a way that depends on it. If another writer changes it meanwhile, `change` is called again, with
    /// the newer value. `None` leaves the value as it is. What is returned is what `change` did last.
    ///
    /// ```
    /// use wasmcluster_guest::{kv, testing};
    /// # testing::block_on(async {
    /// let store = kv::open("default").await?;
    /// let take = |left: Option<u32>| left.unwrap_or(2).checked_sub(1);
    /// assert_eq!(store.update("tickets", take).await?, Some(1));
    /// assert_eq!(store.update("tickets", take).await?, Some(0));
    /// assert_eq!(store.update("tickets", take).await?, None);
    /// # Ok::<_, kv::KvError>(())
    /// # }).unwrap();
    /// ```
    pub async fn update<T>(&self, key: &str, mut change: impl FnMut(Option<T>) -> Option<T>) -> Result<Option<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        let mut swap = self.bucket.begin_swap(key)?;
        for _ in 0..MAX_TRIES {
            let Some(value) = change(read(swap.current()?)?) else { return Ok(None) };
            match swap.finish(&serde_json::to_vec(&value)?)? {
                Swapped::Done => return Ok(Some(value)),
                Swapped::Again(newer) => swap = newer,
            }
        }
        Err(KvError::Contended)
    }

    /// The values of many keys, in their order.
    pub async fn get_many<T: DeserializeOwned>(&self, keys: &[impl AsRef<str>]) -> Result<Vec<Option<T>>> {
        let keys: Vec<String> = keys.iter().map(|key| key.as_ref().to_owned()).collect();
        self.bucket.get_many(&keys)?.into_iter().map(read).collect()
    }

    /// Sets the values of many keys. With wasmcluster it is one step: all of them are written, or none.
    pub async fn set_many<T: Serialize>(&self, pairs: &[(impl AsRef<str>, T)]) -> Result<()> {
        let pair = |(key, value): &(_, T)| Ok((AsRef::<str>::as_ref(key).to_owned(), serde_json::to_vec(value)?));
        self.bucket.set_many(&pairs.iter().map(pair).collect::<Result<Vec<_>>>()?)
    }

    /// Removes many keys.
    pub async fn delete_many(&self, keys: &[impl AsRef<str>]) -> Result<()> {
        let keys: Vec<String> = keys.iter().map(|key| key.as_ref().to_owned()).collect();
        self.bucket.delete_many(&keys)
    }

    /// All keys, a page at a time.
    ///
    /// ```
    /// use wasmcluster_guest::{kv, testing};
    /// # testing::block_on(async {
    /// let store = kv::open("default").await?;
    /// store.set_many(&[("a", 1), ("b", 2)]).await?;
    /// let (mut pages, mut all) = (store.keys(), Vec::new());
    /// while let Some(keys) = pages.next().await? {
    ///     all.extend(keys);
    /// }
    /// assert_eq!(all, ["a", "b"]);
    /// # Ok::<_, kv::KvError>(())
    /// # }).unwrap();
    /// ```
    pub fn keys(&self) -> Keys<'_> {
        Keys { store: self, next: Some(None) }
    }
}

fn read<T: DeserializeOwned>(value: Option<Vec<u8>>) -> Result<Option<T>> {
    Ok(value.map(|value| serde_json::from_slice(&value)).transpose()?)
}

/// The keys of a store: see [`Store::keys`].
#[derive(Debug)]
pub struct Keys<'a> {
    store: &'a Store,
    /// Where the next page begins, if there is one.
    next: Option<Option<String>>,
}

impl Keys<'_> {
    /// The next page, which may be empty; `None` behind the last one.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>> {
        let Some(cursor) = self.next.take() else { return Ok(None) };
        let (keys, next) = self.store.bucket.list_keys(cursor)?;
        self.next = next.map(Some);
        Ok(Some(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Host;

    #[test]
    fn a_value_that_is_no_json_is_an_error() {
        Host::new().block_on(async {
            let store = open("default").await.unwrap();
            store.set_bytes("k", [0xff]).await.unwrap();
            assert!(matches!(store.get::<u32>("k").await, Err(KvError::Json(_))));
            assert_eq!(store.get_bytes("k").await.unwrap(), Some(vec![0xff]));
            assert!(matches!(store.increment("k", 1).await, Err(KvError::Other(_))));
        });
    }

    /// As axum's handlers must be able to.
    #[test]
    fn stores_may_be_kept_across_threads() {
        fn is_send(_: impl Send) {}
        is_send(async {
            let store = open("default").await?;
            store.update("k", |n: Option<u8>| n).await?;
            store.keys().next().await
        });
    }

    #[test]
    fn stores_are_kept_with_the_host_of_a_test() {
        let host = Host::new().with_store("sessions");
        host.block_on(async { open("sessions").await.unwrap().set("k", "v").await.unwrap() });
        host.block_on(async {
            assert_eq!(open("sessions").await.unwrap().get("k").await.unwrap(), Some("v".to_owned()));
            assert!(!open("default").await.unwrap().exists("k").await.unwrap());
        });
        Host::new().block_on(async { assert!(open("sessions").await.is_err()) });
    }

    #[test]
    fn a_change_is_tried_again_when_another_comes_between() {
        Host::new().block_on(async {
            let store = open("default").await.unwrap();
            let other = open("default").await.unwrap();
            let mut calls = 0;
            let updated = store.update("n", |n: Option<i64>| {
                calls += 1;
                if calls < 3 {
                    other.bucket.increment("n", 10).unwrap();
                }
                Some(n.unwrap_or(0) + 1)
            });
            assert_eq!(updated.await.unwrap(), Some(21));
            let never = store.update("n", |n: Option<i64>| {
                other.bucket.increment("n", 1).unwrap();
                n
            });
            assert!(matches!(never.await, Err(KvError::Contended)));
        });
    }
}
