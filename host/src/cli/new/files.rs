//! The files that `wasmcluster new` writes: a copy of `templates/`, of the SDK, and of what it needs. A test holds the
//! lists to what is on disk.

/// Files that belong together.
#[derive(Debug)]
pub(super) struct Part {
    /// Where they come from, in the repository.
    #[cfg(test)]
    from: &'static str,
    /// Where they go, in the project; empty or with a `/` at its end.
    to: &'static str,
    files: &'static [(&'static str, &'static str)],
}

impl Part {
    /// Paths in the project, and contents.
    pub(super) fn files(&self) -> impl Iterator<Item = (String, &'static str)> {
        self.files.iter().map(|(path, text)| (format!("{}{path}", self.to), *text))
    }
}

macro_rules! part {
    ($from:literal => $to:literal, [$($path:literal),* $(,)?]) => {
        Part {
            #[cfg(test)]
            from: $from,
            to: $to,
            files: &[$(($path, include_str!(concat!("../../../../", $from, "/", $path)))),*],
        }
    };
}

pub(super) const HELLO: Part = part!("templates/hello" => "", [".gitignore", "Cargo.toml", "README.md", "src/lib.rs"]);
pub(super) const STREAM: Part =
    part!("templates/stream" => "", [".gitignore", "Cargo.toml", "README.md", "src/lib.rs"]);

/// The SDK is in no registry: each project has its sources.
pub(super) const SDK: Part = part!("guest-sdk" => "wasmcluster-guest/", [
    "Cargo.toml",
    "macros/Cargo.toml",
    "macros/src/lib.rs",
    "src/body.rs",
    "src/error.rs",
    "src/incoming.rs",
    "src/lib.rs",
    "src/outgoing.rs",
    "src/reactor.rs",
    "src/response.rs",
    "src/time.rs",
    "src/worker.rs",
    "wit/worker.wit",
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
        for Part { from, files, .. } in [HELLO, STREAM, SDK] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(from);
            let mut expected = Vec::new();
            on_disk(&folder, "", &mut expected);
            expected.sort();
            let listed: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
            assert_eq!(listed, expected, "the list of {from}, which is in cli/new/files.rs");
        }
    }
}
