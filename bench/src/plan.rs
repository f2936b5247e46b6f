//! What is measured: groups of contenders under the same load, the ratios between them, and the figures that stand alone.

use anyhow::Result;

use crate::Bench;
use crate::contenders::Program::{
    BareHyper, BareHyperTls, Nginx, NginxProxy, Node, Ours, OursProxy, OursTls, OursTraced, Wasmtime, Workerd,
};
use crate::contenders::{Contender, Program};
use crate::report::{Row, Series, Unit};
use crate::rounds::Figures;
use crate::stats::{Spread, ratios};
use crate::tls::Handshake;
use crate::{cluster, growth, large, stats, stores};

/// Contenders that are measured one after the other, round by round.
pub(crate) struct Group {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) load: Load,
    pub(crate) contenders: &'static [Contender],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// The server on one CPU, 32 connections that are kept from another.
    KeepAlive,
    /// The same, with a connection for each request.
    ConnectionEach,
    /// The server on one CPU, 32 requests of HTTP/2 at a time from another: all on one connection, or each on its own.
    OneConnection,
    Http2,
    /// HTTP/1.1 on connections that are kept, from the same program as HTTP/2.
    Http1,
    /// A TLS connection for each request, as many as the server takes.
    Handshakes(Handshake),
    /// Two workers on two CPUs, and the load on the same two, with twice as many connections.
    TwoWorkers,
}

impl Load {
    pub(crate) fn workers(self) -> usize {
        if self == Self::TwoWorkers { 2 } else { 1 }
    }
}

const fn contender(
    key: &'static str,
    name: &'static str,
    program: Program,
    flags: &'static [&'static str],
) -> Contender {
    Contender { key, name, program, flags }
}

const DEFAULTS: &[&str] = &[];
pub(crate) const FRESH: &[&str] = &["--max-instance-reuse-count", "1"];
const NO_SNAPSHOT: &[&str] = &["--max-instance-reuse-count", "1", "--no-snapshot"];
pub(crate) const REUSED: &[&str] = &["--max-instance-reuse-count", "100000"];
/// h2load does not connect again when a connection retires.
pub(crate) const ON_ONE: &[&str] = &["--max-instance-reuse-count", "100000", "--max-connection-requests", "1000000000"];
const FRESH_ON_ONE: &[&str] = &["--max-instance-reuse-count", "1", "--max-connection-requests", "1000000000"];
/// All that tells what a cluster does, but traces.
pub(crate) const SEEN: &[&str] = &[
    "--max-instance-reuse-count",
    "100000",
    "--admin",
    "127.0.0.1:0",
    "--access-log",
    "access.log",
    "--access-log-format",
    "json",
    "--server-timing",
];
pub(crate) const SEEN_FRESH: &[&str] = &[
    "--max-instance-reuse-count",
    "1",
    "--admin",
    "127.0.0.1:0",
    "--access-log",
    "access.log",
    "--access-log-format",
    "json",
    "--server-timing",
];
/// What wasmcluster does for its own pool, as far as there are flags for it.
const TUNED: &[&str] = &[
    "-O",
    "pooling-allocator=y,pooling-pagemap-scan=y,pooling-memory-keep-resident=2097152,pooling-table-keep-resident=65536",
];

pub(crate) const GROUPS: &[Group] = &[
    Group {
        key: "hello",
        title: "WASI 0.2, 32 keep-alive connections, one core for the server",
        load: Load::KeepAlive,
        contenders: &[
            contender("ours-fresh", "wasmcluster, fresh instance", Ours("hello_p2"), FRESH),
            contender("wasmtime-fresh", "wasmtime serve, fresh instance", Wasmtime("hello_p2"), DEFAULTS),
            contender("wasmtime-tuned", "wasmtime serve, fresh instance, tuned pool", Wasmtime("hello_p2"), TUNED),
            contender("sdk-fresh", "wasmcluster, fresh instance, SDK's hello", Ours("hello"), FRESH),
            contender("bare-fresh", "wasmcluster, fresh instance, that on bare bindings", Ours("bare_p2"), FRESH),
            contender("axum-fresh", "wasmcluster, fresh instance, axum with 20 routes", Ours("axum_routes"), FRESH),
            contender("axum-no-snapshot", "wasmcluster, the same without a snapshot", Ours("axum_routes"), NO_SNAPSHOT),
            contender("ours-reused", "wasmcluster, instance reused", Ours("hello_p2"), REUSED),
            contender("wasmtime-reused", "wasmtime serve, instance reused", Wasmtime("hello_p2"), REUSED),
            contender("sdk-reused", "wasmcluster, instance reused, SDK's hello", Ours("hello"), REUSED),
            contender("node", "Node cluster, one worker", Node, DEFAULTS),
            contender("workerd", "workerd, a worker in JavaScript", Workerd, DEFAULTS),
            contender("hyper", "bare hyper, current-thread", BareHyper, DEFAULTS),
        ],
    },
    Group {
        key: "p3",
        title: "WASI 0.3, 32 keep-alive connections, one core for the server",
        load: Load::KeepAlive,
        contenders: &[
            contender("ours-default", "wasmcluster, default reuse", Ours("hello_p3"), DEFAULTS),
            contender("wasmtime-default", "wasmtime serve, default reuse", Wasmtime("hello_p3"), DEFAULTS),
            contender("ours-fresh", "wasmcluster, fresh instance", Ours("hello_p3"), FRESH),
            contender("wasmtime-fresh", "wasmtime serve, fresh instance", Wasmtime("hello_p3"), FRESH),
        ],
    },
    Group {
        key: "seen",
        title: "What it costs to see: admin address, access log as JSON, server-timing, and traces, of which 1 % are recorded",
        load: Load::KeepAlive,
        contenders: &[
            contender("fresh", "fresh instance", Ours("hello_p2"), FRESH),
            contender("fresh-seen", "fresh instance, all but traces", Ours("hello_p2"), SEEN_FRESH),
            contender("fresh-traced", "fresh instance, all", OursTraced("hello_p2"), SEEN_FRESH),
            contender("reused", "instance reused", Ours("hello_p2"), REUSED),
            contender("reused-seen", "instance reused, all but traces", Ours("hello_p2"), SEEN),
            contender("reused-traced", "instance reused, all", OursTraced("hello_p2"), SEEN),
        ],
    },
    Group {
        key: "python",
        title: "Python (componentize-py), fresh instance",
        load: Load::KeepAlive,
        contenders: &[
            contender("ours", "wasmcluster", Ours("python"), FRESH),
            contender("wasmtime", "wasmtime serve", Wasmtime("python"), FRESH),
        ],
    },
    Group {
        key: "javascript",
        title: "JavaScript (componentize-js), fresh instance",
        load: Load::KeepAlive,
        contenders: &[
            contender("ours", "wasmcluster", Ours("javascript"), FRESH),
            contender("wasmtime", "wasmtime serve", Wasmtime("javascript"), FRESH),
        ],
    },
    Group {
        key: "connect",
        title: "A connection for each request, 32 at a time, one core for the server",
        load: Load::ConnectionEach,
        contenders: &[
            contender("ours-fresh", "wasmcluster, fresh instance", Ours("hello_p2"), FRESH),
            contender("wasmtime-fresh", "wasmtime serve, fresh instance", Wasmtime("hello_p2"), DEFAULTS),
            contender("node", "Node cluster, one worker", Node, DEFAULTS),
        ],
    },
    Group {
        key: "h2",
        title: "HTTP/2 in clear text, 32 connections with a stream each, one core for the server",
        load: Load::Http2,
        contenders: &[
            contender("ours-fresh", "wasmcluster, fresh instance", Ours("hello_p2"), FRESH_ON_ONE),
            contender("ours-reused", "wasmcluster, instance reused", Ours("hello_p2"), ON_ONE),
            contender("hyper", "bare hyper, current-thread", BareHyper, DEFAULTS),
        ],
    },
    Group {
        key: "h2-one",
        title: "HTTP/2 in clear text, one connection with 32 streams, one core for the server",
        load: Load::OneConnection,
        contenders: &[
            contender("ours-fresh", "wasmcluster, fresh instance", Ours("hello_p2"), FRESH_ON_ONE),
            contender("ours-reused", "wasmcluster, instance reused", Ours("hello_p2"), ON_ONE),
            contender("hyper", "bare hyper, current-thread", BareHyper, DEFAULTS),
        ],
    },
    Group {
        key: "tls",
        title: "TLS 1.3, HTTP/1.1, 32 keep-alive connections, one core for the server",
        load: Load::Http1,
        contenders: &[
            contender("ours-tls", "wasmcluster, instance reused, TLS", OursTls("hello_p2"), ON_ONE),
            contender("ours-clear", "wasmcluster, instance reused, clear text", Ours("hello_p2"), ON_ONE),
            contender("hyper-tls", "bare hyper, TLS", BareHyperTls, DEFAULTS),
        ],
    },
    Group {
        key: "h2-tls",
        title: "TLS 1.3, HTTP/2, one connection with 32 streams, one core for the server",
        load: Load::OneConnection,
        contenders: &[
            contender("ours-tls", "wasmcluster, instance reused, TLS", OursTls("hello_p2"), ON_ONE),
            contender("hyper-tls", "bare hyper, TLS", BareHyperTls, DEFAULTS),
        ],
    },
    Group {
        key: "tls-full",
        title: "A new TLS connection for each request, full handshake, one core for the server",
        load: Load::Handshakes(Handshake::Full),
        contenders: &[
            contender("ours", "wasmcluster, instance reused", OursTls("hello_p2"), REUSED),
            contender("nginx", "nginx, one worker", Nginx, DEFAULTS),
        ],
    },
    Group {
        key: "tls-resumed",
        title: "A new TLS connection for each request, resumed with a ticket, one core for the server",
        load: Load::Handshakes(Handshake::Resumed),
        contenders: &[
            contender("ours", "wasmcluster, instance reused", OursTls("hello_p2"), REUSED),
            contender("nginx", "nginx, one worker", Nginx, DEFAULTS),
        ],
    },
    Group {
        key: "proxy",
        title: "A reverse proxy, 32 keep-alive connections, one core for it, the upstream where the load is",
        load: Load::KeepAlive,
        contenders: &[
            contender("ours-fresh", "wasmcluster, fresh instance, examples/proxy", OursProxy("proxy"), FRESH),
            contender("ours-reused", "wasmcluster, instance reused, examples/proxy", OursProxy("proxy"), REUSED),
            contender("nginx", "nginx, one worker, keepalive 64", NginxProxy, DEFAULTS),
        ],
    },
    Group {
        key: "two",
        title: "Two workers on two cores, 64 keep-alive connections from the same two cores",
        load: Load::TwoWorkers,
        contenders: &[
            contender("ours-fresh", "wasmcluster, fresh instance", Ours("hello_p2"), FRESH),
            contender("wasmtime-fresh", "wasmtime serve, fresh instance", Wasmtime("hello_p2"), DEFAULTS),
            contender("ours-reused", "wasmcluster, instance reused", Ours("hello_p2"), REUSED),
            contender("wasmtime-reused", "wasmtime serve, instance reused", Wasmtime("hello_p2"), REUSED),
            contender("node", "Node cluster, two workers", Node, DEFAULTS),
        ],
    },
];

/// One contender against another of its group.
pub(crate) struct Ratio {
    pub(crate) group: &'static str,
    label: &'static str,
    of: &'static str,
    to: &'static str,
    required: f64,
    aim: f64,
}

const fn ratio(
    group: &'static str,
    label: &'static str,
    of: &'static str,
    to: &'static str,
    required: f64,
    aim: f64,
) -> Ratio {
    Ratio { group, label, of, to, required, aim }
}

#[rustfmt::skip]
pub(crate) const RATIOS: &[Ratio] = &[
    ratio("hello", "fresh instance (0.2) / `wasmtime serve`, its defaults", "ours-fresh", "wasmtime-fresh", 4.2, 5.0),
    ratio("hello", "fresh instance (0.2) / `wasmtime serve`, its pool tuned by flags", "ours-fresh", "wasmtime-tuned", 3.2, 3.8),
    ratio("hello", "reused instance (0.2) / `wasmtime serve`, the same reuse", "ours-reused", "wasmtime-reused", 1.5, 1.8),
    ratio("hello", "reused instance (0.2) / Node `cluster`, one worker", "ours-reused", "node", 1.25, 1.5),
    ratio("hello", "reused instance (0.2) / bare hyper", "ours-reused", "hyper", 0.62, 0.7),
    ratio("p3", "0.3 guest, default reuse / `wasmtime serve` likewise", "ours-default", "wasmtime-default", 1.8, 2.2),
    ratio("p3", "0.3 guest, fresh instance / `wasmtime serve` likewise", "ours-fresh", "wasmtime-fresh", 3.6, 4.5),
    ratio("connect", "a connection per request, fresh instance / Node `cluster`", "ours-fresh", "node", 4.2, 5.0),
    ratio("h2", "HTTP/2, 32 connections, reused instance (0.2) / bare hyper", "ours-reused", "hyper", 0.45, 0.6),
    ratio("h2-one", "HTTP/2, one connection, reused instance (0.2) / bare hyper", "ours-reused", "hyper", 0.45, 0.6),
    ratio("tls", "TLS keep-alive / clear text, reused instance (0.2)", "ours-tls", "ours-clear", 0.9, 0.95),
    ratio("tls", "TLS keep-alive, reused instance (0.2) / bare hyper over TLS", "ours-tls", "hyper-tls", 0.45, 0.6),
    ratio("h2-tls", "HTTP/2 over TLS, reused instance (0.2) / bare hyper likewise", "ours-tls", "hyper-tls", 0.45, 0.6),
    ratio("tls-full", "new TLS connections, full handshake / nginx, one process", "ours", "nginx", 0.6, 0.9),
    ratio("tls-resumed", "new TLS connections, resumed / nginx, one process", "ours", "nginx", 0.8, 1.0),
    ratio("proxy", "a guest as reverse proxy, reused instance (0.2) / nginx", "ours-reused", "nginx", 0.35, 0.5),
    ratio("seen", "admin address, access log, server-timing / none of them, fresh instance", "fresh-seen", "fresh", 0.95, 1.0),
    ratio("seen", "the same, reused instance", "reused-seen", "reused", 0.95, 1.0),
    ratio("seen", "traces besides, 1 % recorded / none, fresh instance", "fresh-traced", "fresh-seen", 0.98, 1.0),
    ratio("seen", "the same, reused instance", "reused-traced", "reused-seen", 0.98, 1.0),
    ratio("python", "Python guest, fresh instance / `wasmtime serve`", "ours", "wasmtime", 1.8, 3.0),
    ratio("javascript", "JavaScript guest, fresh instance / `wasmtime serve`", "ours", "wasmtime", 1.4, 2.5),
    ratio("hello", "the SDK's hello / the same on bare `wasip2` bindings, fresh instance", "sdk-fresh", "bare-fresh", 0.92, 0.97),
    ratio("hello", "an axum router with 20 routes / the SDK's hello, fresh instance", "axum-fresh", "sdk-fresh", 0.85, 0.95),
    ratio("hello", "an axum router with 20 routes, with its snapshot / without", "axum-fresh", "axum-no-snapshot", 1.5, 2.0),
    ratio("two", "two workers, fresh instance (0.2) / `wasmtime serve`", "ours-fresh", "wasmtime-fresh", 5.2, 6.0),
    ratio("two", "two workers, reused instance (0.2) / `wasmtime serve`, the same reuse", "ours-reused", "wasmtime-reused", 1.7, 2.0),
    ratio("two", "two workers, reused instance (0.2) / Node `cluster`, two workers", "ours-reused", "node", 1.3, 1.5),
];

impl Ratio {
    pub(crate) fn of(&self, figures: &[Figures]) -> Row {
        let find =
            |key| figures.iter().find(|figures| figures.contender.key == key).expect("the plan names its contenders");
        let value = match (&find(self.of).rates, &find(self.to).rates) {
            (Ok(of), Ok(to)) => Spread::of(&ratios(of, to)).ok_or_else(|| "not measured".into()),
            (Err(why), _) | (_, Err(why)) => Err(why.clone()),
        };
        Row { label: self.label, value, unit: Unit::Times, required: self.required, aim: self.aim }
    }
}

/// Something of ours alone.
pub(crate) struct Figure {
    pub(crate) key: &'static str,
    pub(crate) label: &'static str,
    unit: Unit,
    required: f64,
    aim: f64,
    pub(crate) measure: fn(&Bench) -> Result<Vec<f64>>,
}

pub(crate) const FIGURES: &[Figure] = &[
    Figure {
        key: "spin",
        label: "p99 of a light route at a quarter of capacity, open loop, while 4 requests spin in the same worker",
        unit: Unit::Milliseconds,
        required: 30.0,
        aim: 8.0,
        measure: cluster::light_beside_spinning,
    },
    Figure {
        key: "ready",
        label: "worker exec → ready, cached artifact",
        unit: Unit::Milliseconds,
        required: 8.0,
        aim: 5.0,
        measure: cluster::until_ready,
    },
    Figure {
        key: "memory",
        label: "proportional memory of each further idle worker",
        unit: Unit::Mebibytes,
        required: 3.0,
        aim: 2.0,
        measure: cluster::memory_of_a_worker,
    },
    Figure {
        key: "store-get",
        label: "a `get` of a store in a file, beyond a request that asks no store, instance reused",
        unit: Unit::Microseconds,
        required: 3.0,
        aim: 3.0,
        measure: stores::beyond_a_request,
    },
    Figure {
        key: "store-groups",
        label: "durable writes a second to a store in a file, 64 clients / one client",
        unit: Unit::Times,
        required: 10.0,
        aim: 10.0,
        measure: stores::writes_together,
    },
];

impl Figure {
    pub(crate) fn row(&self, values: Result<Vec<f64>>) -> Row {
        let value = values.map_err(|error| crate::report::Why::failed(&error));
        let value = value.and_then(|values| stats::Spread::of(&values).ok_or_else(|| "not measured".into()));
        Row { label: self.label, value, unit: self.unit, required: self.required, aim: self.aim }
    }
}

/// Tables that nothing is required of. They show where something costs out of proportion.
pub(crate) struct Part {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) measure: fn(&Bench) -> Vec<Series>,
}

pub(crate) const PARTS: &[Part] = &[
    Part { key: "growth", title: "How cost grows", measure: growth::measure },
    Part { key: "large", title: "Large and odd", measure: large::measure },
    Part { key: "stores", title: "Key-value stores", measure: stores::measure },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_name_contenders_that_exist() {
        for ratio in RATIOS {
            let group = GROUPS.iter().find(|group| group.key == ratio.group).expect("its group exists");
            for key in [ratio.of, ratio.to] {
                let found = group.contenders.iter().filter(|contender| contender.key == key).count();
                assert_eq!(found, 1, "{key} in {}", ratio.group);
            }
        }
    }
}
