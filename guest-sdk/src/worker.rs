//! Which worker process answers: the interface `wasmcluster:worker/identity`, which is not part of a
//! standard.
//!
//! A guest that calls [`current`] runs only on wasmcluster. The component of any other guest has no trace of it.

use crate::host;

/// A worker process of the cluster.
///
/// ```
/// use wasmcluster_guest::worker::Worker;
///
/// fn name(worker: &Worker) -> String {
///     format!("{}-{}", worker.slot, worker.generation)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Number of the worker process, from 1; never used again while the server lives.
    pub id: u64,
    /// Place of the worker in the cluster, 0 to `workers` - 1; a replacement takes over the place.
    pub slot: u32,
    /// Process id.
    pub pid: u32,
    /// Number of the deployed version, from 1; each reload brings the next.
    pub generation: u64,
    /// SHA-256 of the component, as `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// How many workers the cluster was asked for.
    pub workers: u32,
}

/// The worker that runs this instance.
///
/// ```
/// # use wasmcluster_guest::{Request, testing, worker};
/// async fn handle(_: Request) -> String {
///     format!("slot {} of {}", worker::current().slot, worker::current().workers)
/// }
/// # assert_eq!(testing::call(handle, Request::default()).text(), "slot 0 of 1");
/// ```
pub fn current() -> Worker {
    host::worker()
}
