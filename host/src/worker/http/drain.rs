//! When a connection is closed, and above all when its worker drains: a pure machine, one for each connection. It does no
//! I/O and reads no clock.
//!
//! ```text
//!           a head begins          it is there          the answer is handed over, keep-alive
//!     Idle ─────────────▶ Head ───────────────▶ Busy ───────────────────────────────────────▶ Idle
//!      │                   │                     │
//!      │ idle for too long,│ the head takes too  │ the answer is handed over, and said `Connection: close`
//!      │ or the grace is   │ long, or makes room │
//!      │ over              ▼                     │
//!      │               Refused ──(408)──┐     │
//!      ▼                                ▼        │
//!     HalfClosed ◀──────────────────────┴────────┘
//!      │ the client has closed too, or did not within a second
//!      ▼
//!     Closed
//! ```
//!
//! A connection on which nothing was said yet is idle. Requests that are on their way when a drain begins are answered
//! if they arrive within the grace; what arrives on a half-closed connection is read, so that it cannot turn the last
//! answer into a reset, and thrown away. A client that closes its side behind its request is still answered, unless nothing
//! moves for a second: most that do so have left.

use std::time::Duration;

/// Time since the worker started.
pub(crate) type Time = Duration;

/// How long a client may take to close its side.
const LINGER: Duration = Duration::from_secs(1);
/// How long a client that has closed its side is waited for, while no byte of its answer moves. It may have left, or still
/// read: that shows only when something is written.
const HALF_OPEN: Duration = Duration::from_secs(1);

/// What happened on the connection, or to its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionEvent {
    /// Bytes came in that begin a request, or go on with its head.
    HeadBegan,
    /// What had begun was no request's head, and is whole (HTTP/2).
    HeadEnded,
    /// What came in makes no sense, and it is its turn to be answered.
    Malformed,
    /// The head of a request is there.
    RequestBegan,
    /// The last byte of an answer was handed to the kernel, and further requests may follow.
    Answered,
    /// Our side was shut behind the last answer, and the client may still be sending.
    Shut,
    /// More of a request came in, but not of its head.
    BodyCame,
    /// A byte of an answer went out.
    AnswerMoved,
    /// The client closed its side while it waits for an answer, and may still read that.
    ClientShut,
    /// The client closed its side, or the connection broke.
    ClientLeft,
    /// There are too many connections, or they hold too much memory, and this one's client has been waited for longest.
    Evicted,
    /// The worker began to drain.
    DrainBegan,
    /// The time that [`Lifecycle::next_deadline`] named has come.
    DeadlinePassed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LifecycleState {
    Idle {
        since: Time,
    },
    Head {
        since: Time,
        /// Since when it was idle before: what is no request does not make it less so.
        idle: Time,
    },
    /// The client is to be told that its head took too long, or made no sense.
    Refused,
    Busy,
    HalfClosed {
        until: Time,
    },
    Closed,
}

/// What is to come from a client next. An idle connection makes room before one whose request has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Awaited {
    Request,
    RestOfHead,
}

/// What there is still to do on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Read requests and answer them.
    Serve,
    /// Answer 408 or 400, whatever the reason was.
    Refuse,
    /// Shut our side, and read what comes only to throw it away.
    Linger,
    /// Close it.
    Close,
}

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For the next request.
    pub(crate) keep_alive: Duration,
    /// For the next request, after a drain began.
    pub(crate) grace: Duration,
    /// From the first byte of a head to its last.
    pub(crate) header: Duration,
    /// How old it may become, before it is treated as if its worker drained.
    pub(crate) age: Duration,
}

/// The machine of one connection.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: LifecycleState,
    timeouts: Timeouts,
    /// When it is old.
    retires: Time,
    drain_began: Option<Time>,
    /// When the client closed its side, or a byte moved after that.
    client_shut: Option<Time>,
}

impl Lifecycle {
    /// A connection that was accepted at `now`.
    pub(crate) fn new(now: Time, timeouts: Timeouts) -> Self {
        let retires = now + timeouts.age;
        Self { state: LifecycleState::Idle { since: now }, timeouts, retires, drain_began: None, client_shut: None }
    }

    /// Takes note of what happened at `now`.
    pub(crate) fn step(&mut self, now: Time, event: ConnectionEvent) {
        if now >= self.retires || event == ConnectionEvent::DrainBegan {
            self.drain_began.get_or_insert(now);
        }
        let is_due = event == ConnectionEvent::DeadlinePassed && self.next_deadline().is_some_and(|at| at <= now);
        let half_closed = LifecycleState::HalfClosed { until: now + LINGER };
        self.state = match (self.state, event) {
            (LifecycleState::Closed, _) | (_, ConnectionEvent::ClientLeft) => LifecycleState::Closed,
            (LifecycleState::HalfClosed { .. }, _) if is_due => LifecycleState::Closed,
            (LifecycleState::HalfClosed { until }, _) => LifecycleState::HalfClosed { until },
            (_, ConnectionEvent::Shut) => half_closed,
            // Without a half-close, which would keep its place for another second.
            (LifecycleState::Idle { .. }, ConnectionEvent::Evicted) => LifecycleState::Closed,
            (LifecycleState::Head { .. }, ConnectionEvent::Evicted) => LifecycleState::Refused,
            (LifecycleState::Refused, _) => LifecycleState::Refused,
            (_, ConnectionEvent::Malformed) => LifecycleState::Refused,
            (_, ConnectionEvent::RequestBegan) => LifecycleState::Busy,
            (LifecycleState::Idle { since }, ConnectionEvent::HeadBegan) => {
                LifecycleState::Head { since: now, idle: since }
            }
            (LifecycleState::Head { idle, .. }, ConnectionEvent::HeadEnded) => LifecycleState::Idle { since: idle },
            (LifecycleState::Idle { .. }, ConnectionEvent::BodyCame)
            | (LifecycleState::Busy, ConnectionEvent::Answered) => LifecycleState::Idle { since: now },
            (LifecycleState::Idle { .. }, _) if is_due => half_closed,
            (LifecycleState::Head { .. }, _) if is_due => LifecycleState::Refused,
            (LifecycleState::Busy, _) if is_due => LifecycleState::Closed,
            (state, _) => state,
        };
        match event {
            ConnectionEvent::ClientShut => drop(self.client_shut.get_or_insert(now)),
            ConnectionEvent::RequestBegan | ConnectionEvent::BodyCame | ConnectionEvent::AnswerMoved => {
                self.client_shut = self.client_shut.map(|_| now);
            }
            _ => {}
        }
    }

    /// Whether the client has closed its side, and is still answered.
    pub(crate) fn is_client_shut(&self) -> bool {
        self.client_shut.is_some()
    }

    /// Whether a request is being answered.
    pub(crate) fn is_busy(&self) -> bool {
        self.state == LifecycleState::Busy
    }

    /// What its client is waited for, and since when.
    pub(crate) fn awaited(&self) -> Option<(Awaited, Time)> {
        match self.state {
            LifecycleState::Idle { since } => Some((Awaited::Request, since)),
            LifecycleState::Head { since, .. } => Some((Awaited::RestOfHead, since)),
            _ => None,
        }
    }

    /// What to do now.
    pub(crate) fn duty(&self) -> Duty {
        match self.state {
            LifecycleState::Idle { .. } | LifecycleState::Head { .. } | LifecycleState::Busy => Duty::Serve,
            LifecycleState::Refused => Duty::Refuse,
            LifecycleState::HalfClosed { .. } => Duty::Linger,
            LifecycleState::Closed => Duty::Close,
        }
    }

    /// Whether an answer whose head goes out now must say `Connection: close`.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain_began.is_some()
    }

    /// When to send [`ConnectionEvent::DeadlinePassed`], if at all.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let Timeouts { keep_alive, grace, header, .. } = self.timeouts;
        let deadline = match (self.state, self.drain_began) {
            (LifecycleState::Idle { since }, Some(began)) => Some((since.max(began) + grace).min(since + keep_alive)),
            (LifecycleState::Idle { since }, None) => Some(since + keep_alive),
            (LifecycleState::Head { since, .. }, _) => Some(since + header),
            (LifecycleState::HalfClosed { until }, _) => Some(until),
            (LifecycleState::Busy, _) => self.client_shut.map(|since| since + HALF_OPEN),
            (LifecycleState::Refused | LifecycleState::Closed, _) => return None,
        };
        if self.drain_began.is_some() {
            deadline
        } else {
            Some(deadline.map_or(self.retires, |at| at.min(self.retires)))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        keep_alive: Duration::from_secs(75),
        grace: Duration::from_secs(2),
        header: Duration::from_secs(10),
        age: Duration::from_secs(3600),
    };

    fn ms(milliseconds: u64) -> Time {
        Duration::from_millis(milliseconds)
    }

    /// Feeds a script to a connection accepted at 0, and compares duty and next deadline after each event.
    fn check(script: &[(u64, ConnectionEvent, Duty, Option<u64>)]) {
        let mut connection = Lifecycle::new(ms(0), TIMEOUTS);
        for &(at, event, duty, deadline) in script {
            connection.step(ms(at), event);
            assert_eq!(connection.duty(), duty, "at {at} ms, after {event:?}");
            let next = connection.next_deadline().filter(|&at| at != TIMEOUTS.age);
            assert_eq!(next, deadline.map(ms), "at {at} ms, after {event:?}");
        }
    }

    use ConnectionEvent::{
        AnswerMoved, Answered, BodyCame, ClientLeft, ClientShut, DeadlinePassed, DrainBegan, Evicted, HeadBegan,
        HeadEnded, Malformed, RequestBegan, Shut,
    };
    use Duty::{Close, Linger, Refuse, Serve};

    #[test]
    fn without_a_drain_a_connection_may_be_idle_for_long() {
        check(&[
            (0, DeadlinePassed, Serve, Some(75_000)),
            (5, HeadBegan, Serve, Some(10_005)),
            (6, HeadBegan, Serve, Some(10_005)),
            (7, RequestBegan, Serve, None),
            (9, Answered, Serve, Some(75_009)),
            // Read together with the one before.
            (9, RequestBegan, Serve, None),
            (12, Answered, Serve, Some(75_012)),
            (75_011, DeadlinePassed, Serve, Some(75_012)),
            (75_012, DeadlinePassed, Linger, Some(76_012)),
            (75_100, ClientLeft, Close, None),
        ]);
        check(&[(5, RequestBegan, Serve, None), (9, Shut, Linger, Some(1009)), (10, ClientLeft, Close, None)]);
    }

    #[test]
    fn an_old_connection_ends_as_in_a_drain() {
        let age = TIMEOUTS.age.as_millis() as u64;
        check(&[
            (age - 10_000, RequestBegan, Serve, None),
            (age - 9000, Answered, Serve, None),
            (age, DeadlinePassed, Serve, Some(age + 2000)),
            (age + 2000, DeadlinePassed, Linger, Some(age + 3000)),
        ]);
        check(&[
            (age - 10_000, RequestBegan, Serve, None),
            (age, DeadlinePassed, Serve, None),
            (age + 9000, Answered, Serve, Some(age + 11_000)),
        ]);
    }

    #[test]
    fn what_is_no_request_does_not_keep_a_connection() {
        check(&[
            (5, HeadBegan, Serve, Some(10_005)),
            (7, HeadEnded, Serve, Some(75_000)),
            (60_000, HeadBegan, Serve, Some(70_000)),
            (60_000, HeadEnded, Serve, Some(75_000)),
            (75_000, DeadlinePassed, Linger, Some(76_000)),
        ]);
    }

    #[test]
    fn a_head_that_takes_too_long_is_refused() {
        check(&[
            (5, HeadBegan, Serve, Some(10_005)),
            (9000, HeadBegan, Serve, Some(10_005)),
            (10_005, DeadlinePassed, Refuse, None),
            (10_006, HeadBegan, Refuse, None),
            (10_007, Shut, Linger, Some(11_007)),
            (11_007, DeadlinePassed, Close, None),
        ]);
        // Also in a drain, where it is waited for.
        check(&[
            (5, HeadBegan, Serve, Some(10_005)),
            (6, DrainBegan, Serve, Some(10_005)),
            (10_005, DeadlinePassed, Refuse, None),
        ]);
    }

    #[test]
    fn a_client_that_makes_no_sense_is_refused() {
        check(&[(5, Malformed, Refuse, None), (6, RequestBegan, Refuse, None), (7, Shut, Linger, Some(1007))]);
        check(&[(5, RequestBegan, Serve, None), (6, Malformed, Refuse, None), (7, ClientLeft, Close, None)]);
    }

    #[test]
    fn connections_make_room_unless_a_request_is_answered() {
        check(&[(5, RequestBegan, Serve, None), (6, Evicted, Serve, None), (7, Answered, Serve, Some(75_007))]);
        check(&[(5, HeadBegan, Serve, Some(10_005)), (6, Evicted, Refuse, None), (7, Shut, Linger, Some(1007))]);
        check(&[(5, RequestBegan, Serve, None), (7, Answered, Serve, Some(75_007)), (8, Evicted, Close, None)]);
    }

    #[test]
    fn an_idle_or_silent_connection_is_kept_for_the_grace_then_half_closed() {
        check(&[
            (5000, DrainBegan, Serve, Some(7000)),
            (6999, DeadlinePassed, Serve, Some(7000)),
            (7000, DeadlinePassed, Linger, Some(8000)),
            (7500, HeadBegan, Linger, Some(8000)),
            (8000, DeadlinePassed, Close, None),
        ]);
        check(&[
            (5000, DrainBegan, Serve, Some(7000)),
            (7100, DeadlinePassed, Linger, Some(8100)),
            (7200, ClientLeft, Close, None),
        ]);
        // A grace does not make a connection live longer than without a drain.
        check(&[(74_000, DrainBegan, Serve, Some(75_000))]);
    }

    #[test]
    fn a_request_within_the_grace_is_served_and_ends_its_connection() {
        check(&[
            (5000, DrainBegan, Serve, Some(7000)),
            (6900, HeadBegan, Serve, Some(16_900)),
            (6900, RequestBegan, Serve, None),
            (9000, DeadlinePassed, Serve, None),
            // Its answer said so.
            (9000, Shut, Linger, Some(10_000)),
            (9100, ClientLeft, Close, None),
        ]);
    }

    #[test]
    fn an_answer_that_did_not_say_close_does_not_end_its_connection() {
        check(&[
            (100, RequestBegan, Serve, None),
            (5000, DrainBegan, Serve, None),
            (9000, Answered, Serve, Some(11_000)),
            (10_000, RequestBegan, Serve, None),
            (10_500, Shut, Linger, Some(11_500)),
            (11_500, DeadlinePassed, Close, None),
        ]);
    }

    #[test]
    fn a_client_that_closes_its_side_is_answered_while_something_moves() {
        check(&[
            (5, RequestBegan, Serve, None),
            (10, ClientShut, Serve, Some(1010)),
            (500, AnswerMoved, Serve, Some(1500)),
            (600, ClientShut, Serve, Some(1500)),
            (1400, Answered, Serve, Some(76_400)),
            // It was sent together with the one before.
            (1400, RequestBegan, Serve, Some(2400)),
            (2399, DeadlinePassed, Serve, Some(2400)),
            (2400, DeadlinePassed, Close, None),
        ]);
        // The end comes along with the request.
        check(&[
            (5, ClientShut, Serve, Some(75_000)),
            (5, RequestBegan, Serve, Some(1005)),
            (6, ClientLeft, Close, None),
        ]);
    }

    /// What the guest left unread of a request is read by the server afterwards. That begins no other request.
    #[test]
    fn the_rest_of_a_body_keeps_nothing_busy() {
        check(&[
            (100, RequestBegan, Serve, None),
            (150, BodyCame, Serve, None),
            (200, Answered, Serve, Some(75_200)),
            (300, BodyCame, Serve, Some(75_300)),
            (5000, DrainBegan, Serve, Some(7000)),
            (6000, BodyCame, Serve, Some(8000)),
            (8000, DeadlinePassed, Linger, Some(9000)),
        ]);
    }

    #[test]
    fn the_first_drain_counts() {
        check(&[(1000, DrainBegan, Serve, Some(3000)), (2000, DrainBegan, Serve, Some(3000))]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever happens: no deadline lies far ahead, nothing reopens, and a drain ends unless a request is busy.
        #[test]
        fn a_drain_ends(script in prop::collection::vec((0..3000_u64, 0..13_usize), 0..40)) {
            let all = [
                HeadBegan, RequestBegan, Answered, Shut, ClientLeft, DrainBegan, DeadlinePassed, BodyCame, Malformed, Evicted,
                AnswerMoved, ClientShut, HeadEnded,
            ];
            let mut connection = Lifecycle::new(ms(0), TIMEOUTS);
            let (mut now, mut furthest) = (0, Serve as usize);
            for (wait, event) in script {
                now += wait;
                connection.step(ms(now), all[event]);
                let duty = connection.duty() as usize;
                prop_assert!(duty >= furthest, "it reopened");
                furthest = duty;
                let near = ms(now) + TIMEOUTS.keep_alive;
                prop_assert!(connection.next_deadline().is_none_or(|at| at <= near || at == TIMEOUTS.age));
            }
            connection.step(ms(now), DrainBegan);
            let mut turns = 0;
            loop {
                if connection.duty() == Refuse {
                    connection.step(ms(now), Shut);
                }
                let Some(deadline) = connection.next_deadline() else { break };
                connection.step(deadline, DeadlinePassed);
                turns += 1;
                prop_assert!(turns <= 3);
            }
            prop_assert!(connection.duty() == Close || connection.state == LifecycleState::Busy);
        }
    }
}
