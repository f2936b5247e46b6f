//! The engine of `make fuzz`: libFuzzer, which follows the coverage counters that scripts/fuzz has the compiler put into
//! this crate, and nowhere else.

use std::ffi::{CString, c_char, c_int};
use std::fs;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

// Links libFuzzer.
use libfuzzer_sys as _;

/// Longest input, in bytes, that is made.
const MAX_INPUT: usize = 16 * 1024;
/// Seconds after which an input counts as one that never ends.
const MAX_TIME: u32 = 10;

type Check = Box<dyn Fn(&[u8]) + Send + Sync>;

static CHECK: OnceLock<Check> = OnceLock::new();

type TestOneInput = unsafe extern "C" fn(*const u8, usize) -> c_int;

unsafe extern "C" {
    /// libFuzzer's, as a library.
    fn LLVMFuzzerRunDriver(argc: *mut c_int, argv: *mut *mut *mut c_char, test: TestOneInput) -> c_int;
    /// Of libfuzzer-sys: calls what follows, and aborts if it panics.
    fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> c_int;
}

#[unsafe(no_mangle)]
fn rust_fuzzer_test_input(input: &[u8]) -> i32 {
    CHECK.get().expect("a run sets it")(input);
    0
}

/// Runs `check` for so many seconds on inputs made from `seeds`, and on what earlier runs found, in `findings`. Ends the
/// process: with an error if an input failed, which is then in a file in `findings`.
pub(super) fn run(seeds: &Path, findings: &Path, seconds: u32, check: Check) -> ! {
    assert!(CHECK.set(check).is_ok(), "a process runs one target");
    let corpus = findings.join("corpus");
    fs::create_dir_all(&corpus).expect("the folder for findings can be made");
    let arguments = [
        // Its own name, and where it puts new inputs; then where it only reads.
        "fuzz".into(),
        corpus.display().to_string(),
        seeds.display().to_string(),
        format!("-artifact_prefix={}/", findings.display()),
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_INPUT}"),
        format!("-timeout={MAX_TIME}"),
        "-use_value_profile=1".into(),
        "-print_final_stats=1".into(),
    ];
    let arguments = arguments.map(|argument| CString::new(argument).expect("there is no NUL in it"));
    let mut pointers: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
    pointers.push(ptr::null_mut());
    let (mut count, mut pointers) = (arguments.len() as c_int, pointers.as_mut_ptr());
    // SAFETY: count and pointers are those of a C main, with a NULL behind the last, and outlive the call. LibFuzzer reads
    // the strings only.
    let status = unsafe { LLVMFuzzerRunDriver(&mut count, &mut pointers, LLVMFuzzerTestOneInput) };
    panic!("libFuzzer returned {status}");
}
