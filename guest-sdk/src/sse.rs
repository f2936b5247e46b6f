//! Server-sent events, as browsers read them with `EventSource`
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::fmt::Write as _;
use std::future::Future;
use std::time::Duration;

use http::HeaderValue;
use http::header::CACHE_CONTROL;

use crate::response::typed;
use crate::{Body, Response, Result, Writer};

/// Answers with the events that a function sends, one after the other, until it ends or the client leaves.
///
/// ```
/// use std::time::Duration;
/// use wasmcluster_guest::sse::{self, Event};
/// use wasmcluster_guest::{Request, Response, time};
///
/// #[wasmcluster_guest::main]
/// async fn handle(_: Request) -> Response {
///     sse::respond(|mut events| async move {
///         for second in 0..3 {
///             events.send(Event::data(second.to_string())).await?;
///             time::sleep(Duration::from_secs(1)).await;
///         }
///         Ok(())
///     })
/// }
/// # assert_eq!(wasmcluster_guest::testing::call(handle, Request::default()).text(), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
/// ```
pub fn respond<S, F>(send: S) -> Response
where
    S: FnOnce(Events) -> F,
    F: Future<Output = Result<()>> + 'static,
{
    let mut response = typed("text/event-stream", Body::from_writer(|writer| send(Events(writer))));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Where the function of [`respond`] sends its events.
///
/// ```
/// use std::time::Duration;
/// use wasmcluster_guest::sse::{Event, Events};
/// use wasmcluster_guest::{Result, time};
///
/// async fn tick(mut events: Events) -> Result<()> {
///     events.send(Event::data("now")).await?;
///     time::sleep(Duration::from_secs(30)).await;
///     events.keep_alive().await
/// }
/// # let response = wasmcluster_guest::sse::respond(tick);
/// # assert_eq!(wasmcluster_guest::testing::block_on(response.into_body().text(64)).unwrap(), "data: now\n\n:\n\n");
/// ```
#[derive(Debug)]
pub struct Events(Writer);

impl Events {
    /// Sends an event, when the one before has been taken.
    ///
    /// # Errors
    ///
    /// None so far: when the client leaves, the whole function is dropped.
    pub async fn send(&mut self, event: Event) -> Result<()> {
        self.0.write(event.text()).await
    }

    /// Sends a line that clients ignore. At least one per `--stream-timeout` keeps a silent stream alive.
    ///
    /// # Errors
    ///
    /// None so far.
    pub async fn keep_alive(&mut self) -> Result<()> {
        self.0.write(":\n\n").await
    }
}

/// One event.
///
/// ```
/// use wasmcluster_guest::sse::Event;
/// let event = Event::data("two\nlines").name("news").id("7");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    data: String,
    name: Option<String>,
    id: Option<String>,
    retry: Option<Duration>,
}

impl Event {
    /// With these lines as its data.
    pub fn data(data: impl Into<String>) -> Self {
        Self { data: data.into(), ..Self::default() }
    }

    /// Sets the type, which a client listens for; without one it is a `message`. Line ends in it are left out.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the id, which a client sends as `last-event-id` when it reconnects. Line ends in it are left out.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The time, in milliseconds, after which a client reconnects when its connection has ended.
    #[must_use]
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    /// As it is sent.
    fn text(&self) -> String {
        let mut text = String::with_capacity(self.data.len() + 16);
        let one_line = |value: &str| value.replace(['\n', '\r', '\0'], "");
        // Writing to a string does not fail.
        if let Some(name) = &self.name {
            let _ = writeln!(text, "event: {}", one_line(name));
        }
        if let Some(id) = &self.id {
            let _ = writeln!(text, "id: {}", one_line(id));
        }
        if let Some(retry) = self.retry {
            let _ = writeln!(text, "retry: {}", retry.as_millis());
        }
        for line in self.data.replace("\r\n", "\n").split(['\n', '\r']) {
            let _ = writeln!(text, "data: {line}");
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(event: Event, expected: &str) {
        assert_eq!(event.text(), expected);
    }

    #[test]
    fn events_are_sent_as_the_specification_says() {
        check(Event::data("a"), "data: a\n\n");
        check(Event::data(""), "data: \n\n");
        check(Event::data("a\nb\r\nc\rd"), "data: a\ndata: b\ndata: c\ndata: d\n\n");
        check(Event::data("a").name("n").id("7"), "event: n\nid: 7\ndata: a\n\n");
        check(Event::data("a").retry(Duration::from_secs(2)), "retry: 2000\ndata: a\n\n");
    }

    #[test]
    fn nothing_smuggles_a_line_in() {
        check(Event::data("a").name("n\ndata: b").id("1\r2"), "event: ndata: b\nid: 12\ndata: a\n\n");
    }
}
