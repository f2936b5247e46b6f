//! TLS as https listeners speak it. The primary reads the files and checks them, makes the keys of session tickets, and
//! hands all of it to the workers as sealed memory; a worker makes of it what rustls is configured with.

pub(crate) mod certificates;
pub(crate) mod credentials;
pub(crate) mod material;
mod names;
mod pair;
pub(crate) mod rotation;
mod tickets;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

pub(crate) use pair::rfc4514;

/// The algorithms of every connection.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
