//! System calls that may never come back.

use tokio::sync::oneshot;

/// Does something that may wait for a file system, on a thread that nobody waits for at the end.
pub(crate) async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("disk".into()).spawn(move || drop(done.send(work())))?;
    result.await?
}
