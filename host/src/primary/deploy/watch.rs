//! `--watch`: notices when the component's file has changed, or that of its settings.
//!
//! It looks at the file several times a second instead of asking the kernel to tell: that costs next to nothing, and sees
//! what editors and build tools do (writing in place, renaming over it, removing it for a while, turning a symbolic link)
//! on every file system alike.

use std::fs;
use std::future;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

const LOOK_EVERY: Duration = Duration::from_millis(150);
/// Looks that find the file as the one before did, until it counts as written to its end.
const SETTLED: u32 = 2;

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
pub(crate) struct Watch(Option<mpsc::Receiver<Watched>>);

impl Watch {
    /// Watches the component's file and that of its settings if that is wanted, on a thread of its own: a file system that
    /// hangs must not stop the primary.
    pub(crate) fn start(is_wanted: bool, app: &Path, settings: &Path) -> Self {
        if !is_wanted {
            return Self(None);
        }
        let paths =
            [(app, Watched::Component), (settings, Watched::Settings)].map(|(path, what)| (PathBuf::from(path), what));
        let (sender, changes) = mpsc::channel(1);
        let looking = std::thread::Builder::new().name("watch".into()).spawn(move || {
            let mut files = paths.map(|(path, what)| (Debounce::new(fingerprint(&path)), path, what));
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
        Self(Some(changes))
    }

    /// Resolves when one of them has changed. Can be dropped and called again without loss.
    pub(crate) async fn changed(&mut self) -> Watched {
        if let Some(changes) = &mut self.0
            && let Some(what) = changes.recv().await
        {
            return what;
        }
        future::pending().await
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
