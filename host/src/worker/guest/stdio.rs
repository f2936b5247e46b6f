//! What guests print: cut into lines, and written to the worker's output pipes, which never block. Each line has the
//! request before it that its instance worked on, between marks by which the primary knows that.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::os::pipe::{LineBuffer, LineWriter, MARK, MAX_LINE, PipeWrite};
use crate::wire::stats::Stats;
use crate::worker::requests::Asked;

/// What a panic in Rust adds, and what does not help: nobody can set a variable of the guest's so, and the log has the
/// functions anyway.
const ADVICE: &[u8] = b"note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace";

/// One of the worker's output pipes.
#[derive(Debug)]
pub(crate) struct Sink {
    writer: LineWriter,
    stats: &'static Stats,
}

impl Sink {
    pub(crate) fn new(writer: LineWriter, stats: &'static Stats) -> Self {
        Self { writer, stats }
    }

    /// Passes on what is one line, or several if it is too long for one.
    pub(super) fn print(&self, asked: Option<&Asked>, text: &str) {
        let mut buffer = LineBuffer::default();
        buffer.push(text.as_bytes(), |line| self.write(asked, line));
        buffer.finish(|line| self.write(asked, line));
    }

    fn write(&self, asked: Option<&Asked>, line: &[u8]) {
        if line.trim_ascii_end() == ADVICE {
            return;
        }
        let mut marked = vec![MARK];
        if let Some(asked) = asked {
            marked.extend_from_slice(asked.to_string().as_bytes());
        }
        // Also where there is none: a guest may print marks of its own.
        marked.push(MARK);
        marked.extend_from_slice(line);
        if self.writer.write(&marked) == PipeWrite::Dropped {
            self.stats.lines_dropped.increment();
        }
    }
}

/// The standard output or error of one instance. What it printed after its last newline is passed on when its request
/// has been served, or the instance ends.
#[derive(Clone, Debug)]
pub(crate) struct GuestOutput(Arc<OutputLines>);

#[derive(Debug)]
struct OutputLines {
    text: Mutex<Text>,
    sink: Arc<Sink>,
}

#[derive(Debug, Default)]
struct Text {
    buffer: LineBuffer,
    /// Which request the guest works on, if that is known.
    asked: Option<Arc<Asked>>,
}

impl GuestOutput {
    pub(crate) fn new(sink: Arc<Sink>) -> Self {
        Self(Arc::new(OutputLines { text: Mutex::default(), sink }))
    }

    /// What comes from now on is about this request.
    pub(crate) fn begin(&self, asked: Option<Arc<Asked>>) {
        self.with(|text, _| text.asked = asked);
    }

    /// Passes on what came after the last newline.
    pub(crate) fn finish(&self) {
        self.with(|Text { buffer, asked }, sink| buffer.finish(|line| sink.write(asked.as_deref(), line)));
    }

    fn push(&self, bytes: &[u8]) {
        self.with(|Text { buffer, asked }, sink| buffer.push(bytes, |line| sink.write(asked.as_deref(), line)));
    }

    fn with(&self, change: impl FnOnce(&mut Text, &Sink)) {
        change(&mut self.0.text.lock().unwrap_or_else(PoisonError::into_inner), &self.0.sink);
    }
}

impl Drop for OutputLines {
    fn drop(&mut self) {
        let Text { buffer, asked } = self.text.get_mut().unwrap_or_else(PoisonError::into_inner);
        buffer.finish(|line| self.sink.write(asked.as_deref(), line));
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

/// For WASI 0.2.
impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_LINE)
    }
}

#[async_trait::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

/// For WASI 0.3.
impl AsyncWrite for GuestOutput {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
