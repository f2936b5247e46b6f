//! Where things are: the binary under test, guests, fixtures, corpora.

use std::collections::BTreeMap;
use std::env::current_exe;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The folder of the test's executable, `deps`, is beside the binary that cargo built with it.
static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(binary) = std::env::var_os("WASMCLUSTER").filter(|it| !it.is_empty()) {
        return binary.into();
    }
    let test = current_exe().expect("the test knows its executable");
    let profile = test.parent().and_then(Path::parent).expect("it is in target/PROFILE/deps/");
    let binary = profile.join("wasmcluster");
    assert!(binary.exists(), "{} is missing: is the test a target of the package wasmcluster?", binary.display());
    binary
});

/// The binary under test.
///
/// Cargo builds it with the test targets of the package `wasmcluster`, and tells only these where it is. The harness is
/// compiled before, for all of them, and so finds it at run time: test executables are in `target/PROFILE/deps/`, the
/// binary is in `target/PROFILE/`. That holds wherever `CARGO_TARGET_DIR` leads, and for an executable that is run by
/// hand. `WASMCLUSTER` names another, such as an optimised one that is to be measured.
pub fn binary() -> &'static Path {
    &BINARY
}

/// The target folder that the test was built in.
pub(crate) fn target_folder() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| current_exe().expect("the test knows its executable"));
    FOLDER.ancestors().nth(3).expect("it is in target/PROFILE/deps/")
}

/// The component of a guest crate in examples/ or tests/guests/, by the name of its package. Panics if `make guests` has
/// not built it.
pub fn guest(package: &str) -> PathBuf {
    guest_if_built(package).unwrap_or_else(|| panic!("the component of {package} is missing: run `make guests`"))
}

/// The component of a guest whose tools not everybody has, if it is there. The test says so and passes if it is not.
pub fn guest_if_built(package: &str) -> Option<PathBuf> {
    let path = target_folder().join("wasm32-wasip2/guest").join(format!("{}.wasm", package.replace('-', "_")));
    path.exists().then_some(path)
}

/// A file in tests/fixtures/: components in text form.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("it is in tests/harness/").into()
}

/// What clients send in each file of tests/corpora/smuggling/`name`/, by the file's name.
pub fn corpus(name: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = root().join("tests/corpora/smuggling").join(name);
    let files = fs::read_dir(folder).expect("there is such a corpus").map(|entry| entry.expect("it is read").path());
    let name = |path: &Path| path.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8").to_owned();
    files.map(|path| (name(&path), fs::read(&path).expect("it is read"))).collect()
}
