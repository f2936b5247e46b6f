//! Instances of the component, and how a request is handed to one.

use std::future::{Future, poll_fn};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use tokio::sync::oneshot;
use wasmtime::component::Component;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme as SchemeV0_2;
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{Error, FieldMap, WasiHttpView};

use super::call::{Call, Failure, GuestFuture, Head, said};
use super::concurrent;
use super::epoch::Epoch;
use super::keyvalue::KEYVALUE;
use super::outbound::{Hooks, Origin};
use super::quota::Gauges;
use super::reuse::{Factory, Live, Repeat, Stock};
use super::trap::{Described, TrapKind, describe};
use super::world::World;
use crate::component::engine::{self, Resident};
use crate::logging::several_lines;
use crate::os::listener::Security;
use crate::settings::{HealthPath, Limits, MAX_INSTANCES};
use crate::wire::messages::Identity;
use crate::wire::stats::Stats;
use crate::wire::version::WasiHttp;
use crate::wire::worker_settings::{Reuse, WorkerSettings};
use crate::worker::keeper::KeeperLink;
use crate::worker::requests::Asked;
use crate::worker::values::LiveValues;

/// What a component imports, in either version, that can accept WebSockets.
const WEBSOCKET: &str = "wasmcluster:worker/websocket@";
/// How long an instance that has to show whether it serves a second request may take for the head of its answer.
const TRIAL_PATIENCE: Duration = Duration::from_secs(1);
/// How long a health check may take.
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);

/// The component's instances, ready to be handed requests.
#[derive(Clone)]
pub(crate) enum Instances {
    V0_2(Rc<Stock>),
    V0_3(Rc<concurrent::SharedStock>),
}

impl Instances {
    /// Maps the artifact behind `artifact` and links it.
    pub(crate) fn load(
        settings: &WorkerSettings,
        artifact: &OwnedFd,
        identity: Identity,
        epoch: Arc<Epoch>,
        values: Arc<LiveValues>,
        keeper: Arc<KeeperLink>,
        stats: &'static Stats,
    ) -> anyhow::Result<Self> {
        let engine = engine::for_worker(settings.http, Resident::of(&settings.limits))?;
        let path = format!("/proc/self/fd/{}", artifact.as_raw_fd());
        // SAFETY: the primary hands over only what its own compiler wrote or verified in a store that nobody else may
        // write to.
        let component = unsafe { Component::deserialize_file(&engine, path) }?;
        let pre = super::linker::linker(&engine, settings.http)?.instantiate_pre(&component)?;
        epoch.clone().start(engine.clone())?;
        let mut world = World::new(settings, &engine, identity, epoch, values, keeper, stats)?;
        let surface = component.component_type();
        let imports = |prefix: &str| surface.imports(&engine).any(|(name, _)| name.starts_with(prefix));
        world.speaks_websocket = imports(WEBSOCKET);
        world.needs_keeper = imports(KEYVALUE) && world.stores.need_keeper();
        let world = Arc::new(world);
        let Reuse { uses, seats } = settings.reuse;
        Ok(match settings.http {
            WasiHttp::V0_2 => Self::V0_2(Rc::new(Stock::new(Factory::new(engine, ProxyPre::new(pre)?, world), uses))),
            WasiHttp::V0_3 => {
                let factory = Factory::new(engine, ServicePre::new(pre)?, world);
                Self::V0_3(Rc::new(concurrent::SharedStock::new(factory, uses, seats as usize)))
            }
        })
    }

    /// Whether the component can accept WebSockets.
    pub(crate) fn speaks_websocket(&self) -> bool {
        self.world().speaks_websocket
    }

    /// Whether the component may open key-value stores that are written by the keeper.
    pub(crate) fn needs_keeper(&self) -> bool {
        self.world().needs_keeper
    }

    /// What they have at any moment.
    pub(crate) fn gauges(&self) -> Gauges {
        self.world().budget.gauges()
    }

    /// How many WebSockets there may be, so that enough instances are left for requests.
    pub(crate) fn websockets(&self, limits: &Limits) -> usize {
        let seats = match self {
            Self::V0_2(_) => 1,
            Self::V0_3(stock) => stock.seats(),
        };
        let instances = MAX_INSTANCES as usize - limits.max_in_flight;
        let most = instances.saturating_mul(seats);
        if self.speaks_websocket() && most < limits.max_websockets {
            tracing::warn!(
                "no more than {most} WebSockets can be open: --max-in-flight {} leaves {instances} of {MAX_INSTANCES} \
                 instances for them",
                limits.max_in_flight
            );
        }
        limits.max_websockets.min(most)
    }

    /// Instantiates once and drops the instance.
    pub(crate) async fn probe(&self) -> Result<(), Failure> {
        let guest: GuestFuture = match self.clone() {
            Self::V0_2(stock) => Box::pin(async move { stock.fresh(Origin::default()).await.map(drop) }),
            Self::V0_3(stock) => Box::pin(async move { stock.probe().await }),
        };
        self.run(guest, None).await
    }

    /// Drops instances that wait for too long.
    pub(crate) fn trim(&self) {
        match self {
            Self::V0_2(stock) => stock.trim(),
            Self::V0_3(stock) => stock.trim(),
        }
    }

    /// Asks a fresh instance for `path`, without a client. An error says why it is not well.
    pub(crate) async fn check_health(&self, path: &HealthPath) -> Result<(), String> {
        let authority = Authority::from_static("localhost");
        let mut request = Request::new(Empty::<Bytes>::new().map_err(|never| match never {}));
        *request.uri_mut() = path.as_uri();
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
        let request = request.map(BodyExt::boxed_unsync);
        let (mut head, mut call) =
            self.call::<UnsyncBoxBody<Bytes, Error>>(request, Security::Clear, authority, Origin::default());
        let answered = async {
            let ended = tokio::select! {
                biased;
                ended = &mut call => ended,
                answer = &mut head => return answer.map_err(|_| "it gave no answer".to_owned())?,
            };
            // What was said before the end counts, unless that was a trap.
            match ended {
                Err(Failure::Full) => Err("all instances are busy".to_owned()),
                Err(Failure::Trap(error)) => Err(format!("it {}", describe(&error))),
                Ok(()) => head.try_recv().map_err(|_| "it gave no answer".to_owned())?,
            }
        };
        let path = path.as_uri();
        match tokio::time::timeout(HEALTH_PATIENCE, answered).await {
            Ok(Ok(answer)) if answer.status().is_success() => Ok(()),
            Ok(Ok(answer)) => Err(format!("the health check GET {path} was answered {}", answer.status())),
            Ok(Err(reason)) => Err(format!("the health check GET {path} failed: {}", several_lines(&reason))),
            Err(_) => Err(format!("the health check GET {path} was not answered within {HEALTH_PATIENCE:?}")),
        }
    }

    /// Starts an instance on `request`, which must have an authority or a Host that is one. The head comes through the
    /// receiver, at some poll of the call.
    pub(crate) fn call<B>(
        &self,
        request: Request<B>,
        security: Security,
        authority: Authority,
        origin: Origin,
    ) -> (oneshot::Receiver<Head>, Call)
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Error>,
    {
        let (head, receiver) = oneshot::channel();
        let asked = origin.request.clone();
        let guest: GuestFuture = match self {
            Self::V0_2(stock) => Box::pin(call_v0_2(stock.clone(), request, security, origin, head)),
            Self::V0_3(stock) => {
                let hooks = stock.hooks(origin);
                Box::pin(stock.clone().serve(request_v0_3(request, security, authority, hooks, head)))
            }
        };
        (receiver, self.run(guest, asked))
    }

    fn world(&self) -> &World {
        match self {
            Self::V0_2(stock) => stock.world(),
            Self::V0_3(stock) => stock.world(),
        }
    }

    /// All that guests do goes through here.
    fn run(&self, guest: GuestFuture, asked: Option<Arc<Asked>>) -> Call {
        let world = self.world();
        Call::new(world.turns.clone(), world.epoch.clone(), guest, asked)
    }
}

async fn call_v0_2<B>(
    stock: Rc<Stock>,
    request: Request<B>,
    security: Security,
    origin: Origin,
    head: oneshot::Sender<Head>,
) -> Result<(), Failure>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Error>,
{
    let repeat = if origin.sockets.is_empty() { Repeat::of(&request) } else { Repeat::Never };
    let live = stock.take(origin.clone(), repeat).await?;
    if live.is_fresh() || !stock.is_unproven() {
        if let Some(live) = answer_v0_2(live, request, security, send(head)).await? {
            stock.give_back(live);
        }
        Ok(())
    } else {
        // Boxed, so that other calls do not carry its size.
        Box::pin(try_v0_2(&stock, live, request, security, origin, head)).await
    }
}

/// Takes the head of an answer to whoever waits for it. The connection may be gone.
fn send(head: oneshot::Sender<Head>) -> impl FnOnce(Head) + Send + Sync + 'static {
    move |answer| drop(head.send(answer))
}

/// The first that is to serve a second request: there are guests that do not answer it, wait for ever, or trap. The
/// request is one that may be repeated, and then goes to a fresh instance.
async fn try_v0_2<B>(
    stock: &Stock,
    live: Live,
    request: Request<B>,
    security: Security,
    origin: Origin,
    head: oneshot::Sender<Head>,
) -> Result<(), Failure>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Error>,
{
    let again = copy_of_head(&request);
    let (trial, mut tried) = oneshot::channel();
    let mut answering = Box::pin(answer_v0_2(live, request, security, send(trial)));
    let mut ended = None;
    let answer = poll_fn(|context| {
        if ended.is_none()
            && let Poll::Ready(end) = answering.as_mut().poll(context)
        {
            ended = Some(end);
        }
        Pin::new(&mut tried).poll(context)
    });
    let answer = tokio::time::timeout(TRIAL_PATIENCE, answer).await;
    if let Ok(Ok(answer)) = answer {
        let _ = head.send(answer);
        let live = match ended {
            Some(ended) => ended?,
            None => answering.await?,
        };
        if let Some(live) = live {
            stock.passed_trial();
            stock.give_back(live);
        }
        return Ok(());
    }
    // It gave up its chance to answer, and then ends without being cut short, or shows no sign of an answer.
    let ended = match (ended, answer) {
        (Some(ended), _) => ended.map(drop),
        (None, Ok(_)) => answering.as_mut().await.map(drop),
        (None, Err(_)) => Ok(()),
    };
    drop(answering);
    if let Err(Failure::Trap(error)) = ended {
        let error = format!("{error:?}");
        tracing::debug!("a guest trapped in a reused instance: {}", several_lines(&error));
    }
    let request = again.map(|()| Empty::<Bytes>::new().map_err(|never| -> Error { match never {} }));
    let is_answered = Arc::new(AtomicBool::new(false));
    let (answers, send, began) = (is_answered.clone(), send(head), Instant::now());
    let answer = move |answer| {
        // What takes long in a fresh one as well proves nothing.
        answers.store(began.elapsed() < TRIAL_PATIENCE, Ordering::Relaxed);
        send(answer);
    };
    let live = answer_v0_2(stock.fresh(origin).await?, request, security, answer).await?;
    if is_answered.load(Ordering::Relaxed) {
        stock.failed_trial();
    }
    if let Some(live) = live {
        stock.give_back(live);
    }
    Ok(())
}

fn copy_of_head<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Ends with the instance if its request went well in every way, as far as the host can tell.
async fn answer_v0_2<B>(
    mut live: Live,
    request: Request<B>,
    security: Security,
    send: impl FnOnce(Head) + Send + Sync + 'static,
) -> Result<Option<Live>, Failure>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Error>,
{
    let store = &mut live.store;
    let mut view = store.data_mut().http();
    let scheme = match security {
        Security::Clear => SchemeV0_2::Http,
        Security::Tls => SchemeV0_2::Https,
    };
    let request = view.new_incoming_request(scheme, request)?;
    let out = view.new_response_outparam_from_callback(move |answer| send(answer.map_err(said)))?;
    let result = live.exports.wasi_http_incoming_handler().call_handle(&mut live.store, request, out).await;
    let has_open_bodies = live.store.data_mut().abort_open_bodies() > 0;
    if let (Err(_), Some(why)) = (&result, live.store.data().stopped()) {
        return Err(Failure::Trap(Described(why.to_owned(), TrapKind::Limit).into()));
    }
    result?;
    Ok((!has_open_bodies).then_some(live))
}

fn request_v0_3<B>(
    request: Request<B>,
    security: Security,
    authority: Authority,
    mut hooks: Hooks,
    head: oneshot::Sender<Head>,
) -> concurrent::GuestRequest
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Error>,
{
    let (parts, body) = request.into_parts();
    let headers = FieldMap::new_immutable(&mut hooks, parts.headers);
    let path = parts.uri.into_parts().path_and_query;
    let scheme = match security {
        Security::Clear => Scheme::HTTP,
        Security::Tls => Scheme::HTTPS,
    };
    let (request, _sent) = p3::Request::new(parts.method, Some(scheme), Some(authority), path, headers, None, body);
    let socket = hooks.sockets().first().cloned();
    concurrent::GuestRequest { request, hooks, head, socket }
}
