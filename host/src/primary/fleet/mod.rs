//! The processes that the primary starts: how each of them begins, speaks, and ends.

pub(crate) mod builder;
pub(crate) mod keeper;
pub(crate) mod output;
pub(crate) mod process;
