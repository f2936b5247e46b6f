//! Spans of the [`tracing`](https://docs.rs/tracing) crate, which become parts of their request's trace. Needs the feature `tracing`.
//!
//! ```
//! use wasmcluster_guest::{Request, testing, trace};
//!
//! #[tracing::instrument]
//! fn price(article: u32) -> u32 {
//!     tracing::info!("looking it up");
//!     article * 2
//! }
//!
//! async fn handle(_: Request) -> String {
//!     trace::init();
//!     price(21).to_string()
//! }
//!
//! assert_eq!(testing::call(handle, Request::default()).text(), "42");
//! let [span] = &testing::spans()[..] else { panic!("one span") };
//! assert_eq!((span.name.as_str(), span.attribute("article")), ("price", Some("21")));
//! ```
//!
//! With `wasmcluster serve --otlp URL` they are sent to a collector, below the span that the server makes of the request, if its trace
//! is recorded. A request that the guest sends inside of a span says so to its receiver. Where nobody asked for traces, and for requests
//! whose trace is not recorded, a span costs next to nothing.
//!
//! The fields `otel.name`, `otel.kind` (`client`, `server`, `producer`, `consumer`, `internal`), `otel.status_code` (`ok`, `error`) and
//! `otel.status_description` are what they are to the crate `tracing-opentelemetry`: name, kind and status. An event of the level
//! `ERROR` makes its span's status an error.
//!
//! A guest that calls these functions runs on hosts that have `wasi:otel/tracing@0.2.0-rc.2`. The component of any other guest has no
//! trace of it.
//!
//! Files: `layer` makes spans, `fields` reads values.

mod fields;
mod layer;

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt as _;

pub use layer::SpanLayer;

/// Tells spans to the host from now on, and prints events as lines of the log, as [`log::init`](crate::log::init) does with records,
/// which it does as well. The guest's environment variable `LOG_LEVEL` says down to which level, `info` if it is not set.
///
/// It does nothing if another subscriber is set.
///
/// ```
/// # use wasmcluster_guest::{Request, testing, trace};
/// async fn handle(request: Request) -> &'static str {
///     trace::init();
///     tracing::info!(path = request.uri().path(), "asked");
///     "done"
/// }
/// # assert_eq!(testing::call(handle, Request::default()).text(), "done");
/// ```
pub fn init() {
    crate::log::init();
    let _set_already = tracing::subscriber::set_global_default(Registry::default().with(layer()));
}

/// What [`init`] does, for who puts a subscriber together.
///
/// ```
/// use tracing_subscriber::Registry;
/// use tracing_subscriber::layer::SubscriberExt as _;
/// use wasmcluster_guest::trace;
///
/// let subscriber = Registry::default().with(trace::layer());
/// tracing::subscriber::with_default(subscriber, || tracing::info_span!("work").in_scope(|| ()));
/// assert_eq!(wasmcluster_guest::testing::spans()[0].name, "work");
/// ```
pub fn layer() -> SpanLayer {
    SpanLayer::default()
}

/// Which trace a span belongs to, and which of its parts it is.
#[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "most of it is for hosts"))]
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// 32 hexadecimal digits.
    pub(crate) trace: String,
    /// 16 of them.
    pub(crate) span: String,
    pub(crate) is_sampled: bool,
    pub(crate) state: Vec<(String, String)>,
}

/// Attributes: values are JSON.
pub(crate) type Pairs = Vec<(String, String)>;

/// A moment in a span.
#[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "most of it is for hosts"))]
#[derive(Debug)]
pub(crate) struct Moment {
    pub(crate) name: String,
    pub(crate) at: SystemTime,
    pub(crate) attributes: Pairs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Internal,
    Client,
    Server,
    Producer,
    Consumer,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Status {
    #[default]
    Unset,
    Ok,
    Error(String),
}

/// A span that is over.
#[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "most of it is for hosts"))]
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) context: Context,
    pub(crate) parent: String,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) from: SystemTime,
    pub(crate) to: SystemTime,
    pub(crate) attributes: Pairs,
    pub(crate) events: Vec<Moment>,
    pub(crate) status: Status,
    /// What was instrumented.
    pub(crate) scope: &'static str,
    /// Attributes and events that found no place.
    pub(crate) dropped: [u32; 2],
}

/// Tells who is sent a request which span it comes from, unless that is said already, or there is none.
pub(crate) fn leave(headers: &mut HeaderMap) {
    const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
    let Some(context) = layer::current() else { return };
    // What came with the guest's own request is of the same trace, and passed on by who knows of no spans.
    let said = headers.get(TRACEPARENT).map(|said| said.to_str().unwrap_or_default());
    if said.is_some_and(|said| said.split('-').nth(1) != Some(&context.trace)) {
        return;
    }
    if let Ok(value) = HeaderValue::try_from(format!("00-{}-{}-01", context.trace, context.span)) {
        headers.insert(TRACEPARENT, value);
    }
}

#[cfg(test)]
mod tests {
    use tracing::{Instrument as _, Level, error, info, info_span, span};

    use super::*;
    use crate::testing::{self, Host};
    use crate::{Request, Result, fetch, time};

    fn run<T>(work: impl FnOnce() -> T) -> (T, Vec<testing::Span>) {
        testing::spans();
        let done = tracing::subscriber::with_default(Registry::default().with(layer()), work);
        (done, testing::spans())
    }

    #[test]
    fn spans_lie_in_each_other() {
        let ((), spans) = run(|| {
            let outer = info_span!("outer", number = 7, text = "a\"b", is = true, half = 0.5, debug = ?(1, 2), later = tracing::field::Empty);
            let _outer = outer.enter();
            info!(answer = 42, "found");
            outer.record("later", "now");
            info_span!("inner").in_scope(|| ());
            info_span!(parent: None, "apart").in_scope(|| ());
        });
        let [inner, apart, outer] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((&*inner.name, &*apart.name, &*outer.name), ("inner", "apart", "outer"));
        assert_eq!((&inner.parent, &outer.parent), (&outer.id, &apart.parent));
        assert_ne!(inner.id, outer.id);
        for (key, value) in [
            ("number", "7"),
            ("text", "\"a\\\"b\""),
            ("is", "true"),
            ("half", "0.5"),
            ("debug", "\"(1, 2)\""),
            ("later", "\"now\""),
        ] {
            assert_eq!(outer.attribute(key), Some(value), "{key}");
        }
        assert_eq!(outer.events, ["found"]);
    }

    #[test]
    fn spans_go_with_their_futures() {
        let ((), spans) = run(|| {
            testing::block_on(async {
                let slow = time::sleep(std::time::Duration::from_secs(2)).instrument(info_span!("slow"));
                let quick = async {
                    time::sleep(std::time::Duration::from_secs(1)).await;
                    info_span!("inside").in_scope(|| ());
                };
                futures_util::future::join(slow, quick.instrument(info_span!("quick"))).await;
            });
        });
        let [inside, quick, slow] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((&*quick.name, &*slow.name), ("quick", "slow"));
        assert_eq!((&inside.parent, &quick.parent), (&quick.id, &slow.parent));
    }

    #[test]
    fn some_fields_say_what_a_span_is() {
        let ((), spans) = run(|| {
            info_span!("name", otel.name = "GET /users", otel.kind = "client", otel.status_code = "OK").in_scope(|| ());
            info_span!("bad", otel.status_code = "error", otel.status_description = "so").in_scope(|| ());
            info_span!("worse").in_scope(|| error!("it broke"));
            span!(Level::DEBUG, "too little").in_scope(|| ());
        });
        let all: Vec<_> = spans.iter().map(|span| (&*span.name, span.error.as_deref())).collect();
        assert_eq!(all, [("GET /users", None), ("bad", Some("so")), ("worse", Some("it broke"))]);
        assert!(spans[0].attributes.is_empty());
    }

    #[test]
    fn who_is_asked_is_told_of_the_span() {
        async fn handle(_: Request) -> Result<String> {
            let ask = async {
                let sent = fetch::get("http://a.example/").await?.into_body().text(128).await?;
                let theirs = "00-11111111111111111111111111111111-2222222222222222-01";
                let other = fetch::get("http://a.example/").header("traceparent", theirs);
                assert_eq!(other.await?.into_body().text(128).await?, theirs);
                Ok(sent)
            };
            ask.instrument(info_span!("asks")).await
        }
        let host = Host::new().on_fetch(async |request: Request| {
            request.headers().get("traceparent").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
        });
        let (answer, spans) = run(|| host.call(handle, Request::default()));
        assert!(answer.text().ends_with(&format!("-{}-01", spans[0].id)), "{}", answer.text());
    }

    #[test]
    fn a_span_takes_so_many_events() {
        let ((), spans) = run(|| {
            info_span!("much").in_scope(|| {
                for number in 0..layer::MAX_EVENTS + 5 {
                    info!(number, "again");
                }
            });
        });
        assert_eq!(spans[0].events.len(), layer::MAX_EVENTS);
    }
}
