//! The certificates that are served, and the keys of session tickets. What is done about them is in
//! `driver/certificates.rs`.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use tokio::sync::mpsc;

use crate::control::protocol::CertificateStatus;
use crate::settings::TlsFiles;
use crate::tls::certificates::{self, Certificates, EXPIRES_SOON, Leaf};
use crate::tls::material::{Material, TicketKey};
use crate::tls::rotation::{TicketRotation, Time};

/// How often certificates that end soon are warned of.
const WARN_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// What was read for some settings.
pub(crate) type FilesRead = (TlsFiles, anyhow::Result<Certificates>);

/// What generations serve with, for each of their settings: as a rule, all have the same.
#[derive(Debug, Default)]
pub(crate) struct CertifiedSets(Vec<Certified>);

impl CertifiedSets {
    /// None if no listener speaks TLS.
    pub(crate) fn of(&self, files: Option<&TlsFiles>) -> Option<&Certified> {
        self.0.iter().find(|set| Some(&set.files) == files)
    }

    pub(crate) fn of_mut(&mut self, files: &TlsFiles) -> Option<&mut Certified> {
        self.0.iter_mut().find(|set| set.files == *files)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn settings(&self) -> Vec<TlsFiles> {
        self.0.iter().map(|set| set.files.clone()).collect()
    }

    pub(crate) fn add(&mut self, files: TlsFiles, read: Certificates, now: Time) -> anyhow::Result<()> {
        self.0.push(Certified::new(files, read, now)?);
        Ok(())
    }

    /// Forgets what no generation has any more.
    pub(crate) fn retain(&mut self, is_used: impl Fn(&TlsFiles) -> bool) {
        self.0.retain(|set| is_used(&set.files));
    }

    /// When to look after them.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.0.iter().map(Certified::next_deadline).min()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Certified> {
        self.0.iter_mut()
    }
}

/// Reads files on a thread that nobody waits for; the result goes to `done`, which has room for it.
pub(crate) fn read_again(files: Vec<TlsFiles>, done: &mpsc::Sender<Vec<FilesRead>>) {
    let (sender, all) = (done.clone(), files.clone());
    let one = |files: TlsFiles| {
        let read = certificates::read(&files, SystemTime::now());
        (files, read)
    };
    let read = move || drop(sender.try_send(all.into_iter().map(one).collect()));
    if let Err(error) = std::thread::Builder::new().name("certificates".into()).spawn(read) {
        let failed = |files| (files, Err(anyhow!("cannot read the certificates: {error}")));
        let _ = done.try_send(files.into_iter().map(failed).collect());
    }
}

/// What is served with some settings.
#[derive(Debug)]
pub(crate) struct Certified {
    files: TlsFiles,
    shown: Vec<Leaf>,
    material: Material,
    rotation: TicketRotation<TicketKey>,
    warned: Time,
    /// As workers are given it.
    pub(crate) file: OwnedFd,
}

impl Certified {
    pub(crate) fn new(files: TlsFiles, read: Certificates, now: Time) -> anyhow::Result<Self> {
        let Certificates { mut material, shown, .. } = read;
        let rotation = TicketRotation::new(now, TicketKey::random).map_err(|_| no_random_bytes())?;
        material.set_tickets(rotation.keys());
        let file = hand_over(&material)?;
        Ok(Self { files, shown, material, rotation, warned: now, file })
    }

    pub(crate) fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// Serves with these from now on. Whether anything is new.
    pub(crate) fn replace(&mut self, read: Certificates) -> anyhow::Result<bool> {
        let Certificates { mut material, shown, .. } = read;
        material.set_tickets(self.rotation.keys());
        let is_new = material != self.material;
        if is_new {
            self.file = hand_over(&material)?;
            (self.material, self.shown) = (material, shown);
        }
        Ok(is_new)
    }

    /// Whether these are what is served.
    pub(crate) fn is_like(&self, read: &Certificates) -> bool {
        let mut material = read.material.clone();
        material.set_tickets(self.rotation.keys());
        material == self.material
    }

    /// When to call [`Self::turn`].
    pub(crate) fn next_deadline(&self) -> Time {
        self.rotation.next_deadline().min(self.warned + WARN_EVERY)
    }

    /// Goes on to the next ticket keys, if it is time. Whether workers need them.
    pub(crate) fn turn(&mut self, now: Time) -> anyhow::Result<bool> {
        if now < self.rotation.next_deadline() {
            return Ok(false);
        }
        self.rotation.rotate(now, TicketKey::random).map_err(|_| no_random_bytes())?;
        self.material.set_tickets(self.rotation.keys());
        self.file = hand_over(&self.material)?;
        Ok(!self.material.asks_clients())
    }

    /// What is to be said of certificates that end soon, once a day.
    pub(crate) fn doubts(&mut self, now: Time) -> Vec<String> {
        if now < self.warned + WARN_EVERY {
            return Vec::new();
        }
        self.warned = now;
        let today = SystemTime::now();
        self.shown.iter().filter_map(|shown| shown.doubt(today)).collect()
    }

    pub(crate) fn status(&self) -> Vec<CertificateStatus> {
        let now = SystemTime::now();
        let status = |Leaf { file, names, not_after }: &Leaf| CertificateStatus {
            names: names.clone(),
            file: file.clone(),
            not_after: humantime::format_rfc3339_seconds(*not_after).to_string(),
            expires_soon: not_after.duration_since(now).is_ok_and(|left| left <= EXPIRES_SOON),
            expired: *not_after <= now,
        };
        self.shown.iter().map(status).collect()
    }
}

fn no_random_bytes() -> anyhow::Error {
    anyhow!("cannot make a key for session tickets: the kernel gave no random bytes")
}

fn hand_over(material: &Material) -> anyhow::Result<OwnedFd> {
    material.write().context("cannot pass the certificates to the workers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::PairFiles;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    #[test]
    fn keys_change_and_warnings_come_when_they_are_due() {
        let folder = tempfile::tempdir().unwrap();
        let [cert, key] = ["a.pem", "a.key"].map(|name| folder.path().join(name));
        let write = |days: u32| {
            let secret = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
            params.not_after =
                rcgen::date_time_ymd(1970, 1, 1) + SystemTime::UNIX_EPOCH.elapsed().unwrap() + 24 * days * HOUR;
            std::fs::write(&cert, params.self_signed(&secret).unwrap().pem()).unwrap();
            std::fs::write(&key, secret.serialize_pem()).unwrap();
        };
        let files = TlsFiles { pairs: vec![PairFiles { cert: cert.clone(), key: key.clone() }], client: None };
        let read = || certificates::read(&files, SystemTime::now()).unwrap();
        write(5);
        let began = 7 * HOUR;
        let mut certified = Certified::new(files.clone(), read(), began).unwrap();
        let material = |certified: &Certified| Material::read(&certified.file.try_clone().unwrap()).unwrap();
        let first = material(&certified);
        assert!(!certified.turn(began + 5 * HOUR).unwrap() && material(&certified) == first);
        for turn in 1..=4 {
            assert_eq!(certified.next_deadline(), began + turn * 6 * HOUR);
            assert!(certified.turn(certified.next_deadline()).unwrap());
            assert!(material(&certified) != first);
        }
        // It was said at the start, and is again each day.
        assert_eq!(certified.doubts(began + 23 * HOUR), [""; 0]);
        assert!(certified.doubts(began + 24 * HOUR)[0].starts_with("the certificate for a.test expires in 4 days on "));
        assert_eq!(certified.doubts(began + 25 * HOUR), [""; 0]);
        assert!(certified.status()[0].expires_soon);
        // What is read anew and is the same is nothing new; what is new is sealed with the keys that there are.
        assert!(!certified.replace(read()).unwrap());
        let before = material(&certified);
        write(50);
        assert!(certified.replace(read()).unwrap() && material(&certified) != before);
        assert!(!certified.status()[0].expires_soon && certified.doubts(began + 48 * HOUR).is_empty());
    }
}
