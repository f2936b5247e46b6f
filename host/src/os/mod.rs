//! The Unix edge: what the kernel offers, as types that the rest of the program can use without knowing how. Most of
//! the crate's `unsafe` is here; ARCHITECTURE.md lists the rest.

pub(crate) mod blocking;
pub(crate) mod cgroup;
pub(crate) mod child;
pub(crate) mod files;
pub(crate) mod listener;
pub(crate) mod log_file;
pub(crate) mod memfd;
pub(crate) mod pagemap;
pub(crate) mod pipe;
pub(crate) mod resources;
pub(crate) mod service_manager;
pub(crate) mod signal;
