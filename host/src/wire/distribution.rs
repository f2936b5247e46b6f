//! How whole numbers are distributed, such as microseconds, in buckets that grow with the numbers. All have the same buckets,
//! so sums of several are exact.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::counter::Counter;

/// The smallest numbers that are told apart are below `2 ^ FIRST_OCTAVE`.
const FIRST_OCTAVE: u32 = 4;
/// Each octave has so many buckets: no number is off by more than a fourth.
const PER_OCTAVE: usize = 4;
/// Up to `2 ^ 28`, which is 268 s in microseconds; what is larger counts as that.
const BUCKETS: usize = 1 + 24 * PER_OCTAVE;

/// How many numbers there were of each size, and their sum. As counters in a page that is shared, or as what they said.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distribution<N> {
    sum: N,
    buckets: [N; BUCKETS],
}

fn bucket(number: u64) -> usize {
    let Some(octave) = number.checked_ilog2().and_then(|octave| octave.checked_sub(FIRST_OCTAVE)) else {
        return 0;
    };
    // The two bits after the leading one.
    let quarter = (number >> (octave + FIRST_OCTAVE - 2)) as usize % PER_OCTAVE;
    (1 + octave as usize * PER_OCTAVE + quarter).min(BUCKETS - 1)
}

/// The number that everything in the bucket is below.
fn bound(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(1) else {
        return 1 << FIRST_OCTAVE;
    };
    let (octave, quarter) = (above / PER_OCTAVE, above % PER_OCTAVE);
    ((PER_OCTAVE + quarter + 1) as u64) << (octave as u32 + FIRST_OCTAVE - 2)
}

impl Distribution<Counter> {
    pub(crate) fn record(&self, number: u64) {
        self.sum.add(number);
        self.buckets[bucket(number)].increment();
    }

    pub(crate) fn snapshot(&self) -> Distribution<u64> {
        let buckets = std::array::from_fn(|bucket| self.buckets[bucket].get());
        Distribution { sum: self.sum.get(), buckets }
    }
}

/// The sum, and then each bucket.
impl Serialize for Distribution<u64> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(std::iter::once(self.sum).chain(self.buckets))
    }
}

impl<'de> Deserialize<'de> for Distribution<u64> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let numbers: Vec<u64> = Deserialize::deserialize(from)?;
        let (sum, buckets) = numbers.split_first().ok_or_else(|| D::Error::custom("without a sum"))?;
        let buckets = buckets.try_into().map_err(|_| D::Error::custom("another number of buckets"))?;
        Ok(Self { sum: *sum, buckets })
    }
}

impl Default for Distribution<u64> {
    fn default() -> Self {
        Self { sum: 0, buckets: [0; BUCKETS] }
    }
}

impl Distribution<u64> {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sum = self.sum.saturating_add(other.sum);
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum = sum.saturating_add(*count);
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |count, bucket| u64::saturating_add(count, *bucket))
    }

    /// Of each bucket that is not empty the number that all in it are below, and how many there are.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (bound(bucket), *count))
    }

    /// Of each octave its end, and how many numbers are in it. The last one has no end.
    pub(crate) fn octaves(&self) -> Vec<(Option<u64>, u64)> {
        let mut octaves = Vec::new();
        let mut within = 0_u64;
        for (bucket, count) in self.buckets.iter().enumerate() {
            within = within.saturating_add(*count);
            // What is in the last bucket may be larger than its bound.
            if bucket == BUCKETS - 1 {
                octaves.push((None, within));
            } else if bucket % PER_OCTAVE == 0 {
                octaves.push((Some(bound(bucket)), within));
                within = 0;
            }
        }
        octaves
    }

    /// The number that this part of all, from 0 to 1, is below; `None` if there was nothing yet.
    pub(crate) fn quantile(&self, part: f64) -> Option<u64> {
        let total = self.count();
        let rank = ((total as f64 * part).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0_u64;
        let found = self.buckets.iter().position(|count| {
            seen = seen.saturating_add(*count);
            seen >= rank
        });
        found.map(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stats::Page;

    #[test]
    fn numbers_fall_into_buckets_that_hold_them() {
        for number in [0, 1, 15, 16, 17, 19, 20, 31, 32, 100, 1000, 65_535, 65_536, 1_000_000, 200_000_000] {
            let bucket = bucket(number);
            assert!(number < bound(bucket), "{number} in bucket {bucket}");
            assert!(bucket == 0 || number >= bound(bucket - 1), "{number} in bucket {bucket}");
            assert!(bucket == 0 || bound(bucket) as f64 <= number as f64 * 1.25 + 1.0, "{number}");
        }
        assert_eq!(bucket(100_000_000_000), BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_close() {
        let (page, fd) = Page::create().unwrap();
        let worker = Page::open(&fd).unwrap();
        assert_eq!(page.snapshot().latency.quantile(0.5), None);
        (1..=100).for_each(|ms| worker.latency.record(ms * 1000));
        let latency = page.snapshot().latency;
        for (part, expected) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = latency.quantile(part).unwrap() as f64 / 1000.0;
            assert!(found >= expected && found <= expected * 1.25 + 0.1, "{part}: {found} ms");
        }
        assert_eq!((latency.count(), latency.sum()), (100, 5_050_000));
    }

    #[test]
    fn octaves_hold_all() {
        let (page, fd) = Page::create().unwrap();
        let worker = Page::open(&fd).unwrap();
        [1, 15, 16, 17, 40, u64::MAX / 2].into_iter().for_each(|number| worker.cpu.record(number));
        let octaves = page.snapshot().cpu.octaves();
        assert_eq!(octaves[..3], [(Some(16), 2), (Some(32), 2), (Some(64), 1)]);
        assert_eq!(*octaves.last().unwrap(), (None, 1));
        let counts: Vec<(u64, u64)> = page.snapshot().cpu.counts().collect();
        assert_eq!(counts[..3], [(16, 2), (20, 2), (48, 1)]);
        assert!(octaves.is_sorted_by_key(|(end, _)| end.unwrap_or(u64::MAX)));
    }

    #[test]
    fn sums_are_exact_and_go_over_the_wire() {
        let (page, fd) = Page::create().unwrap();
        let worker = Page::open(&fd).unwrap();
        [3, 300].into_iter().for_each(|number| worker.memory.record(number));
        let mut sum = page.snapshot().memory;
        sum.add(&page.snapshot().memory);
        assert_eq!((sum.count(), sum.sum()), (4, 606));
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(serde_json::from_str::<Distribution<u64>>(&text).unwrap(), sum);
        assert!(serde_json::from_str::<Distribution<u64>>("[1,2]").is_err());
        sum.add(&Distribution { sum: u64::MAX, buckets: [u64::MAX; BUCKETS] });
        assert_eq!((sum.count(), sum.sum()), (u64::MAX, u64::MAX));
    }
}
