//! What is known of a reload: who asked for what, what is being prepared, who wants to know how it goes, how it ended. What
//! is done about it is in `driver/deploying.rs`, what is decided in `supervisor/swap.rs`.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::anyhow;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::generations::Provenance;
use crate::control::protocol::{Happening, ReloadRequest, ReloadResult, line};
use crate::os::blocking::off_the_loop;
use crate::primary::fleet::errands::{CompiledComponent, Supply, WantedComponent};
use crate::primary::fleet::process::Deployment;
use crate::primary::supervisor::Gates;
use crate::settings::{Application, Cluster, Percent, Policy, Reread, SettingsSources, TlsFiles};
use crate::tls::certificates::{self, Certificates};
use crate::wire::ids::Generation;

/// How long a reload may take that was not told, beside its gates.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long the secrets of a generation that is brought back may take to be read.
const SECRETS_WITHIN: Duration = Duration::from_secs(2);
/// Lines about a reload that its reader may leave unread; what comes on top, it misses.
const MAX_UNREAD: usize = 1024;

impl ReloadRequest {
    /// What the candidate must stand, by the cluster's settings unless the request says otherwise.
    pub(crate) fn gates(&self, usual: Percent) -> Gates {
        let increase = self.max_error_increase.unwrap_or(usual);
        Gates { force: self.force, max_error_increase: increase.thousandths(), served_before: false }
    }

    /// How long it may take; `least` is what it takes if nothing has to be waited for but the gates.
    pub(crate) fn patience(&self, least: Duration) -> Duration {
        // A year from now is as good as any later time.
        let longest = Duration::from_secs(365 * 24 * 60 * 60);
        let usual = DEFAULT_TIMEOUT.saturating_add(least);
        self.timeout_ms.map_or(usual, Duration::from_millis).min(longest)
    }

    /// What is to be said of a time in which no reload can end well.
    pub(crate) fn doubt(&self, policy: &Policy) -> Option<String> {
        let Policy { min_ready, soak, .. } = *policy;
        let timeout = self.timeout_ms.map(Duration::from_millis).filter(|&it| it < min_ready.saturating_add(soak))?;
        let [timeout, min_ready, soak] = [timeout, min_ready, soak].map(humantime::format_duration);
        Some(format!(
            "--timeout {timeout} is shorter than --min-ready {min_ready} and --soak {soak} together, so even a good \
             version will be rolled back"
        ))
    }
}

/// Whoever wants to know how a reload goes; nobody, if a signal or the watch began it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follower(Option<mpsc::Sender<Bytes>>);

impl Follower {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(MAX_UNREAD + 1);
        (Self(Some(sender)), receiver)
    }

    pub(crate) fn tell(&self, happening: &Happening) {
        let is_last = matches!(happening, Happening::ReloadEnded { .. });
        // One who left, or does not read, misses it; but there is room for the last line.
        if let Some(lines) = self.0.as_ref().filter(|lines| is_last || lines.capacity() > 1) {
            let _ = lines.try_send(line(happening));
        }
    }
}

/// A reload that is neither committed nor rolled back.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) listener: Follower,
    pub(crate) stage: ChangeStage,
    pub(crate) since: Instant,
}

impl Change {
    /// Whether nothing is to come of it.
    pub(crate) fn is_dry(&self) -> bool {
        self.draft().is_some_and(|draft| draft.wanted == Wanted::DryRun)
    }

    /// None while it is prepared.
    pub(crate) fn generation(&self) -> Option<Generation> {
        match self.stage {
            ChangeStage::Swapping(generation) => Some(generation),
            ChangeStage::Preparing(_) => None,
        }
    }

    pub(crate) fn draft_mut(&mut self) -> Option<&mut Draft> {
        match &mut self.stage {
            ChangeStage::Preparing(draft) => Some(draft),
            ChangeStage::Swapping(_) => None,
        }
    }

    pub(crate) fn draft(&self) -> Option<&Draft> {
        match &self.stage {
            ChangeStage::Preparing(draft) => Some(draft),
            ChangeStage::Swapping(_) => None,
        }
    }
}

#[derive(Debug)]
pub(crate) enum ChangeStage {
    Preparing(Box<Draft>),
    /// The supervisor has it.
    Swapping(Generation),
}

/// What is to become of what is being prepared.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) preparing: Preparing,
    pub(crate) request: ReloadRequest,
    pub(crate) deadline: Instant,
    pub(crate) wanted: Wanted,
    pub(crate) origin: Provenance,
    pub(crate) subject: Subject,
    /// `pulling` or `compiling`.
    pub(crate) step: &'static str,
}

/// Which component is deployed.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// One that is pulled and compiled, or found in the store.
    Wanted(WantedComponent),
    /// One that was deployed before.
    Kept(Rc<Deployment>),
}

/// What a reload is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Whatever is served already is brought anew.
    Always,
    IfNew,
    /// To be told what would change.
    DryRun,
}

/// What a new generation is made of.
#[derive(Debug)]
pub(crate) struct Assembly {
    pub(crate) settings: Reread,
    /// Of those settings, unless there are some already.
    pub(crate) certificates: Option<Certificates>,
    /// None if the component is there already.
    pub(crate) component: Option<CompiledComponent>,
}

/// What a preparation says, by its number: one that was given up may still have ended.
pub(crate) type Answered = (u64, PreparationNews);

#[derive(Debug)]
pub(crate) enum PreparationNews {
    /// The component of this manifest is here, and is being compiled.
    Pulled(String),
    Done(anyhow::Result<Box<Assembly>>),
}

/// Settings are being read, and perhaps a component compiled.
#[derive(Debug)]
pub(crate) struct Preparing {
    pub(crate) number: u64,
    work: AbortHandle,
}

/// What was read. Certificates only if nobody has those yet.
pub(crate) type SettingsAndCertificates = (Reread, Option<Certificates>);

/// Reads the settings again; `known` are those whose certificates are there.
pub(crate) async fn read_settings(
    sources: SettingsSources,
    cluster: Cluster,
    before: toml::Table,
    known: Vec<TlsFiles>,
) -> anyhow::Result<SettingsAndCertificates> {
    let work = move || {
        sources.alone(|| {
            let settings = sources.read_again(&cluster, &before)?;
            let files = settings.application.tls.as_ref().filter(|files| !known.contains(files));
            let certificates = files.map(|files| certificates::read(files, SystemTime::now())).transpose()?;
            Ok((settings, certificates))
        })
    };
    off_the_loop(work).await
}

/// The settings of a generation that is brought back, with secrets as they are now. If these cannot be had, or not soon, those
/// that it had are better than none: a rollback may be what helps against the very thing that is wrong with them.
pub(crate) async fn keep_settings(
    sources: SettingsSources,
    kept: Application,
    table: toml::Table,
) -> anyhow::Result<SettingsAndCertificates> {
    let mut doubts = Vec::new();
    let mut application = kept.clone();
    if kept.has_secrets() {
        let fresh = off_the_loop(move || sources.alone(|| kept.with_fresh_secrets()));
        let fresh = tokio::time::timeout(SECRETS_WITHIN, fresh).await;
        match fresh.unwrap_or_else(|_| Err(anyhow!("the secrets were not read within {SECRETS_WITHIN:?}"))) {
            Ok(fresh) => application = fresh,
            Err(error) => doubts.push(format!("{error:#}; the generation comes back with the secrets that it had")),
        }
    }
    Ok((Reread { application, table, doubts }, None))
}

impl Preparing {
    /// Waits for the settings, and then for the component if one is wanted: how it is compiled is one of them.
    pub(crate) fn start(
        number: u64,
        read: impl Future<Output = anyhow::Result<SettingsAndCertificates>> + Send + 'static,
        wanted: Option<(Supply, WantedComponent)>,
        answers: mpsc::Sender<Answered>,
    ) -> Self {
        let news = answers.clone();
        let assemble = async move {
            let (settings, certificates) = read.await?;
            // Where nobody has time for it, it is not told.
            let pulled = |manifest: &str| drop(news.try_send((number, PreparationNews::Pulled(manifest.into()))));
            let component = match &wanted {
                Some((supply, wanted)) => Some(supply.with(&settings.application).get(wanted, pulled).await?),
                None => None,
            };
            Ok(Box::new(Assembly { settings, certificates, component }))
        };
        let work = tokio::spawn(async move {
            let parts = assemble.await;
            // The driver may have given up.
            let _ = answers.send((number, PreparationNews::Done(parts))).await;
        });
        Self { number, work: work.abort_handle() }
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// A reload that is decided, while workers that it made superfluous still drain.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) generation: Generation,
    pub(crate) result: ReloadResult,
    pub(crate) reason: Option<String>,
    pub(crate) listener: Follower,
    /// Workers that had to drain when it was decided, and those of them that are still there.
    pub(crate) to_drain: u32,
    pub(crate) left: u32,
    /// Until when it waits to be written down; None once it is, or will not be.
    pub(crate) saved_by: Option<Instant>,
}

impl Settled {
    /// Whether a worker of this generation has to be gone before the reload is over.
    pub(crate) fn waits_for(&self, generation: Generation) -> bool {
        match self.result {
            ReloadResult::Committed | ReloadResult::CommittedUnsaved => generation < self.generation,
            _ => generation == self.generation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Options;

    /// A rollback waits for no file system that hangs.
    #[tokio::test]
    async fn a_generation_comes_back_with_the_secrets_that_it_had_if_there_are_no_others() {
        let flags = Options { set_secret: vec!["key=env:PATH".parse().unwrap()], ..Options::default() };
        let folder = tempfile::tempdir().unwrap();
        let sources = SettingsSources::new(folder.path().join("app.wasm").into(), flags, None).unwrap();
        let kept = sources.read().unwrap().application;
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let hangs = sources.clone();
        let hanging = std::thread::spawn(move || {
            hangs.alone(|| {
                begun.send(()).unwrap();
                Ok(ends.recv()?)
            })
        });
        has_begun.recv().unwrap();
        let keep = || keep_settings(sources.clone(), kept.clone(), toml::Table::new());
        let (read, _) = keep().await.unwrap();
        assert_eq!(read.application, kept);
        assert!(read.doubts[0].contains("comes back with the secrets that it had"), "{:?}", read.doubts);
        end.send(()).unwrap();
        hanging.join().unwrap().unwrap();
        let (read, _) = keep().await.unwrap();
        assert_eq!((read.application, read.doubts), (kept.clone(), Vec::new()));
    }
}
