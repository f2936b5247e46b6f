//! Requests and their answers: addresses, connections, bodies, instances, requests that guests send, the drain.
//! The crate `harness` tells how a test is written.

#![expect(clippy::print_stdout, reason = "tests tell what they measured, and what they skipped")]

mod addresses;
mod answers;
mod calls;
mod clients;
mod conformance;
mod connect;
mod drain;
mod grpc;
mod http2;
mod identity;
mod names;
mod pooling;
mod reuse;
mod serving;
mod strictness;
mod tls;
mod varnishtest;
mod websocket;
