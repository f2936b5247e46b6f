//! What the processes of a cluster say to each other, and how: frames, pages of shared memory, sealed files.

pub(crate) mod channel;
pub(crate) mod committed;
pub(crate) mod counter;
pub(crate) mod distribution;
pub(crate) mod ids;
pub(crate) mod messages;
pub(crate) mod revisions;
pub(crate) mod series;
pub(crate) mod stats;
pub(crate) mod trace;
pub(crate) mod version;
pub(crate) mod worker_settings;
