//! How a cluster is at one moment: what its primary hands to the admin server, once a second and whenever its state changes.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::protocol::Status;
use crate::os::memfd;
use crate::wire::ids::Generation;
use crate::wire::stats::Snapshot;

/// Largest sample that is read, in bytes: a cluster of a thousand workers has less than one.
const MAX_SAMPLE: u64 = 16 * 1024 * 1024;

/// How a cluster is at one moment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) status: Status,
    /// What was counted in each generation, by workers that live and that are gone.
    pub(crate) generations: Vec<(Generation, Snapshot)>,
    /// In generations that are no longer kept apart.
    pub(crate) older: Snapshot,
}

impl Sample {
    /// As a sealed file.
    pub(crate) fn write(&self) -> io::Result<OwnedFd> {
        memfd::constant(c"wasmcluster-sample", &*serde_json::to_vec(self)?)
    }

    /// Reads what [`Self::write`] wrote.
    pub(crate) fn read(fd: &OwnedFd) -> io::Result<Self> {
        Ok(serde_json::from_slice(&memfd::read(fd, MAX_SAMPLE)?)?)
    }

    /// Workers that serve.
    pub(crate) fn ready(&self) -> usize {
        self.status.workers.iter().filter(|worker| worker.state == "ready" && worker.role == "incumbent").count()
    }
}
