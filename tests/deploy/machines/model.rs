//! How many requests a second several hosts answer together, from what was measured of one: the bounds of operational
//! analysis. Each part of the way has a capacity, and the smallest is that of the whole. Pure.

/// What was measured of the parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// Requests a second that one host answers, with all its workers.
    pub(super) host: f64,
    /// Those that the balancer passes on.
    pub(super) balancer: f64,
    /// Those that the store of all hosts takes part in; infinite, if requests ask no store.
    pub(super) store: f64,
    /// Seconds that a request takes while nothing else is under way.
    pub(super) seconds: f64,
}

/// What is the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// There are too few clients to keep more busy.
    Clients,
    /// A further host helps.
    Hosts,
    /// A further balancer helps, before the same hosts.
    Balancer,
    /// Only less work for the store helps, or several stores.
    Store,
}

impl Parts {
    /// Requests a second of so many hosts, asked by so many clients, each of which waits for its answer before it asks again.
    pub(super) fn predict(&self, hosts: usize, clients: usize) -> (f64, Limit) {
        let bounds = [
            (clients as f64 / self.seconds, Limit::Clients),
            (hosts as f64 * self.host, Limit::Hosts),
            (self.balancer, Limit::Balancer),
            (self.store, Limit::Store),
        ];
        bounds.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are four")
    }

    /// How many hosts there may be until another part is the limit, asked by as many clients as it takes.
    pub(super) fn useful_hosts(&self) -> f64 {
        self.balancer.min(self.store) / self.host
    }
}

#[test]
fn the_smallest_capacity_is_that_of_the_whole() {
    let parts = Parts { host: 300.0, balancer: 2000.0, store: 700.0, seconds: 0.05 };
    assert_eq!(parts.predict(1, 1000), (300.0, Limit::Hosts));
    assert_eq!(parts.predict(2, 1000), (600.0, Limit::Hosts));
    assert_eq!(parts.predict(3, 1000), (700.0, Limit::Store));
    assert_eq!(parts.predict(3, 10), (200.0, Limit::Clients));
    let stateless = Parts { store: f64::INFINITY, ..parts };
    assert_eq!(stateless.predict(3, 1000), (900.0, Limit::Hosts));
    assert_eq!(stateless.predict(10, 1000), (2000.0, Limit::Balancer));
    assert!((parts.useful_hosts() - 7.0 / 3.0).abs() < 1e-9 && (stateless.useful_hosts() - 20.0 / 3.0).abs() < 1e-9);
}
