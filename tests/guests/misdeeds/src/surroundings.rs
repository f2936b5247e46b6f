//! Clocks, random numbers, output, environment and exit, used beyond reason.

use std::io::Write;

use wasip2::clocks::{monotonic_clock, wall_clock};

use crate::{Outcome, debug};

pub(crate) fn leak_pollables() -> Outcome {
    loop {
        std::mem::forget(monotonic_clock::subscribe_duration(0));
    }
}

pub(crate) fn giant_random(mib: u64) -> Outcome {
    let bytes = wasip2::random::random::get_random_bytes(mib << 20);
    Ok(format!("{} bytes", bytes.len()))
}

/// One call with all of it, whatever the stream permits.
pub(crate) fn giant_write(mib: u64) -> Outcome {
    let stdout = wasip2::cli::stdout::get_stdout();
    stdout.write(&vec![b'x'; (mib as usize) << 20]).map_err(debug)?;
    Ok("written".into())
}

/// `exit-with-code` is not stable, and need not be there.
pub(crate) fn exit(code: u64) -> Outcome {
    wasip2::cli::exit::exit(if code == 0 { Ok(()) } else { Err(()) });
    Ok("exit returned".into())
}

pub(crate) fn env(name: String) -> Outcome {
    std::env::var(name).map_err(debug)
}

pub(crate) fn env_all() -> String {
    std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()
}

pub(crate) fn flood(lines: u64) -> Outcome {
    let mut stdout = std::io::stdout().lock();
    for n in 0..lines {
        writeln!(stdout, "line {n} of the flood").map_err(debug)?;
    }
    Ok("flooded".into())
}

pub(crate) fn flood_partial(bytes: u64) -> Outcome {
    let piece = [b'x'; 4096];
    let mut stdout = std::io::stdout().lock();
    let mut left = bytes;
    while left > 0 {
        let now = left.min(piece.len() as u64);
        stdout.write_all(&piece[..now as usize]).map_err(debug)?;
        left -= now;
    }
    // Rust keeps an unfinished line back; the host shall see it.
    stdout.flush().map_err(debug)?;
    Ok("flooded".into())
}

/// The ends of what clocks can be asked.
pub(crate) fn odd_times() {
    monotonic_clock::subscribe_instant(0).block();
    monotonic_clock::subscribe_duration(0).block();
    drop(monotonic_clock::subscribe_instant(u64::MAX));
    drop(monotonic_clock::subscribe_duration(u64::MAX));
    // A pollable may compute its deadline no earlier than here.
    monotonic_clock::subscribe_instant(u64::MAX).ready();
    monotonic_clock::subscribe_duration(u64::MAX).ready();
    monotonic_clock::resolution();
    wall_clock::now();
    wall_clock::resolution();
}
