//! The exporter: a process of its own that reads spans from a pipe, into which all workers write, and takes them to a
//! collector. It may be slow, hang or die: workers find the pipe full and go on.

mod encode;
mod send;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::os::pipe::LineBuffer;
use crate::os::signal::ignore;
use crate::wire::channel::{self, Channel, bounded};
use crate::wire::messages::{ExporterStart, FromExporter, ToExporter};
use crate::wire::trace::{Attributes, TraceSpan};
use send::{OtlpClient, Receipt};

/// How often it says that it is at work.
const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// Spans that wait for the collector; those that come on top are lost.
const MAX_WAITING: usize = 8192;
/// Spans in one message.
const MAX_BATCH: usize = 512;
/// How long spans wait for others that go with them.
const GATHER: Duration = Duration::from_secs(1);
/// Between two tries, which get longer.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// How long a message is tried.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
/// How long the last spans may take when the cluster ends.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// What goes wrong is told as often.
const TOLD_EVERY: Duration = Duration::from_secs(30);
const READ_AT_ONCE: usize = 64 * 1024;
/// How often the pipe is read while spans come. It holds some forty megabytes of them a second.
const READ_EVERY: Duration = Duration::from_millis(25);
/// Without any for so long, it is waited for the next one.
const QUIET_AFTER: Duration = Duration::from_secs(1);
/// The primary lets it end.
const IGNORED: [Signal; 5] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1];

type ExporterEnd = Channel<FromExporter, ToExporter>;
type Sending = Pin<Box<dyn Future<Output = Receipt>>>;

/// The process: its channel to the primary is its standard input.
pub(crate) fn exporter_main() -> anyhow::Result<()> {
    for signal in IGNORED {
        ignore(signal as i32)?;
    }
    let primary = ExporterEnd::from(io::stdin().as_fd().try_clone_to_owned()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let ended = runtime.block_on(async { run(primary.into_async()?).await });
    // A look-up of a name may hang in a thread.
    runtime.shutdown_background();
    ended
}

async fn run(primary: AsyncFd<ExporterEnd>) -> anyhow::Result<()> {
    let Some((ToExporter::Start(start), mut beside)) = channel::next(&primary).await? else {
        bail!("this command is started by wasmcluster itself");
    };
    let mut spans = SpanPipe::new(beside.pop().context("it came without a pipe")?)?;
    let mut export = Export::new(start, primary.get_ref().as_fd().try_clone_to_owned()?);
    let mut turns = tokio::time::interval(ALIVE_EVERY);
    loop {
        let due = export.due();
        tokio::select! {
            received = channel::next(&primary) => match received? {
                None => break,
                Some((ToExporter::Start(_), _)) => bail!("it was started twice"),
            },
            () = spans.is_due() => {
                // All who write are gone: nothing comes any more.
                if spans.read(&mut export)? == SpanSource::Ended {
                    break;
                }
            }
            sent = in_progress(&mut export.sending) => export.sent(sent),
            () = at(due) => export.send(),
            _ = turns.tick() => export.tell(&FromExporter::Alive { exported: export.exported, lost: export.lost }),
        }
    }
    // What is not taken by then is lost with it. All who write go before the primary does.
    let _ = tokio::time::timeout(END_PATIENCE, async {
        while matches!(spans.read(&mut export), Ok(SpanSource::Open)) {
            spans.is_due().await;
        }
        export.finish().await;
    })
    .await;
    Ok(())
}

/// The pipe into which workers write.
///
/// While spans come, it is read at intervals, and nobody is woken for each of them: where workers have all processors, that would cost
/// them more than the spans themselves.
struct SpanPipe {
    fd: OwnedFd,
    /// Tells that something has come, when nothing did for a while.
    bell: Option<pipe::Receiver>,
    next_read: Instant,
    last_came: Instant,
    bytes: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum SpanSource {
    Open,
    Ended,
}

impl SpanPipe {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let bell = Some(pipe::Receiver::from_owned_fd(fd.try_clone()?)?);
        let now = Instant::now();
        Ok(Self { fd, bell, next_read: now, last_came: now, bytes: vec![0; READ_AT_ONCE] })
    }

    /// Waits until it is to be read.
    async fn is_due(&self) {
        match &self.bell {
            // What goes wrong shows when it is read.
            Some(bell) => drop(bell.readable().await),
            None => tokio::time::sleep_until(self.next_read.into()).await,
        }
    }

    /// Takes all that is there.
    fn read(&mut self, export: &mut Export) -> io::Result<SpanSource> {
        let now = Instant::now();
        loop {
            match nix::unistd::read(&self.fd, &mut self.bytes) {
                Ok(0) => return Ok(SpanSource::Ended),
                Ok(count) => {
                    export.take(&self.bytes[..count]);
                    (self.bell, self.last_came) = (None, now);
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // One that has rung would ring on.
        if self.bell.is_some() || now.duration_since(self.last_came) >= QUIET_AFTER {
            self.bell = Some(pipe::Receiver::from_owned_fd(self.fd.try_clone()?)?);
        }
        self.next_read = now + READ_EVERY;
        Ok(SpanSource::Open)
    }
}

async fn in_progress(sending: &mut Option<Sending>) -> Receipt {
    match sending {
        Some(sending) => sending.await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// The spans on their way, and how that goes.
struct Export {
    client: std::rc::Rc<OtlpClient>,
    service: Attributes,
    url: String,
    primary: ExporterEnd,
    lines: LineBuffer,
    waiting: VecDeque<TraceSpan>,
    /// How many of these are in the message that is sent, or tried again.
    batch: usize,
    sending: Option<Sending>,
    /// When the message is sent, or tried again.
    next: Option<Instant>,
    tries: u32,
    /// Since when it does not get through.
    failing: Option<Instant>,
    /// Since when this message has been tried.
    tried_since: Option<Instant>,
    told: Option<Instant>,
    exported: u64,
    lost: u64,
}

impl Export {
    fn new(ExporterStart { otlp, service }: ExporterStart, primary: OwnedFd) -> Self {
        Self {
            url: otlp.url.to_string(),
            client: std::rc::Rc::new(OtlpClient::new(otlp)),
            service,
            primary: primary.into(),
            lines: LineBuffer::default(),
            waiting: VecDeque::new(),
            batch: 0,
            sending: None,
            next: None,
            tries: 0,
            failing: None,
            tried_since: None,
            told: None,
            exported: 0,
            lost: 0,
        }
    }

    fn tell(&self, news: &FromExporter) {
        // A primary that takes nothing now is told again.
        let _ = self.primary.send(news, &[]);
    }

    /// Takes what workers have written.
    fn take(&mut self, bytes: &[u8]) {
        let (waiting, lost) = (&mut self.waiting, &mut self.lost);
        self.lines.push(bytes, |line| match TraceSpan::read(line) {
            Some(span) if waiting.len() < MAX_WAITING => waiting.push_back(span),
            // An empty line is the end of one that was torn.
            None if line == b"\n" => {}
            Some(_) | None => *lost += 1,
        });
        if !self.waiting.is_empty() && self.sending.is_none() && self.failing.is_none() {
            let soon = Instant::now() + if self.waiting.len() >= MAX_BATCH { Duration::ZERO } else { GATHER };
            self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
        }
    }

    fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.sending.is_none())
    }

    fn send(&mut self) {
        self.next = None;
        if self.batch == 0 {
            self.batch = self.waiting.len().min(MAX_BATCH);
        }
        if self.batch > 0 {
            let spans = &self.waiting.make_contiguous()[..self.batch];
            let message = encode::encode(&self.service, spans).into();
            let client = self.client.clone();
            self.sending = Some(Box::pin(async move { client.send(message).await }));
        }
    }

    fn sent(&mut self, sent: Receipt) {
        self.sending = None;
        match sent {
            Receipt::Taken { refused, why } => {
                self.exported += (self.batch as u64).saturating_sub(refused);
                self.lost += refused.min(self.batch as u64);
                if refused > 0 {
                    self.trouble(format!("the collector {} refused {refused} spans: {why}", self.url));
                } else if self.failing.is_some() {
                    self.told = None;
                    self.tell(&FromExporter::Well { text: bounded(format!("traces reach {} again", self.url)) });
                }
                self.done();
            }
            Receipt::Refused { why } => {
                self.trouble(format!("traces do not reach {}: {why}", self.url));
                self.lost += self.batch as u64;
                self.done();
            }
            Receipt::Later { why, after } => {
                self.failing.get_or_insert_with(Instant::now);
                let since = *self.tried_since.get_or_insert_with(Instant::now);
                self.trouble(format!("traces do not reach {}, which is tried again: {why}", self.url));
                if since.elapsed() >= GIVE_UP_AFTER {
                    self.lost += self.batch as u64;
                    self.waiting.drain(..self.batch);
                    (self.batch, self.tried_since) = (0, None);
                }
                let pause = (MIN_PAUSE * 2_u32.pow(self.tries.min(8))).min(MAX_PAUSE);
                self.tries += 1;
                self.next = Some(
                    Instant::now()
                        + after.map_or(pause.mul_f64(0.5 + fastrand::f64() / 2.0), |after| after.max(MIN_PAUSE)),
                );
            }
        }
    }

    /// The message is gone, one way or the other.
    fn done(&mut self) {
        self.waiting.drain(..self.batch);
        (self.batch, self.tries, self.failing, self.tried_since) = (0, 0, None, None);
        if !self.waiting.is_empty() {
            self.next = Some(Instant::now());
        }
    }

    fn trouble(&mut self, text: String) {
        if self.told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            self.told = Some(Instant::now());
            self.tell(&FromExporter::Trouble { text: bounded(text) });
        }
    }

    /// Sends what is left, once.
    async fn finish(&mut self) {
        loop {
            if self.sending.is_none() {
                self.send();
            }
            if self.sending.is_none() {
                return;
            }
            let sent = in_progress(&mut self.sending).await;
            let is_late = matches!(sent, Receipt::Later { .. });
            self.sent(sent);
            if is_late {
                return;
            }
        }
    }
}
