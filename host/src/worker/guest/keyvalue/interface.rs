//! `wasi:keyvalue`: how guests use stores, in the two drafts that there are. They differ in what counts, lists and gets many.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use wasmtime::component::{
    ComponentNamedList, ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType,
};
use wasmtime_wasi_io::IoView;

use super::super::world::Guest;
use super::{GuestStore, StoreError};
use crate::keyvalue::file::KeyPage;
use crate::keyvalue::{Write, Written};

/// wasmtime's and wasmCloud's.
const DRAFT: &str = "0.2.0-draft";
/// Spin's, and what the proposal has become: with compare-and-set, numbers with a sign, and cursors that are texts.
const DRAFT2: &str = "0.2.0-draft2";

/// Cursors of the first draft that a bucket remembers: numbers, each for a key.
const MAX_CURSORS: usize = 16;

/// A store as a guest has opened it.
#[derive(Debug)]
pub(in super::super) struct Bucket {
    store: Arc<GuestStore>,
    cursors: VecDeque<(u64, String)>,
    last_cursor: u64,
}

impl Bucket {
    /// Bytes that are kept for it.
    pub(in super::super) fn held(&self) -> usize {
        self.cursors.iter().map(|(_, key)| key.len()).sum()
    }
}

/// A compare-and-set that has begun.
#[derive(Debug)]
pub(in super::super) struct Swap {
    store: Arc<GuestStore>,
    key: String,
    current: Option<Vec<u8>>,
}

impl Swap {
    /// Bytes that are kept for it.
    pub(in super::super) fn held(&self) -> usize {
        self.key.len() + self.current.as_ref().map_or(0, Vec::len)
    }
}

/// The interface's `error`.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum BucketError {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    /// Never told: a store that is not granted looks like one that is not there.
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

impl From<StoreError> for BucketError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSuchStore => Self::NoSuchStore,
            StoreError::Other(reason) => Self::Other(reason),
        }
    }
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct KeyResponse<C> {
    keys: Vec<String>,
    cursor: Option<C>,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
enum CasError {
    #[component(name = "store-error")]
    Failed(BucketError),
    #[component(name = "cas-failed")]
    Outdated(Resource<Swap>),
}

type Returned<T> = Result<T, BucketError>;

/// Defines a function of which `begin` says what it waits for, and `end` what it answers.
fn define<P, F, T, R>(
    interface: &mut LinkerInstance<'_, Guest>,
    name: &str,
    begin: fn(&mut Guest, P) -> wasmtime::Result<F>,
    end: fn(&mut Guest, Result<T, StoreError>) -> wasmtime::Result<R>,
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + Send + 'static,
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
    T: Send + 'static,
    R: ComponentType + Lower + Send + 'static,
{
    interface.func_wrap_async(name, move |mut store, params: P| {
        Box::new(async move {
            let guest = store.data_mut();
            if let Some(asked) = guest.asked() {
                asked.cost().calls_store();
            }
            let (world, asked) = (guest.world().clone(), guest.asked().cloned());
            let (stats, began) = (world.stats, Instant::now());
            let came = begin(guest, params)?.await;
            stats.store.record(began.elapsed().as_micros() as u64);
            if let Err(error) = &came {
                stats.store_failed.increment();
                if let StoreError::Other(why) = error {
                    let message = format!("a call of a key-value store failed: {why}");
                    world.outbound.notices.tell(asked.as_deref(), message);
                }
            }
            Ok((end(store.data_mut(), came)?,))
        })
    })
}

/// What `end` of [`define`] is where an answer has the interface's form already.
fn same<T>(_: &mut Guest, answer: Result<T, StoreError>) -> wasmtime::Result<Returned<T>> {
    Ok(answer.map_err(BucketError::from))
}

fn no_value(_: &mut Guest, answer: Result<Written, StoreError>) -> wasmtime::Result<Returned<()>> {
    Ok(answer.map(drop).map_err(BucketError::from))
}

fn store_of(guest: &mut Guest, bucket: &Resource<Bucket>) -> wasmtime::Result<Arc<GuestStore>> {
    Ok(guest.table().get(bucket)?.store.clone())
}

/// What begins a write to the store of a bucket.
fn write(
    guest: &mut Guest,
    bucket: &Resource<Bucket>,
    write: Write,
) -> wasmtime::Result<impl Future<Output = Result<Written, StoreError>> + Send + use<>> {
    let store = store_of(guest, bucket)?;
    Ok(async move { store.write(write).await })
}

pub(in super::super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for version in [DRAFT, DRAFT2] {
        let mut interface = linker.instance(&format!("wasi:keyvalue/store@{version}"))?;
        add_store(&mut interface)?;
        match version {
            DRAFT => define(&mut interface, "[method]bucket.list-keys", list_from_number, number_keys)?,
            _ => define(&mut interface, "[method]bucket.list-keys", list_from_text, |_, page| {
                Ok(page.map(|(_, (keys, cursor))| KeyResponse { keys, cursor }).map_err(BucketError::from))
            })?,
        }
        let mut interface = linker.instance(&format!("wasi:keyvalue/batch@{version}"))?;
        add_batch(&mut interface)?;
        match version {
            DRAFT => define(&mut interface, "get-many", get_many, |_, found| {
                let pair = |(key, value): (String, Option<Vec<u8>>)| value.map(|value| (key, value));
                Ok(found.map(|found| found.into_iter().map(pair).collect::<Vec<_>>()).map_err(BucketError::from))
            })?,
            _ => define(&mut interface, "get-many", get_many, same)?,
        }
        let mut interface = linker.instance(&format!("wasi:keyvalue/atomics@{version}"))?;
        match version {
            DRAFT => define(&mut interface, "increment", increment_unsigned, |_, written| {
                Ok(written.and_then(|written| unsigned(sum_of(written))).map_err(BucketError::from))
            })?,
            _ => add_compare_and_set(&mut interface)?,
        }
    }
    Ok(())
}

fn add_store(interface: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    interface.resource("bucket", ResourceType::host::<Bucket>(), |mut store, bucket| {
        store.data_mut().table().delete(Resource::<Bucket>::new_own(bucket))?;
        Ok(())
    })?;
    define(
        interface,
        "open",
        |guest, (name,): (String,)| {
            let store = guest.stores().find(&name);
            Ok(async move {
                let store = store?;
                store.open().await?;
                Ok::<_, StoreError>(store)
            })
        },
        |guest, store| match store {
            Ok(store) => {
                let bucket = Bucket { store, cursors: VecDeque::new(), last_cursor: 0 };
                Ok(Ok(guest.table().push(bucket)?))
            }
            Err(error) => Ok(Returned::<Resource<Bucket>>::Err(error.into())),
        },
    )?;
    define(
        interface,
        "[method]bucket.get",
        |guest, (bucket, key): (Resource<Bucket>, String)| {
            let store = store_of(guest, &bucket)?;
            Ok(async move { store.get(&key).await })
        },
        same,
    )?;
    define(
        interface,
        "[method]bucket.exists",
        |guest, (bucket, key): (Resource<Bucket>, String)| {
            let store = store_of(guest, &bucket)?;
            Ok(async move { store.has(&key).await })
        },
        same,
    )?;
    define(
        interface,
        "[method]bucket.set",
        |guest, (bucket, key, value): (Resource<Bucket>, String, Vec<u8>)| {
            write(guest, &bucket, Write::Set(vec![(key, value)]))
        },
        no_value,
    )?;
    define(
        interface,
        "[method]bucket.delete",
        |guest, (bucket, key): (Resource<Bucket>, String)| write(guest, &bucket, Write::Delete(vec![key])),
        no_value,
    )
}

fn add_batch(interface: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    define(
        interface,
        "set-many",
        |guest, (bucket, pairs): (Resource<Bucket>, Vec<(String, Vec<u8>)>)| write(guest, &bucket, Write::Set(pairs)),
        no_value,
    )?;
    define(
        interface,
        "delete-many",
        |guest, (bucket, keys): (Resource<Bucket>, Vec<String>)| write(guest, &bucket, Write::Delete(keys)),
        no_value,
    )
}

fn add_compare_and_set(interface: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    define(
        interface,
        "increment",
        |guest, (bucket, key, by): (Resource<Bucket>, String, i64)| write(guest, &bucket, Write::Increment { key, by }),
        |_, written| Ok(written.map(sum_of).map_err(BucketError::from)),
    )?;
    interface.resource("cas", ResourceType::host::<Swap>(), |mut store, cas| {
        store.data_mut().table().delete(Resource::<Swap>::new_own(cas))?;
        Ok(())
    })?;
    define(
        interface,
        "[static]cas.new",
        |guest, (bucket, key): (Resource<Bucket>, String)| {
            let store = store_of(guest, &bucket)?;
            Ok(begin_swap(store, key))
        },
        |guest, begun| {
            Ok(match begun {
                Ok(swap) => Ok(keep(guest, swap)?),
                Err(error) => Returned::<Resource<Swap>>::Err(error.into()),
            })
        },
    )?;
    interface.func_wrap("[method]cas.current", |mut store, (cas,): (Resource<Swap>,)| {
        let current = store.data_mut().table().get(&cas)?.current.clone();
        Ok((Returned::Ok(current),))
    })?;
    define(
        interface,
        "swap",
        |guest, (cas, value): (Resource<Swap>, Vec<u8>)| {
            let Swap { store, key, current } = guest.table().delete(cas)?;
            Ok(async move {
                let write = Write::Swap { key: key.clone(), from: current, to: value };
                match store.write(write).await? {
                    Written::Swapped(false) => begin_swap(store, key).await.map(Some),
                    _ => Ok(None),
                }
            })
        },
        |guest, ended| {
            Ok(match ended {
                Ok(None) => Ok(()),
                Ok(Some(again)) => Err(CasError::Outdated(keep(guest, again)?)),
                Err(error) => Err(CasError::Failed(error.into())),
            })
        },
    )
}

async fn begin_swap(store: Arc<GuestStore>, key: String) -> Result<Swap, StoreError> {
    let current = store.get(&key).await?;
    Ok(Swap { store, key, current })
}

/// Has a guest hold it, which counts like its memory.
fn keep(guest: &mut Guest, swap: Swap) -> wasmtime::Result<Resource<Swap>> {
    let held = swap.held();
    let kept = guest.table().push(swap)?;
    guest.holds(held);
    Ok(kept)
}

/// Of an increment.
fn sum_of(written: Written) -> i64 {
    if let Written::Sum(sum) = written { sum } else { 0 }
}

fn unsigned(sum: i64) -> Result<u64, StoreError> {
    u64::try_from(sum).map_err(|_| {
        StoreError::Other(format!(
            "it was added, but the value is {sum} now, which this version of the interface cannot tell"
        ))
    })
}

fn increment_unsigned(
    guest: &mut Guest,
    (bucket, key, by): (Resource<Bucket>, String, u64),
) -> wasmtime::Result<impl Future<Output = Result<Written, StoreError>> + Send + use<>> {
    let store = store_of(guest, &bucket)?;
    Ok(async move {
        let by = i64::try_from(by).map_err(|_| StoreError::Other(format!("{by} is more than 63 bits can hold")))?;
        store.write(Write::Increment { key, by }).await
    })
}

type ManyValues = Result<Vec<(String, Option<Vec<u8>>)>, StoreError>;

fn get_many(
    guest: &mut Guest,
    (bucket, keys): (Resource<Bucket>, Vec<String>),
) -> wasmtime::Result<impl Future<Output = ManyValues> + Send + use<>> {
    let store = store_of(guest, &bucket)?;
    Ok(async move {
        let values = store.get_all(&keys).await?;
        Ok(keys.into_iter().zip(values).collect())
    })
}

/// A page of keys, with the bucket whose they are.
type ListedKeys = Result<(u32, KeyPage), StoreError>;

fn list(
    guest: &mut Guest,
    bucket: &Resource<Bucket>,
    after: Result<Option<String>, StoreError>,
) -> wasmtime::Result<impl Future<Output = ListedKeys> + Send + use<>> {
    let (store, rep) = (store_of(guest, bucket)?, bucket.rep());
    Ok(async move { Ok((rep, store.keys(after?.as_deref()).await?)) })
}

fn list_from_text(
    guest: &mut Guest,
    (bucket, cursor): (Resource<Bucket>, Option<String>),
) -> wasmtime::Result<impl Future<Output = ListedKeys> + Send + use<>> {
    list(guest, &bucket, Ok(cursor))
}

fn list_from_number(
    guest: &mut Guest,
    (bucket, cursor): (Resource<Bucket>, Option<u64>),
) -> wasmtime::Result<impl Future<Output = ListedKeys> + Send + use<>> {
    let known = &guest.table().get(&bucket)?.cursors;
    let after = cursor.map(|cursor| {
        let found = known.iter().find(|(number, _)| *number == cursor).map(|(_, key)| key.clone());
        found.ok_or_else(|| StoreError::Other(format!("the cursor {cursor} is not one of the last of this bucket")))
    });
    list(guest, &bucket, after.transpose())
}

/// A number for where the next page begins, which the bucket remembers.
fn number_keys(guest: &mut Guest, listed: ListedKeys) -> wasmtime::Result<Returned<KeyResponse<u64>>> {
    let (bucket, (keys, next)) = match listed {
        Ok(listed) => listed,
        Err(error) => return Ok(Err(error.into())),
    };
    let Some(next) = next else { return Ok(Ok(KeyResponse { keys, cursor: None })) };
    let bucket = guest.table().get_mut(&Resource::<Bucket>::new_borrow(bucket))?;
    bucket.last_cursor += 1;
    bucket.cursors.truncate(MAX_CURSORS - 1);
    bucket.cursors.push_front((bucket.last_cursor, next));
    Ok(Ok(KeyResponse { keys, cursor: Some(bucket.last_cursor) }))
}
