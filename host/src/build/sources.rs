//! What the sources of a component are just now, in one number: so that a change is noticed, and only a change. A file
//! that was written anew with the same contents is none, or a build that writes among its sources would never end.
//!
//! Not looked at: hidden files and folders, what `.gitignore` and `.ignore` name, `target`, `node_modules`, `dist`,
//! `__pycache__`, whatever is marked as a cache (<https://bford.info/cachedir/>), and the component itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use ignore::{DirEntry, WalkBuilder};

use super::Plan;
use super::bell::Bell;

/// Files and folders that are looked at.
const MAX_ENTRIES: usize = 20_000;
/// Of larger files it counts when they were written, not what is in them.
const MAX_READ: u64 = 4 * 1024 * 1024;
const GENERATED: [&str; 4] = ["target", "node_modules", "dist", "__pycache__"];

/// Folders of sources, and what was last seen in them.
#[derive(Debug)]
pub(crate) struct Sources {
    roots: Vec<PathBuf>,
    component: Option<PathBuf>,
    files: BTreeMap<PathBuf, Seen>,
}

/// A file at one moment.
#[derive(Clone, Copy, Debug)]
struct Seen {
    stamp: Stamp,
    hash: u64,
}

/// Device, inode, length, and time of the last change: while these stay, a file is not read again.
type Stamp = (u64, u64, u64, i64, i64);

impl Sources {
    pub(crate) fn below(folder: &Path) -> Self {
        let mut sources = Self { roots: Vec::new(), component: None, files: BTreeMap::new() };
        sources.add(&[folder.to_owned()]);
        sources
    }

    /// As far as they are known before a build.
    pub(crate) fn of(plan: &Plan) -> Self {
        let mut sources = Self::below(plan.folder());
        if let Plan::Recipe { folder, recipe } = plan {
            sources.leave_out(&folder.join(&recipe.component));
        }
        sources
    }

    /// More folders. One that is below another is looked at already.
    pub(crate) fn add(&mut self, folders: &[PathBuf]) {
        for folder in folders.iter().filter_map(|folder| folder.canonicalize().ok()) {
            if !self.roots.iter().any(|root| folder.starts_with(root)) {
                self.roots.retain(|root| !root.starts_with(&folder));
                self.roots.push(folder);
            }
        }
    }

    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// The component is made of the sources, and is none.
    pub(crate) fn leave_out(&mut self, component: &Path) {
        // It may not be there yet.
        let folder = component.parent().and_then(|folder| folder.canonicalize().ok());
        self.component = folder.zip(component.file_name()).map(|(folder, name)| folder.join(name));
    }

    /// What the sources are now. The number means something to this version of the program only. From here on, `bell` rings
    /// when they change.
    pub(crate) fn look(&mut self, bell: &Bell) -> anyhow::Result<u64> {
        let (mut found, mut entries) = (BTreeMap::new(), 0);
        for root in &self.roots {
            // What cannot be read, or went away meanwhile, is not there.
            for entry in walk(root).flatten() {
                entries += 1;
                ensure!(
                    entries <= MAX_ENTRIES,
                    "there are more than {MAX_ENTRIES} files and folders below {}; list what is not source in a .gitignore, or \
                     move it to target/, dist/ or a hidden folder",
                    root.display()
                );
                let path = entry.path();
                if entry.file_type().is_some_and(|kind| kind.is_dir()) {
                    bell.hang_at(path);
                } else if self.component.as_deref() != Some(path)
                    && let Some(seen) = see(path, self.files.get(path))
                {
                    found.insert(path.to_owned(), seen);
                }
            }
        }
        self.files = found;
        let mut hasher = DefaultHasher::new();
        for (path, seen) in &self.files {
            (path, seen.hash).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }
}

fn walk(root: &Path) -> ignore::Walk {
    let mut walk = WalkBuilder::new(root);
    // As in a copy without its repository; what this very user ignores everywhere is nobody else's concern.
    walk.require_git(false).git_global(false).git_exclude(false).parents(false).filter_entry(may_hold_sources).build()
}

fn may_hold_sources(entry: &DirEntry) -> bool {
    let is_generated = || GENERATED.iter().any(|name| entry.file_name() == *name);
    let is_folder = entry.file_type().is_some_and(|kind| kind.is_dir());
    entry.depth() == 0 || !is_folder || !is_generated() && !entry.path().join("CACHEDIR.TAG").exists()
}

/// A regular file, perhaps behind a link, and what is in it; `before` spares the reading.
fn see(path: &Path, before: Option<&Seen>) -> Option<Seen> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let stamp = (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    if let Some(before) = before.filter(|before| before.stamp == stamp) {
        return Some(*before);
    }
    let mut hasher = DefaultHasher::new();
    // A large one is not opened at all: it may be gigabytes of data that only happen to lie beside the sources.
    match read_small(path, metadata.len()) {
        Some(bytes) => bytes.hash(&mut hasher),
        None => stamp.hash(&mut hasher),
    }
    Some(Seen { stamp, hash: hasher.finish() })
}

/// What is in a file that has `length` bytes; it may grow meanwhile.
fn read_small(path: &Path, length: u64) -> Option<Vec<u8>> {
    if length > MAX_READ {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_READ + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= MAX_READ).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_count_and_only_their_contents() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for path in ["src/lib.rs", "Cargo.toml", "out/app.wasm"] {
            write(path, "1");
        }
        write(".gitignore", "/data\n*.log\n!needed.log\n");
        write("src/.ignore", "notes");
        let mut sources = Sources::below(folder.path());
        sources.leave_out(&folder.path().join("out/app.wasm"));
        let first = sources.look(&Bell::default()).unwrap();
        write("src/lib.rs", "1");
        for path in ["out/app.wasm", "target/a", "node_modules/b/c", "dist/d", ".git/e", "src/.lib.rs.swp"] {
            write(path, "2");
        }
        for path in ["data/large", "src/a.log", "src/notes"] {
            write(path, "2");
        }
        write("cache/CACHEDIR.TAG", "");
        write("cache/a", "");
        assert_eq!(sources.look(&Bell::default()).unwrap(), first);

        let mut known = vec![first];
        let mut changed = |sources: &mut Sources| {
            let now = sources.look(&Bell::default()).unwrap();
            assert!(!known.contains(&now));
            known.push(now);
        };
        write("src/lib.rs", "2");
        changed(&mut sources);
        write("needed.log", "");
        changed(&mut sources);
        write("src/more/mod.rs", "");
        changed(&mut sources);
        fs::rename(folder.path().join("src/more"), folder.path().join("src/less")).unwrap();
        changed(&mut sources);
        fs::remove_file(folder.path().join("src/lib.rs")).unwrap();
        changed(&mut sources);

        // Another look from the start comes to the same.
        let mut again = Sources::below(folder.path());
        again.leave_out(&folder.path().join("out/app.wasm"));
        assert_eq!(again.look(&Bell::default()).unwrap(), sources.look(&Bell::default()).unwrap());
    }

    #[test]
    fn folders_inside_of_others_are_looked_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let [inner, outer] = ["a/b", "c"].map(|name| folder.path().join(name));
        fs::create_dir_all(&inner).unwrap();
        fs::create_dir_all(&outer).unwrap();
        let mut sources = Sources::below(&inner);
        sources.add(&[folder.path().join("a"), outer.clone(), inner, folder.path().join("nowhere")]);
        let expected = [folder.path().join("a"), outer].map(|path| path.canonicalize().unwrap());
        assert_eq!(sources.roots(), expected);
    }
}
