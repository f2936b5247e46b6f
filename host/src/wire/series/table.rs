//! The series of a worker's guests, as they lie in its stats page.
//!
//! The worker fills one place after the other and never empties one; a place is there for readers when all of it is
//! written. The primary reads at any moment, and whatever the page says: no number in it is a length or a place before it
//! was bounded. Places that were never used are not read either, as that would give them memory.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{BOUNDS, BUCKETS, Fault, Histogram, Kind, MAX_KEY, Series, Update, Value, read_key};
use crate::settings::MAX_SERIES;

/// Nothing but atomics: every bit pattern is a table.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Table {
    /// Places that are filled.
    used: AtomicU64,
    entries: [Entry; MAX_SERIES],
}

#[repr(C)]
#[derive(Debug)]
struct Entry {
    kind: AtomicU64,
    /// Bytes of the key.
    length: AtomicU64,
    key: [AtomicU8; MAX_KEY],
    /// A counter, the bits of a gauge, or a histogram: its counts, and the bits of its sum.
    numbers: [AtomicU64; BUCKETS + 1],
}

const KINDS: [Kind; 3] = [Kind::Counter, Kind::Gauge, Kind::Histogram];

impl Table {
    /// Fills the next place, and says which it is; `None` if there is none. One caller at a time.
    pub(crate) fn append(&self, kind: Kind, key: &[u8]) -> Option<usize> {
        let used = self.used.load(Ordering::Relaxed);
        let place = usize::try_from(used).ok()?;
        let entry = self.entries.get(place)?;
        entry.kind.store(kind as u64, Ordering::Relaxed);
        entry.length.store(key.len() as u64, Ordering::Relaxed);
        for (to, &from) in entry.key.iter().zip(key) {
            to.store(from, Ordering::Relaxed);
        }
        self.used.store(used + 1, Ordering::Release);
        Some(place)
    }

    /// Does this to the series in a place of that kind, with an update that was checked. One caller at a time.
    pub(crate) fn update(&self, place: usize, update: Update) -> Result<(), Fault> {
        let numbers = &self.entries[place].numbers;
        match update {
            Update::Count(by) => add(&numbers[0], by),
            Update::SetGauge(value) => numbers[0].store(value.to_bits(), Ordering::Relaxed),
            Update::AddGauge(by) => {
                let sum = load_float(&numbers[0]) + by;
                if !sum.is_finite() {
                    return Err(Fault::Value);
                }
                numbers[0].store(sum.to_bits(), Ordering::Relaxed);
            }
            Update::Observe(value) => {
                add(&numbers[BOUNDS.partition_point(|&bound| bound < value)], 1);
                let sum = (load_float(&numbers[BUCKETS]) + value).min(f64::MAX);
                numbers[BUCKETS].store(sum.to_bits(), Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// All series that make sense.
    pub(crate) fn read(&self) -> impl Iterator<Item = Series> {
        let used = usize::try_from(self.used.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        self.entries.iter().take(used).filter_map(Entry::read)
    }
}

impl Entry {
    fn read(&self) -> Option<Series> {
        let length = usize::try_from(self.length.load(Ordering::Relaxed)).ok()?;
        let key: Vec<u8> = self.key.get(..length)?.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        let (name, labels) = read_key(&key)?;
        let kind = KINDS.get(usize::try_from(self.kind.load(Ordering::Relaxed)).ok()?)?;
        let value = match kind {
            Kind::Counter => Value::Counter(self.numbers[0].load(Ordering::Relaxed)),
            Kind::Gauge => Value::Gauge(Some(load_float(&self.numbers[0])).filter(|value| value.is_finite())?),
            Kind::Histogram => {
                let sum = load_float(&self.numbers[BUCKETS]);
                if !sum.is_finite() || sum < 0.0 {
                    return None;
                }
                let counts = std::array::from_fn(|bucket| self.numbers[bucket].load(Ordering::Relaxed));
                Value::Histogram(Histogram { counts, sum })
            }
        };
        Some(Series { name, labels, value })
    }
}

fn add(sum: &AtomicU64, by: u64) {
    sum.store(sum.load(Ordering::Relaxed).saturating_add(by), Ordering::Relaxed);
}

fn load_float(bits: &AtomicU64) -> f64 {
    f64::from_bits(bits.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::series::write_key;
    use crate::wire::stats::Page;

    fn key(name: &str) -> Vec<u8> {
        let mut key = Vec::new();
        write_key(name, &mut Vec::new(), &mut key).unwrap();
        key
    }

    /// What the primary reads of a series after these updates of the worker.
    fn value(updates: &[Update]) -> Value {
        let (primary, fd) = Page::create().unwrap();
        let worker = Page::open(&fd).unwrap();
        let place = worker.metrics.append(updates[0].kind(), &key("n")).unwrap();
        updates.iter().for_each(|&update| worker.metrics.update(place, update).unwrap());
        let series: Vec<Series> = primary.metrics.read().collect();
        assert_eq!((series.len(), &*series[0].name), (1, "n"));
        series[0].value.clone()
    }

    #[test]
    fn the_primary_reads_what_the_worker_wrote() {
        assert_eq!(value(&[Update::Count(0)]), Value::Counter(0));
        assert_eq!(value(&[Update::Count(2), Update::Count(3)]), Value::Counter(5));
        assert_eq!(value(&[Update::Count(u64::MAX), Update::Count(3)]), Value::Counter(u64::MAX));
        assert_eq!(value(&[Update::SetGauge(2.5), Update::SetGauge(-1.5)]), Value::Gauge(-1.5));
        assert_eq!(value(&[Update::AddGauge(2.5), Update::AddGauge(-1.5)]), Value::Gauge(1.0));
    }

    #[test]
    fn values_fall_into_buckets_that_hold_them() {
        for (value, bucket) in [(0.0, 0), (0.0001, 0), (0.00011, 1), (1.0, 12), (1.1, 13), (10.0, 15), (10.1, 16)] {
            let Value::Histogram(found) = self::value(&[Update::Observe(value)]) else { panic!("no histogram") };
            let mut counts = [0; BUCKETS];
            counts[bucket] = 1;
            assert_eq!(found, Histogram { counts, sum: value });
        }
        let Value::Histogram(found) = value(&[Update::Observe(f64::MAX), Update::Observe(f64::MAX)]) else { panic!() };
        assert_eq!((found.counts[BUCKETS - 1], found.sum), (2, f64::MAX));
    }

    #[test]
    fn a_table_takes_so_many_series_and_no_more() {
        let (primary, fd) = Page::create().unwrap();
        let worker = Page::open(&fd).unwrap();
        for place in 0..MAX_SERIES {
            assert_eq!(worker.metrics.append(Kind::Counter, &key(&format!("n{place}"))), Some(place));
        }
        assert_eq!(worker.metrics.append(Kind::Counter, &key("one_more")), None);
        assert_eq!(primary.metrics.read().count(), MAX_SERIES);
        // A gauge that overflows stays as it is.
        let full = Update::SetGauge(f64::MAX);
        worker.metrics.update(0, full).unwrap();
        assert_eq!(worker.metrics.update(0, Update::AddGauge(f64::MAX)), Err(Fault::Value));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// The primary's sums are those of what the worker did, by whatever way it did it.
        #[test]
        fn no_update_is_lost(updates in vec((0..MAX_SERIES, 0..1000_u64), 0..500)) {
            let (primary, fd) = Page::create().unwrap();
            let worker = Page::open(&fd).unwrap();
            let mut expected = std::collections::BTreeMap::new();
            let mut places = std::collections::BTreeMap::new();
            for (number, by) in updates {
                let name = format!("n{number}");
                let place = *places
                    .entry(number)
                    .or_insert_with(|| worker.metrics.append(Kind::Counter, &key(&name)).unwrap());
                worker.metrics.update(place, Update::Count(by)).unwrap();
                *expected.entry(name).or_insert(0) += by;
            }
            let found = primary.metrics.read().map(|series| match series.value {
                Value::Counter(count) => (series.name, count),
                other => panic!("{other:?}"),
            });
            prop_assert_eq!(found.collect::<std::collections::BTreeMap<_, _>>(), expected);
        }
    }
}
