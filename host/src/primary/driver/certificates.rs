//! The driver's part in TLS: has certificates read again, passes what is new to the workers, and changes the keys of session
//! tickets.

use std::mem;
use std::time::Instant;

use tokio::sync::oneshot;

use super::Driver;
use crate::control::protocol::Happening;
use crate::primary::deploy::change::Follower;
use crate::primary::desk::socket::{Refusable, Refused};
use crate::tls::certificates::Certificates;

/// Who may wait for files that are being read.
const MAX_WAITING: usize = 64;

/// Who asked for the files to be read again.
#[derive(Debug)]
pub(crate) enum Asker {
    /// Somebody who follows a reload, or nobody.
    Follower(Follower),
    /// A command, which waits until every worker has what was read.
    Command(oneshot::Sender<Refusable<()>>),
}

impl Asker {
    fn note(&self, text: &str) {
        if let Self::Follower(follower) = self {
            follower.tell(&Happening::Note { text: text.to_owned() });
        }
    }

    fn command(self) -> Option<oneshot::Sender<Refusable<()>>> {
        match self {
            Self::Command(done) => Some(done),
            Self::Follower(_) => None,
        }
    }
}

/// The files are read by one thread at a time: a file system that hangs keeps one.
#[derive(Debug, Default)]
pub(crate) struct Askers {
    /// Of the read that is under way.
    reading: Vec<Asker>,
    /// Who came meanwhile: what they mean may have been written since it began.
    waiting: Vec<Asker>,
}

impl Driver<'_> {
    /// Has the files read. Whoever asks is told if they cannot be used, and the cluster serves on with what it has.
    pub(crate) fn read_certificates(&mut self, follower: Follower) {
        self.read_certificates_for(Asker::Follower(follower));
    }

    /// The same, for a command that asks for nothing else.
    pub(crate) fn refresh_certificates(&mut self, done: oneshot::Sender<Refusable<()>>) {
        let refused = match &self.certified {
            Some(_) if self.supervisor.is_about_to_stop() => Refused::Impossible("the cluster is stopping".into()),
            Some(_) => return self.read_certificates_for(Asker::Command(done)),
            None => Refused::Wrong("this cluster has no certificates, as none of its listeners is https".into()),
        };
        drop(done.send(Err(refused)));
    }

    fn read_certificates_for(&mut self, asker: Asker) {
        let Some(certified) = &self.certified else { return };
        let Askers { reading, waiting } = &mut self.askers;
        if reading.is_empty() {
            reading.push(asker);
            certified.read_again(&self.reads);
        } else if waiting.len() < MAX_WAITING {
            asker.note("the certificates are being read already, and will be read once more");
            waiting.push(asker);
        }
    }

    pub(crate) fn certificates_read(&mut self, read: anyhow::Result<Certificates>) {
        let Some(certified) = &mut self.certified else { return };
        let askers = mem::replace(&mut self.askers.reading, mem::take(&mut self.askers.waiting));
        if !self.askers.reading.is_empty() {
            certified.read_again(&self.reads);
        }
        let doubts = read.as_ref().map(|read| read.doubts.clone()).unwrap_or_default();
        let replaced = read.and_then(|read| certified.replace(read));
        for doubt in doubts {
            tracing::warn!("{doubt}");
            askers.iter().for_each(|asker| asker.note(&doubt));
        }
        match replaced {
            Ok(is_new) => {
                let waiting: Vec<_> = askers.into_iter().filter_map(Asker::command).collect();
                if is_new {
                    tracing::info!("new certificates are served from the next connection on");
                    self.renew(waiting);
                } else {
                    tracing::debug!("the certificates are the same as before");
                    waiting.into_iter().for_each(|done| drop(done.send(Ok(()))));
                }
            }
            Err(error) => {
                let text = format!("{error:#}; the cluster goes on with the certificates that it has");
                tracing::error!("{text}");
                for asker in askers {
                    asker.note(&text);
                    if let Asker::Command(done) = asker {
                        let _ = done.send(Err(Refused::Impossible(text.clone())));
                    }
                }
            }
        }
    }

    /// Passes what there is to the workers, and answers when all have it.
    fn renew(&mut self, mut waiting: Vec<oneshot::Sender<Refusable<()>>>) {
        if waiting.is_empty() {
            // Nobody waits for it; a worker that does not confirm is replaced all the same.
            waiting.push(oneshot::channel().0);
        }
        for done in waiting {
            self.pass_on(self.live.config.clone(), done);
        }
    }

    pub(crate) fn certificates_deadline(&self) -> Option<Instant> {
        Some(self.started + self.certified.as_ref()?.next_deadline())
    }

    pub(crate) fn look_after_certificates(&mut self) {
        let now = self.started.elapsed();
        let Some(certified) = &mut self.certified else { return };
        for doubt in certified.doubts(now) {
            tracing::warn!("{doubt}");
        }
        match certified.turn(now) {
            Ok(true) => {
                tracing::debug!("the keys of session tickets have changed");
                self.renew(Vec::new());
            }
            Ok(false) => {}
            Err(error) => tracing::error!("{error:#}; the old keys are used on"),
        }
    }
}
