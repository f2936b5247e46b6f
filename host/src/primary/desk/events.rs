//! What happens in the cluster, as a stream for whoever asks: `wasmcluster events`. The latest events are kept.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;

use tokio::sync::mpsc;

use super::socket::{Refusable, Refused};
use crate::control::protocol::{Happening, line, line_at};
use crate::control::query::EventsRequest;

/// Events that are kept for those who ask later, and their bytes.
const MAX_KEPT: usize = 1000;
const MAX_KEPT_BYTES: usize = 1 << 20;
/// Events that a reader may leave unread, beside those that it found; what comes on top is missed, and counted.
const MAX_UNREAD: usize = 1024;
/// Readers at the same time.
const MAX_READERS: usize = 8;

/// What has happened, and everybody who wants to know what will.
#[derive(Debug, Default)]
pub(crate) struct Events {
    kept: VecDeque<(SystemTime, Bytes)>,
    kept_bytes: usize,
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    lines: mpsc::Sender<Bytes>,
    missed: u64,
}

impl Reader {
    fn tell(&mut self, happening: &Bytes) {
        if self.missed > 0 && self.lines.try_send(line(&Happening::Missed { events: self.missed })).is_ok() {
            self.missed = 0;
        }
        if self.missed > 0 || self.lines.try_send(happening.clone()).is_err() {
            self.missed += 1;
        }
    }
}

impl Events {
    /// What has happened since the moment that is asked for, and then what happens. Refused when there are too many
    /// readers already.
    pub(crate) fn subscribe(&mut self, request: &EventsRequest) -> Refusable<mpsc::Receiver<Bytes>> {
        let since = request.since.map(|since| since.moment(SystemTime::now())).transpose().map_err(Refused::Wrong)?;
        self.readers.retain(|reader| !reader.lines.is_closed());
        if request.follow && self.readers.len() >= MAX_READERS {
            return Err(format!("the events have {MAX_READERS} readers already, which is the limit").into());
        }
        // The clock may have been set back meanwhile: their order is that in which they happened.
        let kept = self.kept.iter().filter(|(at, _)| since.is_some_and(|since| *at >= since));
        let kept: Vec<&Bytes> = kept.map(|(_, line)| line).collect();
        // There is room for all that it finds, and nothing is published meanwhile: none is missing, and none comes twice.
        let (lines, receiver) = mpsc::channel(kept.len() + MAX_UNREAD);
        let mut reader = Reader { lines, missed: 0 };
        kept.into_iter().for_each(|line| reader.tell(line));
        if request.follow {
            self.readers.push(reader);
        }
        Ok(receiver)
    }

    /// Keeps an event and tells the readers. Returns the line that they get.
    pub(crate) fn publish(&mut self, happening: &Happening) -> Bytes {
        let at = SystemTime::now();
        let line = line_at(at, happening);
        self.keep(at, line.clone());
        self.readers.retain(|reader| !reader.lines.is_closed());
        self.readers.iter_mut().for_each(|reader| reader.tell(&line));
        line
    }

    fn keep(&mut self, at: SystemTime, line: Bytes) {
        self.kept_bytes += line.len();
        self.kept.push_back((at, line));
        while self.kept.len() > MAX_KEPT || self.kept_bytes > MAX_KEPT_BYTES {
            let Some((_, oldest)) = self.kept.pop_front() else { break };
            self.kept_bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::query::Since;

    const FOLLOW: EventsRequest = EventsRequest::TO_COME;
    const ALL: EventsRequest = EventsRequest { since: Some(Since::All), follow: true };

    fn events(lines: &mut mpsc::Receiver<Bytes>) -> Vec<serde_json::Value> {
        std::iter::from_fn(|| lines.try_recv().ok()).map(|line| serde_json::from_slice(&line).unwrap()).collect()
    }

    fn scale_to(all: &mut Events, numbers: std::ops::Range<u32>) {
        numbers.for_each(|to| drop(all.publish(&Happening::Scaling { from: 1, to })));
    }

    fn numbers(events: &[serde_json::Value]) -> Vec<u64> {
        events.iter().map(|event| event["to"].as_u64().unwrap()).collect()
    }

    #[test]
    fn each_is_a_line_with_its_time() {
        let mut all = Events::default();
        let mut reader = all.subscribe(&FOLLOW).unwrap();
        all.publish(&Happening::Scaling { from: 1, to: 2 });
        let event = &events(&mut reader)[0];
        assert_eq!((&event["event"], &event["from"], &event["to"]), (&"scaling".into(), &1.into(), &2.into()));
        assert!(humantime::parse_rfc3339(event["time"].as_str().unwrap()).is_ok());
    }

    #[test]
    fn a_slow_reader_misses_events_and_is_told() {
        for (request, kept) in [(FOLLOW, 0), (ALL, 3)] {
            let mut all = Events::default();
            (0..3).for_each(|_| drop(all.publish(&Happening::Stopping)));
            let mut reader = all.subscribe(&request).unwrap();
            (0..MAX_UNREAD + 5).for_each(|_| drop(all.publish(&Happening::Stopping)));
            assert_eq!(events(&mut reader).len(), kept + MAX_UNREAD);
            all.publish(&Happening::Stopping);
            let rest = events(&mut reader);
            assert_eq!((&rest[0]["event"], &rest[0]["events"]), (&"missed".into(), &5.into()));
            assert_eq!(rest[1]["event"], "stopping");
        }
    }

    #[test]
    fn readers_are_few_and_those_that_left_are_forgotten() {
        let mut all = Events::default();
        let readers: Vec<_> = (0..MAX_READERS).map(|_| all.subscribe(&FOLLOW).unwrap()).collect();
        assert!(matches!(all.subscribe(&FOLLOW), Err(Refused::Impossible(_))));
        assert!(all.subscribe(&EventsRequest { follow: false, ..ALL }).is_ok(), "it does not stay");
        drop(readers);
        assert!(all.subscribe(&FOLLOW).is_ok());
    }

    #[test]
    fn the_latest_are_kept_and_none_is_missing_or_comes_twice() {
        let mut all = Events::default();
        scale_to(&mut all, 0..10);
        let mut reader = all.subscribe(&ALL).unwrap();
        scale_to(&mut all, 10..20);
        assert_eq!(numbers(&events(&mut reader)), (0..20).collect::<Vec<_>>());
        let mut ended = all.subscribe(&EventsRequest { follow: false, ..ALL }).unwrap();
        assert_eq!(numbers(&events(&mut ended)), (0..20).collect::<Vec<_>>());
        assert!(ended.is_closed());
        assert!(events(&mut all.subscribe(&FOLLOW).unwrap()).is_empty());

        scale_to(&mut all, 20..20 + MAX_KEPT as u32);
        let kept = numbers(&events(&mut all.subscribe(&ALL).unwrap()));
        assert_eq!(kept, (20..20 + MAX_KEPT as u64).collect::<Vec<_>>());
        let large = Happening::Note { text: "x".repeat(MAX_KEPT_BYTES / 4) };
        (0..10).for_each(|_| drop(all.publish(&large)));
        assert_eq!(events(&mut all.subscribe(&ALL).unwrap()).len(), 3, "bytes are counted, too");
        all.publish(&Happening::Note { text: "x".repeat(MAX_KEPT_BYTES) });
        assert!(events(&mut all.subscribe(&ALL).unwrap()).is_empty() && all.kept_bytes == 0);
    }

    #[test]
    fn a_reader_says_from_when_on() {
        let mut all = Events::default();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for second in 0..10 {
            let at = start + Duration::from_secs(second);
            all.keep(at, line_at(at, &Happening::Scaling { from: 1, to: second as u32 }));
        }
        let mut since = |moment| {
            let request = EventsRequest { since: Some(Since::At(moment)), follow: false };
            all.subscribe(&request).map(|mut lines| numbers(&events(&mut lines)))
        };
        // As the event itself shows its time.
        assert_eq!(since(start + Duration::from_secs(7)).unwrap(), [7, 8, 9]);
        assert!(since(start + Duration::from_secs(100)).unwrap().is_empty());
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        assert!(matches!(since(tomorrow), Err(Refused::Wrong(_))));
    }
}
