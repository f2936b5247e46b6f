//! What the log says of a guest that did not end well: why first, then the guest's own functions.

use std::fmt::Write;

use wasmtime::component::ResourceTableError;
use wasmtime::{FrameInfo, FrameSymbol, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::wire::counter::Counter;
use crate::wire::stats::Stats;

/// What stands above the function that panicked or exited: the machinery by which it did.
const MACHINERY: [&str; 17] = [
    "abort",
    "exit",
    "_Exit",
    "exit_exit",
    "rust_panic",
    "__rust_abort",
    "__rust_start_panic",
    "rust_begin_unwind",
    "core::panicking::",
    "core::option::unwrap_failed",
    "core::option::expect_failed",
    "core::result::unwrap_failed",
    "std::panicking::",
    "std::process::",
    "std::sys::exit::",
    "std::sys::backtrace::__rust_end_short_backtrace",
    "std::sys::pal::wasi::helpers::abort_internal",
];

/// Where the source of Rust's own libraries is.
const LIBRARIES: [&str; 3] = ["/library/core/src/", "/library/alloc/src/", "/library/std/src/"];
/// Functions that are told of at most. Wasmtime keeps twenty frames, each of which may stand for several.
const MAX_CALLED: usize = 40;

/// As [`describe`] says it, of an error that several have to be told of.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Described(pub(crate) String, pub(crate) TrapKind);

/// Why a guest did not end well, in the words of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrapKind {
    /// A panic, an abort, a failed assertion: `unreachable` is executed.
    Unreachable,
    /// Of a memory, a table or an array.
    OutOfBounds,
    /// Its stack was exhausted.
    Stack,
    Exit,
    /// The host keeps too much for it.
    Limit,
    Other,
}

impl TrapKind {
    pub(crate) fn of(error: &wasmtime::Error) -> Self {
        if let Some(Described(_, kind)) = error.downcast_ref() {
            return *kind;
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::UnreachableCodeReached) => Self::Unreachable,
            Some(Trap::MemoryOutOfBounds | Trap::TableOutOfBounds | Trap::ArrayOutOfBounds) => Self::OutOfBounds,
            Some(Trap::StackOverflow) => Self::Stack,
            None if error.is::<I32Exit>() => Self::Exit,
            None if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) => Self::Limit,
            _ => Self::Other,
        }
    }

    pub(crate) fn counter(self, stats: &Stats) -> &Counter {
        match self {
            Self::Unreachable => &stats.traps_unreachable,
            Self::OutOfBounds => &stats.traps_out_of_bounds,
            Self::Stack => &stats.traps_stack,
            Self::Exit => &stats.traps_exit,
            Self::Limit => &stats.traps_limit,
            Self::Other => &stats.traps_other,
        }
    }
}

/// How a guest ended, as the end of a sentence about it: `exited with code 1`, or `trapped: …`.
pub(crate) fn describe(error: &wasmtime::Error) -> String {
    if let Some(Described(text, _)) = error.downcast_ref() {
        return text.clone();
    }
    let mut text = match (error.downcast_ref::<I32Exit>(), error.downcast_ref::<Trap>()) {
        (Some(I32Exit(code)), _) => format!("exited with code {code}"),
        // "wasm trap: …": that it is one, the sentence says.
        (None, Some(trap)) => format!("trapped: {}", trap.to_string().trim_start_matches("wasm trap: ")),
        (None, None) => format!("trapped: {}", error.root_cause()),
    };
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    let called: Vec<Called> = frames.iter().flat_map(Called::of).take(MAX_CALLED).collect();
    for (number, Called { name, place, .. }) in called[machinery(&called)..].iter().enumerate() {
        // A String takes all that is written to it.
        let _ = write!(text, "\n{number}: {name} (at {place})");
    }
    text
}

/// A function that had been called, and where it was: a line of its source if the component says that, or else an offset.
struct Called {
    name: String,
    place: String,
    /// In the source of Rust's own libraries.
    is_of_rust: bool,
}

impl Called {
    /// More than one if there are functions that the compiler has put into another, the innermost first.
    fn of(frame: &FrameInfo) -> Vec<Self> {
        let name = match frame.func_name() {
            Some(name) => readable(name),
            None => format!("function {}", frame.func_index()),
        };
        let of_source = |symbol: &FrameSymbol| {
            let file = symbol.file()?;
            Some(Self {
                name: symbol.name().map_or_else(|| name.clone(), readable),
                place: format!("{}:{}", short(file), symbol.line()?),
                is_of_rust: LIBRARIES.iter().any(|library| file.contains(library)),
            })
        };
        let mut lines: Vec<Self> = frame.symbols().iter().filter_map(of_source).collect();
        let Some(outermost) = lines.last_mut() else {
            let place = format!("{:#x}", frame.module_offset().unwrap_or(0));
            return vec![Self { name, place, is_of_rust: false }];
        };
        // Debug information of lines alone has names without their modules.
        outermost.name = name;
        lines
    }

    fn is_machinery(&self) -> bool {
        let is_known = |known: &&str| {
            if known.ends_with("::") { self.name.starts_with(*known) } else { self.name == **known }
        };
        self.is_of_rust || MACHINERY.iter().any(is_known)
    }
}

/// How many functions, from the innermost on, are machinery. None if all are: then something else is called as it is.
fn machinery(called: &[Called]) -> usize {
    called.iter().position(|called| !called.is_machinery()).unwrap_or(0)
}

/// The path of a file from the folder of its crate on, if it is laid out as crates are.
fn short(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    let source = parts.iter().rposition(|&part| part == "src").unwrap_or(0);
    parts[source.saturating_sub(1)..].join("/").replace(char::is_control, "?")
}

/// A name of Rust's as its author wrote it.
fn readable(name: &str) -> String {
    let name = rustc_demangle::demangle(name);
    // Without the hash at the end.
    let name = format!("{name:#}");
    // What the compiler calls its own, `__rustc::rust_panic`.
    let name = name.strip_prefix("__rustc::").unwrap_or(&name);
    // Without what a function is generic over, unless the name begins with it.
    let name = name.split_once("::<").map_or(name, |(name, _)| name);
    // Who wrote the component wrote its names, and a name is no line of the log.
    name.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_their_author_wrote_them() {
        for (name, expected) in [
            ("_ZN8misdeeds6answer17h95763d07a49e9d51E", "misdeeds::answer"),
            ("_RNvCs4jXKRR3tWO_7___rustc10rust_panic", "rust_panic"),
            ("wasi:http/incoming-handler@0.2.12#handle", "wasi:http/incoming-handler@0.2.12#handle"),
            ("abort", "abort"),
            ("a\nb", "a?b"),
        ] {
            assert_eq!(readable(name), expected);
        }
    }

    #[test]
    fn paths_begin_with_the_folder_of_their_crate() {
        for (path, expected) in [
            ("/home/me/shop/src/cart/price.rs", "shop/src/cart/price.rs"),
            ("/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library/core/src/option.rs", "core/src/option.rs"),
            ("src/lib.rs", "src/lib.rs"),
            ("handler.c", "handler.c"),
            ("/a\nb.c", "/a?b.c"),
            ("", ""),
        ] {
            assert_eq!(short(path), expected);
        }
    }

    #[test]
    fn frames_begin_with_the_function_that_panicked() {
        let check = |names: &[&str], expected| {
            let called = |name: &&str| {
                let (name, is_of_rust) = name.strip_suffix(" of Rust").map_or((*name, false), |name| (name, true));
                Called { name: name.into(), place: String::new(), is_of_rust }
            };
            assert_eq!(machinery(&names.iter().map(called).collect::<Vec<_>>()), expected, "{names:?}");
        };
        check(&["abort", "std::process::abort", "rust_panic", "core::panicking::panic_fmt", "app::work", "abort"], 4);
        check(&["exit_exit", "_Exit", "exit", "std::sys::exit::exit", "std::process::exit", "app::stop"], 5);
        check(&["app::work", "core::panicking::panic_fmt"], 0);
        check(&["abort", "<Option<u8>>::expect of Rust", "app::work"], 2);
        check(&["abort"], 0);
        check(&[], 0);
    }
}
