//! Follows the frames that a client sends over HTTP/2 (RFC 9113, section 4.1), before the library below sees them: where
//! they begin and end, and whether they are work or abuse. The library bounds what it keeps, but not how often it is made to
//! do something for nothing: a client may reset, ping and change settings without end.
//!
//! Whatever is for nothing costs something, out of a budget that fills up again with time. WINDOW_UPDATE and PING go
//! with what is said, either way: some clients send one of each for every frame of an answer and of their own. Their budget
//! fills up with those, too.
//!
//! Only the heads of frames are looked at. What is wrong with their order and their contents, the library says.

use std::time::Duration;

use super::drain::Time;

/// What a client that knows of HTTP/2 begins with (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Of a frame: length, type, flags, stream.
const HEAD: usize = 9;
/// Largest frame that is announced (SETTINGS_MAX_FRAME_SIZE). The library ends a connection that sends a longer one.
pub(super) const MAX_FRAME: u32 = 16 * 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;
const END_HEADERS: u8 = 4;

/// A budget of so much. It fills up in [`REFILL`].
const BUDGET: f64 = 10_000.0;
const REFILL: Duration = Duration::from_secs(20);
/// What is sent for each frame that moves a window, or asks whether we are there.
const SENT_PER_FRAME: f64 = 256.0;
/// What such a frame costs, and how many go with a message either way, however short it is: one for the stream's window, one
/// for the connection's, and one that asks.
const BESIDE: f64 = 2.0;
const PER_MESSAGE: f64 = 3.0;

/// Why a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abuse {
    /// The first frame must be SETTINGS.
    NoSettings,
    /// A frame of a type that has a fixed size has another (section 4.2).
    WrongSize,
    /// It has cost more than it may.
    TooMuch,
}

/// What may be spent on what is for nothing.
#[derive(Debug)]
pub(super) struct Credit {
    left: f64,
    since: Time,
}

impl Credit {
    pub(super) fn new(now: Time) -> Self {
        Self { left: BUDGET, since: now }
    }

    fn fill(&mut self, part: f64) {
        self.left = (self.left + part).min(BUDGET);
    }

    /// Whether there was as much left.
    pub(super) fn spend(&mut self, now: Time, cost: f64) -> bool {
        let passed = now.saturating_sub(self.since);
        self.since = now;
        self.fill(BUDGET * passed.as_secs_f64() / REFILL.as_secs_f64());
        self.left -= cost;
        self.left >= 0.0
    }
}

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes of the preface that are still to come.
    preface: usize,
    /// The head of the frame that has begun.
    head: [u8; HEAD],
    known: usize,
    /// Bytes that the frame still has.
    rest: usize,
    /// The first has come.
    has_begun: bool,
    /// A request's head has begun, and goes on in the next frame.
    inside_head: bool,
    /// Bytes of the head that came last, or is coming.
    held: usize,
    for_nothing: Credit,
    beside_messages: Credit,
}

impl Frames {
    /// Those of a connection that begins with the preface.
    pub(super) fn new(now: Time) -> Self {
        Self {
            preface: PREFACE.len(),
            head: [0; HEAD],
            known: 0,
            rest: 0,
            has_begun: false,
            inside_head: false,
            held: 0,
            for_nothing: Credit::new(now),
            beside_messages: Credit::new(now),
        }
    }

    /// Takes note of bytes that came in at `now`.
    pub(super) fn follow(&mut self, now: Time, mut bytes: &[u8]) -> Result<(), Abuse> {
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(bytes.len());
                self.rest -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let part = (HEAD - self.known).min(bytes.len());
            self.head[self.known..self.known + part].copy_from_slice(&bytes[..part]);
            self.known += part;
            bytes = &bytes[part..];
            if self.known == HEAD {
                self.known = 0;
                self.frame(now)?;
            }
        }
        Ok(())
    }

    /// Takes note of bytes that went out, with so many parts of answers.
    pub(super) fn sent(&mut self, bytes: usize, parts: u32) {
        self.beside_messages.fill(bytes as f64 / SENT_PER_FRAME + f64::from(parts) * PER_MESSAGE * BESIDE);
    }

    /// Whether the client owes its settings, or the rest of a frame or of a request's head.
    pub(super) fn is_inside(&self) -> bool {
        self.preface > 0 || !self.has_begun || self.known > 0 || self.rest > 0 || self.inside_head
    }

    /// Bytes of a request's head that the library keeps until it is whole.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The head of a frame is whole.
    fn frame(&mut self, now: Time) -> Result<(), Abuse> {
        let [high, middle, low, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.rest = length;
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        if is_first && (kind != SETTINGS || flags & ACK != 0) {
            return Err(Abuse::NoSettings);
        }
        let has_its_size = match kind {
            PING => length == 8,
            RST_STREAM | WINDOW_UPDATE => length == 4,
            PRIORITY => length == 5,
            GOAWAY => length >= 8,
            SETTINGS if flags & ACK != 0 => length == 0,
            SETTINGS => length.is_multiple_of(6),
            _ => true,
        };
        if !has_its_size {
            return Err(Abuse::WrongSize);
        }
        self.held = match kind {
            HEADERS => length,
            CONTINUATION => self.held + length,
            _ => 0,
        };
        if matches!(kind, HEADERS | CONTINUATION) {
            self.inside_head = flags & END_HEADERS == 0;
        }
        let (budget, cost) = match kind {
            // What comes with nothing in it, and is not the end, serves no purpose.
            DATA if length == 0 && flags & END_STREAM == 0 => (&mut self.for_nothing, 50.0),
            DATA if length > 0 && flags & PADDED == 0 => {
                self.beside_messages.fill(PER_MESSAGE * BESIDE);
                return Ok(());
            }
            // What is padded may have nothing else in it.
            DATA | HEADERS => return Ok(()),
            // A request that is taken back has cost a guest.
            RST_STREAM => (&mut self.for_nothing, 20.0),
            SETTINGS => (&mut self.for_nothing, 50.0),
            CONTINUATION => (&mut self.for_nothing, 10.0),
            PING | WINDOW_UPDATE => (&mut self.beside_messages, BESIDE),
            // PRIORITY, and what is not known and is to be ignored.
            _ => (&mut self.for_nothing, 5.0),
        };
        if budget.spend(now, cost) { Ok(()) } else { Err(Abuse::TooMuch) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(length).unwrap().to_be_bytes();
        let mut frame = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD + length, 7);
        frame
    }

    fn begun() -> Frames {
        let mut frames = Frames::new(Duration::ZERO);
        frames.follow(Duration::ZERO, PREFACE).unwrap();
        frames.follow(Duration::ZERO, &frame(SETTINGS, 0, 12)).unwrap();
        frames
    }

    /// How many frames of a kind may come at once, and how many in the ten seconds after that.
    fn allowed(kind: u8, flags: u8, length: usize) -> (usize, usize) {
        let (mut frames, bytes) = (begun(), frame(kind, flags, length));
        let at_once = (0..20_000).take_while(|_| frames.follow(Duration::ZERO, &bytes).is_ok()).count();
        let mut frames = begun();
        for _ in 0..at_once {
            frames.follow(Duration::ZERO, &bytes).unwrap();
        }
        let later = (0..20_000).take_while(|_| frames.follow(Duration::from_secs(10), &bytes).is_ok()).count();
        (at_once, later)
    }

    #[test]
    fn what_is_for_nothing_is_bounded_and_work_is_not() {
        // The budget has paid for the settings already.
        assert_eq!(allowed(RST_STREAM, 0, 4), (497, 250));
        assert_eq!(allowed(SETTINGS, 0, 0), (199, 100));
        assert_eq!(allowed(DATA, 0, 0), (199, 100));
        assert_eq!(allowed(PING, 0, 8), (5000, 2500));
        assert_eq!(allowed(WINDOW_UPDATE, 0, 4), (5000, 2500));
        assert_eq!(allowed(PRIORITY, 0, 5), (1990, 1000));
        assert_eq!(allowed(77, 0, 5), (1990, 1000));
        for work in [(DATA, 0, 1), (DATA, END_STREAM, 0), (HEADERS, END_HEADERS, 20)] {
            assert_eq!(allowed(work.0, work.1, work.2), (20_000, 20_000));
        }
    }

    /// As gRPC has it: a short message each way, for each of which the client moves both windows and asks.
    #[test]
    fn short_messages_pay_for_what_goes_with_them() {
        let mut frames = begun();
        let beside = [frame(WINDOW_UPDATE, 0, 4), frame(WINDOW_UPDATE, 0, 4), frame(PING, 0, 8)].concat();
        for _ in 0..100_000 {
            frames.follow(Duration::ZERO, &frame(DATA, 0, 10)).unwrap();
            frames.follow(Duration::ZERO, &beside).unwrap();
            frames.sent(30, 1);
            frames.follow(Duration::ZERO, &beside).unwrap();
        }
        // Padding is no message, and nor are answers to pings.
        let mut padded = (0..20_000).map(|_| {
            frames.follow(Duration::ZERO, &frame(DATA, PADDED, 1)).unwrap();
            frames.follow(Duration::ZERO, &frame(PING, 0, 8))
        });
        assert!(padded.any(|result| result == Err(Abuse::TooMuch)));
        let mut frames = begun();
        let mut pings = (0..20_000).map(|_| {
            frames.sent(17, 0);
            frames.follow(Duration::ZERO, &frame(PING, 0, 8))
        });
        assert!(pings.any(|result| result == Err(Abuse::TooMuch)));
    }

    #[test]
    fn answers_pay_for_what_goes_with_them() {
        let mut frames = begun();
        for _ in 0..100_000 {
            frames.sent(MAX_FRAME as usize, 0);
            frames.follow(Duration::ZERO, &frame(WINDOW_UPDATE, 0, 4)).unwrap();
            frames.follow(Duration::ZERO, &frame(PING, 0, 8)).unwrap();
        }
        // But not for resets.
        let mut resets = (0..1000).map(|_| {
            frames.sent(MAX_FRAME as usize, 0);
            frames.follow(Duration::ZERO, &frame(RST_STREAM, 0, 4))
        });
        assert!(resets.any(|result| result == Err(Abuse::TooMuch)));
    }

    #[test]
    fn a_client_begins_with_its_settings() {
        for (kind, flags) in [(HEADERS, END_HEADERS), (PING, 0), (SETTINGS, ACK)] {
            let mut frames = Frames::new(Duration::ZERO);
            frames.follow(Duration::ZERO, PREFACE).unwrap();
            assert_eq!(frames.follow(Duration::ZERO, &frame(kind, flags, 0)), Err(Abuse::NoSettings));
        }
    }

    #[test]
    fn frames_of_a_fixed_size_have_it() {
        let kinds = [
            (PING, 0, 7),
            (RST_STREAM, 0, 5),
            (WINDOW_UPDATE, 0, 0),
            (PRIORITY, 0, 4),
            (GOAWAY, 0, 7),
            (SETTINGS, 0, 5),
        ];
        for (kind, flags, length) in kinds.into_iter().chain([(SETTINGS, ACK, 6)]) {
            assert_eq!(begun().follow(Duration::ZERO, &frame(kind, flags, length)), Err(Abuse::WrongSize), "{kind}");
        }
        let frames = [(PING, ACK, 8), (GOAWAY, 0, 20), (SETTINGS, ACK, 0), (SETTINGS, 0, 12), (77, 0, 3)];
        for (kind, flags, length) in frames {
            assert_eq!(begun().follow(Duration::ZERO, &frame(kind, flags, length)), Ok(()), "{kind}");
        }
    }

    #[test]
    fn it_is_known_what_a_client_owes() {
        let mut frames = Frames::new(Duration::ZERO);
        assert!(frames.is_inside(), "the preface");
        frames.follow(Duration::ZERO, PREFACE).unwrap();
        assert!(frames.is_inside(), "the settings");
        let mut check = |bytes: &[u8], is_inside| {
            frames.follow(Duration::ZERO, bytes).unwrap();
            assert_eq!(frames.is_inside(), is_inside, "{bytes:?}");
        };
        let settings = frame(SETTINGS, 0, 6);
        check(&settings[..4], true);
        check(&settings[4..HEAD], true);
        check(&settings[HEAD..], false);
        check(&frame(HEADERS, 0, 3), true);
        check(&frame(CONTINUATION, 0, 3), true);
        check(&frame(CONTINUATION, END_HEADERS, 3), false);
        assert_eq!(frames.held(), 9);
        frames.follow(Duration::ZERO, &frame(PING, 0, 8)).unwrap();
        assert_eq!(frames.held(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However the bytes are cut into reads.
        #[test]
        fn frames_are_found_in_any_pieces(
            frames in prop::collection::vec((0..12_u8, any::<u8>(), 0..200_usize), 0..20),
            cuts in prop::collection::vec(1..64_usize, 1..40),
        ) {
            let mut bytes = PREFACE.to_vec();
            bytes.extend(frame(SETTINGS, 0, 0));
            frames.iter().for_each(|&(kind, flags, length)| bytes.extend(frame(kind, flags, length)));
            let mut whole = Frames::new(Duration::ZERO);
            let expected = whole.follow(Duration::ZERO, &bytes);
            let (mut pieces, mut rest, mut found) = (Frames::new(Duration::ZERO), &bytes[..], Ok(()));
            for cut in cuts.iter().cycle() {
                if rest.is_empty() || found.is_err() {
                    break;
                }
                let (piece, further) = rest.split_at((*cut).min(rest.len()));
                found = pieces.follow(Duration::ZERO, piece);
                rest = further;
            }
            prop_assert_eq!(found, expected);
            if found.is_ok() {
                prop_assert_eq!(pieces.is_inside(), whole.is_inside());
                prop_assert_eq!(pieces.for_nothing.left, whole.for_nothing.left);
            }
        }
    }
}
