//! From a listening socket to a request, and from an answer back to the client.

pub(crate) mod accept;
mod buffers;
mod connection;
mod drain;
mod framing;
pub(crate) mod http1;
pub(crate) mod outbox;
mod upload;
