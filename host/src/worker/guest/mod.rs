//! Guests: what they see of the world, and how a request becomes a call of one.

pub(crate) mod call;
mod concurrent;
mod config;
pub(crate) mod epoch;
mod handles;
pub(crate) mod instance;
pub(crate) mod keyvalue;
mod linker;
mod metrics;
mod notices;
mod otel;
pub(crate) mod outbound;
pub(crate) mod quota;
pub(crate) mod reuse;
mod sockets;
mod stdio;
pub(crate) mod trap;
mod turns;
pub(crate) mod websocket;
pub(crate) mod world;

pub(crate) use linker::check_links;
