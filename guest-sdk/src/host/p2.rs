//! Hosts of WASI 0.2.
//!
//! Files: `incoming` and `outgoing` carry requests and responses in and out, `reactor` waits, `websocket` is that, with
//! `bindings` of its own.

#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, reason = "no person writes it")]
#[allow(clippy::allow_attributes_without_reason, clippy::undocumented_unsafe_blocks, reason = "no person writes it")]
pub(super) mod bindings;
mod incoming;
mod outgoing;
mod reactor;
pub(crate) mod websocket;

use std::future::{Future, poll_fn};
use std::time::Duration;

use http::{Method, StatusCode};
use wasip2::clocks::monotonic_clock;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

pub(crate) use incoming::Incoming;
pub(crate) use outgoing::fetch;

use crate::__private::Answer;
use crate::{IntoResponse, Request, Response};
use reactor::Waiter;

pub(crate) async fn sleep(duration: Duration) {
    let waiter = Waiter::new(monotonic_clock::subscribe_duration(nanoseconds(duration)));
    poll_fn(|context| waiter.poll(context)).await;
}

/// At most some 584 years: longer is as good as for ever.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn random() -> u64 {
    wasip2::random::random::get_random_u64()
}

/// What `#[main]` needs.
pub(crate) mod export {
    pub use wasip2;

    /// Makes a function from requests to responses the component's handler.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! __export {
        ($answer:expr) => {
            struct Component;

            impl $crate::__private::wasip2::exports::http::incoming_handler::Guest for Component {
                fn handle(
                    request: $crate::__private::wasip2::http::types::IncomingRequest,
                    response: $crate::__private::wasip2::http::types::ResponseOutparam,
                ) {
                    $crate::__private::run(request, response, $answer);
                }
            }

            $crate::__private::wasip2::http::proxy::export!(Component);
        };
    }

    pub use super::run;
}

/// Answers one request.
pub fn run<R, F>(request: IncomingRequest, out: ResponseOutparam, answer: impl FnOnce(Request) -> F)
where
    R: IntoResponse,
    F: Future<Output = Answer<R>>,
{
    reactor::block_on(async {
        let (method, response): (Method, Response) = match incoming::request(request) {
            Some(request) => (request.method().clone(), answer(request).await.response),
            None => (Method::GET, StatusCode::BAD_REQUEST.into_response()),
        };
        outgoing::send::<R>(&method, response, out).await;
    });
}
