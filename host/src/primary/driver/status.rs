//! How the cluster is at one moment, as commands, page and metrics show it: what the supervisor knows of each worker, what the
//! workers' pages say, and the ledger.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Driver;
use crate::control::protocol::{ConfigStatus, GenerationStatus, Starting, Status, Totals, WorkerStatus};
use crate::control::sample::Sample;
use crate::primary::deploy::certificates::Certified;
use crate::primary::desk::status::of_start;
use crate::primary::supervisor::{Description, Role, Waiting, WorkerState};
use crate::wire::ids::WorkerId;
use crate::wire::stats::Snapshot;

impl Driver<'_> {
    /// How the cluster is now: one look at each page, so that all that is shown agrees, by commands, page and metrics.
    pub(super) fn sample(&self) -> Sample {
        let pages: BTreeMap<WorkerId, Snapshot> =
            self.workers.iter().map(|(&id, running)| (id, running.process.stats.snapshot())).collect();
        let live = pages.iter().map(|(id, counted)| (self.workers[id].generation, *counted));
        let (generations, older) = self.ledger.by_generation(live);
        let status = self.status(&pages, self.ledger.totals(&generations, older));
        Sample { status, generations: generations.into_iter().collect(), older }
    }

    fn status(&self, pages: &BTreeMap<WorkerId, Snapshot>, totals: Totals) -> Status {
        let series = self.workers.values().rev().flat_map(|running| running.process.stats.metrics.read());
        let starting = self
            .supervisor
            .is_booting()
            .then(|| Starting { doing: "starting workers".into(), for_ms: self.started.elapsed().as_millis() as u64 });
        let application = &self.generations.current().1.application;
        Status {
            state: self.state().into(),
            degraded: self.supervisor.degradation().is_some(),
            generation: self.generation_status(),
            reload: self.is_reloading().then(|| self.reload_status()),
            last_reload: self.ledger.last_reload().cloned(),
            workers: self.worker_statuses(pages),
            totals: Totals { log_file_dropped: self.output.dropped(), ..totals },
            certificates: self.certified_now().map(Certified::status).unwrap_or_default(),
            config: ConfigStatus {
                revision: self.live.number,
                values: application.values.shown(&self.live.config.changed).len(),
            },
            keeper: self.keeping.status(),
            exporter: self.exporter_status(),
            problems: self.output.problems(),
            limits: application.limits.in_force(),
            guest_metrics: self.ledger.metrics(series).list(),
            ..of_start(self.settings, &self.urls, self.up_since, starting)
        }
    }

    /// The state in one line, for whoever manages this service.
    pub(super) fn in_words(&self) -> String {
        let (generation, deployment) = self.generations.current();
        let workers = self.supervisor.slots();
        let workers = if workers == 1 { "1 worker".into() } else { format!("{workers} workers") };
        let serves = format!("generation {} of {}, {workers}", generation.0, deployment.described());
        match (self.state(), self.supervisor.degradation()) {
            ("starting", _) => "starting workers".into(),
            ("stopping", _) => "stopping".into(),
            ("reloading", _) => match self.supervisor.reloading() {
                Some((candidate, phase)) => format!("deploying generation {}: {phase}; serving {serves}", candidate.0),
                None => format!("preparing a new version; serving {serves}"),
            },
            (_, Some(degradation)) => format!("degraded: {}; serving {serves}", super::reason_of(degradation)),
            _ => format!("serving {serves}"),
        }
    }

    pub(super) fn state(&self) -> &'static str {
        match (self.supervisor.is_booting(), self.supervisor.is_about_to_stop()) {
            (_, true) => "stopping",
            (true, _) => "starting",
            _ if self.is_reloading() => "reloading",
            _ if self.supervisor.degradation().is_some() => "degraded",
            _ => "running",
        }
    }

    /// Not while it is only looked what a reload would change.
    fn is_reloading(&self) -> bool {
        self.change.as_ref().is_some_and(|change| !change.is_dry())
    }

    fn generation_status(&self) -> GenerationStatus {
        let (current, deployment) = self.generations.current();
        // Not if another file was deployed by hand since.
        let is_built = self.settings.app.absolute().is_ok_and(|app| app == deployment.source);
        GenerationStatus {
            current: current.0,
            candidate: self.supervisor.reloading().map(|(candidate, _)| candidate.0),
            previous: self.generations.previous().map(|(previous, _)| previous.0),
            digest: deployment.compiled.digest.clone(),
            source: deployment.source.clone(),
            manifest: deployment.manifest.clone(),
            first_served_ms: self.generations.served_since().map(|since| since.elapsed().as_millis() as u64),
            folder: self.settings.folder.clone().filter(|_| is_built),
        }
    }

    /// The workers, and the slots that wait for one.
    fn worker_statuses(&self, pages: &BTreeMap<WorkerId, Snapshot>) -> Vec<WorkerStatus> {
        let workers = pages.iter().filter_map(|(&id, counted)| self.worker_status(id, counted));
        let waiting = self.supervisor.waiting().map(|Waiting { slot, generation, due, restarts }| WorkerStatus {
            id: None,
            slot: slot.0,
            role: "incumbent".into(),
            pid: None,
            generation: generation.0,
            state: "backoff".into(),
            uptime_ms: 0,
            retry_in_ms: Some((self.started + due).saturating_duration_since(Instant::now()).as_millis() as u64),
            requests: 0,
            in_flight: 0,
            connections: 0,
            websockets: 0,
            guest_cpu_ms: 0,
            instances: 0,
            guest_memory_bytes: 0,
            restarts,
            rss_bytes: 0,
        });
        let mut all: Vec<WorkerStatus> = workers.chain(waiting).collect();
        all.sort_by_key(|worker| (worker.slot, worker.id));
        all
    }

    fn worker_status(&self, id: WorkerId, counted: &Snapshot) -> Option<WorkerStatus> {
        let Description { slot, generation, role, state, restarts } = self.supervisor.describe(id)?;
        let running = self.workers.get(&id)?;
        Some(WorkerStatus {
            id: Some(id.0),
            slot: slot.0,
            role: match role {
                Role::Incumbent => "incumbent",
                Role::Successor => "successor",
            }
            .into(),
            pid: Some(running.process.pid().as_raw()),
            generation: generation.0,
            state: match state {
                WorkerState::Starting => "starting",
                WorkerState::Ready => "ready",
                WorkerState::Draining => "draining",
                WorkerState::Unkillable => "unkillable",
            }
            .into(),
            uptime_ms: running.since.elapsed().as_millis() as u64,
            retry_in_ms: None,
            requests: counted.requests,
            in_flight: counted.in_flight,
            connections: counted.connections,
            websockets: counted.websockets,
            guest_cpu_ms: counted.cpu.sum() / 1000,
            instances: counted.instances,
            guest_memory_bytes: counted.guest_memory,
            restarts,
            rss_bytes: running.process.rss(),
        })
    }
}
