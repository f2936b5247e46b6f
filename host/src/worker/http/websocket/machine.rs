//! WebSocket (RFC 6455) on one connection, without its I/O: bytes come in, messages come out, and the other way round. Pure:
//! time is an argument.
//!
//! ```text
//!            close(), or the client breaks the protocol           the client's close
//!   Open ─────────────────────────────────────────────▶ Closing ─────────────────────▶ Over
//!    │                                                     │                            ▲
//!    │                                                     └── it takes too long ───────┤
//!    └── the client's close, its end, silence, or it takes nothing ─────────────────────┘
//! ```
//!
//! In `Over` nothing is read any more; what is left to send is sent, as long as the client takes some of it.
//!
//! The frames are tungstenite's. Here is what it does not decide: when a client is asked whether it is there, how long it may
//! keep silent, and how much it may send for nothing.

use std::time::Duration;

use bytes::BytesMut;
use tungstenite::Message as AnyMessage;
use tungstenite::error::Error;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};

use super::super::drain::Time;
use super::super::frames::Credit;
use super::pipe::Pipe;
use crate::worker::guest::websocket::{Closed, SocketMessage, code};

/// How long a client may take to answer a close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes that tungstenite reads at once, and keeps of every connection.
const READ_BUFFER: usize = 4 * 1024;
/// What a client may send for a message, in parts of it: whoever sends a frame for each byte needs seven.
const MOST_PER_BYTE: usize = 8;
/// And beside messages.
const MOST_BESIDE: usize = 64 * 1024;
/// Of a ping or a pong, beside what it says: two bytes, and a mask of four.
const CONTROL: usize = 6;
/// Bytes of memory that are kept for what is sent next.
const KEPT: usize = 64 * 1024;

/// How long a connection may take, and how much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Without a byte from the client. It is asked with a ping after half of that.
    pub(super) silence: Duration,
    /// Without taking a byte.
    pub(super) stall: Duration,
    /// Bytes of a message.
    pub(super) max_message: usize,
}

/// What comes of the client's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    Message(SocketMessage),
    /// Nothing more comes, for this reason.
    Closed(Closed),
}

/// What a client did not do in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooLate {
    /// It takes nothing.
    Stuck,
    /// It does not even answer pings.
    Silent,
    /// It has not answered our close. Nobody waits for that.
    Unanswered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// We have said that we close it. The client may answer that from `sent` on, when all before it has left.
    Closing {
        sent: Option<Time>,
    },
    /// What is left of the output is sent, and that is all.
    Over,
}

/// One connection.
pub(super) struct SocketMachine {
    context: WebSocketContext,
    pipe: Pipe,
    bounds: Bounds,
    phase: Phase,
    /// When the client last sent something; while nobody reads, when it was asked last whether it is there.
    heard: Time,
    /// Somebody reads, so that its silence counts.
    listens: bool,
    /// It was asked since then.
    is_asked: bool,
    /// Since when it takes nothing.
    stuck: Option<Time>,
    /// Bytes that came since the last message.
    beside: usize,
    for_nothing: Credit,
}

impl SocketMachine {
    /// A connection whose handshake is done.
    pub(super) fn new(now: Time, bounds: Bounds) -> Self {
        let max = Some(bounds.max_message);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(max)
            .max_frame_size(max);
        Self {
            context: WebSocketContext::new(Role::Server, Some(config)),
            pipe: Pipe::default(),
            bounds,
            phase: Phase::Open,
            heard: now,
            listens: true,
            is_asked: false,
            stuck: None,
            beside: 0,
            for_nothing: Credit::new(now),
        }
    }

    /// Takes bytes that came from the client.
    pub(super) fn feed(&mut self, now: Time, bytes: &[u8]) {
        if self.phase == Phase::Over {
            return;
        }
        (self.heard, self.is_asked) = (now, false);
        self.beside = self.beside.saturating_add(bytes.len());
        self.pipe.input.extend_from_slice(bytes);
    }

    /// The client has closed its side, or the connection is broken.
    pub(super) fn lost(&mut self) -> Option<Closed> {
        let was_open = self.phase == Phase::Open;
        self.finish();
        was_open.then(|| Closed::new(code::LOST, ""))
    }

    fn finish(&mut self) {
        self.phase = Phase::Over;
        self.pipe.input = BytesMut::new();
    }

    /// What comes of the bytes so far; `None` if it takes more.
    pub(super) fn next(&mut self, now: Time) -> Option<Arrived> {
        while self.phase != Phase::Over {
            match self.context.read(&mut self.pipe) {
                // Nobody wants it behind a close.
                Ok(AnyMessage::Text(_) | AnyMessage::Binary(_)) if self.phase != Phase::Open => self.beside = 0,
                Ok(AnyMessage::Text(text)) => {
                    self.beside = 0;
                    return Some(Arrived::Message(SocketMessage::Text(text.as_str().to_owned())));
                }
                Ok(AnyMessage::Binary(bytes)) => {
                    self.beside = 0;
                    return Some(Arrived::Message(SocketMessage::Binary(bytes.into())));
                }
                Ok(AnyMessage::Close(frame)) => {
                    let was_open = self.phase == Phase::Open;
                    // The answer to it.
                    let _ = self.context.flush(&mut self.pipe);
                    self.finish();
                    return was_open.then(|| Arrived::Closed(closed(frame)));
                }
                Ok(AnyMessage::Ping(said) | AnyMessage::Pong(said)) if self.for_nothing.spend(now, 1.0) => {
                    // It may come in the middle of a message, and is no part of one.
                    self.beside = self.beside.saturating_sub(CONTROL + said.len());
                }
                Ok(_) => return self.fail(now, code::POLICY, "too many pings"),
                // There are no more bytes: what it reads from and writes to is memory.
                Err(Error::Io(_)) => {
                    let most = self.bounds.max_message.saturating_mul(MOST_PER_BYTE).saturating_add(MOST_BESIDE);
                    if self.beside > most {
                        return self.fail(now, code::POLICY, "too many fragments");
                    }
                    return None;
                }
                Err(Error::Capacity(_)) => return self.fail(now, code::TOO_BIG, "message too big"),
                Err(Error::Utf8(_)) => return self.fail(now, code::NOT_UTF8, "invalid UTF-8"),
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    self.finish();
                    return None;
                }
                Err(_) => return self.fail(now, code::PROTOCOL, "protocol error"),
            }
        }
        None
    }

    /// The client is told why, and not listened to any more.
    fn fail(&mut self, now: Time, code: u16, reason: &'static str) -> Option<Arrived> {
        let was_open = self.phase == Phase::Open;
        if was_open {
            self.close(now, &Closed::new(code, reason));
        }
        self.finish();
        was_open.then(|| Arrived::Closed(Closed::new(code, reason)))
    }

    /// Sends a message, unless the connection is being closed.
    pub(super) fn send(&mut self, message: SocketMessage) {
        if self.phase == Phase::Open {
            let message = match message {
                SocketMessage::Text(text) => AnyMessage::text(text),
                SocketMessage::Binary(bytes) => AnyMessage::binary(bytes),
            };
            // It writes to memory.
            let _ = self.context.write(&mut self.pipe, message);
        }
    }

    /// Begins to close it.
    pub(super) fn close(&mut self, now: Time, closed: &Closed) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing { sent: None };
            let frame = CloseFrame { code: closed.code.into(), reason: closed.reason.as_str().into() };
            let _ = self.context.close(&mut self.pipe, Some(frame));
            self.moved(now, false, false);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the connection ends as soon as the output is sent.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// What is to be sent. Who sends some of it, removes that.
    pub(super) fn output(&mut self) -> &mut BytesMut {
        &mut self.pipe.output
    }

    /// The client took some of the output, or not; `is_sent` says whether nothing of it waits below either.
    pub(super) fn moved(&mut self, now: Time, has_moved: bool, is_sent: bool) {
        if !self.pipe.output.is_empty() || !is_sent {
            if has_moved || self.stuck.is_none() {
                self.stuck = Some(now);
            }
            return;
        }
        self.stuck = None;
        if let Phase::Closing { sent } = &mut self.phase {
            sent.get_or_insert(now);
        }
        // What a large message needed, nobody may need again.
        if self.pipe.output.capacity() > KEPT {
            self.pipe.output = BytesMut::new();
        }
    }

    /// The client is read from, or not: its silence counts only if it could be heard.
    pub(super) fn listens(&mut self, now: Time, listens: bool) {
        if self.listens != listens {
            (self.listens, self.heard, self.is_asked) = (listens, now, false);
        }
    }

    /// Bytes of a message that has begun, about.
    pub(super) fn unfinished(&self) -> usize {
        self.beside
    }

    /// When to call [`Self::pass`].
    pub(super) fn deadline(&self) -> Option<Time> {
        let Bounds { silence, stall, .. } = self.bounds;
        let stuck = self.stuck.map(|since| since + stall);
        let own = match self.phase {
            Phase::Open => Some(self.heard + if self.is_asked { silence } else { silence / 2 }),
            Phase::Closing { sent } => sent.map(|sent| sent + CLOSE_PATIENCE),
            Phase::Over => None,
        };
        own.into_iter().chain(stuck).min()
    }

    /// Time has passed: what has become too late by now, after which the connection is over.
    pub(super) fn pass(&mut self, now: Time) -> Option<TooLate> {
        if self.deadline().is_none_or(|at| now < at) {
            return None;
        }
        if self.stuck.is_some_and(|since| now >= since + self.bounds.stall) {
            return Some(TooLate::Stuck);
        }
        match self.phase {
            Phase::Open if !self.is_asked => {
                let _ = self.context.write(&mut self.pipe, AnyMessage::Ping(Vec::new().into()));
                // One that is not read from is asked again and again: if it is gone, the kernel learns that by this.
                (self.is_asked, self.heard) = if self.listens { (true, self.heard) } else { (false, now) };
                None
            }
            Phase::Open => Some(TooLate::Silent),
            Phase::Closing { .. } | Phase::Over => Some(TooLate::Unanswered),
        }
    }
}

/// How the client closed it.
fn closed(frame: Option<CloseFrame>) -> Closed {
    match frame {
        Some(CloseFrame { code: CloseCode::Status, .. }) | None => Closed::new(code::NONE, ""),
        Some(CloseFrame { code, reason }) => Closed { code: code.into(), reason: reason.as_str().to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use harness::websocket::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, frame};
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1000;
    const BOUNDS: Bounds =
        Bounds { silence: Duration::from_secs(60), stall: Duration::from_secs(20), max_message: MAX };

    fn s(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn open() -> SocketMachine {
        SocketMachine::new(s(0), BOUNDS)
    }

    /// What comes of it all.
    fn all(protocol: &mut SocketMachine) -> Vec<Arrived> {
        std::iter::from_fn(|| protocol.next(s(1))).collect()
    }

    /// The code of the close frame that was sent last.
    fn sent_code(protocol: &mut SocketMachine) -> Option<u16> {
        let output = protocol.output();
        let at = output.iter().position(|&byte| byte == FIN | CLOSE)?;
        let length = output[at + 1] as usize;
        (length >= 2).then(|| u16::from_be_bytes([output[at + 2], output[at + 3]]))
    }

    fn text(text: &str) -> Arrived {
        Arrived::Message(SocketMessage::Text(text.into()))
    }

    fn close(code: u16, reason: &str) -> Vec<u8> {
        frame(FIN | CLOSE, &[&code.to_be_bytes()[..], reason.as_bytes()].concat())
    }

    #[test]
    fn messages_come_whole() {
        let mut protocol = open();
        protocol.feed(s(1), &frame(FIN | TEXT, b"one"));
        protocol.feed(s(1), &frame(TEXT, "zw\u{f6}".as_bytes().split_last().unwrap().1));
        protocol.feed(s(1), &frame(FIN | PING, b"ask"));
        assert_eq!(all(&mut protocol), [text("one")]);
        assert_eq!(protocol.output().split().as_ref(), [&[FIN | PONG, 3][..], b"ask"].concat());
        protocol.feed(s(1), &frame(FIN | CONTINUATION, &"\u{f6}lf".as_bytes()[1..]));
        assert_eq!(all(&mut protocol), [text("zw\u{f6}lf")]);
        protocol.feed(s(1), &frame(FIN | BINARY, &[0xff; MAX]));
        assert_eq!(all(&mut protocol), [Arrived::Message(SocketMessage::Binary(vec![0xff; MAX]))]);
    }

    /// What is wrong gets the code that RFC 6455 has for it (section 7.4.1), and the connection ends.
    #[test]
    fn what_is_wrong_is_closed_with_its_code() {
        let unmasked = vec![FIN | TEXT, 2, b'h', b'i'];
        let cases: &[(&str, Vec<u8>, u16)] = &[
            ("unmasked", unmasked, 1002),
            ("a reserved bit", frame(FIN | 0x40 | TEXT, b"x"), 1002),
            ("a reserved opcode", frame(FIN | 3, b"x"), 1002),
            ("a reserved control opcode", frame(FIN | 11, b""), 1002),
            ("a continuation of nothing", frame(FIN | CONTINUATION, b"x"), 1002),
            ("a message inside another", [frame(TEXT, b"x"), frame(FIN | TEXT, b"y")].concat(), 1002),
            ("a ping in fragments", frame(PING, b""), 1002),
            ("a ping of 126 bytes", frame(FIN | PING, &[0; 126]), 1002),
            ("a close of one byte", frame(FIN | CLOSE, &[3]), 1002),
            ("a text that is not UTF-8", frame(FIN | TEXT, &[0xff]), 1007),
            ("half a character", frame(FIN | TEXT, &[0xc3]), 1007),
            ("a frame that is too big", frame(FIN | BINARY, &[0; MAX + 1]), 1009),
            (
                "a claim alone",
                vec![FIN | BINARY, 0x80 | 127, 0x7f, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0],
                1009,
            ),
            ("fragments that are too big", [frame(BINARY, &[0; MAX]), frame(FIN, &[0])].concat(), 1009),
        ];
        for (what, bytes, code) in cases {
            let mut protocol = open();
            protocol.feed(s(1), bytes);
            let [Arrived::Closed(closed)] = &all(&mut protocol)[..] else { panic!("{what} was taken") };
            assert_eq!((closed.code, sent_code(&mut protocol)), (*code, Some(*code)), "{what}");
            assert!(protocol.is_over());
        }
    }

    #[test]
    fn a_close_is_answered_with_its_code() {
        for (sent, seen, answered) in [
            (close(1000, "done"), Closed::new(1000, "done"), Some(1000)),
            (close(4999, ""), Closed::new(4999, ""), Some(4999)),
            (frame(FIN | CLOSE, b""), Closed::new(1005, ""), None),
            // Codes that nobody may send.
            (close(1005, ""), Closed::new(1002, "Protocol violation"), Some(1002)),
            (close(999, ""), Closed::new(1002, "Protocol violation"), Some(1002)),
        ] {
            let mut protocol = open();
            protocol.feed(s(1), &[sent, frame(FIN | TEXT, b"behind it")].concat());
            assert_eq!(all(&mut protocol), [Arrived::Closed(seen)]);
            assert_eq!(sent_code(&mut protocol), answered);
            assert!(protocol.is_over());
        }
    }

    /// Whatever a client still sends.
    #[test]
    fn behind_the_end_nothing_is_kept() {
        let mut protocol = open();
        protocol.feed(s(1), &[close(1000, ""), vec![0; 1000]].concat());
        assert_eq!(all(&mut protocol).len(), 1);
        assert!(protocol.is_over() && protocol.pipe.input.is_empty());
        protocol.feed(s(1), &[0; 1000]);
        assert!(protocol.pipe.input.is_empty() && protocol.pipe.input.capacity() == 0);
    }

    #[test]
    fn our_close_waits_for_the_clients() {
        let mut protocol = open();
        protocol.send(SocketMessage::Text("last".into()));
        protocol.close(s(5), &Closed::new(1001, "restart"));
        protocol.send(SocketMessage::Text("behind it".into()));
        let output = protocol.output().split();
        assert_eq!(output.as_ref(), b"\x81\x04last\x88\x09\x03\xe9restart");
        protocol.feed(s(6), &frame(FIN | TEXT, b"it did not know yet"));
        assert_eq!(all(&mut protocol), []);
        protocol.moved(s(5), true, true);
        assert!(!protocol.is_over() && protocol.deadline() == Some(s(7)));
        protocol.feed(s(6), &close(1001, ""));
        assert_eq!(all(&mut protocol), []);
        assert!(protocol.is_over() && protocol.output().is_empty() && protocol.deadline().is_none());

        let mut silent = open();
        silent.close(s(5), &Closed::new(1000, ""));
        // It counts from when the close has left, behind all that was sent before.
        assert_eq!((silent.pass(s(24)), silent.deadline()), (None, Some(s(25))));
        silent.output().clear();
        silent.moved(s(24), true, false);
        assert_eq!((silent.pass(s(30)), silent.deadline()), (None, Some(s(44))));
        silent.moved(s(31), true, true);
        assert_eq!((silent.pass(s(32)), silent.pass(s(33))), (None, Some(TooLate::Unanswered)));
    }

    #[test]
    fn a_silent_client_is_asked_then_given_up() {
        let mut protocol = open();
        assert_eq!(protocol.deadline(), Some(s(30)));
        assert_eq!(protocol.pass(s(30)), None);
        assert_eq!(protocol.output().split().as_ref(), [FIN | PING, 0]);
        assert_eq!(protocol.deadline(), Some(s(60)));
        protocol.feed(s(59), &frame(FIN | PONG, b""));
        assert_eq!((all(&mut protocol), protocol.deadline()), (vec![], Some(s(89))));
        protocol.pass(s(89));
        protocol.output().clear();
        assert_eq!(protocol.pass(s(119)), Some(TooLate::Silent));
    }

    /// Silence that nobody could hear is none.
    #[test]
    fn a_client_that_is_not_read_is_not_silent() {
        let mut protocol = open();
        protocol.listens(s(10), false);
        // It is asked all the same, as a kernel tells of a client that is gone.
        for asked in [40, 70, 100] {
            assert_eq!((protocol.deadline(), protocol.pass(s(asked))), (Some(s(asked)), None));
            assert_eq!(protocol.output().split().as_ref(), [FIN | PING, 0]);
        }
        protocol.listens(s(500), true);
        assert_eq!(protocol.deadline(), Some(s(530)));
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up() {
        let mut protocol = open();
        protocol.send(SocketMessage::Text("text".into()));
        protocol.moved(s(1), false, true);
        assert_eq!(protocol.deadline(), Some(s(21)));
        protocol.output().advance(1);
        protocol.moved(s(20), true, true);
        protocol.moved(s(30), false, true);
        assert_eq!(protocol.pass(s(39)), None);
        // Pings, and what it sends, are no reason to wait for it.
        protocol.feed(s(39), &frame(FIN | TEXT, b"here"));
        all(&mut protocol);
        assert_eq!(protocol.pass(s(40)), Some(TooLate::Stuck));
        // Nor that bytes wait below, as those of TLS do.
        let mut below = open();
        below.moved(s(1), true, false);
        assert_eq!(below.deadline(), Some(s(21)));
    }

    #[test]
    fn what_is_for_nothing_ends() {
        let ends = |frame: &[u8], most: usize| {
            let mut protocol = open();
            let rounds = (0..most).take_while(|_| {
                protocol.feed(s(1), frame);
                let comes = protocol.next(s(1));
                protocol.output().clear();
                comes.is_none()
            });
            let rounds = rounds.count();
            assert!(rounds < most && protocol.is_over(), "{rounds}");
        };
        ends(&frame(FIN | PING, b""), 20_000);
        ends(&frame(FIN | PONG, b""), 20_000);
        // But whoever only pings, for as long as may be, is welcome.
        let mut protocol = open();
        for second in 0..5000 {
            protocol.feed(s(second), &frame(FIN | PING, &[7; 125]));
            assert_eq!(protocol.next(s(second)), None);
            protocol.output().clear();
        }
        assert!(!protocol.is_over());
        let mut protocol = open();
        protocol.feed(s(1), &frame(TEXT, b""));
        assert_eq!(all(&mut protocol), []);
        let empty = frame(CONTINUATION, b"").repeat(1000);
        let refused = (0..30).find_map(|_| {
            protocol.feed(s(1), &empty);
            protocol.next(s(1))
        });
        assert_eq!(refused, Some(Arrived::Closed(Closed::new(code::POLICY, "too many fragments"))));
        // As small as they may be, and still a message.
        let mut protocol = open();
        protocol.feed(s(1), &frame(TEXT, b"a"));
        for _ in 0..MAX - 2 {
            protocol.feed(s(1), &frame(CONTINUATION, b"a"));
            assert_eq!(protocol.next(s(1)), None);
        }
        protocol.feed(s(1), &frame(FIN | CONTINUATION, b"a"));
        assert_eq!(all(&mut protocol), [text(&"a".repeat(MAX))]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// In whatever pieces they come, the same bytes are the same messages; and whatever they are, they end.
        #[test]
        fn pieces_of_frames_do_not_matter(
            frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            noise in prop::collection::vec(any::<u8>(), 0..30),
            pieces in prop::collection::vec(1..50_usize, 1..20),
        ) {
            // Mostly valid: the opcodes that there are.
            let opcode = |byte: u8| (byte & FIN) | [CONTINUATION, TEXT, BINARY, BINARY, PING, PONG][usize::from(byte & 0x7f) % 6];
            let mut bytes: Vec<u8> = frames.iter().flat_map(|(first, payload)| frame(opcode(*first), payload)).collect();
            bytes.extend(noise);
            let mut whole = open();
            whole.feed(s(1), &bytes);
            let expected = all(&mut whole);
            let (mut split, mut found, mut rest) = (open(), Vec::new(), &bytes[..]);
            for piece in pieces.iter().cycle() {
                let (now, later) = rest.split_at((*piece).min(rest.len()));
                split.feed(s(1), now);
                found.extend(all(&mut split));
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(split.is_over(), whole.is_over());
            let ends = expected.iter().filter(|incoming| matches!(incoming, Arrived::Closed(_))).count();
            prop_assert!(ends <= 1 && (ends == 1) == whole.is_over());
            prop_assert!(whole.output().len() <= bytes.len() + 200);
        }
    }
}
