//! The control socket, as its two ends have to agree on it: what is said, and how a command says it.

pub(crate) mod client;
pub(crate) mod protocol;
