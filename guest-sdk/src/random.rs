//! Random numbers that nobody can predict, from the host. Crates that use `getrandom`, as `rand` and `uuid`, work too.

use crate::host;

/// Fills `bytes`.
///
/// ```
/// let mut token = [0; 16];
/// wasmcluster_guest::random::fill(&mut token);
/// assert_ne!(token, [0; 16]);
/// ```
pub fn fill(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&u64().to_ne_bytes()[..chunk.len()]);
    }
}

/// A random number from the full range.
///
/// ```
/// assert_ne!(wasmcluster_guest::random::u64(), wasmcluster_guest::random::u64());
/// ```
pub fn u64() -> u64 {
    host::random()
}
