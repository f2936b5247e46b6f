//! Names of other servers become addresses, by the machine's own resolver.
//!
//! That is `getaddrinfo`, which blocks for as long as a name server is silent, and which nothing can cancel. So each
//! look-up has a thread of its own, and what may go wrong is kept to its name: all who want the same name wait for the
//! same look-up, a name has one at a time, the names of one grant have a share of all threads, and whoever waits has a
//! deadline. A guest that is gone waits for nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

/// Threads that look up, and how many of them for names of the same grant, which may be that of a whole domain.
const MAX_LOOKUPS: usize = 64;
const MAX_LOOKUPS_PER_GRANT: usize = 8;
/// How long somebody waits for the addresses of a name, for a free thread included.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How long addresses are good. `getaddrinfo` does not say what the name's owner wishes, so it is short.
const GOOD_FOR: Duration = Duration::from_secs(2);
/// Names whose addresses are kept.
const MAX_KEPT: usize = 256;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Bytes of a thread's stack. Its modules are C code that takes what it likes.
const STACK: usize = 512 * 1024;

/// The addresses, or that there are none to be had.
type Resolution = Option<Arc<[IpAddr]>>;
type Find = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Why there are no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    /// The resolver said so.
    Failed,
    /// It said nothing in time.
    Silent,
}

pub(crate) struct Resolver {
    find: Arc<Find>,
    names: Arc<Mutex<HashMap<String, KnownName>>>,
    places: Arc<Semaphore>,
    /// By the number of the grant.
    of_grants: Mutex<HashMap<usize, Arc<Semaphore>>>,
}

/// What is known of a name.
enum KnownName {
    /// A thread is looking it up, and tells it here.
    Sought(watch::Receiver<Option<Resolution>>),
    Known(Arc<[IpAddr]>, Instant),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(|name| Ok((name, 0).to_socket_addrs()?.map(|found| found.ip()).collect()))
    }
}

impl Resolver {
    fn new(find: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        let places = Arc::new(Semaphore::new(MAX_LOOKUPS));
        Self { find: Arc::new(find), names: Arc::default(), places, of_grants: Mutex::default() }
    }

    /// The addresses of `name`, which the grant of that number covers.
    pub(crate) async fn look_up(&self, name: &str, grant: usize) -> Result<Arc<[IpAddr]>, NotFound> {
        let found = timeout(MAX_WAIT, self.find(name, grant)).await.map_err(|_| NotFound::Silent)?;
        found.ok_or(NotFound::Failed)
    }

    async fn find(&self, name: &str, grant: usize) -> Resolution {
        let mut sought = match self.known(name) {
            Some(KnownName::Known(addresses, _)) => return Some(addresses),
            Some(KnownName::Sought(sought)) => sought,
            None => {
                // Who stops waiting here, at its deadline or because its guest is gone, gives up its place in the line.
                let of_grant = lock(&self.of_grants)
                    .entry(grant)
                    .or_insert_with(|| Arc::new(Semaphore::new(MAX_LOOKUPS_PER_GRANT)))
                    .clone();
                let places = [of_grant.acquire_owned().await.ok()?, self.places.clone().acquire_owned().await.ok()?];
                self.begin(name, places)?
            }
        };
        sought.wait_for(Option::is_some).await.ok()?.clone()?
    }

    /// What is known of `name` and still good.
    fn known(&self, name: &str) -> Option<KnownName> {
        match lock(&self.names).get(name)? {
            KnownName::Sought(sought) => Some(KnownName::Sought(sought.clone())),
            KnownName::Known(addresses, since) if since.elapsed() < GOOD_FOR => {
                Some(KnownName::Known(addresses.clone(), *since))
            }
            KnownName::Known(..) => None,
        }
    }

    /// Has a thread look `name` up, unless another one does by now.
    fn begin(&self, name: &str, places: [OwnedSemaphorePermit; 2]) -> Option<watch::Receiver<Option<Resolution>>> {
        let mut names = lock(&self.names);
        if let Some(KnownName::Sought(sought)) = names.get(name) {
            return Some(sought.clone());
        }
        let (tell, sought) = watch::channel(None);
        let (find, all, name) = (self.find.clone(), self.names.clone(), name.to_owned());
        names.insert(name.clone(), KnownName::Sought(sought.clone()));
        let seeking = Seeking { all, name: name.clone() };
        drop(names);
        let thread = std::thread::Builder::new().name("resolver".into()).stack_size(STACK);
        let started = thread.spawn(move || {
            let found = find(&name).ok().map(|found| found.into_iter().take(MAX_ADDRESSES).collect());
            seeking.ended(&found);
            drop(places);
            let _ = tell.send(Some(found));
        });
        // Without a thread, `seeking` is dropped with the closure, and so is the sender.
        started.ok().map(|_| sought)
    }
}

/// A name that is looked up; dropped, it no longer is.
struct Seeking {
    all: Arc<Mutex<HashMap<String, KnownName>>>,
    name: String,
}

impl Seeking {
    fn ended(self, found: &Resolution) {
        let mut names = lock(&self.all);
        names.remove(&self.name);
        let Some(addresses) = found else { return };
        names.retain(|_, name| !matches!(name, KnownName::Known(_, since) if since.elapsed() >= GOOD_FOR));
        // Of those that are sought there are no more than threads.
        if names.len() < MAX_KEPT {
            names.insert(self.name.clone(), KnownName::Known(addresses.clone(), Instant::now()));
        }
    }
}

impl Drop for Seeking {
    fn drop(&mut self) {
        let mut names = lock(&self.all);
        if matches!(names.get(&self.name), Some(KnownName::Sought(_))) {
            names.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use tokio::task::{JoinSet, yield_now};

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// One whose look-ups of names that begin with `silent` last until the sender is gone, and how many there were.
    fn resolver() -> (Arc<Resolver>, Arc<AtomicUsize>, mpsc::Sender<()>) {
        let count = Arc::new(AtomicUsize::new(0));
        let (end, silence) = mpsc::channel::<()>();
        let (counted, silence) = (count.clone(), Mutex::new(silence));
        let resolver = Resolver::new(move |name| {
            counted.fetch_add(1, Ordering::SeqCst);
            if name.starts_with("silent") {
                let _ = lock(&silence).recv();
            }
            if name == "none" { Err(io::ErrorKind::NotFound.into()) } else { Ok(vec![ADDRESS; 20]) }
        });
        (Arc::new(resolver), count, end)
    }

    /// Some who want to know the addresses of these names, by now all of them waiting.
    async fn waiting(resolver: &Arc<Resolver>, names: impl Iterator<Item = String>) -> JoinSet<usize> {
        let mut waiting = JoinSet::new();
        for name in names {
            let resolver = resolver.clone();
            waiting.spawn(async move { resolver.look_up(&name, 0).await.map_or(0, |found| found.len()) });
        }
        yield_now().await;
        waiting
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_and_kept_for_a_while() {
        let (resolver, count, _end) = resolver();
        let asked = waiting(&resolver, (0..100).map(|_| "name".to_owned())).await;
        assert_eq!(asked.join_all().await, vec![MAX_ADDRESSES; 100]);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(resolver.look_up("none", 0).await, Err(NotFound::Failed));
        assert_eq!(resolver.look_up("none", 0).await, Err(NotFound::Failed));
        assert_eq!(count.load(Ordering::SeqCst), 3, "what failed may be there the next time");
    }

    #[tokio::test]
    async fn a_silent_name_server_does_not_hold_up_other_names() {
        let (resolver, count, end) = resolver();
        let asked = waiting(&resolver, (0..100).map(|_| "silent".to_owned())).await;
        assert_eq!(resolver.look_up("name", 0).await.map(|found| found[0]), Ok(ADDRESS));
        drop(asked);
        let late = waiting(&resolver, std::iter::once("silent".to_owned())).await;
        drop(end);
        assert_eq!(late.join_all().await, [MAX_ADDRESSES]);
        assert_eq!(count.load(Ordering::SeqCst), 2, "a hundred waited for the same, and so did the last");
    }

    #[tokio::test]
    async fn names_of_one_grant_do_not_hold_all_places() {
        let (resolver, count, end) = resolver();
        let asked = waiting(&resolver, (0..MAX_LOOKUPS * 2).map(|n| format!("silent{n}"))).await;
        assert!(resolver.look_up("name", 1).await.is_ok());
        // Who waited in line is gone with those who wanted to know.
        drop(asked);
        drop(end);
        assert!(resolver.look_up("name of the same grant", 0).await.is_ok());
        assert!(count.load(Ordering::SeqCst) <= MAX_LOOKUPS_PER_GRANT + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_has_a_deadline() {
        let (resolver, count, _end) = resolver();
        assert_eq!(resolver.look_up("silent", 0).await, Err(NotFound::Silent));
        assert_eq!(resolver.look_up("silent", 0).await, Err(NotFound::Silent));
        assert!(count.load(Ordering::SeqCst) <= 1);
    }
}
