//! What guests count, for the whole cluster: the series of all workers together.
//!
//! They come from pages that nobody trusts, so they are bounded here once more. What is newer comes first: it is there if
//! there is no room for all, and says of what kind a name is, since for Prometheus that is one.

use std::collections::BTreeMap;

use crate::control::protocol::{GuestMetric, MetricValue};
use crate::wire::series::{BOUNDS, Histogram, Kind, Labels, Series, Value};

/// Series of the whole cluster, those of workers that are gone included: each worker may bring others.
const MAX_IN_ALL: usize = 1024;

/// The sums of several workers' series.
#[derive(Debug, Default)]
pub(crate) struct GuestMetrics {
    families: BTreeMap<String, Family>,
    /// In all families.
    series: usize,
}

/// The series of one name.
#[derive(Debug)]
struct Family {
    kind: Kind,
    series: BTreeMap<Labels, Value>,
}

impl GuestMetrics {
    /// Adds what older workers have. How many series had no place.
    pub(crate) fn add(&mut self, series: impl Iterator<Item = Series>) -> usize {
        series.map(|series| self.add_one(series)).filter(|&has_place| !has_place).count()
    }

    /// Puts in front what a worker had that is gone; its gauges went with it. How many series had no place any more.
    pub(crate) fn keep(&mut self, gone: impl Iterator<Item = Series>) -> usize {
        let before = std::mem::take(self);
        self.add(gone.filter(|series| series.value.kind() != Kind::Gauge)) + self.add(before.series())
    }

    fn add_one(&mut self, Series { name, labels, value }: Series) -> bool {
        let kind = value.kind();
        if let Some(family) = self.families.get_mut(&name) {
            if family.kind != kind {
                // Another version's: not what the name means now.
                return true;
            }
            if let Some(sum) = family.series.get_mut(&labels) {
                sum.add(&value);
                return true;
            }
        }
        if self.series == MAX_IN_ALL {
            return false;
        }
        self.series += 1;
        let family = self.families.entry(name).or_insert_with(|| Family { kind, series: BTreeMap::new() });
        family.series.insert(labels, value);
        true
    }

    /// By name, then by labels, as the next.
    pub(crate) fn series(&self) -> impl Iterator<Item = Series> {
        self.families.iter().flat_map(|(name, family)| {
            let series = family.series.iter();
            series.map(|(labels, value)| Series { name: name.clone(), labels: labels.clone(), value: value.clone() })
        })
    }

    pub(crate) fn list(&self) -> Vec<GuestMetric> {
        let shown = |Series { name, labels, value }| GuestMetric { name, labels, value: shown(&value) };
        self.series().map(shown).collect()
    }
}

fn shown(value: &Value) -> MetricValue {
    match *value {
        Value::Counter(value) => MetricValue::Counter { value },
        Value::Gauge(value) => MetricValue::Gauge { value },
        Value::Histogram(Histogram { counts, sum }) => {
            let mut count = 0_u64;
            let mut up_to = counts.iter().map(|one| {
                count = count.saturating_add(*one);
                count
            });
            let buckets = BOUNDS.into_iter().zip(&mut up_to).collect();
            // The last bucket has no bound.
            let count = up_to.next().unwrap_or_default();
            MetricValue::Histogram { count, sum, buckets }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{MAX_LABELS, MAX_METRIC_TEXT};
    use crate::wire::series::BUCKETS;

    fn series(name: &str, label: &str, value: Value) -> Series {
        Series { name: name.into(), labels: Labels::from([("label".into(), label.into())]), value }
    }

    fn histogram(bucket: usize, sum: f64) -> Value {
        let mut counts = [0; BUCKETS];
        counts[bucket] = 1;
        Value::Histogram(Histogram { counts, sum })
    }

    #[test]
    fn workers_add_up() {
        let mut all = GuestMetrics::default();
        let worker = || {
            [
                series("a", "1", Value::Counter(2)),
                series("a", "2", Value::Counter(1)),
                series("b", "1", Value::Gauge(0.5)),
                series("c", "1", histogram(0, 0.0)),
            ]
        };
        assert_eq!(all.keep(worker().into_iter()), 0);
        assert_eq!(all.add(worker().into_iter()), 0);
        assert_eq!(all.add([series("c", "1", histogram(BUCKETS - 1, 11.0))].into_iter()), 0);
        let list = all.list();
        let of = |name: &str, label: &str| {
            let found = list.iter().find(|metric| metric.name == name && metric.labels["label"] == label);
            &found.unwrap().value
        };
        assert_eq!(list.len(), 4);
        assert_eq!(*of("a", "1"), MetricValue::Counter { value: 4 });
        assert_eq!(*of("a", "2"), MetricValue::Counter { value: 2 });
        assert_eq!(*of("b", "1"), MetricValue::Gauge { value: 0.5 });
        let buckets = BOUNDS.map(|bound| (bound, 2)).to_vec();
        assert_eq!(*of("c", "1"), MetricValue::Histogram { count: 3, sum: 11.0, buckets });
    }

    #[test]
    fn a_name_is_of_the_newest_kind() {
        let counters = || [series("a", "1", Value::Counter(1)), series("a", "2", Value::Counter(1))].into_iter();
        let mut all = GuestMetrics::default();
        all.add([series("a", "1", Value::Gauge(1.5))].into_iter());
        assert_eq!(all.add(counters()), 0);
        assert_eq!((all.list().len(), all.series), (1, 1));
        assert_eq!(all.list()[0].value, MetricValue::Gauge { value: 1.5 });

        let mut past = GuestMetrics::default();
        past.keep(counters());
        past.keep([series("a", "1", histogram(0, 0.0))].into_iter());
        assert_eq!(past.series().map(|series| series.value.kind()).collect::<Vec<_>>(), [Kind::Histogram]);
    }

    /// Labels without end in one version do not leave the next without metrics.
    #[test]
    fn what_is_older_makes_room() {
        let mut past = GuestMetrics::default();
        let many = (0..MAX_IN_ALL).map(|number| series("many", &number.to_string(), Value::Counter(1)));
        assert_eq!(past.keep(many), 0);
        assert_eq!(past.keep([series("z", "1", Value::Counter(1))].into_iter()), 1);
        assert_eq!(past.keep([series("z", "1", Value::Counter(1))].into_iter()), 0);
        assert_eq!(past.series().count(), MAX_IN_ALL);
        assert_eq!(past.series().last(), Some(series("z", "1", Value::Counter(2))));
    }

    /// However many workers come and go, and whatever they have: the answer to `status` stays one that its client takes.
    #[test]
    fn all_of_it_is_bounded() {
        let mut all = GuestMetrics::default();
        let text = |number: usize| format!("{number:n<MAX_METRIC_TEXT$}");
        let labels: Labels = (0..MAX_LABELS).map(|number| (text(number), "\u{1}".repeat(MAX_METRIC_TEXT))).collect();
        let value = Value::Histogram(Histogram { counts: [u64::MAX; BUCKETS], sum: f64::MAX });
        let many = (0..MAX_IN_ALL + 7).map(|number| Series {
            name: text(number),
            labels: labels.clone(),
            value: value.clone(),
        });
        assert_eq!(all.add(many), 7);
        let list = all.list();
        assert_eq!(list.len(), MAX_IN_ALL);
        assert!(serde_json::to_vec(&list).unwrap().len() < crate::control::client::MAX_ANSWER / 2);
        // What is known goes on.
        assert_eq!(all.add([Series { name: text(0), labels, value }].into_iter()), 0);
    }
}
