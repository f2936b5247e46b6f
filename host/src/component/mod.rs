//! Components: what they ask for, whether they can be served, and what is compiled of them.

pub(crate) mod compiler;
pub(crate) mod engine;
pub(crate) mod file;
mod preinit;
pub(crate) mod servable;
pub(crate) mod store;
pub(crate) mod surface;
