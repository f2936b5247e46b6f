//! From a listening socket to a request, and from an answer back to the client.

pub(crate) mod accept;
mod answers;
mod body;
mod buffers;
mod connection;
mod drain;
mod exchange;
mod forwarded;
mod frames;
mod framing;
mod handler;
mod handshake;
mod head;
mod http1;
mod http2;
mod outbox;
mod outcome;
mod pace;
mod peer;
mod proxy_protocol;
pub(crate) mod server;
mod stream;
mod timer;
pub(crate) mod tls;
mod transport;
mod upload;
mod websocket;
