//! Names of other servers become addresses, as `/etc/hosts` and the name servers of `/etc/resolv.conf` have it, and stay so for
//! as long as these say.
//!
//! A name server may be silent, and a name its owner's to play with. So what may go wrong is kept to its name: all who want
//! the same name wait for the same look-up, a name has one at a time, the names of one grant have a share of all look-ups, and
//! whoever waits has a deadline. A guest that is gone waits for nothing.

mod finding;
mod name_servers;
mod order;
mod sockets;
mod system;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};

use finding::Finding;
use system::SystemNames;

/// Look-ups at a time, and how many of them for names of the same grant, which may be that of a whole domain. Each asks for two
/// types of addresses, and has at most three datagrams of each under way: so many descriptors it takes.
const MAX_LOOKUPS: usize = 64;
const MAX_LOOKUPS_PER_GRANT: usize = 8;
/// How long somebody waits for the addresses of a name, for a place among those that are looked up included; and how long a
/// look-up takes.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How long addresses are good, whatever their name server says, and that there are none.
const MAX_GOOD_FOR: Duration = Duration::from_secs(300);
const MAX_NONE_FOR: Duration = Duration::from_secs(5);
/// Names that are kept.
const MAX_KEPT: usize = 256;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// The addresses, or why there are none.
type Resolution = Result<Arc<[IpAddr]>, NotFound>;

/// Why there are no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    /// There are none, or those who know say nothing else.
    Failed,
    /// Nobody said anything in time.
    Silent,
}

/// Where addresses come from.
trait AddressSource: Send + Sync + 'static {
    /// Whether what it says may be other than before.
    fn has_changed(&self) -> bool;

    /// The addresses that this machine knows itself.
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>>;

    /// Those that others know.
    fn ask(&self, name: &str) -> impl Future<Output = Finding> + Send + 'static;
}

pub(crate) struct Resolver<S = SystemNames> {
    source: S,
    names: Arc<Mutex<HashMap<String, KnownName>>>,
    places: Arc<Semaphore>,
    /// By the number of the grant.
    of_grants: Mutex<HashMap<usize, Arc<Semaphore>>>,
}

/// What is known of a name.
enum KnownName {
    /// It is looked up; what that comes to is told here.
    Sought(watch::Receiver<Option<Resolution>>),
    Known(Resolution, Instant),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(SystemNames::default())
    }
}

#[expect(private_bounds, reason = "only tests have another source")]
impl<S: AddressSource> Resolver<S> {
    fn new(source: S) -> Self {
        let places = Arc::new(Semaphore::new(MAX_LOOKUPS));
        Self { source, names: Arc::default(), places, of_grants: Mutex::default() }
    }

    /// The addresses of `name`, which the grant of that number covers.
    pub(crate) async fn look_up(&self, name: &str, grant: usize) -> Resolution {
        if self.source.has_changed() {
            // Who waits hears from whom was asked; whoever comes now asks anew.
            lock(&self.names).clear();
        }
        if let Some(addresses) = self.source.addresses(name) {
            return Ok(bounded(addresses));
        }
        timeout(MAX_WAIT, self.find(name, grant)).await.unwrap_or(Err(NotFound::Silent))
    }

    async fn find(&self, name: &str, grant: usize) -> Resolution {
        let mut sought = match self.known(name) {
            Some(KnownName::Known(resolution, _)) => return resolution,
            Some(KnownName::Sought(sought)) => sought,
            None => {
                // Who stops waiting here, at its deadline or because its guest is gone, gives up its place in the line.
                let of_grant = lock(&self.of_grants)
                    .entry(grant)
                    .or_insert_with(|| Arc::new(Semaphore::new(MAX_LOOKUPS_PER_GRANT)))
                    .clone();
                let places = (of_grant.acquire_owned().await, self.places.clone().acquire_owned().await);
                let (Ok(of_grant), Ok(of_all)) = places else { return Err(NotFound::Failed) };
                match self.begin(name, [of_grant, of_all]) {
                    KnownName::Known(resolution, _) => return resolution,
                    KnownName::Sought(sought) => sought,
                }
            }
        };
        // The sender is gone without a word only if the look-up has panicked.
        let told = sought.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
        told.unwrap_or(Err(NotFound::Failed))
    }

    /// What is known of `name` and still good.
    fn known(&self, name: &str) -> Option<KnownName> {
        lock(&self.names).get(name).and_then(KnownName::still)
    }

    /// Looks `name` up, unless another one has begun by now, or is done. In a task of its own: whoever began it may go, and the
    /// others still wait. It ends with the worker at the latest, which does not wait for it.
    fn begin(&self, name: &str, places: [OwnedSemaphorePermit; 2]) -> KnownName {
        let mut names = lock(&self.names);
        if let Some(known) = names.get(name).and_then(KnownName::still) {
            return known;
        }
        let (tell, sought) = watch::channel(None);
        names.insert(name.to_owned(), KnownName::Sought(sought.clone()));
        drop(names);
        let seeking = Seeking { all: self.names.clone(), name: name.to_owned(), sought: sought.clone() };
        let asked = self.source.ask(name);
        tokio::spawn(async move {
            let found = timeout(MAX_WAIT, asked).await.unwrap_or(Finding::none(NotFound::Silent));
            let resolution = found.addresses.map(bounded);
            seeking.ended(&resolution, found.good_for);
            drop(places);
            let _ = tell.send(Some(resolution));
        });
        KnownName::Sought(sought)
    }
}

/// As many as are tried.
fn bounded(mut addresses: Vec<IpAddr>) -> Arc<[IpAddr]> {
    addresses.truncate(MAX_ADDRESSES);
    addresses.into()
}

impl KnownName {
    /// The same, if it is still good.
    fn still(&self) -> Option<Self> {
        match self {
            Self::Sought(sought) => Some(Self::Sought(sought.clone())),
            Self::Known(resolution, until) if Instant::now() < *until => Some(Self::Known(resolution.clone(), *until)),
            Self::Known(..) => None,
        }
    }
}

/// A name that is looked up; dropped, it no longer is.
struct Seeking {
    all: Arc<Mutex<HashMap<String, KnownName>>>,
    name: String,
    sought: watch::Receiver<Option<Resolution>>,
}

impl Seeking {
    fn ended(self, resolution: &Resolution, good_for: Duration) {
        let mut names = lock(&self.all);
        let good_for = good_for.min(if resolution.is_ok() { MAX_GOOD_FOR } else { MAX_NONE_FOR });
        // It is another's if what was known was forgotten meanwhile.
        if !self.is_its(&names) || good_for.is_zero() {
            return;
        }
        names.retain(|_, name| name.still().is_some());
        if names.len() > MAX_KEPT {
            let until = |(name, known): (&String, &KnownName)| match known {
                KnownName::Known(_, until) => Some((*until, name.clone())),
                KnownName::Sought(_) => None,
            };
            // The one that would be forgotten next. Of those that are sought there are fewer than look-ups.
            if let Some((_, next)) = names.iter().filter_map(until).min() {
                names.remove(&next);
            }
        }
        names.insert(self.name.clone(), KnownName::Known(resolution.clone(), Instant::now() + good_for));
    }

    fn is_its(&self, names: &HashMap<String, KnownName>) -> bool {
        matches!(names.get(&self.name), Some(KnownName::Sought(sought)) if sought.same_channel(&self.sought))
    }
}

impl Drop for Seeking {
    fn drop(&mut self) {
        let mut names = lock(&self.all);
        if self.is_its(&names) {
            names.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::task::{JoinSet, yield_now};
    use tokio::time::advance;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const TTL: Duration = Duration::from_secs(30);

    /// Answers for as long as a name says that begins with `ttl`, in seconds; of names that begin with `silent` when it is told
    /// to, and then not at all of `silent forever`.
    #[derive(Default)]
    struct Script {
        asked: AtomicUsize,
        has_changed: AtomicBool,
        end: Arc<tokio::sync::Notify>,
    }

    impl AddressSource for Script {
        fn has_changed(&self) -> bool {
            self.has_changed.swap(false, Ordering::SeqCst)
        }

        fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
            (name == "here").then(|| vec![ADDRESS])
        }

        fn ask(&self, name: &str) -> impl Future<Output = Finding> + Send + 'static {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let (name, end) = (name.to_owned(), self.end.clone());
            async move {
                if name.starts_with("silent") {
                    end.notified().await;
                }
                let good_for =
                    name.strip_prefix("ttl").and_then(|ttl| ttl.parse().ok()).map_or(TTL, Duration::from_secs);
                let addresses = if name.starts_with("none") { Err(NotFound::Failed) } else { Ok(vec![ADDRESS; 20]) };
                Finding { addresses, good_for }
            }
        }
    }

    fn resolver() -> Arc<Resolver<Script>> {
        Arc::new(Resolver::new(Script::default()))
    }

    impl Resolver<Script> {
        fn asked(&self) -> usize {
            self.source.asked.load(Ordering::SeqCst)
        }
    }

    /// Some who want to know the addresses of these names, by now all of them waiting.
    async fn waiting(resolver: &Arc<Resolver<Script>>, names: impl Iterator<Item = String>) -> JoinSet<usize> {
        let mut waiting = JoinSet::new();
        for name in names {
            let resolver = resolver.clone();
            waiting.spawn(async move { resolver.look_up(&name, 0).await.map_or(0, |found| found.len()) });
        }
        yield_now().await;
        yield_now().await;
        waiting
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_once_and_kept_for_its_ttl() {
        let resolver = resolver();
        let asked = waiting(&resolver, (0..100).map(|_| "name".to_owned())).await;
        assert_eq!(asked.join_all().await, vec![MAX_ADDRESSES; 100]);
        assert_eq!(resolver.asked(), 1);
        for (name, good_for) in [("name", TTL), ("none", MAX_NONE_FOR), ("ttl99999", MAX_GOOD_FOR), ("ttl1", TTL / 30)]
        {
            resolver.look_up(name, 0).await.ok();
            let before = resolver.asked();
            advance(good_for - Duration::from_millis(1)).await;
            resolver.look_up(name, 0).await.ok();
            assert_eq!(resolver.asked(), before, "{name} is good");
            advance(Duration::from_millis(1)).await;
            resolver.look_up(name, 0).await.ok();
            assert_eq!(resolver.asked(), before + 1, "{name} is no longer good");
        }
        let before = resolver.asked();
        for _ in 0..3 {
            assert!(resolver.look_up("ttl0", 0).await.is_ok());
        }
        assert_eq!(resolver.asked(), before + 3, "without a time to live it is asked for each time");
        assert!(resolver.look_up("here", 0).await.is_ok());
        assert_eq!(resolver.asked(), before + 3, "what is known here is not asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_is_forgotten_when_the_machine_asks_others() {
        let resolver = resolver();
        resolver.look_up("name", 0).await.unwrap();
        let early = waiting(&resolver, std::iter::once("silent".to_owned())).await;
        resolver.source.has_changed.store(true, Ordering::SeqCst);
        resolver.look_up("name", 0).await.unwrap();
        let late = waiting(&resolver, std::iter::once("silent".to_owned())).await;
        assert_eq!(resolver.asked(), 4);
        // The first to be asked answers first, and nobody believes it any more.
        resolver.source.end.notify_one();
        assert_eq!(early.join_all().await, [MAX_ADDRESSES]);
        assert!(matches!(resolver.known("silent"), Some(KnownName::Sought(_))));
        resolver.source.end.notify_one();
        assert_eq!(late.join_all().await, [MAX_ADDRESSES]);
        assert!(matches!(resolver.known("silent"), Some(KnownName::Known(..))));
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_are_kept_are_bounded() {
        let resolver = resolver();
        for ttl in 1..=2 * MAX_KEPT {
            resolver.look_up(&format!("ttl{ttl}"), 0).await.unwrap();
        }
        assert_eq!(lock(&resolver.names).len(), MAX_KEPT);
        assert!(resolver.known(&format!("ttl{}", 2 * MAX_KEPT)).is_some() && resolver.known("ttl9").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_name_server_does_not_hold_up_other_names() {
        let resolver = resolver();
        let asked = waiting(&resolver, (0..100).map(|_| "silent".to_owned())).await;
        assert_eq!(resolver.look_up("name", 0).await.map(|found| found[0]), Ok(ADDRESS));
        drop(asked);
        let late = waiting(&resolver, std::iter::once("silent".to_owned())).await;
        resolver.source.end.notify_one();
        assert_eq!(late.join_all().await, [MAX_ADDRESSES]);
        assert_eq!(resolver.asked(), 2, "a hundred waited for the same, and so did the last");
    }

    #[tokio::test(start_paused = true)]
    async fn names_of_one_grant_do_not_hold_all_places() {
        let resolver = resolver();
        let asked = waiting(&resolver, (0..MAX_LOOKUPS * 2).map(|n| format!("silent{n}"))).await;
        assert_eq!(resolver.asked(), MAX_LOOKUPS_PER_GRANT);
        assert!(resolver.look_up("name", 1).await.is_ok());
        assert!(resolver.look_up("here", 0).await.is_ok(), "it needs no place");
        // Who waited in line is gone with those who wanted to know.
        drop(asked);
        resolver.source.end.notify_waiters();
        assert!(resolver.look_up("name of the same grant", 0).await.is_ok());
        assert_eq!(resolver.asked(), MAX_LOOKUPS_PER_GRANT + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_has_a_deadline() {
        let resolver = resolver();
        assert_eq!(resolver.look_up("silent", 0).await, Err(NotFound::Silent));
        yield_now().await;
        assert!(resolver.known("silent").is_none(), "the look-up has one too");
        assert_eq!(resolver.look_up("silent", 0).await, Err(NotFound::Silent));
        assert_eq!(resolver.asked(), 2);
    }
}
