//! What `wasmcluster --version` says: a line that begins as the short one of `-V` does, with what the binary consists of behind
//! it. Scripts that split it by spaces find name and version where they are in both.

use std::sync::LazyLock;

use crate::component::engine::WASMTIME_VERSION;

/// Without the program's name, which clap puts before it. `build.rs` knows the rest.
pub(super) static LONG: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    let (commit, target) = (env!("WASMCLUSTER_COMMIT"), env!("WASMCLUSTER_TARGET"));
    let features = match env!("WASMCLUSTER_FEATURES") {
        "" => "none",
        features => features,
    };
    let build = env!("WASMCLUSTER_BUILD");
    format!(
        "{version} (wasmtime {WASMTIME_VERSION}, commit {commit}, target {target}, build: {build}, features: {features})"
    )
});
