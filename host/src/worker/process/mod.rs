//! The worker as a process: who watches over it, and where it runs.

pub(crate) mod guardian;
pub(crate) mod pin;
