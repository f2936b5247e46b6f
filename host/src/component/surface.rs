//! What a file is, read from its outermost layer before anything is compiled: a component or not, which HTTP handler
//! it exports, and whether it imports only what a worker provides.

#[cfg(test)]
mod fuzz;

use crate::wire::version::WasiHttp;
use serde::Serialize;
use wasmparser::{CanonicalFunction, Parser, Payload};

/// What a component of this version may import. Concurrency, which 0.3 is about, is off in the engine of a 0.2 component.
pub(crate) fn provided(http: WasiHttp) -> impl Iterator<Item = &'static Package> {
    PROVIDED.iter().filter(move |package| http == WasiHttp::V0_3 || package.version != "0.3")
}

fn provides(http: WasiHttp, import: &str) -> bool {
    provided(http).any(|package| package.interface(import).is_some_and(|it| package.interfaces.contains(&it)))
}

/// A package of which a worker provides interfaces.
pub(crate) struct Package {
    pub(crate) name: &'static str,
    /// Major and minor; or all of a pre-release's.
    pub(crate) version: &'static str,
    pub(crate) interfaces: &'static [&'static str],
}

const fn package(name: &'static str, version: &'static str, interfaces: &'static [&'static str]) -> Package {
    Package { name, version, interfaces }
}

impl Package {
    /// The `poll` of an import such as `wasi:io/poll@0.2.6`, if that is the package and it has a version like this one.
    fn interface<'a>(&self, import: &'a str) -> Option<&'a str> {
        let (interface, version) = import.strip_prefix(self.name)?.strip_prefix('/')?.split_once('@')?;
        if version == self.version {
            return Some(interface);
        }
        let patch = version.strip_prefix(self.version)?.strip_prefix('.')?;
        // A pre-release is another interface under the same number.
        (!patch.contains('-')).then_some(interface)
    }
}

/// What a worker provides: all that the linker of `worker/guest/linker.rs` defines, where a test compares the two.
#[rustfmt::skip]
const PROVIDED: &[Package] = &[
    package("wasi:cli", "0.2", &[
        "environment", "exit", "stderr", "stdin", "stdout", "terminal-input", "terminal-output", "terminal-stderr",
        "terminal-stdin", "terminal-stdout",
    ]),
    package("wasi:cli", "0.3", &[
        "environment", "exit", "stderr", "stdin", "stdout", "terminal-input", "terminal-output", "terminal-stderr",
        "terminal-stdin", "terminal-stdout", "types",
    ]),
    package("wasi:clocks", "0.2", &["monotonic-clock", "wall-clock"]),
    package("wasi:clocks", "0.3", &["monotonic-clock", "system-clock", "types"]),
    package("wasi:config", "0.2.0-rc.1", &["store"]),
    package("wasi:config", "0.2.0-draft", &["runtime", "store"]),
    package("wasi:config", "0.2.0-draft-2024-09-27", &["runtime", "store"]),
    package("wasi:filesystem", "0.2", &["preopens", "types"]),
    package("wasi:filesystem", "0.3", &["preopens", "types"]),
    package("wasi:http", "0.2", &["outgoing-handler", "types"]),
    package("wasi:http", "0.3", &["client", "types"]),
    package("wasi:io", "0.2", &["error", "poll", "streams"]),
    package("wasi:keyvalue", "0.2.0-draft", &["atomics", "batch", "store"]),
    package("wasi:keyvalue", "0.2.0-draft2", &["atomics", "batch", "store"]),
    package("wasi:otel", "0.2.0-rc.2", &["logs", "metrics", "tracing", "types"]),
    package("wasi:random", "0.2", &["insecure", "insecure-seed", "random"]),
    package("wasi:random", "0.3", &["insecure", "insecure-seed", "random"]),
    package("wasi:sockets", "0.2", &[
        "instance-network", "ip-name-lookup", "network", "tcp", "tcp-create-socket", "udp", "udp-create-socket",
    ]),
    package("wasi:sockets", "0.3", &["ip-name-lookup", "types"]),
    package("wasmcluster:worker", "0.1", &["identity", "metrics"]),
    package("wasmcluster:worker", "0.2", &["websocket"]),
    package("wasmcluster:worker", "0.3", &["websocket"]),
];

/// The export that is called before anything else, once, by the name that Wizer gave it.
pub(super) const INITIALIZER: &str = "wizer-initialize";

/// Why a file cannot be served.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unservable {
    #[error("the file is empty")]
    Empty,
    #[error("it is neither a WebAssembly component nor the text form of one")]
    NotWasm,
    #[error("it is not valid WebAssembly text: {0}")]
    InvalidText(String),
    #[error(
        "it is a core module, and only components can be served. Build the component directly with \
         `cargo build --target wasm32-wasip2`, or wrap the module with `wasm-tools component new`"
    )]
    CoreModule,
    #[error("it is precompiled native code; pass the component it was made from")]
    Precompiled,
    #[error(
        "it is a component, but exports no HTTP handler (neither wasi:http/incoming-handler@0.2 nor \
         wasi:http/handler@0.3){}. Build it for the world wasi:http/proxy (0.2) or wasi:http/service (0.3)",
        exported(.0)
    )]
    NoHandler(Vec<String>),
    #[error(
        "it imports {0}, the handler that middleware passes requests on to. Compose it with a handler first: `wac plug \
         MIDDLEWARE --plug HANDLER -o app.wasm`"
    )]
    Middleware(String),
    #[error("{}", unknown(.0, *.1))]
    UnknownImports(Vec<String>, WasiHttp),
    #[error("one of its imports, or its handler, does not have the expected type: {0}")]
    Unfit(String),
    #[error("it is not a valid component: {0}")]
    Invalid(String),
}

fn exported(names: &[String]) -> String {
    match names {
        [] => "; it exports nothing".into(),
        names => format!("; it exports {}", names.join(", ")),
    }
}

/// Names `imports`, which are not provided, and beside them what is: the other interfaces of their packages, or else
/// all packages.
fn unknown(imports: &[String], http: WasiHttp) -> String {
    let is_of = |import: &String, package: &Package| package.interface(import).is_some();
    let mut text = format!("it imports {}, which wasmcluster does not provide and no flag grants", imports.join(", "));
    let near = provided(http).filter(|package| imports.iter().any(|import| is_of(import, package)));
    for Package { name, version, interfaces } in near {
        text.push_str(&format!(". Of {name}@{version} it provides {}", interfaces.join(", ")));
    }
    if imports.iter().any(|import| !provided(http).any(|package| is_of(import, package))) {
        // Of drafts, those who have one know.
        let packages = provided(http).filter(|it| !it.version.contains("draft"));
        let packages: Vec<String> = packages.map(|it| format!("{}@{}", it.name, it.version)).collect();
        text.push_str(&format!(". A component for wasi:http@{http} may import {}", packages.join(", ")));
    }
    text
}

/// The outermost imports and exports of a component, and what else must be known before it runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Surface {
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    /// Some part of it can hold back calls (`backpressure.inc`), and nobody could tell that an instance does.
    pub(crate) can_hold_back: bool,
    /// It makes resources of its own, of which it keeps numbers.
    pub(crate) makes_resources: bool,
    /// A module of it has a start function.
    pub(crate) has_start: bool,
}

impl Surface {
    /// Reads the surface of a component in binary form; nested components are passed over.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Unservable> {
        if Parser::is_core_wasm(bytes) {
            return Err(Unservable::CoreModule);
        }
        if !Parser::is_component(bytes) {
            return Err(Unservable::NotWasm);
        }
        Self::parse(bytes).map_err(|error| Unservable::Invalid(error.to_string()))
    }

    fn parse(bytes: &[u8]) -> Result<Self, wasmparser::BinaryReaderError> {
        let mut surface = Self::default();
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentCanonicalSection(section) => {
                    for function in section {
                        let function = function?;
                        surface.can_hold_back |= matches!(function, CanonicalFunction::BackpressureInc);
                        surface.makes_resources |= matches!(function, CanonicalFunction::ResourceNew { .. });
                    }
                }
                Payload::StartSection { .. } => surface.has_start = true,
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        surface.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        surface.exports.push(export?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(surface)
    }

    /// Whether the component does something before its first request that can be done when it is compiled.
    pub(crate) fn has_initializer(&self) -> bool {
        self.has_start || self.exports_initializer()
    }

    pub(super) fn exports_initializer(&self) -> bool {
        self.exports.iter().any(|name| name == INITIALIZER)
    }

    /// The handler that the component exports.
    pub(crate) fn exported_handler(&self) -> Result<WasiHttp, Unservable> {
        let exports = |prefix: &str| self.exports.iter().any(|name| name.starts_with(prefix));
        if exports("wasi:http/handler@0.3.") {
            Ok(WasiHttp::V0_3)
        } else if exports("wasi:http/incoming-handler@0.2.") {
            Ok(WasiHttp::V0_2)
        } else {
            Err(Unservable::NoHandler(self.exports.clone()))
        }
    }

    /// The same, if the component imports nothing that is not provided, by the names.
    pub(crate) fn handler(&self) -> Result<WasiHttp, Unservable> {
        let http = self.exported_handler()?;
        let is_handler = |import: &&String| {
            import.starts_with("wasi:http/handler@") || import.starts_with("wasi:http/incoming-handler@")
        };
        if let Some(import) = self.imports.iter().find(is_handler) {
            return Err(Unservable::Middleware(import.clone()));
        }
        let unknown: Vec<String> = self.imports.iter().filter(|name| !provides(http, name)).cloned().collect();
        if unknown.is_empty() { Ok(http) } else { Err(Unservable::UnknownImports(unknown, http)) }
    }
}

/// What a guest needs before an import such as `wasi:http/outgoing-handler@0.2.6` is of use to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grant {
    /// Nothing: every guest has it.
    Given,
    /// One of these flags; without them it is there and says no.
    Flags(&'static [&'static str]),
    /// It is there and says no; no flag changes that.
    Denied,
    /// It is not there.
    Unknown,
}

/// What `import` needs in a component for `http`.
pub(crate) fn grant(import: &str, http: WasiHttp) -> Grant {
    let interface = import.split_once('@').map_or(import, |(interface, _)| interface);
    match interface {
        _ if !provides(http, import) => Grant::Unknown,
        "wasi:http/outgoing-handler" | "wasi:http/client" => Grant::Flags(&["--allow-host"]),
        "wasi:filesystem/preopens" => Grant::Flags(&["--dir"]),
        "wasi:cli/environment" => Grant::Flags(&["--env", "--env-inherit"]),
        "wasi:sockets/udp" | "wasi:sockets/udp-create-socket" => Grant::Denied,
        _ if interface.starts_with("wasi:sockets/") => Grant::Flags(&["--allow-connect"]),
        _ => Grant::Given,
    }
}

/// The binary form of a component given in binary or text form.
pub(crate) fn to_binary(bytes: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, Unservable> {
    if bytes.is_empty() {
        return Err(Unservable::Empty);
    }
    if wasmtime::Engine::detect_precompiled(bytes).is_some() {
        return Err(Unservable::Precompiled);
    }
    if !bytes.starts_with(b"\0asm") && !looks_like_text(bytes) {
        return Err(Unservable::NotWasm);
    }
    wat::parse_bytes(bytes).map_err(|error| Unservable::InvalidText(in_one_line(&error)))
}

/// Whether it begins as the text form of WebAssembly does: with a parenthesis or a comment. For anything else, what the
/// parser says of it helps nobody.
fn looks_like_text(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    !bytes.contains(&0) && (text.starts_with(b"(") || text.starts_with(b";;"))
}

/// What is wrong and where. The rest of the parser's message is a picture of the place.
fn in_one_line(error: &wat::Error) -> String {
    let message = error.to_string();
    let mut lines = message.lines().map(str::trim);
    let what = lines.next().unwrap_or_default();
    let place = lines.next().and_then(|line| line.strip_prefix("--> <anon>:")?.split_once(':'));
    place.map_or_else(|| what.to_owned(), |(line, column)| format!("line {line}, column {column}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<WasiHttp, &str>) {
        let outcome = to_binary(text.as_bytes()).and_then(|bytes| Surface::read(&bytes)?.handler());
        match (outcome, expected) {
            (Ok(http), Ok(wanted)) => assert_eq!(http, wanted, "{text}"),
            (Err(refusal), Err(wanted)) => {
                assert!(refusal.to_string().contains(wanted), "{text}: {refusal}");
            }
            (outcome, expected) => panic!("{text}: {outcome:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn files_are_told_apart() {
        let v2 = r#"(instance $i) (export "wasi:http/incoming-handler@0.2.3" (instance $i))"#;
        let v3 = r#"(instance $i) (export "wasi:http/handler@0.3.0" (instance $i))"#;
        check(&format!("(component {v2})"), Ok(WasiHttp::V0_2));
        check(&format!("(component {v3})"), Ok(WasiHttp::V0_3));
        check(&format!("(component (component) (core module) {v2})"), Ok(WasiHttp::V0_2));
        check("(module)", Err("core module"));
        check("(component)", Err("exports nothing"));
        check(r#"(component (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#, Err("wasi:cli/run@0.2.0"));
        // What is inside a nested component is its own affair.
        check(&format!("(component (component {v2}))"), Err("exports nothing"));
        check("hello", Err("it is neither a WebAssembly component nor the text form of one"));
        check("", Err("the file is empty"));
        check("(component", Err("it is not valid WebAssembly text: line 1, column 11: expected `)`"));
        check(";; a comment\n(component (nonsense))", Err("line 2, column 13: "));
        check("\0\0\0", Err("it is neither a WebAssembly component"));
    }

    #[test]
    fn what_holds_back_calls_is_found_wherever_it_is() {
        let check = |text: &str, expected| {
            let surface = Surface::read(&to_binary(text.as_bytes()).unwrap()).unwrap();
            assert_eq!(surface.can_hold_back, expected, "{text}");
        };
        check("(component (core module))", false);
        check("(component (core func (canon backpressure.dec)))", false);
        check("(component (core func (canon backpressure.inc)))", true);
        check("(component (component (core func (canon backpressure.inc))))", true);
    }

    #[test]
    fn what_is_done_before_the_first_request_is_found() {
        let check = |text: &str, expected| {
            let surface = Surface::read(&to_binary(text.as_bytes()).unwrap()).unwrap();
            assert_eq!(surface.has_initializer(), expected, "{text}");
        };
        check("(component (core module (func)))", false);
        check("(component (core module (func $f) (start $f)))", true);
        check("(component (component (core module (func $f) (start $f))))", true);
        let exporting = |name: &str| {
            format!(
                r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
                (func $f (canon lift (core func $i "f"))) (export "{name}" (func $f)))"#
            )
        };
        check(&exporting("wizer-initialize"), true);
        check(&exporting("initialize"), false);
    }

    #[test]
    fn imports_are_checked() {
        let check_import = |name: &str, expected| {
            let text = format!(
                r#"(component (import "{name}" (instance)) (instance $i) (export "wasi:http/incoming-handler@0.2.0" (instance $i)))"#
            );
            check(&text, expected);
        };
        check_import("wasi:io/poll@0.2.12", Ok(WasiHttp::V0_2));
        check_import("wasmcluster:worker/identity@0.1.0", Ok(WasiHttp::V0_2));
        check_import("acme:db/query@1.0.0", Err("imports acme:db/query@1.0.0"));
        check_import("wasi:io/poll@0.20.0", Err("imports wasi:io/poll@0.20.0"));
        check_import("wasi:keyvalue/store@0.2.0-draft", Ok(WasiHttp::V0_2));
        check_import("wasi:keyvalue/store@0.2.0-draft3", Err("imports wasi:keyvalue/store@0.2.0-draft3"));
        check_import("wasi:http/types@0.3.0-rc-2025-09-16", Err("no flag grants"));
        check_import("wasi:io/polls@0.2.12", Err("Of wasi:io@0.2 it provides error, poll, streams"));
        check_import(
            "wasi:random/random@0.3.0",
            Err("may import wasi:cli@0.2, wasi:clocks@0.2, wasi:config@0.2.0-rc.1, wasi:filesystem@0.2"),
        );
        check_import("wasi:http/incoming-handler@0.2.3", Err("Compose it with a handler first"));
        check_import("wasi:http/handler@0.3.0", Err("Compose it with a handler first"));
        check_import("plain", Err("imports plain, which"));
    }

    #[test]
    fn what_must_be_granted_is_known() {
        for (import, needed) in [
            ("wasi:io/poll@0.2.6", Grant::Given),
            ("wasi:http/outgoing-handler@0.2.3", Grant::Flags(&["--allow-host"])),
            ("wasi:http/client@0.3.0", Grant::Flags(&["--allow-host"])),
            ("wasi:filesystem/preopens@0.2.3", Grant::Flags(&["--dir"])),
            ("wasi:sockets/tcp@0.2.3", Grant::Flags(&["--allow-connect"])),
            ("wasi:sockets/ip-name-lookup@0.3.0", Grant::Flags(&["--allow-connect"])),
            ("wasi:sockets/udp@0.2.3", Grant::Denied),
            ("acme:db/query@1.0.0", Grant::Unknown),
            ("wasi:http/handler@0.3.0", Grant::Unknown),
        ] {
            assert_eq!(grant(import, WasiHttp::V0_3), needed, "{import}");
        }
    }

    #[test]
    fn broken_binaries_are_refused() {
        let whole = wat::parse_str("(component (core module (func)))").unwrap();
        for length in 8..whole.len() {
            let outcome = Surface::read(&whole[..length]).and_then(|surface| surface.handler());
            assert!(outcome.is_err(), "cut at {length}");
        }
    }
}
