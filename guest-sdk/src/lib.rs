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
//! The crate is a `cdylib`, built with `wasmcluster build` or `cargo build --release --target wasm32-wasip2`; the result
//! exports `wasi:http/incoming-handler` of WASI 0.2 and runs on every host of `wasi:http`, not only on wasmcluster.
//!
//! Requests and responses are those of the [`http`] crate with a [`Body`] that streams in both directions. Nothing of
//! the request's body is read before the handler asks for it, and a response body that streams is asked for its next
//! chunk only when the client has taken the one before.
//!
//! # Features
//!
//! - `p2` (default): components of WASI 0.2.
//! - `p3`: components of WASI 0.3, from the same source. It excludes `p2`:
//!   `wasmcluster-guest = { …, default-features = false, features = ["p3"] }`.
//! - `axum`: [`main`](macro@main) also takes a function that returns an `axum::Router`.
//! - `tracing`: spans of the `tracing` crate become parts of their request's trace: [`trace`].
//! - `files`: [`files::serve`] answers with the files of a folder.
//!
//! # Tests
//!
//! On any target other than WebAssembly, a handler can be called like any function, without a server: see
//! [`testing`].
//!
//! Files: `body` is the body of either direction, `client` is who sent a request, `response`, `extract` and `error` are what handlers take and return,
//! `files` are those of a folder, `fetch`, `config`, `time`, `random`, `log`, `trace`, `metrics`, `websocket` and `worker` are what they ask the host for. `host` has a part for each host: WASI
//! 0.2, WASI 0.3, and a stand-in in memory for tests.

// Where there is no copy of the page beside it, as `wasmcluster new` leaves one.
#[cfg(docsrs)]
#[doc = include_str!("../guests.md")]
pub mod guide {}

#[cfg(all(target_arch = "wasm32", feature = "p2", feature = "p3"))]
compile_error!(
    "the features `p2` and `p3` of wasmcluster-guest are mutually exclusive: for WASI 0.3 write `default-features = \
     false, features = [\"p3\"]`"
);
#[cfg(all(target_arch = "wasm32", not(any(feature = "p2", feature = "p3"))))]
compile_error!("wasmcluster-guest needs one of its features `p2` (the default) and `p3`");

mod body;
mod client;
pub mod config;
mod error;
mod extract;
pub mod fetch;
#[cfg(feature = "files")]
pub mod files;
#[cfg_attr(not(any(test, target_arch = "wasm32")), expect(dead_code, reason = "most of it is for hosts"))]
mod head;
mod host;
pub mod kv;
pub mod log;
pub mod metrics;
pub mod random;
mod response;
pub mod sse;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod time;
#[cfg(feature = "tracing")]
pub mod trace;
pub mod websocket;
pub mod worker;

pub use body::{Body, BodyError, TooLarge, Writer};
pub use bytes;
pub use client::{Certificate, Client, client};
pub use error::{Error, Result};
pub use extract::{Json, Path, Query};
pub use http;
pub use response::{Html, IntoResponse};
pub use wasmcluster_guest_macros::main;

#[cfg(feature = "axum")]
pub use axum;

/// A request as the handler gets it, in the shape of hyper and axum servers: `uri()` is path and query, and the authority
/// is in the header `host`. [`client`] tells who sent it, and whether by HTTP or HTTPS.
///
/// ```
/// let request = wasmcluster_guest::Request::get("/").body("text".into()).unwrap();
/// # let _: wasmcluster_guest::Request = request;
/// ```
pub type Request<B = Body> = http::Request<B>;

/// A response as the handler returns it.
///
/// ```
/// let response = wasmcluster_guest::Response::builder().status(201).body("text".into()).unwrap();
/// # let _: wasmcluster_guest::Response = response;
/// ```
pub type Response<B = Body> = http::Response<B>;

/// What `#[main]` expands to. Not part of the interface: it may change in any release.
#[doc(hidden)]
pub mod __private {
    use std::future::Future;
    use std::marker::PhantomData;

    #[cfg(target_arch = "wasm32")]
    pub use crate::host::export::*;
    #[cfg(target_arch = "wasm32")]
    pub use crate::host::init_bindings as init;
    use crate::{IntoResponse, Request, Response};

    /// A response that was made of an `R`.
    pub struct Answer<R> {
        #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "nobody is answered without a host"))]
        pub(crate) response: Response,
        made_of: PhantomData<R>,
    }

    /// What the host gets as the answer.
    pub fn answer<R: IntoResponse>(answer: R) -> Answer<R> {
        Answer { response: answer.into_response(), made_of: PhantomData }
    }

    /// What a function without arguments may return to [`main`](crate::main).
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is not an application",
        note = "a function without arguments returns an `axum::Router`: this needs the feature `axum` of wasmcluster-guest",
        note = "a handler is `async` and takes the request: `async fn handle(request: Request) -> …`"
    )]
    pub trait Application: Clone {
        /// Answers a request.
        fn answer(self, request: Request) -> impl Future<Output = Response> + 'static;
    }

    #[cfg(feature = "axum")]
    impl Application for axum::Router {
        async fn answer(mut self, request: Request) -> Response {
            // A router is always ready, and never fails.
            let answered = tower_service::Service::call(&mut self, request.map(axum::body::Body::new)).await;
            answered.unwrap_or_else(|never| match never {}).map(crate::Body::new)
        }
    }
}
