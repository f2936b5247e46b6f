//! A store in a file, which is LMDB's: one process writes, many read a mapping of it. What was committed is on the disk, and
//! nothing that ends a process at whatever moment takes it away.
//!
//! The folder of a store has LMDB's `data.mdb` and `lock.mdb`, and a file that says that there is a store: without that,
//! one whose data is gone would look like one that is new.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithTls};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};

use super::{Write, WriteFailure, Written, sum};
use crate::settings::{MAX_PAGE, size};

/// Says that there is a store, and in which form.
const MARKER: &str = "wasmcluster-store";
const FORM: &str = "1\n";
const DATA: &str = "data.mdb";
/// Not LMDB's own: who closes that gives up what LMDB holds by it.
const LOCK: &str = "wasmcluster-lock";

/// Processes and threads that may read a store at the same time. Each takes up 64 bytes.
const MAX_READERS: u32 = 4096;
/// What a store may take up beyond its limit while something is deleted from it: LMDB writes new pages before it gives up
/// old ones.
const RESERVE: usize = 4 << 20;
/// A file grows by so much or more.
const GROWTH: u64 = 1 << 20;
/// Pages that one key may make anew, at most: a way through the tree, and what is divided on it.
const PAGES_EACH: u64 = 32;
/// Bytes that LMDB adds to a pair, or more.
const OVERHEAD: u64 = 64;
/// LMDB has two pages before any other.
const FEWEST_PAGES: u64 = 2;

type Pairs = Database<Bytes, Bytes>;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Nothing was written yet.
    #[error("there is no store in {}", .0.display())]
    Absent(PathBuf),
    #[error(
        "the key-value store in {} is damaged: {reason}. Stop the cluster, put back a copy of the folder, or, to begin with \
         an empty store, move the folder away, and start it again",
        path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Keys in order, and behind which to go on; None if there are no more.
pub(crate) type KeyPage = (Vec<String>, Option<String>);

/// Looks at a store.
#[derive(Clone, Debug)]
pub(crate) struct FileReader {
    path: PathBuf,
    env: Env<WithTls>,
    pairs: Pairs,
}

impl FileReader {
    /// A process opens a store once.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let is_there = check(path)?;
        if !is_there {
            return Err(OpenError::Absent(path.into()));
        }
        let mut options = EnvOpenOptions::new();
        options.max_readers(MAX_READERS);
        // SAFETY: read-only is no flag that gives up what LMDB promises.
        unsafe { options.flags(EnvFlags::READ_ONLY) };
        let env = open(&options, path)?;
        let txn = env.read_txn().map_err(|error| damaged(path, &error))?;
        let pairs: Option<Pairs> = env.open_database(&txn, None).map_err(|error| damaged(path, &error))?;
        let pairs = pairs.ok_or_else(|| OpenError::Absent(path.into()))?;
        check_length(&env, page_size(pairs, &txn, path)?, path)?;
        drop(txn);
        Ok(Self { path: path.into(), env, pairs })
    }

    /// What was committed last, as of now.
    fn snapshot(&self) -> heed::Result<RoTxn<'_, WithTls>> {
        match self.env.read_txn() {
            Err(heed::Error::Mdb(MdbError::MapResized)) => {
                // SAFETY: a snapshot lives only inside of the calls of one thread, and there is none now.
                unsafe { self.env.resize(0) }?;
                self.env.read_txn()
            }
            other => other,
        }
    }

    /// With what is to be done, if it cannot be read.
    fn explained<T>(&self, read: heed::Result<T>) -> anyhow::Result<T> {
        read.map_err(|error| match error {
            heed::Error::Mdb(_) => damaged(&self.path, &error).into(),
            error => anyhow!("cannot read the key-value store in {}: {error}", self.path.display()),
        })
    }

    pub(crate) fn get(&self, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let txn = self.explained(self.snapshot())?;
        Ok(self.explained(self.pairs.get(&txn, key.as_bytes()))?.map(<[u8]>::to_vec))
    }

    /// All as of the same moment, as long as they have no more than `max` bytes together.
    pub(crate) fn get_all(&self, keys: &[String], max: usize) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
        let txn = self.explained(self.snapshot())?;
        let mut left = max;
        let get = |key: &String| {
            let value = self.explained(self.pairs.get(&txn, key.as_bytes()))?;
            left = left.checked_sub(value.map_or(0, <[u8]>::len)).ok_or_else(|| too_much(max))?;
            Ok(value.map(<[u8]>::to_vec))
        };
        keys.iter().map(get).collect()
    }

    pub(crate) fn has(&self, key: &str) -> anyhow::Result<bool> {
        let txn = self.explained(self.snapshot())?;
        Ok(self.explained(self.pairs.get(&txn, key.as_bytes()))?.is_some())
    }

    /// The next keys behind `after`.
    pub(crate) fn keys(&self, after: Option<&str>) -> anyhow::Result<KeyPage> {
        let txn = self.explained(self.snapshot())?;
        // No key is empty.
        let after = after.filter(|after| !after.is_empty());
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_bytes()));
        let range = (from, Bound::<&[u8]>::Unbounded);
        let mut keys = Vec::new();
        for pair in self.explained(self.pairs.range(&txn, &range))? {
            if keys.len() == MAX_PAGE {
                let next = keys.last().cloned();
                return Ok((keys, next));
            }
            keys.push(String::from_utf8_lossy(self.explained(pair)?.0).into_owned());
        }
        Ok((keys, None))
    }
}

/// That what was asked for at once is more than a guest's call may bring.
pub(crate) fn too_much(max: usize) -> anyhow::Error {
    anyhow!("the values have more than {} together; ask for fewer at once", size(max as u64))
}

/// Writes a store. There is one for each.
#[derive(Debug)]
pub(crate) struct FileWriter {
    path: PathBuf,
    identity: FileIdentity,
    /// Keeps other clusters away.
    _lock: Flock<File>,
    env: Env<WithTls>,
    pairs: Pairs,
    /// Bytes of a page.
    page: u64,
    data: File,
    /// How long it is.
    length: u64,
    max_size: usize,
}

/// Which file it is that has a store's data: its device and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity(u64, u64);

impl FileIdentity {
    /// Whether the store in the folder `path` has it.
    pub(crate) fn is_at(&self, path: &Path) -> Result<(), String> {
        self.is_there(path, 0)
    }

    fn is_there(&self, path: &Path, least: u64) -> Result<(), String> {
        let now = fs::metadata(path.join(DATA)).ok();
        if now.is_some_and(|now| Self(now.dev(), now.ino()) == *self && now.len() >= least) {
            return Ok(());
        }
        Err(format!(
            "the key-value store in {} was replaced, cut or moved away while it was in use; nothing is written any more. \
             Stop the cluster and start it again",
            path.display()
        ))
    }
}

/// Why nothing of a group was written.
enum GroupFailure {
    /// The store has no room.
    Full,
    /// The disk has none, or not so much of it may be taken.
    NoSpace(io::Error),
    Error(heed::Error),
}

impl From<heed::Error> for GroupFailure {
    fn from(error: heed::Error) -> Self {
        match error {
            heed::Error::Mdb(MdbError::MapFull) => Self::Full,
            heed::Error::Io(error) if is_about_space(&error) => Self::NoSpace(error),
            error => Self::Error(error),
        }
    }
}

impl FileWriter {
    /// Opens the store in the folder `path`, or makes one there. It may take up `max_size` bytes.
    pub(crate) fn open(path: &Path, max_size: u64) -> Result<Self, OpenError> {
        let is_there = check(path)?;
        let made: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
        let making = DirBuilder::new().recursive(true).mode(0o700).create(path);
        making.with_context(|| format!("cannot make the folder {} for a key-value store", path.display()))?;
        let lock = lock(path)?;
        let max_size = map_size(max_size);
        let mut options = EnvOpenOptions::new();
        options.max_readers(MAX_READERS).map_size(max_size);
        let env = open(&options, path)?;
        // Of processes that have died meanwhile: their snapshots would keep old pages.
        env.clear_stale_readers().map_err(|error| damaged(path, &error))?;
        let mut txn = env.write_txn().map_err(|error| damaged(path, &error))?;
        let pairs: Pairs = env.create_database(&mut txn, None).map_err(|error| damaged(path, &error))?;
        let page = page_size(pairs, &txn, path)?;
        if is_there {
            check_length(&env, page, path)?;
        }
        txn.commit().map_err(|error| cannot_write(path, &error))?;
        if !is_there {
            mark(path, &made).with_context(|| format!("cannot write into {}", path.display()))?;
        }
        let data = File::options().read(true).write(true).open(path.join(DATA));
        let data = data.with_context(|| format!("cannot open {}", path.join(DATA).display()))?;
        let metadata = data.metadata().map_err(anyhow::Error::from)?;
        let (identity, length) = (FileIdentity(metadata.dev(), metadata.ino()), metadata.len());
        Ok(Self { path: path.into(), identity, _lock: lock, env, pairs, page, data, length, max_size })
    }

    pub(crate) fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Whether it is still the file in its folder that is written, as long as it was.
    pub(crate) fn is_in_place(&self) -> Result<(), String> {
        self.identity.is_there(&self.path, self.length)
    }

    /// Lets it take up another number of bytes; no fewer than it does.
    pub(crate) fn limit(&mut self, max_size: u64) -> heed::Result<()> {
        let max_size = map_size(max_size);
        if self.max_size != max_size {
            self.resize(max_size)?;
            self.max_size = max_size;
        }
        Ok(())
    }

    fn resize(&self, max_size: usize) -> heed::Result<()> {
        // SAFETY: this process has no other transactions than those of this writer, and it is in none.
        unsafe { self.env.resize(max_size) }
    }

    /// Forgets readers whose processes are no more.
    pub(crate) fn clear_stale_readers(&self) -> heed::Result<usize> {
        self.env.clear_stale_readers()
    }

    /// Writes all of them, in their order, and says what came of each, when it is on the disk. An error means that nobody
    /// knows what was written, and that the store must be opened anew.
    pub(crate) fn commit(&mut self, writes: &[&Write]) -> Result<Vec<Result<Written, WriteFailure>>, String> {
        match self.commit_together(writes) {
            Ok(written) => Ok(written),
            Err(GroupFailure::Error(error)) => Err(error.to_string()),
            Err(GroupFailure::Full | GroupFailure::NoSpace(_)) => {
                writes.iter().map(|write| self.commit_alone(write)).collect()
            }
        }
    }

    /// What fits, although something else in its group did not.
    fn commit_alone(&mut self, write: &Write) -> Result<Result<Written, WriteFailure>, String> {
        let (within, full) = match (self.commit_together(&[write]), write) {
            (Ok(mut written), _) => return Ok(written.pop().unwrap_or(Ok(Written::Done))),
            (Err(GroupFailure::Error(error)), _) => return Err(error.to_string()),
            // A store that is full can be emptied.
            (Err(GroupFailure::Full), Write::Delete(_)) => (self.most(), self.full()),
            (Err(GroupFailure::Full), _) => return Ok(Err(self.full())),
            // What was given back inside of the file can be used.
            (Err(GroupFailure::NoSpace(error)), _) => {
                (self.length as usize, WriteFailure::Refused(format!("the store cannot grow: {error}")))
            }
        };
        self.resize(within).map_err(|error| error.to_string())?;
        let written = self.write(&[write]);
        self.resize(self.max_size).map_err(|error| error.to_string())?;
        match written {
            Ok(mut written) => Ok(written.pop().unwrap_or(Ok(Written::Done))),
            Err(GroupFailure::Full | GroupFailure::NoSpace(_)) => Ok(Err(full)),
            Err(GroupFailure::Error(error)) => Err(error.to_string()),
        }
    }

    /// Bytes up to which it may grow while something is deleted: it may have more than its limit already.
    fn most(&self) -> usize {
        let used = (self.env.info().last_page_number + 1) * self.page as usize;
        self.max_size.max(used).next_multiple_of(RESERVE) + RESERVE
    }

    fn full(&self) -> WriteFailure {
        let most = size(self.max_size as u64);
        WriteFailure::Refused(format!("the store is full: --kv-max-size {most} is reached"))
    }

    fn commit_together(&mut self, writes: &[&Write]) -> Result<Vec<Result<Written, WriteFailure>>, GroupFailure> {
        self.grow(writes)?;
        self.write(writes)
    }

    fn write(&self, writes: &[&Write]) -> Result<Vec<Result<Written, WriteFailure>>, GroupFailure> {
        let mut txn = self.env.write_txn()?;
        let written = writes.iter().map(|write| self.apply(&mut txn, write)).collect::<Result<Vec<_>, _>>()?;
        txn.commit()?;
        Ok(written)
    }

    /// Takes what these can need from the disk before any of it is written: so a disk that is full is known in time. The
    /// file is never shorter than what it says that it has, unless somebody has cut it.
    fn grow(&mut self, writes: &[&Write]) -> Result<(), GroupFailure> {
        let page = self.page;
        let used = (self.env.info().last_page_number as u64 + 1) * page;
        let keys: u64 = writes.iter().map(|write| write.keys() as u64).sum();
        let bytes: u64 = writes.iter().map(|write| write.bytes() as u64).sum();
        // Every page that there is may be written anew, and pages may be half empty.
        let needed = used + used.min(keys * PAGES_EACH * page) + 2 * (bytes + keys * OVERHEAD);
        let needed = needed.min(self.most() as u64);
        if self.length < needed {
            let length = needed.next_multiple_of(GROWTH);
            allocate(&self.data, self.length, length).map_err(GroupFailure::NoSpace)?;
            self.length = length;
        }
        Ok(())
    }

    /// What is refused has changed nothing.
    fn apply(&self, txn: &mut RwTxn<'_>, write: &Write) -> heed::Result<Result<Written, WriteFailure>> {
        Ok(Ok(match write {
            Write::Set(pairs) => {
                for (key, value) in pairs {
                    self.pairs.put(txn, key.as_bytes(), value)?;
                }
                Written::Done
            }
            Write::Delete(keys) => {
                for key in keys {
                    self.pairs.delete(txn, key.as_bytes())?;
                }
                Written::Done
            }
            Write::Increment { key, by } => match sum(self.pairs.get(txn, key.as_bytes())?, *by) {
                Ok(sum) => {
                    self.pairs.put(txn, key.as_bytes(), sum.to_string().as_bytes())?;
                    Written::Sum(sum)
                }
                Err(reason) => return Ok(Err(WriteFailure::Refused(reason))),
            },
            Write::Swap { key, from, to } => {
                let is_expected = self.pairs.get(txn, key.as_bytes())? == from.as_deref();
                if is_expected {
                    self.pairs.put(txn, key.as_bytes(), to)?;
                }
                Written::Swapped(is_expected)
            }
        }))
    }
}

/// Makes a file longer, with its own part of the disk.
fn allocate(file: &File, from: u64, to: u64) -> io::Result<()> {
    let offset = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::empty(), offset(from), offset(to - from)) {
        // There are file systems that cannot.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(to),
        allocated => Ok(allocated?),
    }
}

fn is_about_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn map_size(max_size: u64) -> usize {
    usize::try_from(max_size).unwrap_or(usize::MAX / 2).next_multiple_of(64 * 1024)
}

fn open(options: &EnvOpenOptions<WithTls>, path: &Path) -> Result<Env<WithTls>, OpenError> {
    // SAFETY: the file is written by LMDB alone, and grows only; a file that was cut is refused before anything beyond its
    // first pages is read.
    unsafe { options.open(path) }.map_err(|error| match error {
        heed::Error::Mdb(_) => damaged(path, &error),
        heed::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => OpenError::Absent(path.into()),
        error => OpenError::Other(anyhow!("cannot open the store in {}: {error}", path.display())),
    })
}

fn damaged(path: &Path, reason: &dyn std::fmt::Display) -> OpenError {
    OpenError::Damaged { path: path.into(), reason: reason.to_string() }
}

fn cannot_write(path: &Path, error: &heed::Error) -> OpenError {
    OpenError::Other(anyhow!("cannot write the store in {}: {error}", path.display()))
}

/// Whether there is a store.
fn check(path: &Path) -> Result<bool, OpenError> {
    let form = match fs::read_to_string(path.join(MARKER)) {
        Ok(form) => form,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(anyhow!("cannot read {}: {error}", path.join(MARKER).display()).into()),
    };
    if form != FORM {
        let path = path.display();
        let reason = anyhow!("the key-value store in {path} is of another version of wasmcluster; name another folder");
        return Err(reason.into());
    }
    match fs::metadata(path.join(DATA)) {
        Ok(data) if data.len() > 0 => Ok(true),
        Ok(_) => Err(damaged(path, &format!("{DATA} is empty"))),
        Err(error) => Err(damaged(path, &format!("{DATA}: {error}"))),
    }
}

fn page_size(pairs: Pairs, txn: &RoTxn<'_>, path: &Path) -> Result<u64, OpenError> {
    Ok(u64::from(pairs.stat(txn).map_err(|error| damaged(path, &error))?.page_size))
}

/// What is beyond the end of a file cannot be looked at: whoever does is killed.
fn check_length(env: &Env<WithTls>, page: u64, path: &Path) -> Result<(), OpenError> {
    let needed = (env.info().last_page_number as u64 + 1).max(FEWEST_PAGES) * page;
    let length = fs::metadata(path.join(DATA)).map_err(|error| damaged(path, &error))?.len();
    if length < needed {
        return Err(damaged(path, &format!("{DATA} has {length} bytes, and had at least {needed}")));
    }
    Ok(())
}

/// Notes that there is a store, for good.
fn mark(path: &Path, made: &[&Path]) -> anyhow::Result<()> {
    let mut marker = tempfile::NamedTempFile::new_in(path)?;
    marker.write_all(FORM.as_bytes())?;
    marker.as_file().sync_all()?;
    marker.persist(path.join(MARKER))?;
    // And with each folder that was made, the entry of it in the one above.
    for folder in [path].into_iter().chain(made.iter().filter_map(|made| made.parent())) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// A store has one cluster: what two of them write goes well, and what they go by, such as its size, does not.
fn lock(path: &Path) -> anyhow::Result<Flock<File>> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path.join(LOCK));
    let file = file.with_context(|| format!("cannot write into {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => anyhow!(
            "the key-value store in {} is used by another cluster: stop that, or name another folder",
            path.display()
        ),
        errno => anyhow!("cannot lock the key-value store in {}: {errno}", path.display()),
    })
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "children tell their tests how far they are")]
mod tests {
    use std::collections::BTreeMap;
    use std::io::BufRead;
    use std::process::{Command, Stdio};

    use super::*;

    const SIZE: u64 = 1 << 30;

    fn set(key: &str, value: &[u8]) -> Write {
        Write::Set(vec![(key.into(), value.to_vec())])
    }

    fn commit(writer: &mut FileWriter, write: &Write) -> Result<Written, WriteFailure> {
        writer.commit(&[write]).unwrap().pop().unwrap()
    }

    /// A process has a store open once, and this one has it open in several tests.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_store_does_what_a_map_does() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = folder();
        let path = folder.path().join("a/b");
        let mut writer = FileWriter::open(&path, SIZE).unwrap();
        let mut model = BTreeMap::<String, Vec<u8>>::new();
        for _ in 0..300 {
            let mut group = Vec::new();
            for _ in 0..random.usize(1..8) {
                let key = format!("key{}", random.u8(0..20));
                group.push(match random.u8(0..5) {
                    0 => Write::Delete(vec![key, "another".into()]),
                    1 => Write::Increment { key, by: random.i64(-9..9) },
                    2 => Write::Swap { key, from: None, to: b"1".into() },
                    3 => Write::Swap { key: key.clone(), from: model.get(&key).cloned(), to: b"swapped".into() },
                    _ => {
                        let length = random.usize(0..9000);
                        Write::Set(vec![(key, vec![b'x'; length]), ("another".into(), b"7".into())])
                    }
                });
            }
            let written = writer.commit(&group.iter().collect::<Vec<_>>()).unwrap();
            for (write, written) in group.into_iter().zip(written) {
                match write {
                    Write::Set(pairs) => model.extend(pairs),
                    Write::Delete(keys) => keys.iter().for_each(|key| drop(model.remove(key))),
                    Write::Increment { key, by } => match sum(model.get(&key).map(Vec::as_slice), by) {
                        Ok(sum) => {
                            assert_eq!(written, Ok(Written::Sum(sum)));
                            model.insert(key, sum.to_string().into());
                        }
                        Err(reason) => assert_eq!(written, Err(WriteFailure::Refused(reason))),
                    },
                    Write::Swap { key, from, to } => {
                        let is_expected = model.get(&key) == from.as_ref();
                        assert_eq!(written, Ok(Written::Swapped(is_expected)));
                        if is_expected {
                            model.insert(key, to);
                        }
                    }
                }
            }
        }
        drop(writer);
        let reader = FileReader::open(&path).unwrap();
        let keys: Vec<String> = model.keys().cloned().collect();
        assert_eq!(reader.keys(None).unwrap(), (keys.clone(), None));
        assert_eq!(reader.get_all(&keys, 1 << 20).unwrap(), model.values().cloned().map(Some).collect::<Vec<_>>());
        for number in 0..25 {
            let key = format!("key{number}");
            assert_eq!(reader.get(&key).unwrap(), model.get(&key).cloned());
            assert_eq!(reader.has(&key).unwrap(), model.contains_key(&key));
        }
    }

    #[test]
    fn keys_are_listed_by_pages_and_values_by_their_bytes() {
        let folder = folder();
        let mut writer = FileWriter::open(folder.path(), SIZE).unwrap();
        let pairs = (0..=MAX_PAGE).map(|number| (format!("{number:05}"), vec![0; 100])).collect();
        commit(&mut writer, &Write::Set(pairs)).unwrap();
        drop(writer);
        let reader = FileReader::open(folder.path()).unwrap();
        let (first, next) = reader.keys(None).unwrap();
        assert_eq!((first.len(), next.as_deref()), (MAX_PAGE, Some("00999")));
        assert_eq!(reader.keys(next.as_deref()).unwrap(), (vec!["01000".to_owned()], None));
        assert!(reader.get_all(&first[..10], 1000).is_ok() && reader.get_all(&first[..11], 1000).is_err());
    }

    #[test]
    fn a_store_that_is_full_can_be_emptied() {
        let folder = folder();
        let mut writer = FileWriter::open(folder.path(), 2 << 20).unwrap();
        let mut written = Vec::new();
        let full = loop {
            let key = format!("key{}", written.len());
            // Together with one that fits.
            let group = [&set(&key, &[1; 60_000]), &Write::Increment { key: "counter".into(), by: 1 }];
            let ended = writer.commit(&group).unwrap();
            match (&ended[0], &ended[1]) {
                (Ok(_), Ok(_)) => written.push(key),
                (Err(WriteFailure::Refused(full)), _) => break full.clone(),
                other => panic!("{other:?}"),
            }
        };
        assert!(full.contains("--kv-max-size 2MiB"), "{full}");
        assert!((20..35).contains(&written.len()), "{}", written.len());
        // Whatever is in the way of LMDB, all of it can be deleted, more than once.
        for _ in 0..5 {
            for key in &written {
                assert_eq!(commit(&mut writer, &Write::Delete(vec![key.clone()])), Ok(Written::Done), "{key}");
            }
            for key in &written[..written.len() - 5] {
                assert_eq!(commit(&mut writer, &set(key, &[2; 60_000])), Ok(Written::Done), "{key}");
            }
        }
        assert!(fs::metadata(folder.path().join(DATA)).unwrap().len() < 8 << 20);
        writer.limit(8 << 20).unwrap();
        assert_eq!(commit(&mut writer, &set("more", &[3; 3 << 20])), Ok(Written::Done));
    }

    /// It has more than it may have now, and is emptied all the same.
    #[test]
    fn a_limit_below_what_is_there_lets_all_of_it_be_deleted() {
        let folder = folder();
        let mut writer = FileWriter::open(folder.path(), SIZE).unwrap();
        let key = |number: usize| format!("key{number:05}");
        commit(&mut writer, &Write::Set((0..20_000).map(|number| (key(number), vec![0; 500])).collect())).unwrap();
        drop(writer);
        let mut writer = FileWriter::open(folder.path(), 1 << 20).unwrap();
        assert!(commit(&mut writer, &set("more", &[0; 60_000])).is_err());
        for number in (0..100).map(|number| number * 7) {
            assert_eq!(commit(&mut writer, &Write::Delete(vec![key(number)])), Ok(Written::Done), "{number}");
        }
        assert_eq!(commit(&mut writer, &Write::Delete((0..20_000).map(key).collect())), Ok(Written::Done));
        drop(writer);
        assert_eq!(FileReader::open(folder.path()).unwrap().keys(None).unwrap(), (vec![], None));
    }

    #[test]
    fn a_file_that_was_replaced_is_not_written() {
        let folder = folder();
        let path = folder.path().join("store");
        let mut writer = FileWriter::open(&path, SIZE).unwrap();
        commit(&mut writer, &set("k", b"1")).unwrap();
        assert_eq!(writer.is_in_place(), Ok(()));
        let away = folder.path().join("away");
        fs::rename(&path, &away).unwrap();
        assert!(writer.is_in_place().unwrap_err().contains("replaced, cut or moved away"));
        fs::create_dir(&path).unwrap();
        fs::copy(away.join(DATA), path.join(DATA)).unwrap();
        assert!(writer.is_in_place().is_err());
        fs::remove_dir_all(&path).unwrap();
        fs::rename(&away, &path).unwrap();
        assert_eq!(writer.is_in_place(), Ok(()));
        File::options().write(true).open(path.join(DATA)).unwrap().set_len(8192).unwrap();
        assert!(writer.is_in_place().is_err());
    }

    #[test]
    fn a_store_has_one_writer_and_a_note_that_is_whole() {
        if let Some(folder) = std::env::var_os(CHILD) {
            let error = FileWriter::open(Path::new(&folder), SIZE).unwrap_err();
            println!("{error}");
            return;
        }
        let folder = folder();
        let mut writer = FileWriter::open(folder.path(), SIZE).unwrap();
        commit(&mut writer, &set("k", b"1")).unwrap();
        let child = child("a_store_has_one_writer_and_a_note_that_is_whole", folder.path());
        let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(said.contains("is used by another cluster"), "{said}");
        drop(writer);
        // As if its process had been killed before there was one.
        fs::remove_file(folder.path().join(MARKER)).unwrap();
        drop(FileWriter::open(folder.path(), SIZE).unwrap());
        assert_eq!(FileReader::open(folder.path()).unwrap().get("k").unwrap(), Some(b"1".to_vec()));
        fs::write(folder.path().join(MARKER), "2\n").unwrap();
        assert!(FileWriter::open(folder.path(), SIZE).unwrap_err().to_string().contains("name another folder"));
    }

    const CHILD: &str = "WASMCLUSTER_TEST_STORE";

    /// This test binary again, running `test` as a child that finds the store's folder in a variable.
    fn child(test: &str, folder: &Path) -> std::process::Child {
        let name = format!("keyvalue::file::tests::{test}");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &name, "--nocapture"]).env(CHILD, folder).stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    /// It is killed at whatever moment of a commit, and what it has told is there.
    #[test]
    fn a_writer_that_is_killed_loses_nothing_that_it_has_answered() {
        if let Some(folder) = std::env::var_os(CHILD) {
            let mut writer = FileWriter::open(Path::new(&folder), SIZE).unwrap();
            println!("open");
            loop {
                let step = [
                    Write::Increment { key: "n".into(), by: 1 },
                    // What grows the tree, and what gives pages back.
                    set(&format!("key{}", fastrand::u16(0..500)), &vec![b'x'; fastrand::usize(0..5000)]),
                    Write::Delete(vec![format!("key{}", fastrand::u16(0..500))]),
                ];
                let written = writer.commit(&step.iter().collect::<Vec<_>>()).unwrap();
                println!("{:?}", written[0]);
            }
        }
        let folder = folder();
        let mut acknowledged = 0;
        for _ in 0..20 {
            let mut child = child("a_writer_that_is_killed_loses_nothing_that_it_has_answered", folder.path());
            let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
            while lines.next().is_some_and(|line| line.unwrap() != "open") {}
            let goes_on = fastrand::usize(0..40);
            let mut told = Vec::new();
            for line in lines.by_ref().take(goes_on) {
                told.push(line.unwrap());
            }
            child.kill().unwrap();
            child.wait().unwrap();
            told.extend(lines.map_while(Result::ok));
            let number = |line: &String| line.strip_prefix("Ok(Sum(")?.strip_suffix("))")?.parse::<i64>().ok();
            acknowledged = told.iter().filter_map(number).max().unwrap_or(acknowledged);
            let writer = FileWriter::open(folder.path(), SIZE).unwrap();
            drop(writer);
            let found: i64 =
                String::from_utf8(FileReader::open(folder.path()).unwrap().get("n").unwrap().unwrap_or(b"0".into()))
                    .unwrap()
                    .parse()
                    .unwrap();
            assert!(found == acknowledged || found == acknowledged + 1, "{found} and {acknowledged}");
            acknowledged = found;
        }
        assert!(acknowledged > 20);
    }

    #[test]
    fn what_a_reader_that_was_killed_has_left_is_cleared() {
        if let Some(folder) = std::env::var_os(CHILD) {
            let reader = FileReader::open(Path::new(&folder)).unwrap();
            let _snapshot = reader.snapshot().unwrap();
            println!("reading");
            loop {
                std::thread::park();
            }
        }
        let folder = folder();
        let mut writer = FileWriter::open(folder.path(), SIZE).unwrap();
        commit(&mut writer, &set("k", b"v")).unwrap();
        let mut child = child("what_a_reader_that_was_killed_has_left_is_cleared", folder.path());
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        while lines.next().is_some_and(|line| line.unwrap() != "reading") {}
        assert_eq!(writer.clear_stale_readers().unwrap(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(writer.clear_stale_readers().unwrap(), 1);
    }

    #[test]
    fn a_file_that_was_cut_is_refused_or_has_everything() {
        let folder = folder();
        let mut writer = FileWriter::open(folder.path(), SIZE).unwrap();
        let value = |number: usize| vec![number as u8; 1500];
        for number in 0..200 {
            commit(&mut writer, &set(&format!("{number:03}"), &value(number))).unwrap();
        }
        drop(writer);
        let whole = fs::read(folder.path().join(DATA)).unwrap();
        let page = 4096;
        let mut refused = 0;
        for length in (0..=whole.len()).step_by(8 * page).chain([1, 100, page - 1, page + 50, 2 * page - 1]) {
            fs::write(folder.path().join(DATA), &whole[..length]).unwrap();
            match FileWriter::open(folder.path(), SIZE) {
                Ok(writer) => {
                    drop(writer);
                    let reader = FileReader::open(folder.path()).unwrap();
                    for number in 0..200 {
                        assert_eq!(reader.get(&format!("{number:03}")).unwrap(), Some(value(number)), "{length}");
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        error.contains("is damaged") && error.contains("move the folder away"),
                        "{length}: {error}"
                    );
                    assert!(FileReader::open(folder.path()).is_err());
                    refused += 1;
                }
            }
        }
        assert!(refused > 5);
        fs::remove_file(folder.path().join(DATA)).unwrap();
        assert!(FileWriter::open(folder.path(), SIZE).unwrap_err().to_string().contains("is damaged"));
        assert!(matches!(FileReader::open(&folder.path().join("none")), Err(OpenError::Absent(_))));
    }
}
