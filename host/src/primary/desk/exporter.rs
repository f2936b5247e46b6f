//! The exporter of traces, as the primary has it: the pipe into which workers write spans, and the process that reads them.
//!
//! The primary holds both ends, so that an exporter that died leaves nothing but a pipe that fills up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::os::pipe::output_pipe;
use crate::primary::fleet::helping::{HelperTurn, Helping};
use crate::settings::Otlp;
use crate::wire::messages::{ExporterStart, FromExporter, ToExporter};
use crate::wire::trace::Attributes;

/// Bytes of spans that wait for the exporter, where the kernel lets it be as much.
const PIPE: i32 = 1 << 20;

/// The exporter, if there is to be one.
pub(crate) struct Exporting {
    pub(crate) exporter: Helping<ToExporter, FromExporter>,
    setup: Option<Setup>,
    /// By the exporters before this one, and by this one.
    before: [u64; 2],
    now: [u64; 2],
}

struct Setup {
    start: ExporterStart,
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Exporting {
    pub(crate) fn new(otlp: Option<&Otlp>, name: &str, hang_timeout: Duration) -> std::io::Result<Self> {
        let mut exporter = Helping::new("exporter", hang_timeout);
        let setup = otlp.map(|otlp| {
            let (reader, writer) = output_pipe(Some(PIPE))?;
            exporter.watch.needed(Duration::ZERO);
            let start = ExporterStart { otlp: otlp.clone(), service: service(name) };
            Ok::<_, std::io::Error>(Setup { start, reader, writer })
        });
        Ok(Self { exporter, setup: setup.transpose()?, before: [0; 2], now: [0; 2] })
    }

    /// Where workers write spans.
    pub(crate) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        Some(self.setup.as_ref()?.writer.as_fd())
    }

    /// Tells a new process what it is to do.
    pub(crate) fn start(&self) {
        let (Some(setup), Some(process)) = (&self.setup, self.exporter.process()) else { return };
        let start = ToExporter::Start(setup.start.clone());
        if process.tell(&start, &[setup.reader.as_fd()]).is_err() {
            self.exporter.kill();
        }
    }

    pub(crate) fn counted(&mut self, exported: u64, lost: u64) {
        self.now = [exported, lost];
    }

    /// Spans that a collector has, and that were lost behind the pipe.
    pub(crate) fn totals(&self) -> [u64; 2] {
        std::array::from_fn(|which| self.before[which].saturating_add(self.now[which]))
    }

    pub(crate) fn is_gone(&mut self, now: Duration) -> Duration {
        self.before = self.totals();
        self.now = [0; 2];
        self.exporter.is_gone(now)
    }

    pub(crate) fn turn(&mut self, now: Duration) -> Option<HelperTurn> {
        self.exporter.turn(now)
    }

    /// Lets it take what is left to the collector: nobody writes any more.
    pub(crate) async fn end(&mut self, patience: Duration) {
        self.setup = None;
        self.exporter.end(patience).await;
    }
}

/// As OpenTelemetry's semantic conventions have it.
fn service(name: &str) -> Attributes {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let instance = format!("{host}-{}", std::process::id());
    [
        ("service.name", name.to_owned()),
        ("service.instance.id", instance),
        ("host.name", host),
        ("telemetry.sdk.name", "wasmcluster".into()),
        ("telemetry.sdk.language", "rust".into()),
        ("telemetry.sdk.version", env!("CARGO_PKG_VERSION").into()),
    ]
    .map(|(key, value)| (key.to_owned(), value.into()))
    .into()
}
