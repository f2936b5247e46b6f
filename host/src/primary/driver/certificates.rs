//! The driver's part in TLS: has certificates read again, passes what is new to the workers, and changes the keys of session
//! tickets.

use std::mem;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Driver, Running};
use crate::control::protocol::Happening;
use crate::primary::deploy::certificates::{Certified, FilesRead, read_again};
use crate::primary::deploy::change::{Change, Follower};
use crate::primary::desk::socket::{Refusable, Refused};
use crate::settings::TlsFiles;
use crate::wire::ids::WorkerId;

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
        let refused = match self.certified.is_empty() {
            false if self.supervisor.is_about_to_stop() => Refused::Impossible("the cluster is stopping".into()),
            false => return self.read_certificates_for(Asker::Command(done)),
            true => Refused::Wrong("this cluster has no certificates, as none of its listeners is https".into()),
        };
        drop(done.send(Err(refused)));
    }

    fn read_certificates_for(&mut self, asker: Asker) {
        if self.certified.is_empty() {
            return;
        }
        let Askers { reading, waiting } = &mut self.askers;
        if reading.is_empty() {
            reading.push(asker);
            read_again(self.files_in_use(), &self.reads);
        } else if waiting.len() < MAX_WAITING {
            asker.note("the certificates are being read already, and will be read once more");
            waiting.push(asker);
        }
    }

    /// Of what is served, of what is to be, and of workers that drain.
    fn files_in_use(&self) -> Vec<TlsFiles> {
        let candidate = self.change.as_ref().and_then(Change::generation).and_then(|it| self.generations.get(it));
        let draining = self.workers.values().map(|running| &running.deployment);
        let mut files: Vec<TlsFiles> = Vec::new();
        for deployment in [self.generations.current().1].into_iter().chain(candidate).chain(draining) {
            let used = deployment.application.tls.as_ref().filter(|used| !files.contains(used));
            files.extend(used.cloned());
        }
        files
    }

    /// What a worker has.
    pub(crate) fn certified_for(&self, worker: WorkerId) -> Option<&Certified> {
        let Running { deployment, .. } = self.workers.get(&worker)?;
        self.certified.of(deployment.application.tls.as_ref())
    }

    pub(crate) fn certified_now(&self) -> Option<&Certified> {
        self.certified.of(self.generations.current().1.application.tls.as_ref())
    }

    /// Forgets those of generations that are forgotten.
    pub(crate) fn forget_certificates(&mut self) {
        let (generations, in_use) = (&self.generations, self.files_in_use());
        self.certified.retain(|files| generations.have(files) || in_use.contains(files));
    }

    pub(crate) fn certificates_read(&mut self, read: Vec<FilesRead>) {
        let askers = mem::replace(&mut self.askers.reading, mem::take(&mut self.askers.waiting));
        if !self.askers.reading.is_empty() {
            read_again(self.files_in_use(), &self.reads);
        }
        let current = self.generations.current().1.application.tls.clone();
        let (mut is_new, mut failure) = (false, None);
        for (files, read) in read {
            // Of a generation that was forgotten meanwhile, nothing matters any more.
            let Some(certified) = self.certified.of_mut(&files) else { continue };
            let doubts = read.as_ref().map(|read| read.doubts.clone()).unwrap_or_default();
            match read.and_then(|read| certified.replace(read)) {
                Ok(replaced) => is_new |= replaced,
                // Those that drain have what they have.
                Err(error) if current.as_ref() != Some(&files) => tracing::warn!("{error:#}"),
                Err(error) => failure = Some(error),
            }
            for doubt in doubts {
                tracing::warn!("{doubt}");
                askers.iter().for_each(|asker| asker.note(&doubt));
            }
        }
        let failure = failure
            .map(|error| format!("{error:#}; the cluster goes on with the certificates that it has"))
            .inspect(|text| tracing::error!("{text}"));
        let mut waiting = Vec::new();
        for asker in askers {
            match &failure {
                Some(text) => {
                    asker.note(text);
                    if let Asker::Command(done) = asker {
                        let _ = done.send(Err(Refused::Impossible(text.clone())));
                    }
                }
                None => waiting.extend(asker.command()),
            }
        }
        if is_new {
            tracing::info!("new certificates are served from the next connection on");
            self.renew(waiting);
        } else {
            waiting.into_iter().for_each(|done| drop(done.send(Ok(()))));
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
        Some(self.started + self.certified.next_deadline()?)
    }

    pub(crate) fn look_after_certificates(&mut self) {
        let (now, mut has_changed) = (self.started.elapsed(), false);
        let in_use = self.files_in_use();
        for certified in self.certified.iter_mut() {
            // Of those that nobody serves, nobody has to know.
            let is_served = in_use.contains(certified.files());
            for doubt in certified.doubts(now).into_iter().filter(|_| is_served) {
                tracing::warn!("{doubt}");
            }
            match certified.turn(now) {
                Ok(changed) => has_changed |= changed,
                Err(error) => tracing::error!("{error:#}; the old keys are used on"),
            }
        }
        if has_changed {
            tracing::debug!("the keys of session tickets have changed");
            self.renew(Vec::new());
        }
    }
}
