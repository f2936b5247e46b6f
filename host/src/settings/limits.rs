//! What one request, its guest and its worker may take: what flags say, and what is fixed.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use anyhow::ensure;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::values::{Size, or_seconds};
use crate::os::resources::{Shares, memory_of_this_machine};

/// Guests are interrupted no more often than this.
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
/// Hyper's own bound, and one beyond all sense.
const MIN_HEADER_BYTES: usize = 8 * 1024;
const MAX_HEADER_BYTES: usize = 16 * 1024 * 1024;
/// As many as there are instances in a worker's pool.
const MAX_IN_FLIGHT: usize = MAX_INSTANCES as usize;
/// Each takes a descriptor, of which a process has a million at most on most machines.
const MAX_CONNECTIONS: usize = 1_000_000;
/// Of each worker.
pub(crate) const DEFAULT_MAX_CONNECTIONS: usize = 4096;
/// Each has a connection.
const MAX_HANDSHAKES: usize = MAX_CONNECTIONS;
/// More do not make a connection faster, and each may hold a window's bytes.
const MAX_STREAMS: usize = 10_000;
/// As much as a call of a guest may bring (`MAX_HOSTCALL`).
const MAX_MESSAGE: usize = MAX_HOSTCALL;
/// Connections that live shorter would do little but begin.
const MIN_AGE: Duration = Duration::from_secs(1);
/// A store with less would be full of what it needs for itself.
const MIN_STORE: u64 = 1 << 20;
/// What is left of a process's addresses has room for some of these.
const MAX_STORE: u64 = 1 << 40;
/// As many as hyper can count.
const MAX_HEADERS: usize = 32 * 1024;
/// A page of WebAssembly's: no guest has less.
const MIN_MEMORY: usize = 64 * 1024;
/// All that 32 bits can address.
const MAX_MEMORY: usize = 4 * 1024 * 1024 * 1024;

/// A machine too small for so many workers shall still serve: what instances may have by default, in bytes.
const SMALLEST_SHARE: u64 = 16 << 20;

/// Instances that may live at the same time in one worker, from its pool.
pub(crate) const MAX_INSTANCES: u32 = 1000;
/// Bytes of stack that a guest may use, before it traps.
pub(crate) const MAX_STACK: usize = 512 * 1024;
/// Core instances, tables and memories of one instance of a component.
pub(crate) const MAX_CORE_INSTANCES: usize = 200;
pub(crate) const MAX_TABLES: usize = 40;
pub(crate) const MAX_MEMORIES: usize = 20;
/// Elements that each table may have.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 64 * 1024;
/// Resources of the host's that one instance may hold: streams, fields, open files. Wasmtime's default is a million.
pub(crate) const MAX_HANDLES: usize = 1000;
/// And for each request that it may serve at the same time, if that is more in all.
pub(crate) const HANDLES_EACH: usize = 10;
/// Bytes that a guest may hand to the host in one call. Wasmtime's default is 128 MiB.
pub(crate) const MAX_HOSTCALL: usize = 16 * 1024 * 1024;
/// Bytes of each set of header fields that a guest makes, as they take up memory. Wasmtime's default is 128 KiB.
pub(crate) const MAX_FIELDS: usize = 96 * 1024;
/// Bytes of all header fields that an instance has, on requests and responses too. They also count as its memory.
pub(crate) const MAX_HELD: usize = 8 * 1024 * 1024;
/// Bytes of a body that a guest may write before somebody takes them, once again as much in a queue. Beyond the first
/// bodies of a request it is little: each can be made to hold so much. Wasmtime's default is 1 MiB.
pub(crate) const MAX_BODY_CHUNK: usize = 64 * 1024;
pub(crate) const MAX_FURTHER_BODY_CHUNK: usize = 4 * 1024;
pub(crate) const LARGE_BODIES: usize = 8;
/// Random bytes that a guest may have at once. Wasmtime's default is 64 MiB.
pub(crate) const MAX_RANDOM: u64 = 1024 * 1024;
/// Outbound requests at a time: of one inbound request, and of one worker.
pub(crate) const MAX_OUTBOUND_PER_REQUEST: usize = 32;
pub(crate) const MAX_OUTBOUND: usize = 512;
/// TCP sockets of its own that a guest may have, for each request that it may serve at the same time.
pub(crate) const SOCKETS_EACH: usize = 16;
/// How long an outbound connection may take to come about. Its first byte has the request timeout, every further one the
/// stream timeout.
pub(crate) const MAX_CONNECT_TIME: Duration = Duration::from_secs(10);
/// Bytes of a key of a key-value store, of which it has at least one. LMDB's own bound.
pub(crate) const MAX_KEY: usize = 511;
/// Keys that are listed at once.
pub(crate) const MAX_PAGE: usize = 1000;
/// Bytes that the guests of one worker may print in a second, and as much again in a burst.
pub(crate) const MAX_OUTPUT: u32 = 1024 * 1024;
/// Series of metrics that the guests of one worker may have.
pub(crate) const MAX_SERIES: usize = 256;
/// Labels of a series.
pub(crate) const MAX_LABELS: usize = 8;
/// Bytes of a metric's name, of a label's, and of a label's value.
pub(crate) const MAX_METRIC_TEXT: usize = 128;

/// What flags say, for each worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// From the request's head to the answer's.
    pub(crate) request_timeout: Duration,
    /// Without a byte, while an answer's body is under way.
    pub(crate) stream_timeout: Duration,
    /// Bytes a second that a client must send or take while it is waited for; 0 is any.
    pub(crate) min_rate: u64,
    /// From the first byte of a request's head to its last.
    pub(crate) header_timeout: Duration,
    /// Of a connection, before the first byte of the next request.
    pub(crate) keep_alive_timeout: Duration,
    /// Of a client, on a WebSocket. It is asked whether it is there after half of that.
    pub(crate) websocket_timeout: Duration,
    /// From a connection's beginning to the end of its TLS handshake.
    pub(crate) tls_handshake_timeout: Duration,
    /// Requests of one worker; as many again wait.
    pub(crate) max_in_flight: usize,
    /// Connections of one worker.
    pub(crate) max_connections: usize,
    /// TLS handshakes of one worker at the same time; the others wait.
    pub(crate) max_handshakes: usize,
    /// Of one connection, at the same time (HTTP/2).
    pub(crate) max_streams: usize,
    /// WebSockets of one worker.
    pub(crate) max_websockets: usize,
    /// TCP sockets that the guests of one worker have.
    pub(crate) max_sockets: usize,
    /// Of a message that a client sends on a WebSocket, in bytes.
    pub(crate) max_websocket_message: usize,
    /// Of a connection, before it is closed between requests.
    pub(crate) max_connection_requests: u64,
    pub(crate) max_connection_age: Duration,
    /// In bytes, as the next.
    pub(crate) max_body: u64,
    pub(crate) max_header_bytes: usize,
    pub(crate) max_headers: usize,
    /// Of a value in a key-value store, in bytes.
    pub(crate) kv_max_value: u64,
    /// Of each such store, in bytes.
    pub(crate) kv_max_size: u64,
    /// Until such a store has answered.
    pub(crate) kv_timeout: Duration,
    /// Of all linear memories of an instance together, in bytes.
    pub(crate) max_memory: usize,
    /// Of all instances of a worker together.
    pub(crate) max_worker_memory: usize,
}

impl Limits {
    /// What each of so many workers has.
    pub(super) fn new(options: &Options, workers: u32) -> anyhow::Result<Self> {
        let or_bytes = |size: Option<Size>, default| size.map_or(default, |size| size.0);
        let or_number = |number: Option<NonZeroU32>, default| number.map_or(default, |number| number.get() as usize);
        // In whole MiB, for people.
        let share = (Shares::of(memory_of_this_machine(), workers).worker >> 20 << 20).max(SMALLEST_SHARE);
        let max_memory = or_bytes(options.max_memory, share.min(128 << 20));
        let max_connections = or_number(options.max_connections, DEFAULT_MAX_CONNECTIONS);
        let limits = Self {
            request_timeout: request_timeout(options),
            stream_timeout: or_seconds(options.stream_timeout, 60),
            min_rate: or_bytes(options.min_rate, 1),
            header_timeout: or_seconds(options.header_timeout, 10),
            keep_alive_timeout: or_seconds(options.keep_alive_timeout, 75),
            websocket_timeout: or_seconds(options.websocket_timeout, 60),
            tls_handshake_timeout: or_seconds(options.tls_handshake_timeout, 10),
            max_in_flight: or_number(options.max_in_flight, 256),
            max_connections,
            max_handshakes: or_number(options.max_handshakes, 64),
            max_streams: or_number(options.max_streams, 128),
            // The others are for requests.
            max_websockets: or_number(options.max_websockets, 512.min(max_connections.div_ceil(2))),
            max_sockets: or_number(options.max_sockets, 256),
            max_websocket_message: or_bytes(options.max_websocket_message, 1 << 20) as usize,
            max_connection_requests: options.max_connection_requests.map_or(10_000, NonZeroU64::get),
            max_connection_age: or_seconds(options.max_connection_age, 60 * 60),
            max_body: or_bytes(options.max_body, 64 << 20),
            max_header_bytes: or_bytes(options.max_header_bytes, 64 << 10) as usize,
            max_headers: or_number(options.max_headers, 100),
            kv_max_value: or_bytes(options.kv_max_value, 1 << 20),
            kv_max_size: or_bytes(options.kv_max_size, 1 << 30),
            kv_timeout: or_seconds(options.kv_timeout, 5),
            max_memory: max_memory as usize,
            max_worker_memory: or_bytes(options.max_worker_memory, share.max(max_memory)) as usize,
        };
        limits.check()?;
        Ok(limits)
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.request_timeout >= MIN_TIMEOUT, "--request-timeout must be at least {MIN_TIMEOUT:?}");
        ensure!(self.stream_timeout >= MIN_TIMEOUT, "--stream-timeout must be at least {MIN_TIMEOUT:?}");
        ensure!(self.header_timeout >= MIN_TIMEOUT, "--header-timeout must be at least {MIN_TIMEOUT:?}");
        ensure!(self.keep_alive_timeout >= MIN_TIMEOUT, "--keep-alive-timeout must be at least {MIN_TIMEOUT:?}");
        ensure!(self.tls_handshake_timeout >= MIN_TIMEOUT, "--tls-handshake-timeout must be at least {MIN_TIMEOUT:?}");
        let heads = MIN_HEADER_BYTES..=MAX_HEADER_BYTES;
        ensure!(heads.contains(&self.max_header_bytes), "--max-header-bytes must be from 8KiB to 16MiB");
        ensure!(self.max_in_flight <= MAX_IN_FLIGHT, "--max-in-flight must be at most {MAX_IN_FLIGHT}");
        ensure!(self.max_connections <= MAX_CONNECTIONS, "--max-connections must be at most {MAX_CONNECTIONS}");
        ensure!(self.max_handshakes <= MAX_HANDSHAKES, "--max-handshakes must be at most {MAX_HANDSHAKES}");
        ensure!(self.websocket_timeout >= MIN_TIMEOUT, "--websocket-timeout must be at least {MIN_TIMEOUT:?}");
        ensure!(self.max_websockets <= MAX_CONNECTIONS, "--max-websockets must be at most {MAX_CONNECTIONS}");
        ensure!(self.max_sockets <= MAX_CONNECTIONS, "--max-sockets must be at most {MAX_CONNECTIONS}");
        let messages = 1..=MAX_MESSAGE;
        ensure!(messages.contains(&self.max_websocket_message), "--max-websocket-message must be from 1B to 16MiB");
        ensure!(self.kv_timeout >= MIN_TIMEOUT, "--kv-timeout must be at least {MIN_TIMEOUT:?}");
        let values = 1..=MAX_HOSTCALL as u64;
        ensure!(values.contains(&self.kv_max_value), "--kv-max-value must be from 1B to 16MiB");
        let sizes = MIN_STORE..=MAX_STORE;
        ensure!(sizes.contains(&self.kv_max_size), "--kv-max-size must be from 1MiB to 1TiB");
        ensure!(self.max_streams <= MAX_STREAMS, "--max-streams must be at most {MAX_STREAMS}");
        ensure!(self.max_connection_age >= MIN_AGE, "--max-connection-age must be at least {MIN_AGE:?}");
        ensure!(self.max_headers <= MAX_HEADERS, "--max-headers must be at most {MAX_HEADERS}");
        ensure!(
            self.max_memory >= MIN_MEMORY,
            "--max-memory {} is less than any guest needs (64KiB); write a size with its unit, such as 128MiB",
            size(self.max_memory)
        );
        ensure!(self.max_memory <= MAX_MEMORY, "--max-memory must be at most 4GiB");
        ensure!(
            self.max_worker_memory >= self.max_memory,
            "--max-worker-memory {} is less than --max-memory {}, the limit of one instance",
            size(self.max_worker_memory),
            size(self.max_memory)
        );
        Ok(())
    }

    /// All limits in force: those that flags say, by the flags' names and in the form that the flags take, and those
    /// that are fixed.
    pub(crate) fn in_force(&self) -> InForce {
        let time = |time: Duration| humantime::format_duration(time).to_string();
        let by_flag = [
            ("header-timeout", time(self.header_timeout)),
            ("keep-alive-timeout", time(self.keep_alive_timeout)),
            ("kv-max-size", size(self.kv_max_size)),
            ("kv-max-value", size(self.kv_max_value)),
            ("kv-timeout", time(self.kv_timeout)),
            ("max-body", size(self.max_body)),
            ("max-connection-age", time(self.max_connection_age)),
            ("max-connection-requests", self.max_connection_requests.to_string()),
            ("max-connections", self.max_connections.to_string()),
            ("max-handshakes", self.max_handshakes.to_string()),
            ("max-header-bytes", size(self.max_header_bytes)),
            ("max-headers", self.max_headers.to_string()),
            ("max-in-flight", self.max_in_flight.to_string()),
            ("max-memory", size(self.max_memory)),
            ("max-sockets", self.max_sockets.to_string()),
            ("max-streams", self.max_streams.to_string()),
            ("max-websocket-message", size(self.max_websocket_message)),
            ("max-websockets", self.max_websockets.to_string()),
            ("max-worker-memory", size(self.max_worker_memory)),
            ("min-rate", size(self.min_rate)),
            ("request-timeout", time(self.request_timeout)),
            ("stream-timeout", time(self.stream_timeout)),
            ("tls-handshake-timeout", time(self.tls_handshake_timeout)),
            ("websocket-timeout", time(self.websocket_timeout)),
        ];
        let fixed = [
            ("core-instances", MAX_CORE_INSTANCES.to_string()),
            ("fields", size(MAX_FIELDS)),
            ("fields-per-instance", size(MAX_HELD)),
            ("handles", MAX_HANDLES.to_string()),
            ("host-call", size(MAX_HOSTCALL)),
            ("instances-per-worker", MAX_INSTANCES.to_string()),
            ("kv-key", size(MAX_KEY)),
            ("kv-keys-per-page", MAX_PAGE.to_string()),
            ("memories", MAX_MEMORIES.to_string()),
            ("metric-labels", MAX_LABELS.to_string()),
            ("metric-text", size(MAX_METRIC_TEXT)),
            ("metrics-per-worker", MAX_SERIES.to_string()),
            ("outbound-connect", time(MAX_CONNECT_TIME)),
            ("outbound-per-request", MAX_OUTBOUND_PER_REQUEST.to_string()),
            ("outbound-per-worker", MAX_OUTBOUND.to_string()),
            ("output-per-second", size(MAX_OUTPUT)),
            ("random", size(MAX_RANDOM)),
            ("sockets-per-request", SOCKETS_EACH.to_string()),
            ("stack", size(MAX_STACK)),
            ("table-elements", MAX_TABLE_ELEMENTS.to_string()),
            ("tables", MAX_TABLES.to_string()),
        ];
        let named = |(name, value): (&str, String)| (name.to_owned(), value);
        InForce { by_flag: by_flag.map(named).into(), fixed: fixed.map(named).into() }
    }
}

/// Drains and stops wait as long, or longer.
pub(super) fn request_timeout(options: &Options) -> Duration {
    or_seconds(options.request_timeout, 30)
}

/// The limits in force, as `status` and `inspect` show them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InForce {
    /// By the names of flags, in the form that they take: `30s`, `64 MiB`.
    #[serde(flatten)]
    pub(crate) by_flag: BTreeMap<String, String>,
    /// What no flag changes, of an instance unless the name says otherwise.
    pub(crate) fixed: BTreeMap<String, String>,
}

pub(crate) fn size(bytes: impl TryInto<u64>) -> String {
    ByteSize(bytes.try_into().unwrap_or(u64::MAX)).display().iec().to_string().replace(' ', "").replace(".0", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_as_they_are_written() {
        for (bytes, text) in [(64 << 20, "64MiB"), (512 << 10, "512KiB"), (1536 << 20, "1.5GiB"), (7, "7B")] {
            assert_eq!(size(bytes), text);
        }
    }
}
