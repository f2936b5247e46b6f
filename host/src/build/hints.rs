//! What to use in a guest instead of a crate that a server has and a component cannot.

/// When such a crate is the reason that a build failed.
#[derive(PartialEq, Eq)]
enum When {
    /// It did not compile, as some of its features never do. Others may work.
    NotCompiled,
    /// It is there. It compiles, but no component can be made of it.
    Always,
}
use When::{Always, NotCompiled};

const TASKS: &str = "a guest has no threads, its sockets block (`std::net`), and the SDK runs its handler. Use the SDK's \
                     `time::sleep`, `time::timeout` and `fetch`. Of tokio, only the features sync, macros and io-util \
                     work, with default-features = false";
const FETCH: &str = "built for WebAssembly, it calls a browser's JavaScript. Send requests with the SDK's `fetch`: \
                     `fetch::get(\"https://…\").await?`, with `serve --allow-host https://…`";
const TLS: &str = "a guest needs no TLS library: the SDK's `fetch` takes https:// URLs, and the server does the TLS";

/// Who comes first is told: it is what the others are there for.
const HINTS: [(&str, When, &str); 9] = [
    ("reqwest", Always, FETCH),
    ("wasm-bindgen", Always, FETCH),
    ("tokio", NotCompiled, TASKS),
    ("async-io", NotCompiled, TASKS),
    ("mio", NotCompiled, TASKS),
    ("socket2", NotCompiled, TASKS),
    ("openssl-sys", NotCompiled, TLS),
    ("aws-lc-sys", NotCompiled, TLS),
    ("ring", NotCompiled, TLS),
];

/// What to do about a failed build, if that is known. `tree` has a package a line, its name first; `compiled` are names of
/// libraries.
pub(super) fn hint<'a>(tree: &str, compiled: impl Iterator<Item = &'a str>) -> Option<String> {
    let compiled: Vec<&str> = compiled.collect();
    let is_there = |package: &str| tree.lines().any(|line| line.split(' ').next() == Some(package));
    let is_compiled = |package: &str| compiled.iter().any(|library| library.replace('_', "-") == package);
    let (package, _, hint) =
        HINTS.iter().find(|(package, when, _)| is_there(package) && (*when == Always || !is_compiled(package)))?;
    Some(format!("`{package}` does not work in a guest: {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tree: &str, compiled: &[&str], expected: Option<&str>) {
        let hint = hint(tree, compiled.iter().copied());
        match expected {
            Some(expected) => assert!(hint.as_deref().is_some_and(|hint| hint.contains(expected)), "{hint:?}"),
            None => assert_eq!(hint, None),
        }
    }

    #[test]
    fn crates_that_cannot_work_are_named_with_what_does() {
        let tree = "app v0.1.0 (/app)\nbytes v1.0.0\ntokio v1.48.0\nbytes v1.0.0 (*)\n";
        check(tree, &["bytes"], Some("`tokio` does not work in a guest: a guest has no threads"));
        // The mistake is in the guest itself.
        check(tree, &["bytes", "tokio"], None);
        check("app v0.1.0 (/app)\ntokio-util v1.0.0\n", &[], None);
        let tree = "app v0.1.0 (/app)\njs-sys v1.0.0\nreqwest v1.0.0\nwasm-bindgen v1.0.0\n";
        check(
            tree,
            &["js_sys", "reqwest", "wasm_bindgen"],
            Some("`reqwest` does not work in a guest: built for WebAssembly"),
        );
        check("openssl-sys v0.9.0", &["openssl_sys"], None);
        check("openssl-sys v0.9.0", &[], Some("https://"));
    }
}
