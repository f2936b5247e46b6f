//! Makes new inputs of old ones, blindly, for tests that have seconds. `make fuzz` does it better.

use fastrand::Rng;

/// Changes to one input.
const MAX_CHANGES: usize = 6;
/// Bytes at which readers do something else.
const NOTABLE: &[u8] = b"\0\t\n\r \"#%*+,-./0189:;=?@AZ[\\]_az{}~\x7f\x80\xc3\xff";

pub(super) struct Mutator {
    corpus: Vec<Vec<u8>>,
    rng: Rng,
}

impl Mutator {
    /// The corpus must not be empty.
    pub(super) fn new(corpus: Vec<Vec<u8>>, seed: u64) -> Self {
        assert!(!corpus.is_empty(), "a corpus has no files");
        Self { corpus, rng: Rng::with_seed(seed) }
    }

    /// The next input: one from the corpus, changed a little.
    pub(super) fn make(&mut self) -> Vec<u8> {
        let mut input = self.pick().clone();
        for _ in 0..self.rng.usize(1..=MAX_CHANGES) {
            self.change(&mut input);
        }
        input
    }

    fn pick(&mut self) -> &Vec<u8> {
        &self.corpus[self.rng.usize(..self.corpus.len())]
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.usize(..=input.len());
        // Most changes are small.
        let end = (at + self.rng.usize(..=8)).min(input.len());
        match self.rng.u8(..8) {
            0 => drop(input.drain(at..end)),
            1 => input.truncate(at),
            2 => input.insert(at, self.rng.u8(..)),
            3 | 4 => input.insert(at, NOTABLE[self.rng.usize(..NOTABLE.len())]),
            5 => {
                // Doubled.
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            6 if at < input.len() => input[at] ^= 1 << self.rng.u8(..8),
            _ => {
                let other = self.pick().clone();
                let from = self.rng.usize(..=other.len());
                let to = self.rng.usize(from..=other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
}
