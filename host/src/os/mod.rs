//! The Unix edge: what the kernel offers, as types that the rest of the program can use without knowing how. All of the
//! crate's `unsafe` but that of the stats page is here.

pub(crate) mod blocking;
pub(crate) mod cgroup;
pub(crate) mod child;
pub(crate) mod files;
pub(crate) mod listener;
pub(crate) mod memfd;
pub(crate) mod pagemap;
pub(crate) mod pipe;
pub(crate) mod resources;
pub(crate) mod signal;
