//! What others are told of a running cluster, and may ask of it: over the control socket, and by the admin server.

pub(crate) mod client;
pub(crate) mod protocol;
pub(crate) mod query;
pub(crate) mod sample;
