//! Lines: no byte is lost or made up, wherever writes and newlines fall.

use super::*;
use crate::fuzz;

/// Of an input that are looked at.
const MAX_RUNS: usize = 6;

#[test]
fn lines() {
    fuzz::bytes("lines", |input| {
        let writes = writes(input);
        let mut lines = Vec::new();
        let mut buffer = LineBuffer::default();
        for bytes in &writes {
            buffer.push(bytes, |line| lines.push(line.to_vec()));
            assert!(buffer.partial.len() <= MAX_LINE);
        }
        buffer.finish(|line| lines.push(line.to_vec()));
        check(&writes.concat(), &lines);
    });
}

/// Pairs of bytes: one to be repeated, and how often, in units that soon exceed a line. After a repeat of 0 the next write
/// begins.
fn writes(input: &[u8]) -> Vec<Vec<u8>> {
    let mut writes = vec![Vec::new()];
    for &[byte, repeat] in input.as_chunks().0.iter().take(MAX_RUNS) {
        let length = match repeat {
            0 => {
                writes.push(Vec::new());
                continue;
            }
            1..128 => usize::from(repeat),
            // Around the longest line: 8129 to 8256 bytes.
            128.. => MAX_LINE + usize::from(repeat) - 191,
        };
        writes.last_mut().unwrap().extend(std::iter::repeat_n(byte, length));
    }
    writes
}

fn check(mut written: &[u8], lines: &[Vec<u8>]) {
    for line in lines {
        let text = line.strip_suffix(b"\n").expect("a line ends with a newline");
        assert!(text.len() <= MAX_LINE && !text.contains(&b'\n'));
        written = written.strip_prefix(text).expect("lines are what was written, in its order");
        match written.strip_prefix(b"\n") {
            Some(rest) => written = rest,
            None => assert!(!text.is_empty(), "a line out of nothing"),
        }
    }
    assert!(written.is_empty(), "{} bytes are lost", written.len());
}
