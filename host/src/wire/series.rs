//! The metrics that guests keep: what may be one, and the bytes that name a series in the page that a worker shares with
//! its primary ([`Table`]).
//!
//! `wit/worker.wit` says all of it to guests. The worker refuses what breaks a rule; the primary, which trusts no page,
//! looks again at what it reads.

#[cfg(test)]
mod fuzz;
mod table;

use std::collections::BTreeMap;

use crate::settings::{MAX_LABELS, MAX_METRIC_TEXT, MAX_SERIES};

pub(crate) use table::Table;

/// The largest value of each bucket of a histogram but the last, which takes the rest. In seconds, from 0.1 ms to 10 s: the
/// default ones of Prometheus's own libraries begin at 5 ms, by when most guests are done.
pub(crate) const BOUNDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// With the one for what is larger.
pub(crate) const BUCKETS: usize = BOUNDS.len() + 1;
/// Names that begin so are the host's own.
const RESERVED: &str = "wasmcluster_";
/// Prometheus calls the parts of a histogram by its name and one of these: no other name may end so, or two would be one.
const PARTS: [&str; 3] = ["_bucket", "_count", "_sum"];
/// Stands between the parts of a key: no UTF-8 has it.
const DIVIDER: u8 = 0xff;
/// A name, and the names and values of labels, each with a divider before.
const MAX_KEY: usize = MAX_METRIC_TEXT + MAX_LABELS * 2 * (MAX_METRIC_TEXT + 1);

/// What a series measures, and how its values add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Names and values.
pub(crate) type Labels = BTreeMap<String, String>;

/// A name, with labels that tell it from others of the name, and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Counter(u64),
    Gauge(f64),
    Histogram(Histogram),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    /// How many values fell into each bucket, and in no smaller one.
    pub(crate) counts: [u64; BUCKETS],
    /// Of all values.
    pub(crate) sum: f64,
}

impl Value {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Counter(_) => Kind::Counter,
            Self::Gauge(_) => Kind::Gauge,
            Self::Histogram(_) => Kind::Histogram,
        }
    }

    /// Adds what another worker has of the same series. No sum overflows, whatever pages say.
    pub(crate) fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::Counter(sum), Self::Counter(count)) => *sum = sum.saturating_add(*count),
            (Self::Gauge(sum), Self::Gauge(value)) => *sum = finite(*sum + value),
            (Self::Histogram(sum), Self::Histogram(other)) => {
                for (sum, count) in sum.counts.iter_mut().zip(&other.counts) {
                    *sum = sum.saturating_add(*count);
                }
                sum.sum = finite(sum.sum + other.sum);
            }
            (sum, other) => debug_assert_eq!(sum.kind(), other.kind()),
        }
    }
}

/// The sum of two numbers that were finite, as near as there is one.
fn finite(sum: f64) -> f64 {
    sum.clamp(f64::MIN, f64::MAX)
}

/// What a guest does to a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Update {
    Count(u64),
    SetGauge(f64),
    AddGauge(f64),
    Observe(f64),
}

impl Update {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Count(_) => Kind::Counter,
            Self::SetGauge(_) | Self::AddGauge(_) => Kind::Gauge,
            Self::Observe(_) => Kind::Histogram,
        }
    }

    pub(crate) fn check(self) -> Result<(), Fault> {
        let is_good = match self {
            Self::Count(_) => true,
            Self::SetGauge(value) | Self::AddGauge(value) => value.is_finite(),
            // What sinks is no sum that can be kept when its worker is gone.
            Self::Observe(value) => value.is_finite() && value >= 0.0,
        };
        if is_good { Ok(()) } else { Err(Fault::Value) }
    }
}

/// The rule that a metric breaks, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error(
        "its name is not valid in Prometheus. Use letters, digits, `_` and `:`, {MAX_METRIC_TEXT} at most, without a \
         digit or `{RESERVED}` at the start, and without `_bucket`, `_count` or `_sum` at the end, which are parts of \
         histograms"
    )]
    Name,
    #[error(
        "it has too many labels, or one that is repeated, too long, or not valid in Prometheus. Use at most \
         {MAX_LABELS} labels, names and values of at most {MAX_METRIC_TEXT} bytes, and names of letters, digits and \
         `_`, without a digit or `__` at the start, and not `le`"
    )]
    Labels,
    #[error("its value is infinite or NaN, or negative in a histogram. Check how the guest computes it")]
    Value,
    #[error("its name is already in use for another kind of metric. Choose another name")]
    Kind,
    #[error(
        "this worker's guests have {MAX_SERIES} series already, which is the limit. Use labels with few values: no \
         paths, users or request ids"
    )]
    TooMany,
}

/// Writes the key of a series into `key`, the same for the same labels in any order. A label without a value is as good as
/// none.
pub(crate) fn write_key(name: &str, labels: &mut Vec<(String, String)>, key: &mut Vec<u8>) -> Result<(), Fault> {
    key.clear();
    if !is_name(name) {
        return Err(Fault::Name);
    }
    key.extend(name.as_bytes());
    labels.retain(|(_, value)| !value.is_empty());
    if labels.len() > MAX_LABELS {
        return Err(Fault::Labels);
    }
    labels.sort_unstable();
    let mut last = "";
    for (label, value) in labels {
        if !is_label(label, value) || label == last {
            return Err(Fault::Labels);
        }
        last = label;
        for part in [&*label, value] {
            key.push(DIVIDER);
            key.extend(part.as_bytes());
        }
    }
    Ok(())
}

/// The name and the labels that make a key; `None` if none do.
fn read_key(key: &[u8]) -> Option<(String, Labels)> {
    let key = key.split(|&byte| byte == DIVIDER).map(std::str::from_utf8).collect::<Result<Vec<_>, _>>().ok()?;
    let (name, labels) = key.split_first()?;
    let (pairs, odd) = labels.as_chunks::<2>();
    let are_good =
        odd.is_empty() && pairs.len() <= MAX_LABELS && pairs.iter().all(|[label, value]| is_label(label, value));
    let labels: Labels = pairs.iter().map(|[label, value]| ((*label).to_owned(), (*value).to_owned())).collect();
    (is_name(name) && are_good && labels.len() == pairs.len()).then(|| ((*name).to_owned(), labels))
}

/// The part of a key that is the name.
pub(crate) fn name_in(key: &[u8]) -> &[u8] {
    key.split(|&byte| byte == DIVIDER).next().unwrap_or(key)
}

fn is_name(name: &str) -> bool {
    is_word(name, b"_:") && !name.starts_with(RESERVED) && !PARTS.iter().any(|part| name.ends_with(part))
}

/// Prometheus has `__` for itself, and `le` for the buckets of histograms.
fn is_label(label: &str, value: &str) -> bool {
    let is_named = is_word(label, b"_") && !label.starts_with("__") && label != "le";
    is_named && (1..=MAX_METRIC_TEXT).contains(&value.len())
}

/// Letters, digits and `more`, not too long, with no digit in front.
fn is_word(text: &str, more: &[u8]) -> bool {
    (1..=MAX_METRIC_TEXT).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        && !text.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(labels: &[(&str, &str)]) -> Vec<(String, String)> {
        labels.iter().map(|&(name, value)| (name.into(), value.into())).collect()
    }

    fn check(name: &str, labels: &[(&str, &str)], expected: Result<&[(&str, &str)], Fault>) {
        let mut key = b"of the one before".to_vec();
        let written = write_key(name, &mut pairs(labels), &mut key);
        assert_eq!(written, expected.map(|_| ()), "{name} {labels:?}");
        if let Ok(labels) = expected {
            assert!(key.len() <= MAX_KEY);
            assert_eq!(read_key(&key), Some((name.into(), pairs(labels).into_iter().collect())), "{name} {labels:?}");
            assert_eq!(name_in(&key), name.as_bytes());
        }
    }

    #[test]
    fn names_are_those_of_prometheus() {
        let longest = "n".repeat(MAX_METRIC_TEXT);
        for name in ["a", "_", ":", "orders_total", "Seconds", "a:b", "a1", &longest] {
            check(name, &[], Ok(&[]));
        }
        let too_long = "n".repeat(MAX_METRIC_TEXT + 1);
        for name in
            ["", "1a", "a b", "a-b", "a.b", "ä", "a\n", "a\0", "wasmcluster_requests_total", "orders_count", &too_long]
        {
            check(name, &[], Err(Fault::Name));
        }
    }

    #[test]
    fn labels_are_those_of_prometheus() {
        let longest = "v".repeat(MAX_METRIC_TEXT);
        check("n", &[("b", "2"), ("a", "1")], Ok(&[("a", "1"), ("b", "2")]));
        check("n", &[("a", "any text: \" \n \0 ä")], Ok(&[("a", "any text: \" \n \0 ä")]));
        check("n", &[("a", ""), ("b", "2")], Ok(&[("b", "2")]));
        check("n", &[("not a name", "")], Ok(&[]));
        check("n", &[(&longest, &longest)], Ok(&[(&longest, &longest)]));
        let names: Vec<String> = (0..=MAX_LABELS).map(|number| format!("{}{number}", &longest[1..])).collect();
        let all: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &*longest)).collect();
        check(&longest, &all[1..], Ok(&all[1..]));
        check(&longest, &all, Err(Fault::Labels));

        let too_long = "v".repeat(MAX_METRIC_TEXT + 1);
        for (name, value) in [("", "1"), ("__a", "1"), ("a:b", "1"), ("1", "1"), ("le", "1"), ("a", &too_long)] {
            check("n", &[(name, value)], Err(Fault::Labels));
        }
        check("n", &[(&too_long, "1")], Err(Fault::Labels));
        check("n", &[("a", "1"), ("b", "2"), ("a", "2")], Err(Fault::Labels));
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for update in [Update::SetGauge(number), Update::AddGauge(number), Update::Observe(number)] {
                assert_eq!(update.check(), Err(Fault::Value), "{update:?}");
            }
        }
        assert_eq!(Update::Observe(-1.0).check(), Err(Fault::Value));
        for update in
            [Update::Count(u64::MAX), Update::SetGauge(-1.0), Update::AddGauge(f64::MIN), Update::Observe(0.0)]
        {
            assert_eq!(update.check(), Ok(()), "{update:?}");
        }
    }

    #[test]
    fn sums_are_numbers() {
        let mut counter = Value::Counter(u64::MAX);
        counter.add(&Value::Counter(1));
        assert_eq!(counter, Value::Counter(u64::MAX));
        let mut gauge = Value::Gauge(f64::MAX);
        gauge.add(&Value::Gauge(f64::MAX));
        assert_eq!(gauge, Value::Gauge(f64::MAX));
        let mut histogram = Value::Histogram(Histogram { counts: [u64::MAX; BUCKETS], sum: f64::MAX });
        histogram.add(&histogram.clone());
        assert_eq!(histogram, Value::Histogram(Histogram { counts: [u64::MAX; BUCKETS], sum: f64::MAX }));
    }
}
