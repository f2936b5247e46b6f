//! `--watch`: notices when the component's file has changed, or that of its settings, or what a tag in a registry names.
//!
//! It looks at the file several times a second instead of asking the kernel to tell: that costs next to nothing, and sees
//! what editors and build tools do (writing in place, renaming over it, removing it for a while, turning a symbolic link)
//! on every file system alike.

use std::fs;
use std::future;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;

use tokio::sync::mpsc;

use crate::primary::fleet::errands::Supply;
use crate::settings::ImageName;

const LOOK_EVERY: Duration = Duration::from_millis(150);
/// Looks that find the file as the one before did, until it counts as written to its end.
const SETTLED: u32 = 2;

/// How often a registry is asked, and how often at least while it does not answer.
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_AT_LEAST_EVERY: Duration = Duration::from_secs(300);
/// How long it may take to find out.
const LOOK_PATIENCE: Duration = Duration::from_secs(90);

/// What tells one version of a file from another: device, inode, length, and time of the last change in nanoseconds.
type Fingerprint = (u64, u64, u64, i128);

fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let metadata = fs::metadata(path).ok()?;
    let changed = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    Some((metadata.dev(), metadata.ino(), metadata.len(), changed))
}

/// Finds out from one look after the other when there is a new version that nobody writes to any more.
#[derive(Debug)]
struct Debounce {
    known: Option<Fingerprint>,
    last: Option<Fingerprint>,
    equal_looks: u32,
}

impl Debounce {
    fn new(first: Option<Fingerprint>) -> Self {
        Self { known: first, last: first, equal_looks: 0 }
    }

    /// Whether this look completes a change. A file that is not there is none.
    fn look(&mut self, seen: Option<Fingerprint>) -> bool {
        self.equal_looks = if seen == self.last { self.equal_looks.saturating_add(1) } else { 0 };
        self.last = seen;
        let changed = seen.is_some() && seen != self.known && self.equal_looks >= SETTLED;
        if changed {
            self.known = seen;
        }
        changed
    }
}

/// What has changed; more than the settings, if it is a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Watched {
    Settings,
    Component,
}

/// The watch over a component and its settings, or over nothing.
#[derive(Debug)]
pub(crate) struct Watch(Option<(mpsc::Sender<Watched>, mpsc::Receiver<Watched>)>);

impl Watch {
    /// Watches the component's file, if it is one, and that of its settings if that is wanted, on a thread of its own: a file system that
    /// hangs must not stop the primary.
    pub(crate) fn start(is_wanted: bool, app: Option<&Path>, settings: &Path) -> Self {
        if !is_wanted {
            return Self(None);
        }
        let component = app.map(|app| (PathBuf::from(app), Watched::Component));
        let paths: Vec<_> = component.into_iter().chain([(PathBuf::from(settings), Watched::Settings)]).collect();
        let (sender, changes) = mpsc::channel(1);
        let tells = sender.clone();
        let looking = std::thread::Builder::new().name("watch".into()).spawn(move || {
            let files = paths.into_iter().map(|(path, what)| (Debounce::new(fingerprint(&path)), path, what));
            let mut files: Vec<_> = files.collect();
            while !sender.is_closed() {
                std::thread::sleep(LOOK_EVERY);
                let changed = files
                    .iter_mut()
                    .filter_map(|(debounce, path, what)| debounce.look(fingerprint(path)).then_some(*what));
                let changed: Vec<Watched> = changed.collect();
                if changed.into_iter().any(|what| sender.blocking_send(what).is_err()) {
                    return;
                }
            }
        });
        if let Err(error) = looking {
            tracing::error!("cannot watch the files: {error}");
        }
        Self(Some((tells, changes)))
    }

    /// Asks the registry every now and then whether the name stands for another component than the one that was tried last,
    /// if anything is watched. Must be called on the executor.
    pub(crate) fn follow(&self, image: &ImageName, followed: &FollowedImage) {
        let Some((sender, _)) = &self.0 else { return };
        if image.digest().is_some() {
            tracing::warn!("--watch has no component to watch: {image} names one digest, which stays what it is");
            return;
        }
        tokio::spawn(look_at_registry(image.clone(), followed.clone(), sender.clone()));
    }

    /// Resolves when one of them has changed. Can be dropped and called again without loss.
    pub(crate) async fn changed(&mut self) -> Watched {
        if let Some((_, changes)) = &mut self.0
            && let Some(what) = changes.recv().await
        {
            return what;
        }
        future::pending().await
    }
}

/// What is known of the image that is watched, and how it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct FollowedImage(Arc<Mutex<Followed>>);

#[derive(Debug)]
struct Followed {
    /// The manifest that was pulled last, whatever came of it: a version that was rolled back does not come back by itself,
    /// and one that could not be pulled is tried again. None until the first look, if there was none.
    tried: Option<String>,
    supply: Supply,
}

impl FollowedImage {
    pub(crate) fn new(tried: Option<String>, supply: Supply) -> Self {
        Self(Arc::new(Mutex::new(Followed { tried, supply })))
    }

    pub(crate) fn was_tried(&self, manifest: &str) {
        self.lock().tried = Some(manifest.to_owned());
    }

    /// It is asked for in another way from now on.
    pub(crate) fn supply_by(&self, supply: Supply) {
        self.lock().supply = supply;
    }

    /// Whether this manifest is another than the one that was tried.
    fn is_new(&self, found: &str) -> bool {
        *self.lock().tried.get_or_insert_with(|| found.to_owned()) != found
    }

    fn lock(&self) -> MutexGuard<'_, Followed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look_at_registry(image: ImageName, followed: FollowedImage, changed: mpsc::Sender<Watched>) {
    let (mut is_away, mut told, mut pause) = (false, None, ASK_EVERY);
    while !changed.is_closed() {
        tokio::time::sleep(pause).await;
        let supply = followed.lock().supply.clone();
        let looked = tokio::time::timeout(LOOK_PATIENCE, supply.resolve(&image)).await;
        match looked.unwrap_or_else(|_| Err(anyhow!("no answer within {LOOK_PATIENCE:?}"))) {
            Ok(found) => {
                if std::mem::take(&mut is_away) {
                    tracing::info!("{} answers again", image.host());
                }
                let is_new = followed.is_new(&found);
                if is_new && changed.send(Watched::Component).await.is_err() {
                    return;
                }
                // What was told of before could not be pulled, or not yet.
                let is_again = is_new && told.replace(found.clone()) == Some(found);
                pause = if is_again { (2 * pause).min(ASK_AT_LEAST_EVERY) } else { ASK_EVERY };
            }
            Err(error) => {
                // Once is enough.
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!("cannot see whether {image} has changed: {error:#}; trying on");
                }
                pause = (2 * pause).min(ASK_AT_LEAST_EVERY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions by number, 0 for none; and whether each look completes a change.
    fn check(looks: &[(u64, bool)]) {
        let version = |number: u64| (number > 0).then_some((1, number, 100, 0));
        let mut debounce = Debounce::new(version(1));
        for (turn, &(seen, changes)) in looks.iter().enumerate() {
            assert_eq!(debounce.look(version(seen)), changes, "look {turn}, at {seen}");
        }
    }

    #[test]
    fn a_change_counts_once_when_it_has_settled() {
        check(&[(1, false), (1, false), (1, false), (1, false)]);
        check(&[(2, false), (2, false), (2, true), (2, false), (2, false), (2, false)]);
        // Written piece by piece.
        check(&[(2, false), (3, false), (3, false), (4, false), (4, false), (4, true), (4, false)]);
        // Removed, then put there anew; or the same again.
        check(&[(0, false), (0, false), (0, false), (2, false), (2, false), (2, true)]);
        check(&[(0, false), (0, false), (1, false), (1, false), (1, false), (1, false)]);
    }

    #[test]
    fn renaming_writing_and_links_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, link] = ["one", "two", "link"].map(|name| folder.path().join(name));
        fs::write(&one, "1").unwrap();
        fs::write(&two, "2").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let first = fingerprint(&link);
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&two, &link).unwrap();
        let second = fingerprint(&link);
        assert!(first.is_some() && second.is_some() && first != second);
        fs::write(&two, "22").unwrap();
        assert_ne!(fingerprint(&link), second);
        fs::rename(&one, &two).unwrap();
        assert_eq!(fingerprint(&link), first);
    }
}
