//! Write a `wasi:http` component in Rust as one async function.
//!
//! ```no_run
//! # #![expect(unused, reason = "the doc test only has to compile")]
//! use wasmcluster_guest::{Request, Response, Result};
//!
//! #[wasmcluster_guest::main]
//! async fn handle(request: Request) -> Result<Response> {
//!     let body = request.into_body().text(64 * 1024).await?;
//!     Ok(Response::new(body.to_uppercase().into()))
//! }
//! # fn main() {}
//! ```
//!
//! The crate is a `cdylib`, built with `cargo build --release --target wasm32-wasip2`; the result exports
//! `wasi:http/incoming-handler` of WASI 0.2 and runs on every host of `wasi:http`, not only on wasmcluster.
//!
//! Requests and responses are those of the [`http`] crate with a [`Body`] that streams in both directions. Nothing of
//! the request's body is read before the handler asks for it, and a response body that streams is asked for its next
//! chunk only when the client has taken the one before.
//!
//! Files: `body` is the body of either direction, `incoming` and `outgoing` carry requests in and responses out,
//! `reactor` waits, `response` and `error` are what handlers return, `worker` and `time` are extras.

mod body;
mod error;
mod incoming;
mod outgoing;
mod reactor;
mod response;
pub mod time;
pub mod worker;

pub use body::{Body, TooLarge};
pub use bytes;
pub use error::{Error, Result};
pub use http;
pub use response::IntoResponse;
pub use wasmcluster_guest_macros::main;

/// A request as the handler gets it.
pub type Request = http::Request<Body>;

/// A response as the handler returns it.
pub type Response<B = Body> = http::Response<B>;

/// What `#[main]` expands to. Not part of the interface: it may change in any release.
#[doc(hidden)]
pub mod __private {
    use std::future::Future;

    pub use wasip2::exports::http::incoming_handler::Guest;
    pub use wasip2::http::proxy::export;
    pub use wasip2::http::types::{IncomingRequest, ResponseOutparam};

    use crate::http::{Method, StatusCode};
    use crate::{IntoResponse, Request, Response, incoming, outgoing, reactor};

    /// Makes a handler of the wrong type an error that names what is missing, on every target.
    pub const fn assert_handler<H, F>(_: &H)
    where
        H: Fn(Request) -> F,
        F: Future<Output: IntoResponse>,
    {
    }

    /// Answers one request.
    pub fn run<H, F>(request: IncomingRequest, out: ResponseOutparam, handler: H)
    where
        H: Fn(Request) -> F,
        F: Future<Output: IntoResponse>,
    {
        reactor::block_on(async {
            let (method, response): (Method, Response) = match incoming::request(request) {
                Some(request) => (request.method().clone(), handler(request).await.into_response()),
                None => (Method::GET, StatusCode::BAD_REQUEST.into_response()),
            };
            outgoing::send(&method, response, out).await;
        });
    }
}
