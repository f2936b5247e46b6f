//! Versions: what was deployed, what is on its way, and what is written down of it.

pub(crate) mod access_log;
pub(crate) mod certificates;
pub(crate) mod change;
pub(crate) mod generations;
pub(crate) mod saver;
pub(crate) mod watch;
