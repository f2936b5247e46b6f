//! Taking memory, stack and time without end, and looking for what others left in memory.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};

use crate::Outcome;

/// Bytes of a WebAssembly page.
const PAGE: usize = 65_536;
/// How far the memory is grown around a secret: further than what hosts tend to keep mapped between instances.
const SECRET_PAGES: usize = 4 * 1024 * 1024 / PAGE;
/// What each secret begins with. Masked, lest a search find this.
const MARKER: [u8; 7] = mask(*b"SECRET-");

static STORED: Mutex<Option<String>> = Mutex::new(None);

/// Works for ever.
pub fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

pub(crate) fn grow_until_it_fails() -> Outcome {
    while let Some(page) = grow(1) {
        poke(page, 1);
    }
    panic!("memory has ended")
}

/// Memory that is really there: all of it was written to.
#[derive(Debug)]
pub struct Taken {
    _bytes: Vec<u8>,
}

/// Takes that many MiB.
pub fn take(mib: u64) -> Result<Taken, String> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact((mib as usize) << 20).map_err(|_| "out of memory")?;
    bytes.resize(bytes.capacity(), 1);
    Ok(Taken { _bytes: black_box(bytes) })
}

/// Grows by that many MiB, and writes to the last of them alone.
pub(crate) fn touch_last(mib: u64) -> Outcome {
    const MIB: usize = 1024 * 1024 / PAGE;
    let pages = mib as usize * MIB;
    let start = grow(pages).ok_or("out of memory")?;
    (pages.saturating_sub(MIB)..pages)
        .for_each(|page| (0..PAGE).step_by(4096).for_each(|at| poke(start + page * PAGE + at, 1)));
    Ok("touched".into())
}

pub(crate) fn recurse() -> Outcome {
    Ok(descend(0, black_box(u32::MAX)).to_string())
}

/// Goes deeper than any stack. Nothing of it is kept in linear memory, so that it is the call stack that overflows.
fn descend(depth: u32, end: u32) -> u32 {
    if depth == end { 0 } else { descend(depth + 1, end).wrapping_mul(3) ^ depth }
}

/// Stores a secret, in a static and at the end of a memory grown for it; or tells what an earlier request stored.
pub(crate) fn secret(set: Option<String>) -> Outcome {
    let pages = grow(SECRET_PAGES);
    let mut stored = STORED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = set {
        let secret = [&mask(MARKER), text.as_bytes()].concat();
        if let Some(start) = pages {
            let end = start + SECRET_PAGES * PAGE;
            secret.iter().enumerate().for_each(|(n, byte)| poke(end - secret.len() + n, *byte));
        }
        *stored = Some(String::from_utf8_lossy(&secret).into_owned());
        assert!(memory_has_marker(), "a search finds what is there");
        return Ok("stored".into());
    }
    Ok(match &*stored {
        Some(secret) => secret.clone(),
        None if memory_has_marker() => "found".into(),
        None => "nothing".into(),
    })
}

fn memory_has_marker() -> bool {
    let last = size().saturating_sub(MARKER.len());
    // Nothing may be read from address 0.
    (1..last).any(|start| MARKER.iter().enumerate().all(|(n, byte)| mask([peek(start + n)]) == [*byte]))
}

/// Its own inverse.
const fn mask<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    let mut n = 0;
    while n < N {
        bytes[n] ^= 0x55;
        n += 1;
    }
    bytes
}

#[cfg(target_arch = "wasm32")]
fn grow(pages: usize) -> Option<usize> {
    let before = core::arch::wasm32::memory_grow::<0>(pages);
    (before != usize::MAX).then(|| before * PAGE)
}

#[cfg(target_arch = "wasm32")]
fn size() -> usize {
    core::arch::wasm32::memory_size::<0>() * PAGE
}

/// Elsewhere there is no memory to grow; the crate is only checked there.
#[cfg(not(target_arch = "wasm32"))]
fn grow(_: usize) -> Option<usize> {
    None
}

#[cfg(not(target_arch = "wasm32"))]
fn size() -> usize {
    0
}

fn peek(address: usize) -> u8 {
    // SAFETY: callers stay below the memory's size and above 0, and all of a linear memory can be read.
    unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() }
}

fn poke(address: usize, byte: u8) {
    // SAFETY: callers write only to pages they have grown themselves, which the allocator does not know of.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(byte) }
}
