//! `wasmcluster:worker/metrics`: puts what guests count into the worker's stats page, where the primary finds it.
//!
//! Guests that count nothing pay nothing: the lock is theirs who do, and what it guards has no memory before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::wire::series::{Fault, Kind, Update, name_in, write_key};
use crate::wire::stats::Stats;

/// As much of a name as a log line needs.
const MAX_NAMED: usize = 64;

/// All metrics of a worker's guests.
pub(crate) struct Metrics {
    stats: &'static Stats,
    /// Whoever has it may write to the table.
    known: Mutex<KnownSeries>,
}

/// Where series are in the table.
#[derive(Default)]
struct KnownSeries {
    places: HashMap<Box<[u8]>, (Kind, usize)>,
    /// Kept, so that it has memory.
    key: Vec<u8>,
    /// Rules that the log has said something about.
    said: Vec<Fault>,
}

impl Metrics {
    pub(crate) fn new(stats: &'static Stats) -> Self {
        Self { stats, known: Mutex::default() }
    }

    pub(super) fn update(&self, name: &str, mut labels: Vec<(String, String)>, update: Update) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let done = update
            .check()
            .and_then(|()| known.place(self.stats, name, &mut labels, update.kind()))
            .and_then(|place| self.stats.metrics.update(place, update));
        if let Err(fault) = done {
            self.stats.metrics_dropped.increment();
            if !known.said.contains(&fault) {
                known.said.push(fault);
                let name: String = name.chars().take(MAX_NAMED).collect();
                tracing::warn!("a guest's metric {name:?} is dropped: {fault} (logged once; `status` counts them)");
            }
        }
    }
}

impl KnownSeries {
    /// The place of a series, which may be new.
    fn place(
        &mut self,
        stats: &Stats,
        name: &str,
        labels: &mut Vec<(String, String)>,
        kind: Kind,
    ) -> Result<usize, Fault> {
        write_key(name, labels, &mut self.key)?;
        match self.places.get(&*self.key) {
            Some(&(known, place)) if known == kind => return Ok(place),
            Some(_) => return Err(Fault::Kind),
            None => {}
        }
        let mut others = self.places.iter().filter(|(key, _)| name_in(key) == name.as_bytes());
        if others.any(|(_, (other, _))| *other != kind) {
            return Err(Fault::Kind);
        }
        let place = stats.metrics.append(kind, &self.key).ok_or(Fault::TooMany)?;
        self.places.insert(self.key.as_slice().into(), (kind, place));
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::MAX_SERIES;
    use crate::wire::stats::Page;

    fn page() -> &'static Stats {
        let (_, fd) = Page::create().unwrap();
        Page::open(&fd).unwrap()
    }

    fn labels(labels: &[(&str, &str)]) -> Vec<(String, String)> {
        labels.iter().map(|&(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn labels_in_another_order_are_the_same_series() {
        let metrics = Metrics::new(page());
        metrics.update("n", labels(&[("a", "1"), ("b", "2")]), Update::Count(1));
        metrics.update("n", labels(&[("b", "2"), ("c", ""), ("a", "1")]), Update::Count(1));
        metrics.update("n", labels(&[("b", "1"), ("a", "2")]), Update::Count(1));
        assert_eq!(metrics.stats.metrics.read().count(), 2);
        assert_eq!(metrics.stats.metrics_dropped.get(), 0);
    }

    #[test]
    fn a_name_has_one_kind() {
        let metrics = Metrics::new(page());
        metrics.update("n", labels(&[]), Update::Count(1));
        metrics.update("n", labels(&[]), Update::Observe(1.0));
        metrics.update("n", labels(&[("a", "1")]), Update::SetGauge(1.0));
        metrics.update("n", labels(&[("a", "1")]), Update::Count(1));
        assert_eq!((metrics.stats.metrics.read().count(), metrics.stats.metrics_dropped.get()), (2, 2));
        assert_eq!(metrics.known.lock().unwrap().said, [Fault::Kind]);
    }

    #[test]
    fn series_that_are_known_go_on_when_there_are_too_many() {
        let metrics = Metrics::new(page());
        for round in 1..=2_u64 {
            for number in 0..MAX_SERIES + 10 {
                metrics.update("n", labels(&[("number", &number.to_string())]), Update::Count(1));
            }
            assert_eq!(metrics.stats.metrics_dropped.get(), round * 10);
        }
        assert_eq!(metrics.stats.metrics.read().count(), MAX_SERIES);
        assert!(metrics.stats.metrics.read().all(|series| series.value == crate::wire::series::Value::Counter(2)));
        assert_eq!(metrics.known.lock().unwrap().said, [Fault::TooMany]);
    }

    /// A value that cannot be makes no series.
    #[test]
    fn what_is_dropped_leaves_nothing() {
        let metrics = Metrics::new(page());
        metrics.update("n", labels(&[]), Update::Observe(-1.0));
        metrics.update("n o", labels(&[]), Update::Count(1));
        metrics.update("n", labels(&[("n o", "1")]), Update::Count(1));
        assert_eq!((metrics.stats.metrics.read().count(), metrics.stats.metrics_dropped.get()), (0, 3));
    }
}
