//! What the log says of a guest that did not end well: why first, then the guest's own functions.

use std::fmt::Write;

use wasmtime::{FrameInfo, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

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

/// As [`describe`] says it, of an error that several have to be told of.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Described(pub(super) String);

/// How a guest ended, as the end of a sentence about it: `exited with code 1`, or `trapped: …`.
pub(super) fn describe(error: &wasmtime::Error) -> String {
    if let Some(Described(text)) = error.downcast_ref() {
        return text.clone();
    }
    let mut text = match (error.downcast_ref::<I32Exit>(), error.downcast_ref::<Trap>()) {
        (Some(I32Exit(code)), _) => format!("exited with code {code}"),
        (None, Some(trap)) => format!("trapped: {trap}"),
        (None, None) => format!("trapped: {}", error.root_cause()),
    };
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    let names: Vec<String> = frames.iter().map(name).collect();
    for (number, frame) in (machinery(&names)..frames.len()).enumerate() {
        // A String takes all that is written to it.
        let _ = write!(text, "\n{number}: {} (at {:#x})", names[frame], frames[frame].module_offset().unwrap_or(0));
    }
    text
}

/// How many frames, from the innermost on, are machinery. None if all are: then something else is called as it is.
fn machinery(names: &[String]) -> usize {
    let is_machinery = |name: &String| {
        MACHINERY.iter().any(|known| if known.ends_with("::") { name.starts_with(known) } else { name == known })
    };
    names.iter().position(|name| !is_machinery(name)).unwrap_or(0)
}

fn name(frame: &FrameInfo) -> String {
    match frame.func_name() {
        Some(name) => readable(name),
        None => format!("function {}", frame.func_index()),
    }
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
    fn frames_begin_with_the_function_that_panicked() {
        let check = |names: &[&str], expected| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            assert_eq!(machinery(&names), expected, "{names:?}");
        };
        check(&["abort", "std::process::abort", "rust_panic", "core::panicking::panic_fmt", "app::work", "abort"], 4);
        check(&["exit_exit", "_Exit", "exit", "std::sys::exit::exit", "std::process::exit", "app::stop"], 5);
        check(&["app::work", "core::panicking::panic_fmt"], 0);
        check(&["abort"], 0);
        check(&[], 0);
    }
}
