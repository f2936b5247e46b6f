//! What fuzz targets have in common. A target is a test in the module `fuzz` beside the code that it feeds, so nothing
//! has to be public for it: it says what holds for any input.
//!
//! As a test, it gets every file of its corpus, tests/corpora/NAME, and some inputs made of these, the same for the same
//! seed. Under `make fuzz`, libFuzzer looks for inputs that reach new code for as long as one likes. Either way an input
//! that fails is kept in a file, and `FUZZ_INPUT` runs it again.

#[cfg(feature = "fuzz")]
mod libfuzzer;
mod mutate;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{env, fs, thread};

use mutate::Mutator;

/// Inputs that a test makes, unless `FUZZ_RUNS` says otherwise.
const RUNS: usize = 10_000;

/// Runs `check`, which panics at an input that shows a mistake, on the files in tests/corpora/`corpus` and what is made
/// of them.
#[expect(clippy::print_stdout, reason = "shown when the test fails")]
pub(crate) fn bytes(corpus: &str, check: impl Fn(&[u8]) + Send + Sync + 'static) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace");
    let seeds = project.join("tests/corpora").join(corpus);
    let findings = target_folder().join("fuzz").join(corpus);
    if let Some(path) = env::var_os("FUZZ_INPUT") {
        return check(&fs::read(path).expect("the input is readable"));
    }
    #[cfg(feature = "fuzz")]
    if let Some(seconds) = variable("FUZZ_SECONDS") {
        libfuzzer::run(&seeds, &findings, seconds, Box::new(check));
    }
    let corpus = read_all(&seeds);
    for (path, input) in &corpus {
        attempt(&check, input, || path.clone());
    }
    let seed = variable("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{} files, and inputs made of them with FUZZ_SEED={seed}", corpus.len());
    let mut mutator = Mutator::new(corpus.into_iter().map(|(_, input)| input).collect(), seed);
    for _ in 0..variable("FUZZ_RUNS").unwrap_or(RUNS) {
        let input = mutator.make();
        attempt(&check, &input, || keep(&findings, &input));
    }
}

/// The same for what reads text.
pub(crate) fn text(corpus: &str, check: impl Fn(&str) + Send + Sync + 'static) {
    bytes(corpus, move |input| {
        if let Ok(text) = std::str::from_utf8(input) {
            check(text);
        }
    });
}

/// Where cargo builds: this runs from `deps` in a profile's folder there.
fn target_folder() -> PathBuf {
    let program = env::current_exe().expect("a program knows where it is");
    program.ancestors().nth(3).expect("tests are in target/PROFILE/deps").to_owned()
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// All files below `folder`, in the order of their names.
fn read_all(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder is readable").path()).collect();
    paths.sort();
    let read = |path: PathBuf| match path.is_dir() {
        true => read_all(&path),
        false => vec![(path.clone(), fs::read(path).expect("a file is readable"))],
    };
    paths.into_iter().flat_map(read).collect()
}

/// Panics with what to do about it if `check` does.
fn attempt(check: &impl Fn(&[u8]), input: &[u8], path: impl FnOnce() -> PathBuf) {
    if catch_unwind(AssertUnwindSafe(|| check(input))).is_err() {
        let (path, thread) = (path(), thread::current());
        // The harness names threads after tests.
        let test = thread.name().unwrap_or("fuzz::");
        panic!("fails on {0}; again with FUZZ_INPUT={0} cargo test -p wasmcluster --lib {test}", path.display());
    }
}

fn keep(folder: &Path, input: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = folder.join(format!("crash-{:016x}", hasher.finish()));
    fs::create_dir_all(folder).and_then(|()| fs::write(&path, input)).expect("the input can be kept");
    path
}
