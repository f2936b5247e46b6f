//! What outlives the workers that it comes from: what they counted, by generation; how they left, by reason; how reloads
//! ended, by result. It knows no processes and no clock.

use std::collections::BTreeMap;

use super::guest_metrics::GuestMetrics;
use crate::control::protocol::{GenerationTotals, LastReload, ReloadResult, Totals};
use crate::primary::supervisor::Why;
use crate::wire::ids::{Generation, WorkerId};
use crate::wire::series::Series;
use crate::wire::stats::Snapshot;

/// Generations whose numbers are kept apart; those of older ones count only in the sums.
const MAX_GENERATIONS: usize = 16;
/// How a worker left that nobody wanted to.
const CRASHED: &str = "crashed";

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// What workers counted that are gone.
    gone: BTreeMap<Generation, Snapshot>,
    older: Snapshot,
    metrics: GuestMetrics,
    metrics_are_full: bool,
    /// Workers that are to leave, and why.
    leaving: BTreeMap<WorkerId, Why>,
    exits: BTreeMap<&'static str, u64>,
    results: BTreeMap<ReloadResult, u64>,
    last_reload: Option<LastReload>,
    /// Requests that were cut since the cluster was told to stop.
    cut: u64,
}

impl Ledger {
    /// Keeps what a worker counted that is gone. Its gauges end with it, and the requests in flight are lost.
    pub(crate) fn close(&mut self, generation: Generation, counted: &Snapshot) {
        let lost = counted.in_flight;
        let (errors, aborted) = (counted.errors.saturating_add(lost), counted.aborted.saturating_add(lost));
        let last = Snapshot { in_flight: 0, connections: 0, websockets: 0, errors, aborted, ..*counted };
        self.gone.entry(generation).or_default().add(&last);
        while self.gone.len() > MAX_GENERATIONS
            && let Some((_, oldest)) = self.gone.pop_first()
        {
            self.older.add(&oldest);
        }
    }

    /// Keeps a gone worker's series. How many were lost for want of room, the first time that this happens.
    pub(crate) fn close_metrics(&mut self, series: impl Iterator<Item = Series>) -> Option<usize> {
        let lost = self.metrics.keep(series);
        (lost > 0 && !std::mem::replace(&mut self.metrics_are_full, true)).then_some(lost)
    }

    pub(crate) fn lost_at_the_end(&mut self, requests: u64) {
        self.cut = self.cut.saturating_add(requests);
    }

    pub(crate) fn cut(&self) -> u64 {
        self.cut
    }

    pub(crate) fn leaves(&mut self, worker: WorkerId, why: Why) {
        self.leaving.insert(worker, why);
    }

    /// A worker has left as planned. One that did not die of SIGKILL was counted when it was given up.
    pub(crate) fn left(&mut self, worker: WorkerId) {
        if let Some(why) = self.leaving.remove(&worker) {
            *self.exits.entry(name(why)).or_default() += 1;
        }
    }

    pub(crate) fn crashed(&mut self, worker: WorkerId) {
        self.leaving.remove(&worker);
        *self.exits.entry(CRASHED).or_default() += 1;
    }

    pub(crate) fn reloaded(&mut self, last: LastReload) {
        *self.results.entry(last.result).or_default() += 1;
        if last.result != ReloadResult::Unchanged {
            self.last_reload = Some(last);
        }
    }

    /// What was committed last is written down after all.
    pub(crate) fn saved(&mut self) {
        let last = self.last_reload.as_mut();
        if let Some(last) = last.filter(|last| last.result == ReloadResult::CommittedUnsaved) {
            (last.result, last.reason) = (ReloadResult::Committed, None);
        }
    }

    pub(crate) fn last_reload(&self) -> Option<&LastReload> {
        self.last_reload.as_ref()
    }

    /// What was counted in each generation, with what workers count that live; and in those that are no longer kept apart.
    pub(crate) fn by_generation(
        &self,
        live: impl Iterator<Item = (Generation, Snapshot)>,
    ) -> (BTreeMap<Generation, Snapshot>, Snapshot) {
        let mut generations = self.gone.clone();
        for (generation, counted) in live {
            generations.entry(generation).or_default().add(&counted);
        }
        (generations, self.older)
    }

    /// The sums over all workers: what [`Self::by_generation`] found.
    pub(crate) fn totals(&self, generations: &BTreeMap<Generation, Snapshot>, older: Snapshot) -> Totals {
        let mut sum = older;
        for counted in generations.values() {
            sum.add(counted);
        }
        let committed = [ReloadResult::Committed, ReloadResult::CommittedUnsaved];
        let by_generation = generations.iter().map(|(&generation, counted)| GenerationTotals::new(generation, counted));
        Totals {
            crashes: self.exits.get(CRASHED).copied().unwrap_or_default(),
            reloads: committed.iter().filter_map(|result| self.results.get(result)).sum(),
            exits: self.exits.iter().map(|(&reason, &workers)| (reason.to_owned(), workers)).collect(),
            reload_results: self.results.clone(),
            by_generation: by_generation.collect(),
            ..Totals::new(&sum)
        }
    }

    /// All series, with those that live workers have now, the newest first.
    pub(crate) fn metrics(&self, live: impl Iterator<Item = Series>) -> GuestMetrics {
        let mut all = GuestMetrics::default();
        all.add(live);
        all.add(self.metrics.series());
        all
    }
}

/// As `status --json` and metrics name it.
fn name(why: Why) -> &'static str {
    match why {
        Why::Asked => "sigterm",
        Why::Scaled => "scaled",
        Why::MaxRequests => "max_requests",
        Why::MaxLifetime => "max_lifetime",
        Why::MaxRss => "max_rss",
        Why::Reloaded => "reloaded",
        Why::RolledBack => "rolled_back",
        Why::Stopping => "stopping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(requests: u64, in_flight: u64) -> Snapshot {
        Snapshot { requests, in_flight, connections: 3, ..Snapshot::default() }
    }

    /// With workers that live.
    fn sums(ledger: &Ledger, live: &[(Generation, Snapshot)]) -> Totals {
        let (generations, older) = ledger.by_generation(live.iter().copied());
        ledger.totals(&generations, older)
    }

    #[test]
    fn what_workers_counted_is_kept_by_generation() {
        let mut ledger = Ledger::default();
        ledger.close(Generation(1), &counted(5, 2));
        ledger.close(Generation(1), &counted(1, 0));
        ledger.close(Generation(2), &counted(7, 0));
        let totals = sums(&ledger, &[(Generation(2), counted(10, 4))]);
        assert_eq!((totals.requests, totals.errors, totals.aborted), (23, 2, 2));
        let of = |generation: usize| &totals.by_generation[generation - 1];
        assert_eq!((of(1).generation, of(1).requests, of(1).errors, of(1).aborted), (Generation(1), 6, 2, 2));
        assert_eq!((of(2).requests, of(2).errors), (17, 0));
    }

    #[test]
    fn old_generations_count_in_the_sums_alone() {
        let mut ledger = Ledger::default();
        let many = MAX_GENERATIONS as u64 + 5;
        for generation in 1..=many {
            ledger.close(Generation(generation), &counted(1, 0));
        }
        let totals = sums(&ledger, &[]);
        assert_eq!((totals.requests, totals.by_generation.len()), (many, MAX_GENERATIONS));
        assert_eq!(totals.by_generation[0].generation, Generation(6));
        // A worker of one that is forgotten may still be there.
        ledger.close(Generation(2), &counted(1, 0));
        assert_eq!(sums(&ledger, &[]).requests, many + 1);
    }

    #[test]
    fn each_worker_leaves_once_and_for_one_reason() {
        let mut ledger = Ledger::default();
        let [one, two, three] = [1, 2, 3].map(WorkerId);
        ledger.leaves(one, Why::Scaled);
        ledger.left(one);
        // It was unkillable: given up, then gone after all.
        ledger.left(one);
        ledger.leaves(two, Why::Reloaded);
        // What was asked of it first was overtaken.
        ledger.leaves(two, Why::Stopping);
        ledger.left(two);
        ledger.crashed(three);
        let totals = sums(&ledger, &[]);
        let expected = [("crashed", 1), ("scaled", 1), ("stopping", 1)].map(|(reason, of)| (reason.to_owned(), of));
        assert_eq!((totals.exits, totals.crashes), (expected.into(), 1));
    }

    #[test]
    fn reloads_are_counted_by_how_they_ended() {
        let mut ledger = Ledger::default();
        let ended = |result| LastReload { generation: None, result, reason: Some("why".into()) };
        for result in [ReloadResult::RolledBack, ReloadResult::CommittedUnsaved, ReloadResult::Unchanged] {
            ledger.reloaded(ended(result));
        }
        let totals = sums(&ledger, &[]);
        assert_eq!((totals.reloads, totals.reload_results[&ReloadResult::Unchanged]), (1, 1));
        ledger.saved();
        let last = ledger.last_reload().unwrap();
        assert_eq!((last.result, &last.reason), (ReloadResult::Committed, &None));
    }
}
