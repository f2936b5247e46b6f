//! The processes that the primary starts: how each of them begins, speaks, and ends.

pub(crate) mod builder;
pub(crate) mod errands;
mod execute;
pub(crate) mod file_output;
pub(crate) mod helper;
pub(crate) mod helping;
pub(crate) mod kept_log;
pub(crate) mod output;
mod problems;
pub(crate) mod process;
