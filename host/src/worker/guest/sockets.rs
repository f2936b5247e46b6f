//! TCP connections that guests open themselves, by `wasi:sockets`: to where `--allow-connect` says, so many, and not for
//! longer than their instance lives.
//!
//! The sockets are this crate's own, not wasmtime-wasi's: those neither end an attempt to connect nor can be counted, and
//! their look-ups block a thread. All else of `wasi:sockets` stays wasmtime-wasi's, which denies it: UDP, as no context has
//! leave for it.

mod interface;
mod reach;
mod socket;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::outbound::NotFound;
use super::world::Guest;
use crate::grants::{ConnectGrants, Host, connect_flag, special};
use crate::settings::SOCKETS_EACH;

pub(super) use interface::add_to_linker;
use reach::Reach;
use socket::{GuestSocket, SocketFamily};

/// What all instances of a worker have in common.
pub(crate) struct SocketGrants {
    grants: ConnectGrants,
    /// One for each socket.
    places: Arc<Semaphore>,
    max: usize,
    max_of_instance: usize,
}

impl SocketGrants {
    /// For so many sockets in all; and for instances that serve so many requests at the same time.
    pub(crate) fn new(grants: ConnectGrants, max: usize, seats: usize) -> Self {
        Self { grants, places: Arc::new(Semaphore::new(max)), max, max_of_instance: SOCKETS_EACH * seats }
    }
}

/// One instance's.
pub(crate) struct OwnSockets {
    places: Arc<Semaphore>,
    /// Look-ups that are under way find their way back here.
    reach: Arc<Reach>,
}

impl OwnSockets {
    pub(crate) fn new(of_worker: &SocketGrants) -> Self {
        Self { places: Arc::new(Semaphore::new(of_worker.max_of_instance)), reach: Arc::default() }
    }
}

/// A socket's share of its instance's and its worker's. They have it back when the last that is left of the connection is
/// gone.
type SocketPlaces = Arc<[OwnedSemaphorePermit; 2]>;

/// Why there is no socket.
enum NoSocket {
    Denied,
    TooMany,
    Failed(wasmtime_wasi::sockets::ErrorCode),
}

/// Why a name has no addresses for a guest.
#[derive(Clone, Copy)]
enum LookupFailure {
    /// Nothing is granted at all.
    Closed,
    Denied,
    NotAName,
    Failed,
    Silent,
}

impl From<NotFound> for LookupFailure {
    fn from(error: NotFound) -> Self {
        match error {
            NotFound::Failed => Self::Failed,
            NotFound::Silent => Self::Silent,
        }
    }
}

impl Guest {
    /// A socket that is not connected.
    fn create_socket(&mut self, family: SocketFamily) -> Result<GuestSocket, NoSocket> {
        let SocketGrants { grants, places, max, max_of_instance } = &self.world().sockets;
        if grants.are_none() {
            self.denied("a TCP socket", "grant where it may connect to with --allow-connect HOST:PORT");
            return Err(NoSocket::Denied);
        }
        let (of_worker, max, max_of_instance) = (places.clone().try_acquire_owned(), *max, *max_of_instance);
        match (self.own_sockets().places.clone().try_acquire_owned(), of_worker) {
            (Ok(of_instance), Ok(of_worker)) => {
                GuestSocket::new(family, Arc::new([of_instance, of_worker])).map_err(NoSocket::Failed)
            }
            (Err(_), _) => {
                let what = format!("more than {max_of_instance} TCP sockets at a time in one instance");
                self.denied(&what, "no flag raises this limit");
                Err(NoSocket::TooMany)
            }
            (_, Err(_)) => {
                self.denied(&format!("more than {max} TCP sockets at a time in one worker"), "raise --max-sockets");
                Err(NoSocket::TooMany)
            }
        }
    }

    /// Whether a connection may go there: to an address that is granted, or to one that a look-up of a granted name gave to
    /// this instance, on a port that is granted for that name.
    fn may_connect(&mut self, to: SocketAddr) -> bool {
        let (address, port) = (to.ip().to_canonical(), to.port());
        let names = self.own_sockets().reach.names_of(address);
        let grants = &self.world().sockets.grants;
        if grants.permit(address, port) || names.iter().any(|name| grants.permit_by_name(name, address, port)) {
            return true;
        }
        let (what, host) = match names.into_iter().next() {
            Some(name) => ("a connection to another port of a granted name", Host::Name(name)),
            None => ("a connection to an address that is not granted", Host::Address(address)),
        };
        self.denied(what, &format!("grant it with {}", connect_flag(&host, Some(port))));
        false
    }

    /// The addresses of `name`, to which it may then connect.
    fn look_up(
        &mut self,
        name: &str,
    ) -> impl Future<Output = Result<Vec<IpAddr>, LookupFailure>> + Send + 'static + use<> {
        let host = name.parse().map(Host::Address).or_else(|_| Host::parse(name));
        let found = match host {
            _ if self.world().sockets.grants.are_none() => {
                if let Ok(host @ Host::Name(_)) = &host {
                    self.name_denied(host);
                }
                Err(LookupFailure::Closed)
            }
            // An address is its own, and says nothing of where a connection may go.
            Ok(Host::Address(address)) => Ok(Err(address)),
            Ok(Host::Name(name)) => match self.world().sockets.grants.first_for_name(&name) {
                Some(grant) => Ok(Ok((name, grant))),
                None => {
                    self.name_denied(&Host::Name(name));
                    Err(LookupFailure::Denied)
                }
            },
            Err(_) => Err(LookupFailure::NotAName),
        };
        let (world, asked, reach) = (self.world().clone(), self.asked().cloned(), self.own_sockets().reach.clone());
        async move {
            let (name, grant) = match found? {
                Ok(name) => name,
                Err(address) => return Ok(vec![address]),
            };
            let all = world.outbound.look_up(&name, grant).await?;
            let leads = |address: &IpAddr| world.sockets.grants.lead_to(&name, *address);
            let (good, denied): (Vec<_>, Vec<_>) = all.iter().map(IpAddr::to_canonical).partition(leads);
            if let (true, Some(&address)) = (good.is_empty(), denied.first()) {
                let range = special(address).unwrap_or("other");
                let what = format!("a look-up of a granted name with the special address {address} ({range})");
                let remedy = format!("grant the address too, with {}", connect_flag(&Host::Address(address), None));
                world.outbound.notices.denied(asked.as_deref(), what, remedy);
                return Err(LookupFailure::Denied);
            }
            reach.found(&name, &good);
            Ok(good)
        }
    }

    fn name_denied(&self, name: &Host) {
        let remedy = format!("grant it with {}", connect_flag(name, None));
        self.denied("a look-up of a name that is not granted", &remedy);
    }

    fn denied(&self, what: &str, remedy: &str) {
        self.world().outbound.notices.denied(self.asked().map(AsRef::as_ref), what, remedy);
    }
}
