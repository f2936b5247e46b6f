//! Requests in flight: what they are called, in the stats page, in the log, and by their clients. [`Asked`] is what else
//! may know of one: its guest's output and outbound requests are logged with it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Request};

use super::clock;
use super::cost::Cost;
use super::traces::{RequestTrace, Tracer};
use crate::wire::counter::Held;
use crate::wire::ids::{RequestId, WorkerId};
use crate::wire::stats::{MAX_LISTED, Stats};

/// What names a request in the log and to its client.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a client's own name for its request.
const MAX_CLIENT_ID: usize = 128;
/// Bytes of a method that stand before what a guest printed, and of a path that are logged.
const MAX_METHOD: usize = 32;
const MAX_PATH: usize = 256;

/// Logs something about a request: which it is, and what was asked.
macro_rules! log_of {
    ($level:ident, $asked:expr, $($message:tt)+) => {{
        let of: &$crate::worker::requests::Asked = $asked;
        tracing::$level!(
            request = of.request(),
            x_request_id = of.client_id(),
            method = of.method(),
            path = of.path(),
            $($message)+
        )
    }};
}
pub(super) use log_of;

/// Numbers requests, and lists those in flight in the page.
#[derive(Debug)]
pub(super) struct Requests {
    worker: WorkerId,
    /// None if nobody asked for traces.
    tracer: Option<Arc<Tracer>>,
    stats: &'static Stats,
    last: Cell<u64>,
    /// Places in the page's list that no request has.
    free: RefCell<Vec<usize>>,
}

/// What was asked, and what that is called.
#[derive(Debug)]
pub(crate) struct Asked {
    id: RequestId,
    method: Method,
    target: Option<PathAndQuery>,
    /// What its client calls it.
    client_id: Option<HeaderValue>,
    cost: Cost,
    trace: Option<RequestTrace>,
}

/// One request, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    asked: Arc<Asked>,
    /// Until it is something else.
    listing: RefCell<Option<Listing>>,
    began: Instant,
}

/// Its entry in the page.
#[derive(Debug)]
struct Listing {
    requests: Rc<Requests>,
    place: Option<usize>,
    _counted: Held,
}

impl Deref for InFlight {
    type Target = Asked;

    fn deref(&self) -> &Asked {
        &self.asked
    }
}

impl Asked {
    /// What the log calls it.
    pub(super) fn request(&self) -> String {
        self.id.to_string()
    }

    /// The trace that it belongs to; none if nobody asked for traces.
    pub(super) fn trace(&self) -> Option<&RequestTrace> {
        self.trace.as_ref()
    }

    /// What it costs.
    pub(super) fn cost(&self) -> &Cost {
        &self.cost
    }

    /// Who got it.
    pub(super) fn worker(&self) -> u64 {
        self.id.worker.0
    }

    /// Its number among those of its worker.
    pub(super) fn number(&self) -> u64 {
        self.id.number
    }

    /// What its client calls it, if it said that.
    pub(super) fn client_id(&self) -> Option<&str> {
        self.client_id.as_ref()?.to_str().ok()
    }

    /// What an answer to it calls it, if the client said it.
    pub(super) fn echo(&self) -> Option<&HeaderValue> {
        self.client_id.as_ref()
    }

    /// What its client is told: its own name for the request, or the log's.
    pub(super) fn name(&self) -> String {
        self.client_id().map_or_else(|| self.request(), ToOwned::to_owned)
    }

    pub(super) fn method(&self) -> &str {
        self.method.as_str()
    }

    /// As much of it as is logged. It is a token, and so ASCII.
    pub(super) fn short_method(&self) -> &str {
        short_method(&self.method)
    }

    /// The path without its query, in which there may be secrets.
    pub(super) fn path(&self) -> &str {
        let path = self.target.as_ref().map_or("", PathAndQuery::path);
        &path[..path.floor_char_boundary(MAX_PATH)]
    }
}

/// As much of a method as is logged.
pub(super) fn short_method(method: &Method) -> &str {
    method.as_str().get(..MAX_METHOD).unwrap_or(method.as_str())
}

/// As `fleet/output.rs` reads it: id, method, path, and the client's name, none of which has a space in it. At most
/// [`MAX_MARK`](crate::os::pipe::MAX_MARK) bytes.
impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.id, self.short_method(), self.path())?;
        self.client_id().map_or(Ok(()), |name| write!(f, " {name}"))
    }
}

impl InFlight {
    /// For those who may outlive it.
    pub(super) fn asked(&self) -> Arc<Asked> {
        self.asked.clone()
    }

    /// It has become something else, which may last.
    pub(super) fn upgraded(&self) {
        self.listing.take();
    }

    /// When its head was there.
    pub(super) fn began(&self) -> Instant {
        self.began
    }
}

impl Requests {
    pub(super) fn new(worker: WorkerId, tracer: Option<Arc<Tracer>>, stats: &'static Stats) -> Self {
        Self { worker, tracer, stats, last: Cell::new(0), free: RefCell::new((0..MAX_LISTED).rev().collect()) }
    }

    /// Counts and lists one more. If its client calls it by a name that makes no sense, the guest sees ours instead.
    pub(super) fn begin<B>(self: &Rc<Self>, request: &mut Request<B>) -> InFlight {
        let number = self.last.get() + 1;
        let id = RequestId { worker: self.worker, number };
        self.last.set(number);
        self.stats.requests.increment();
        let place = self.free.borrow_mut().pop();
        if let Some(place) = place {
            self.stats.requests_in_flight[place].set(number);
        }
        let asked = Asked {
            id,
            method: request.method().clone(),
            target: request.uri().path_and_query().cloned(),
            client_id: client_id(request, id),
            cost: Cost::default(),
            trace: self.tracer.as_ref().map(|tracer| tracer.begin(request.headers())),
        };
        InFlight {
            asked: Arc::new(asked),
            listing: RefCell::new(Some(Listing {
                requests: self.clone(),
                place,
                _counted: self.stats.in_flight.hold(),
            })),
            began: clock::now(),
        }
    }
}

/// What the client calls its request; what is no name is replaced by `id`.
fn client_id<B>(request: &mut Request<B>, id: RequestId) -> Option<HeaderValue> {
    let mut names = request.headers().get_all(REQUEST_ID).iter();
    let (first, second) = (names.next()?, names.next());
    if second.is_none() && is_name(first.as_bytes()) {
        return Some(first.clone());
    }
    if let Ok(id) = HeaderValue::try_from(id.to_string()) {
        request.headers_mut().insert(REQUEST_ID, id);
    }
    None
}

/// What is common in such names: UUIDs, base64, trace ids, several of them joined.
fn is_name(name: &[u8]) -> bool {
    let is_good = |&byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=:@,;|".contains(&byte);
    (1..=MAX_CLIENT_ID).contains(&name.len()) && name.iter().all(is_good)
}

impl Drop for Listing {
    fn drop(&mut self) {
        let requests = &*self.requests;
        if let Some(place) = self.place {
            requests.stats.requests_in_flight[place].set(0);
            requests.free.borrow_mut().push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stats::Page;

    #[test]
    fn the_page_lists_what_is_in_flight() {
        let (page, fd) = Page::create().unwrap();
        let requests = Rc::new(Requests::new(WorkerId(7), None, Page::open(&fd).unwrap()));
        let listed = || {
            let mut numbers: Vec<u64> = page.requests_in_flight.iter().map(|number| number.get()).collect();
            numbers.retain(|&number| number > 0);
            numbers.sort_unstable();
            numbers
        };
        let (one, two, three) = (
            requests.begin(&mut Request::new(())),
            requests.begin(&mut Request::new(())),
            requests.begin(&mut Request::new(())),
        );
        assert_eq!(two.id.to_string(), "7-2");
        drop(two);
        assert_eq!(listed(), vec![1, 3]);
        let four = requests.begin(&mut Request::new(()));
        assert_eq!((listed(), page.in_flight.get(), page.requests.get()), (vec![1, 3, 4], 3, 4));
        drop((one, three, four));
        assert_eq!((listed(), page.in_flight.get()), (vec![], 0));
    }

    #[test]
    fn what_finds_no_place_is_still_counted() {
        let (page, fd) = Page::create().unwrap();
        let requests = Rc::new(Requests::new(WorkerId(1), None, Page::open(&fd).unwrap()));
        let many: Vec<InFlight> = (0..MAX_LISTED + 10).map(|_| requests.begin(&mut Request::new(()))).collect();
        assert_eq!(page.in_flight.get(), MAX_LISTED as u64 + 10);
        drop(many);
        assert_eq!(page.in_flight.get(), 0);
        assert_eq!(requests.free.borrow().len(), MAX_LISTED);
    }

    #[test]
    fn a_clients_name_for_its_request_is_kept_if_it_is_one() {
        let (_page, fd) = Page::create().unwrap();
        let requests = Rc::new(Requests::new(WorkerId(1), None, Page::open(&fd).unwrap()));
        let check = |names: &[&[u8]], is_kept: bool| {
            let mut request = Request::new(());
            for name in names {
                request.headers_mut().append(REQUEST_ID, HeaderValue::from_bytes(name).unwrap());
            }
            let in_flight = requests.begin(&mut request);
            let expected = is_kept.then(|| str::from_utf8(names[0]).unwrap());
            assert_eq!(in_flight.client_id(), expected);
            assert_eq!(in_flight.name(), expected.map_or_else(|| in_flight.request(), ToOwned::to_owned));
            // What a guest sees, if it sees any, is what the answer and the log have.
            let seen: Vec<_> = request.headers().get_all(REQUEST_ID).iter().map(HeaderValue::as_bytes).collect();
            let name = in_flight.name();
            assert_eq!(seen, if names.is_empty() { vec![] } else { vec![name.as_bytes()] });
        };
        check(&[], false);
        check(&[b"0b0cc6c5-6a5c-4a29-b9a5-f1e4b2a7f1d3"], true);
        check(&[b"Root=1-67891233-abcdef012345678912345678;Self=1"], true);
        check(&[&[b'a'; MAX_CLIENT_ID]], true);
        check(&[&[b'a'; MAX_CLIENT_ID + 1]], false);
        for bad in [&b""[..], b"a b", b"a\tb", "\u{e9}".as_bytes(), b"a\"b", b"\xff"] {
            check(&[bad], false);
        }
        check(&[b"one", b"two"], false);
    }
}
