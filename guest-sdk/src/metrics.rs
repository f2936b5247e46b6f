//! Counters, gauges and histograms that outlive their instance: the interface `wasmcluster:worker/metrics`, which is
//! not part of a standard. `wasmcluster status` shows them for all workers together.
//!
//! ```
//! use wasmcluster_guest::metrics;
//!
//! metrics::counter("orders_total").with("kind", "book").add(1);
//! metrics::gauge("queue").set(1.5);
//! metrics::histogram("seconds").record(0.2);
//! ```
//!
//! Nothing here fails. Updates that break a rule are dropped, and the host's log says why: a name that is not valid in
//! Prometheus, NaN and infinities, more than 8 labels, texts of more than 128 bytes, more than 256 series in a worker. So
//! use labels with few values: no paths, users or request ids.
//!
//! A guest that keeps metrics runs only on wasmcluster. The component of any other guest has no trace of this interface. In
//! native tests, [`testing::metrics`](crate::testing::metrics) returns the updates that the host would get.

use std::time::Duration;

use crate::host;

/// A number that only grows, such as a count of events. The host sums it over all workers, ended ones included.
///
/// ```
/// wasmcluster_guest::metrics::counter("orders_total").with("kind", "book").add(1);
/// ```
pub fn counter(name: impl Into<String>) -> Counter {
    Counter(Series::new(name))
}

/// A number that goes up and down. Each worker has its own; the host shows the sum over running workers.
///
/// ```
/// wasmcluster_guest::metrics::gauge("queue").add(-1.0);
/// ```
pub fn gauge(name: impl Into<String>) -> Gauge {
    Gauge(Series::new(name))
}

/// The distribution of values: how many fell into each of the host's buckets, and their sum. The buckets are for times in
/// seconds, from 0.1 ms to 10 s.
///
/// ```
/// use std::time::Instant;
/// use wasmcluster_guest::metrics;
///
/// let begun = Instant::now();
/// metrics::histogram("render_seconds").record_time(begun.elapsed());
/// ```
pub fn histogram(name: impl Into<String>) -> Histogram {
    Histogram(Series::new(name))
}

/// See [`counter`].
#[derive(Clone, Debug)]
#[must_use = "it counts nothing until `add` is called"]
pub struct Counter(Series);

impl Counter {
    /// Adds a label.
    pub fn with(self, label: impl Into<String>, value: impl Into<String>) -> Self {
        Self(self.0.with(label, value))
    }

    /// Adds to the counter. Adding 0 makes a new counter known.
    pub fn add(&self, by: u64) {
        self.0.update(Update::Count(by));
    }
}

/// See [`gauge`].
#[derive(Clone, Debug)]
#[must_use = "it keeps nothing until `set` or `add` is called"]
pub struct Gauge(Series);

impl Gauge {
    /// Adds a label.
    pub fn with(self, label: impl Into<String>, value: impl Into<String>) -> Self {
        Self(self.0.with(label, value))
    }

    /// Sets it to this number.
    pub fn set(&self, value: f64) {
        self.0.update(Update::SetGauge(value));
    }

    /// Adds a number, which may be negative. What a handler added before it trapped stays.
    pub fn add(&self, by: f64) {
        self.0.update(Update::AddGauge(by));
    }
}

/// See [`histogram`].
#[derive(Clone, Debug)]
#[must_use = "it records nothing until `record` is called"]
pub struct Histogram(Series);

impl Histogram {
    /// Adds a label.
    pub fn with(self, label: impl Into<String>, value: impl Into<String>) -> Self {
        Self(self.0.with(label, value))
    }

    /// Records a value, which must not be negative.
    pub fn record(&self, value: f64) {
        self.0.update(Update::Observe(value));
    }

    /// Records a time, in seconds.
    pub fn record_time(&self, time: Duration) {
        self.record(time.as_secs_f64());
    }
}

/// A name and labels.
#[derive(Clone, Debug)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
}

impl Series {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), labels: Vec::new() }
    }

    fn with(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((label.into(), value.into()));
        self
    }

    fn update(&self, update: Update) {
        host::metric(&self.name, &self.labels, update);
    }
}

/// What a metric is told.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// [`Counter::add`].
    Count(u64),
    /// [`Gauge::set`].
    SetGauge(f64),
    /// [`Gauge::add`].
    AddGauge(f64),
    /// [`Histogram::record`].
    Observe(f64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_test_sees_what_the_host_would_be_given() {
        let orders = counter("orders_total").with("shop", "one");
        orders.clone().with("kind", "book").add(2);
        orders.add(1);
        gauge("queue").set(1.5);
        gauge("queue").add(-0.5);
        histogram("seconds").record_time(Duration::from_millis(200));
        let told = testing::metrics();
        let names: Vec<&str> = told.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["orders_total", "orders_total", "queue", "queue", "seconds"]);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(told[0].labels, [pair("shop", "one"), pair("kind", "book")]);
        assert_eq!(told[1].labels, [pair("shop", "one")]);
        let updates: Vec<Update> = told.iter().map(|metric| metric.update).collect();
        let expected =
            [Update::Count(2), Update::Count(1), Update::SetGauge(1.5), Update::AddGauge(-0.5), Update::Observe(0.2)];
        assert_eq!(updates, expected);
        assert_eq!(testing::metrics(), []);
    }
}
