//! Instances of WASI 0.3, which can serve several requests at the same time.
//!
//! One future runs an instance and all that it serves. It has no task of its own: whoever waits for an answer polls it, so
//! a request that is alone in its instance costs no switch of tasks. An instance is used again as one of WASI 0.2 is: only
//! if everything went well. What goes wrong in it, a trap or a spin, goes wrong for all requests that are in it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{Error, p3};

use super::call::{Failure, Head, said};
use super::outbound::{Hooks, Origin};
use super::reuse::{Factory, MAX_IDLE};
use super::trap::{Described, TrapKind, describe};
use super::websocket::SocketLink;
use super::world::{Guest, World};
use crate::worker::cost::InstanceUse;
use crate::worker::values::Values;

/// All instances of a component.
pub(crate) struct SharedStock {
    factory: Factory<ServicePre<Guest>>,
    max_uses: u32,
    max_seats: usize,
    /// Without a request. The one that was used last is at the end, and is used next.
    idle: RefCell<Vec<Rc<Instance>>>,
    /// With requests, and with a seat for another.
    open: RefCell<Vec<Rc<Instance>>>,
}

impl SharedStock {
    pub(crate) fn new(factory: Factory<ServicePre<Guest>>, max_uses: u32, max_seats: usize) -> Self {
        Self { factory, max_uses, max_seats, idle: RefCell::default(), open: RefCell::default() }
    }

    /// How many requests an instance may serve at the same time.
    pub(crate) fn seats(&self) -> usize {
        self.max_seats
    }

    /// What all its instances have in common.
    pub(crate) fn world(&self) -> &World {
        self.factory.world()
    }

    /// What a guest asks for while it works on a request.
    pub(crate) fn hooks(&self, origin: Origin) -> Hooks {
        self.factory.hooks(origin)
    }

    /// Instantiates once and drops the instance.
    pub(crate) async fn probe(&self) -> Result<(), Failure> {
        self.factory.fresh(Origin::default()).await.map(drop)
    }

    /// Serves a request in an instance that has a seat for it, or in a fresh one. To drop this cancels the request: its
    /// instance gets no other, and is dropped with its last.
    pub(crate) async fn serve(self: Rc<Self>, request: GuestRequest) -> Result<(), Failure> {
        let instance = match self.take() {
            Some(instance) => {
                request.hooks.got(InstanceUse::Reused);
                instance
            }
            None => {
                request.hooks.got(InstanceUse::Fresh);
                // Boxed, so that calls that need none do not carry its size.
                let (store, service) = Box::pin(self.factory.fresh(Origin::default())).await?;
                Instance::start(store, service)
            }
        };
        let mut seat = Seat::take(self, instance, request);
        poll_fn(|context| seat.poll(context)).await
    }

    /// An instance that has a seat.
    fn take(&self) -> Option<Rc<Instance>> {
        let is_current = |instance: &Rc<Instance>| self.world().configures(&instance.values);
        let idle = std::iter::from_fn(|| self.idle.borrow_mut().pop()).find(is_current);
        // Of those that have requests, one may have trapped just now.
        let is_open = |instance: &Rc<Instance>| instance.is_good.get() && is_current(instance);
        idle.or_else(|| std::iter::from_fn(|| self.open.borrow_mut().pop()).find(is_open))
    }

    /// What came of a change of `instance`: where it belongs now.
    fn file(&self, instance: &Rc<Instance>) {
        let is = |other: &Rc<Instance>| Rc::ptr_eq(instance, other);
        self.open.borrow_mut().retain(|other| !is(other));
        if !instance.is_good.get() || instance.uses.get() >= self.max_uses {
            return;
        }
        if instance.seats.get() > 0 {
            if instance.seats.get() < self.max_seats {
                self.open.borrow_mut().push(instance.clone());
            }
            return;
        }
        instance.idle_since.set(Instant::now());
        let mut idle = self.idle.borrow_mut();
        idle.push(instance.clone());
        self.factory.make_room(&mut idle);
    }

    /// Drops instances that wait for too long.
    pub(crate) fn trim(&self) {
        let mut idle = self.idle.borrow_mut();
        let stale = idle.iter().take_while(|instance| instance.idle_since.get().elapsed() > MAX_IDLE).count();
        idle.drain(..stale);
    }
}

/// A request for an instance.
pub(crate) struct GuestRequest {
    pub(crate) request: p3::Request,
    pub(crate) hooks: Hooks,
    pub(crate) head: oneshot::Sender<Head>,
    /// What it asks for, which may outlive the answer.
    pub(crate) socket: Option<Arc<SocketLink>>,
}

type InstanceFuture = Pin<Box<dyn Future<Output = wasmtime::Result<Infallible>>>>;

/// One instance.
struct Instance {
    /// Runs it; `None` when it has trapped, or is not needed any more.
    running: RefCell<Option<InstanceFuture>>,
    /// Why it ended.
    trapped: RefCell<Option<(String, TrapKind)>>,
    work: Rc<SharedWork>,
    wakers: Arc<Wakers>,
    waker: Waker,
    /// Requests that it serves now, and all that it was given.
    seats: Cell<usize>,
    uses: Cell<u32>,
    /// It may be given more.
    is_good: Cell<bool>,
    idle_since: Cell<Instant>,
    next_seat: Cell<u64>,
    /// What it was configured with.
    values: Values,
}

/// What an instance and those who wait for it tell each other.
#[derive(Default)]
struct SharedWork {
    new: RefCell<Vec<(GuestRequest, Rc<Cell<bool>>)>>,
    /// Some request is over.
    has_news: Cell<bool>,
    /// It kept what it was lent.
    leaks: Cell<bool>,
}

impl Instance {
    fn start(store: Store<Guest>, service: Service) -> Rc<Self> {
        let (work, wakers) = (Rc::<SharedWork>::default(), Arc::<Wakers>::default());
        let values = store.data().values().clone();
        Rc::new(Self {
            running: RefCell::new(Some(Box::pin(run(store, service, work.clone())))),
            trapped: RefCell::default(),
            work,
            waker: Waker::from(wakers.clone()),
            wakers,
            seats: Cell::new(0),
            uses: Cell::new(0),
            is_good: Cell::new(true),
            idle_since: Cell::new(Instant::now()),
            next_seat: Cell::new(0),
            values,
        })
    }

    fn poll(&self, seat: u64) {
        let mut running = self.running.borrow_mut();
        let Some(run) = &mut *running else { return };
        let mut context = Context::from_waker(&self.waker);
        // A panic ends the instance as a trap does: others that have a seat in it must not poll it again.
        let polled = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(&mut context)))
            .unwrap_or_else(|_| Poll::Ready(Err(wasmtime::Error::msg("the server panicked while the guest ran"))));
        if let Poll::Ready(Err(error)) = polled {
            self.is_good.set(false);
            self.trapped.replace(Some((describe(&error), TrapKind::of(&error))));
            *running = None;
            self.work.has_news.set(true);
        }
        if self.work.leaks.get() {
            self.is_good.set(false);
        }
        if self.work.has_news.take() {
            self.wakers.wake_others(seat);
        }
    }
}

/// A request's place in an instance.
struct Seat {
    stock: Rc<SharedStock>,
    instance: Rc<Instance>,
    number: u64,
    is_over: Rc<Cell<bool>>,
    socket: Option<Arc<SocketLink>>,
}

impl Seat {
    fn take(stock: Rc<SharedStock>, instance: Rc<Instance>, request: GuestRequest) -> Self {
        let number = instance.next_seat.get();
        instance.next_seat.set(number + 1);
        instance.seats.set(instance.seats.get() + 1);
        instance.uses.set(instance.uses.get() + 1);
        let (is_over, socket) = (Rc::new(Cell::new(false)), request.socket.clone());
        instance.work.new.borrow_mut().push((request, is_over.clone()));
        if stock.max_seats > 1 {
            stock.file(&instance);
        }
        Self { stock, instance, number, is_over, socket }
    }

    fn poll(&mut self, context: &Context<'_>) -> Poll<Result<(), Failure>> {
        let is_attended = self.socket.as_ref().is_some_and(|socket| socket.is_attended());
        self.instance.wakers.register(self.number, context.waker(), is_attended);
        self.instance.poll(self.number);
        if self.is_over.get() {
            return Poll::Ready(Ok(()));
        }
        match &*self.instance.trapped.borrow() {
            Some((error, kind)) => Poll::Ready(Err(Failure::Trap(Described(error.clone(), *kind).into()))),
            None => Poll::Pending,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let instance = &self.instance;
        instance.wakers.remove(self.number);
        instance.seats.set(instance.seats.get() - 1);
        if !self.is_over.get() {
            // Nothing cancels a single request.
            instance.is_good.set(false);
        }
        self.stock.file(instance);
    }
}

/// Serves what it is given, and rests between. Ends with a trap.
async fn run(mut store: Store<Guest>, service: Service, work: Rc<SharedWork>) -> wasmtime::Result<Infallible> {
    let ended = store
        .run_concurrent(async |accessor| {
            let mut requests = Vec::new();
            let mut over = Vec::new();
            let mut handles = None;
            poll_fn(|context| {
                for (request, is_over) in work.new.borrow_mut().drain(..) {
                    let is_alone = requests.is_empty() && over.is_empty();
                    requests.push((Box::pin(answer(accessor, &service, request, is_alone)), is_over));
                }
                let mut failed = None;
                requests.retain_mut(|(answering, is_over)| match answering.as_mut().poll(context) {
                    Poll::Pending => true,
                    Poll::Ready(ended) => {
                        over.push(is_over.clone());
                        failed = failed.take().or(ended.err());
                        false
                    }
                });
                if let Some(error) = failed {
                    return Poll::Ready(Err(error));
                }
                // What a guest still does behind its answer, others wait for, if there are any.
                let rests = requests.is_empty() && !over.is_empty();
                if rests && accessor.poll_no_interesting_tasks(context).is_pending() {
                    return Poll::Pending;
                }
                if rests {
                    let held = accessor.with(|mut access| access.data_mut().end());
                    // What its libraries keep for later, they have after its first requests.
                    work.leaks.set(held > *handles.get_or_insert(held));
                }
                for is_over in over.drain(..) {
                    is_over.set(true);
                    work.has_news.set(true);
                }
                Poll::Pending
            })
            .await
        })
        .await
        .flatten();
    match store.data().stopped() {
        Some(why) => Err(Described(why.to_owned(), TrapKind::Limit).into()),
        None => ended,
    }
}

/// Gives the guest a request, and its answer to whoever waits for it. Ends when the connection has taken the last frame,
/// or is gone, and the guest has let go of a WebSocket that it accepted.
async fn answer(
    accessor: &Accessor<Guest>,
    service: &Service,
    GuestRequest { request, hooks, head, socket }: GuestRequest,
    is_alone: bool,
) -> wasmtime::Result<()> {
    accessor.with(|mut access| access.data_mut().begin(hooks, is_alone));
    let answer = match service.handle(accessor, request).await? {
        Ok(answer) => answer,
        Err(code) => {
            let _ = head.send(Err(said(code)));
            return Ok(());
        }
    };
    let answer = accessor.with(|access| answer.into_http(access, async { Ok(()) }))?;
    let (taking, taken) = oneshot::channel::<Infallible>();
    let _ = head.send(Ok(answer.map(|frames| UnsyncBoxBody::new(Guarded { frames, _taking: taking }))));
    let _ = taken.await;
    if let Some(socket) = socket {
        socket.released().await;
    }
    Ok(())
}

/// Those who wait for an instance. When it can go on, one of them is woken that polls it for sure: a WebSocket's. If there is
/// none, all are, since one that cannot write for now would not poll it.
#[derive(Default)]
struct Wakers(Mutex<Vec<SeatWaker>>);

struct SeatWaker {
    seat: u64,
    waker: Waker,
    is_attended: bool,
}

impl Wakers {
    fn lock(&self) -> MutexGuard<'_, Vec<SeatWaker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, seat: u64, waker: &Waker, is_attended: bool) {
        let mut wakers = self.lock();
        match wakers.iter_mut().find(|known| known.seat == seat) {
            Some(known) => {
                known.waker.clone_from(waker);
                known.is_attended = is_attended;
            }
            None => wakers.push(SeatWaker { seat, waker: waker.clone(), is_attended }),
        }
    }

    /// Whoever is left may have been counted on to poll the instance.
    fn remove(&self, seat: u64) {
        let mut wakers = self.lock();
        let Some(place) = wakers.iter().position(|known| known.seat == seat) else { return };
        if wakers.remove(place).is_attended {
            wake_one_that_polls(&wakers);
        }
    }

    fn wake_others(&self, seat: u64) {
        self.lock().iter().filter(|known| known.seat != seat).for_each(|known| known.waker.wake_by_ref());
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        wake_one_that_polls(&self.lock());
    }
}

fn wake_one_that_polls(wakers: &[SeatWaker]) {
    match wakers.iter().find(|known| known.is_attended) {
        Some(attended) => attended.waker.wake_by_ref(),
        None => wakers.iter().for_each(|known| known.waker.wake_by_ref()),
    }
}

/// A body that tells when it is dropped.
struct Guarded {
    frames: UnsyncBoxBody<Bytes, Error>,
    _taking: oneshot::Sender<Infallible>,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
        Pin::new(&mut self.frames).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.frames.size_hint()
    }
}
