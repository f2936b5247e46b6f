//! What workers are handed to speak TLS: certificates, keys and ticket keys, in a sealed file.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

pub(crate) use super::tickets::TicketKey;
use crate::os::memfd;
use crate::settings::ClientAuth;

/// Largest file that is read, in bytes.
pub(super) const MAX_MATERIAL: u64 = 16 * 1024 * 1024;

/// What workers are handed to speak TLS. The texts are PEM, and have been checked.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Material {
    /// Each certificate, with its chain, and its key.
    pub(super) pairs: Vec<(String, String)>,
    /// Who signs the certificates of clients.
    pub(super) client: Option<(String, ClientAuth)>,
    /// The one that seals comes first. With client certificates there are none: a resumed session would be let in without
    /// another look at its certificate.
    pub(super) tickets: Vec<TicketKey>,
}

/// Without the secrets.
impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("pairs", &self.pairs.len())
            .field("tickets", &self.tickets)
            .finish_non_exhaustive()
    }
}

impl Material {
    pub(crate) fn asks_clients(&self) -> bool {
        self.client.is_some()
    }

    /// The one that seals comes first.
    pub(crate) fn set_tickets(&mut self, keys: Vec<TicketKey>) {
        self.tickets = if self.asks_clients() { Vec::new() } else { keys };
    }

    /// As a sealed file, to be handed to every worker.
    pub(crate) fn write(&self) -> io::Result<OwnedFd> {
        memfd::constant(c"wasmcluster-tls", &*serde_json::to_vec(self)?)
    }

    /// Reads what [`Self::write`] wrote.
    pub(crate) fn read(fd: &OwnedFd) -> io::Result<Self> {
        Ok(serde_json::from_slice(&memfd::read(fd, MAX_MATERIAL)?)?)
    }

    /// Bytes that it takes, roughly.
    pub(super) fn size(&self) -> usize {
        let client = self.client.as_ref().map_or(0, |(text, _)| text.len());
        self.pairs.iter().fold(client, |sum, (cert, key)| sum + cert.len() + key.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_reads_the_same_material_and_nothing_prints_it() {
        let material = Material {
            pairs: vec![("a\n".into(), "secret".into())],
            client: Some(("ca".into(), ClientAuth::Optional)),
            tickets: vec![TicketKey::random().unwrap()],
        };
        let fd = material.write().unwrap();
        for _ in 0..2 {
            assert_eq!(Material::read(&fd.try_clone().unwrap()).unwrap(), material);
        }
        assert!(!format!("{material:?}").contains("secret"));
        assert!(Material::read(&memfd::constant(c"test", &b"{}"[..]).unwrap()).is_err());
    }
}
