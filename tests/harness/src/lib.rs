//! What the tests of the whole program have in common. Each test starts a cluster of its own, the real binary on a free
//! port in a temporary folder, and leaves no process behind.
//!
//! # Writing a test
//!
//! ```no_run
//! use harness::client::get;
//! use harness::{Setup, guest, until};
//!
//! /// What is promised, if the name does not say it.
//! # /*
//! #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
//! # */
//! async fn a_worker_that_was_killed_is_replaced() {
//!     let cluster = Setup::new(&guest("hello")).workers(1).args(&["--min-ready", "0s"]).start();
//!     let killed = cluster.worker(0).unwrap();
//!     nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
//!     until("the status counts it", || (cluster.status()["workers"][0]["restarts"] == 1).then_some(()));
//!     cluster.replaced(0, killed);
//!     assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
//! }
//! ```
//!
//! - **The name is the promise**, as a sentence. The tables (`tests/field.md`, `tests/hostile.md`,
//!   `tests/node-cluster.md`) name tests, so no two tests anywhere have the same name.
//! - **The suite** is the one whose kind of promise it is: `serving` (requests and their answers), `safety` (what guests
//!   and clients cannot do), `supervision` (processes, and what becomes of them), `deploy` (versions, reloads, the
//!   store), `tooling` (what people type and read). `cargo test -p wasmcluster --test deploy` runs one alone.
//! - **The guest** is one of `examples/` or `tests/guests/`, whose README says what each is for and which paths it
//!   answers. A new behaviour is a new path in `scenarios`, or in `misdeeds` if it is bad; then `make guests`.
//! - **[`Setup`]** is the command line: [`start`](Setup::start) waits until it serves, [`run`](Setup::run) until it ends,
//!   and [`launch`](Setup::launch) for nothing. Defaults that take time are flags (`--min-ready`, `--soak`).
//! - **Wait for a condition** with [`until`], or for a line with [`Lines::find`]; never sleep and hope. What is waited
//!   for has a minute, so no test depends on how fast the machine is.
//! - **Threads.** [`until`] and [`Cluster`] block. A test that has clients of [`client`], [`http2`] or [`load`] at work meanwhile
//!   needs the runtime with two threads that the example has.
//! - **What a machine may not have** (IPv6, namespaces, Node, curl, Chromium: [`tools`], [`browser`]): the test prints `skipped:` with the reason, and passes.

#![expect(clippy::print_stderr, reason = "a test that failed shows what its cluster said")]

pub mod browser;
pub mod client;
mod cluster;
pub mod haproxy;
pub mod history;
pub mod http2;
pub mod load;
pub mod name_server;
pub mod network;
pub mod page;
mod places;
pub mod shell;
pub mod terminal;
pub mod tls;
pub mod tools;
pub mod traffic;
pub mod upstream;
mod wait;
pub mod websocket;

pub use cluster::{Cluster, Ended, Follower, Lines, Setup, is_gone};
pub(crate) use places::target_folder;
pub use places::{binary, corpus, fixture, guest, guest_if_built, root};
pub use wait::until;
