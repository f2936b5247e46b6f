//! The files that `wasmcluster new` writes: a copy of `templates/`, of the SDK, and of what it needs. A test holds the
//! lists to what is on disk.
//!
//! Templates are read by links in `host/`, so that a package of this crate has them. There a folder with a `Cargo.toml` would
//! be taken for another package and left out: hence `Cargo.toml.in`. For the same reason such a package is without the SDK's
//! sources, which projects then get from crates.io.

/// At the end of the name of a file that is not yet what its name says.
const TO_FILL_IN: &str = ".in";

/// Files that belong together.
#[derive(Debug)]
pub(super) struct Part {
    /// Where they come from, in `host/`.
    #[cfg(test)]
    from: &'static str,
    /// Where they go, in the project; empty or with a `/` at its end.
    to: &'static str,
    files: &'static [(&'static str, &'static str)],
}

impl Part {
    /// Paths in the project, and contents.
    pub(super) fn files(&self) -> impl Iterator<Item = (String, &'static str)> {
        self.files
            .iter()
            .map(|(path, text)| (format!("{}{}", self.to, path.strip_suffix(TO_FILL_IN).unwrap_or(path)), *text))
    }
}

macro_rules! part {
    ($from:literal => $to:literal, [$($path:literal),* $(,)?]) => {
        Part {
            #[cfg(test)]
            from: $from,
            to: $to,
            files: &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $from, "/", $path)))),*],
        }
    };
}

pub(super) const HELLO: Part =
    part!("templates/hello" => "", [".gitignore", "Cargo.toml.in", "README.md", "src/lib.rs"]);
pub(super) const STREAM: Part =
    part!("templates/stream" => "", [".gitignore", "Cargo.toml.in", "README.md", "src/lib.rs"]);

pub(super) const AXUM: Part = part!("templates/axum" => "", [".gitignore", "Cargo.toml.in", "README.md", "src/lib.rs"]);
pub(super) const API: Part = part!("templates/api" => "", [".gitignore", "Cargo.toml.in", "README.md", "src/lib.rs"]);
pub(super) const JS: Part = part!("templates/js" => "", [
    ".gitignore",
    "README.md",
    "package.json",
    "src/handler.js",
    "src/main.js",
    "test/handler.test.js",
    "wasmcluster.toml",
]);
pub(super) const PYTHON: Part = part!("templates/python" => "", [
    ".gitignore",
    "README.md",
    "app.py",
    "build.sh",
    "handler.py",
    "requirements.txt",
    "test_handler.py",
    "wasmcluster.toml",
]);

/// The SDK, for projects that have its sources.
#[cfg(sdk_sources)]
pub(super) const SDK: Part = part!("../guest-sdk" => "wasmcluster-guest/", [
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "guests.md",
    "macros/Cargo.toml",
    "macros/LICENSE",
    "macros/README.md",
    "macros/src/function.rs",
    "macros/src/lib.rs",
    "src/body.rs",
    "src/body/foreign.rs",
    "src/body/read.rs",
    "src/body/writer.rs",
    "src/client.rs",
    "src/config.rs",
    "src/error.rs",
    "src/extract.rs",
    "src/fetch.rs",
    "src/fetch/hop_by_hop.rs",
    "src/fetch/redirect.rs",
    "src/files.rs",
    "src/head.rs",
    "src/host.rs",
    "src/host/bindings.rs",
    "src/host/cluster.rs",
    "src/host/code.rs",
    "src/host/config_bindings.rs",
        "src/host/init_bindings.rs",
    "src/host/keyvalue_bindings.rs",
    "src/host/native.rs",
    "src/host/native/stores.rs",
    "src/host/native/websocket.rs",
    "src/host/otel.rs",
    "src/host/otel_bindings.rs",
    "src/host/p2.rs",
    "src/host/p2/bindings.rs",
    "src/host/p2/incoming.rs",
    "src/host/p2/outgoing.rs",
    "src/host/p2/reactor.rs",
    "src/host/p2/websocket.rs",
    "src/host/p3.rs",
    "src/host/p3/bindings.rs",
    "src/host/p3/websocket.rs",
    "src/host/stores.rs",
    "src/kv.rs",
    "src/lib.rs",
    "src/log.rs",
    "src/metrics.rs",
    "src/random.rs",
    "src/response.rs",
    "src/sse.rs",
    "src/testing.rs",
    "src/testing/answer.rs",
    "src/testing/websocket.rs",
    "src/time.rs",
    "src/trace.rs",
    "src/trace/fields.rs",
    "src/trace/layer.rs",
    "src/websocket.rs",
    "src/websocket/message.rs",
    "src/websocket/origin.rs",
    "src/websocket/socket.rs",
    "src/websocket/tests.rs",
    "src/worker.rs",
]);

/// What the compilers of other languages need to know of WASI.
pub(super) const WIT: Part = part!("guest-wit" => "wit/", [
    "README.md",
    "deps/cli/stdio.wit",
    "deps/clocks/monotonic-clock.wit",
    "deps/clocks/timezone.wit",
    "deps/clocks/wall-clock.wit",
    "deps/clocks/world.wit",
    "deps/http/handler.wit",
    "deps/http/proxy.wit",
    "deps/http/types.wit",
    "deps/io/error.wit",
    "deps/io/poll.wit",
    "deps/io/streams.wit",
    "deps/io/world.wit",
    "deps/random/insecure-seed.wit",
    "deps/random/insecure.wit",
    "deps/random/random.wit",
    "deps/random/world.wit",
    "world.wit",
]);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// All files below `folder`, as paths in it.
    fn on_disk(folder: &Path, below: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{below}{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                on_disk(&path, &format!("{name}/"), found);
            } else {
                found.push(name);
            }
        }
    }

    #[test]
    fn the_lists_are_what_is_on_disk() {
        for Part { from, files, .. } in [HELLO, STREAM, AXUM, API, JS, PYTHON, SDK, WIT] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(from);
            let mut expected = Vec::new();
            on_disk(&folder, "", &mut expected);
            expected.sort();
            let listed: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
            assert_eq!(listed, expected, "the list of {from}, which is in cli/new/files.rs");
        }
    }
}
