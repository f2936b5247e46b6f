//! Live configuration on its way to the workers: numbered revisions, each in a sealed file that all workers read.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::os::memfd;
use crate::settings::LiveConfig;

/// Largest revision that is read, in bytes.
const MAX_REVISION: u64 = 1024 * 1024;

/// A configuration with its number: a worker that confirms a revision goes by it, and by no older one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revision {
    pub(crate) number: u64,
    pub(crate) config: LiveConfig,
}

impl Revision {
    /// As a sealed file, to be handed to every worker.
    pub(crate) fn write(&self) -> io::Result<OwnedFd> {
        memfd::constant(c"wasmcluster-live", &*serde_json::to_vec(self)?)
    }

    /// Reads what [`Self::write`] wrote.
    pub(crate) fn read(fd: &OwnedFd) -> io::Result<Self> {
        Ok(serde_json::from_slice(&memfd::read(fd, MAX_REVISION)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::LogLevel;

    #[test]
    fn every_worker_reads_the_same_revision() {
        let revision =
            Revision { number: 7, config: LiveConfig { log_level: LogLevel::Debug, ..LiveConfig::default() } };
        let fd = revision.write().unwrap();
        for _ in 0..2 {
            assert_eq!(Revision::read(&fd.try_clone().unwrap()).unwrap(), revision);
        }
        assert!(Revision::read(&memfd::constant(c"test", &b"{}"[..]).unwrap()).is_err());
    }
}
