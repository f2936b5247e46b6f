//! What happens in the cluster, as a stream for whoever asks: `wasmcluster events`.

use bytes::Bytes;

use tokio::sync::mpsc;

use crate::control::protocol::{Happening, line};

/// Events that a reader may leave unread; what comes on top is missed, and counted.
const MAX_UNREAD: usize = 1024;
/// Readers at the same time.
const MAX_READERS: usize = 8;

/// Everybody who wants to know.
#[derive(Debug, Default)]
pub(crate) struct Events {
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
    /// What happens from now on. Refused when there are too many readers already.
    pub(crate) fn subscribe(&mut self) -> Result<mpsc::Receiver<Bytes>, String> {
        self.readers.retain(|reader| !reader.lines.is_closed());
        if self.readers.len() >= MAX_READERS {
            return Err(format!("the events have {MAX_READERS} readers already, which is the limit"));
        }
        let (lines, receiver) = mpsc::channel(MAX_UNREAD);
        self.readers.push(Reader { lines, missed: 0 });
        Ok(receiver)
    }

    pub(crate) fn publish(&mut self, happening: &Happening) {
        self.readers.retain(|reader| !reader.lines.is_closed());
        if self.readers.is_empty() {
            return;
        }
        let line = line(happening);
        self.readers.iter_mut().for_each(|reader| reader.tell(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(lines: &mut mpsc::Receiver<Bytes>) -> Vec<serde_json::Value> {
        std::iter::from_fn(|| lines.try_recv().ok()).map(|line| serde_json::from_slice(&line).unwrap()).collect()
    }

    #[test]
    fn each_is_a_line_with_its_time() {
        let mut all = Events::default();
        let mut reader = all.subscribe().unwrap();
        all.publish(&Happening::Scaling { from: 1, to: 2 });
        let event = &events(&mut reader)[0];
        assert_eq!((&event["event"], &event["from"], &event["to"]), (&"scaling".into(), &1.into(), &2.into()));
        assert!(humantime::parse_rfc3339(event["time"].as_str().unwrap()).is_ok());
    }

    #[test]
    fn a_slow_reader_misses_events_and_is_told() {
        let mut all = Events::default();
        let mut reader = all.subscribe().unwrap();
        (0..MAX_UNREAD + 5).for_each(|_| all.publish(&Happening::Stopping));
        assert_eq!(events(&mut reader).len(), MAX_UNREAD);
        all.publish(&Happening::Stopping);
        let rest = events(&mut reader);
        assert_eq!((&rest[0]["event"], &rest[0]["events"]), (&"missed".into(), &5.into()));
        assert_eq!(rest[1]["event"], "stopping");
    }

    #[test]
    fn readers_are_few_and_those_that_left_are_forgotten() {
        let mut all = Events::default();
        let readers: Vec<_> = (0..MAX_READERS).map(|_| all.subscribe().unwrap()).collect();
        assert!(all.subscribe().is_err());
        drop(readers);
        assert!(all.subscribe().is_ok());
    }
}
