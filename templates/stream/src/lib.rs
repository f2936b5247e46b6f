//! Counts down in server-sent events, one a second.

use std::time::Duration;

use wasmcluster_guest::sse::{self, Event};
use wasmcluster_guest::{Request, Response, time};

#[wasmcluster_guest::main]
async fn handle(_: Request) -> Response {
    sse::respond(|mut events| async move {
        for number in (1..=10).rev() {
            // Waits until the client has taken the previous event. When the client leaves, this future is dropped.
            events
                .send(Event::data(number.to_string()).name("count"))
                .await?;
            time::sleep(Duration::from_secs(1)).await;
        }
        events.send(Event::data("lift-off").name("end")).await
    })
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::testing;

    use super::*;

    /// Time is virtual in tests, so this does not take ten seconds.
    #[test]
    fn counts_to_the_end() {
        let answer = testing::call(handle, Request::default());
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let text = answer.text();
        assert_eq!(text.matches("event: count\n").count(), 10);
        assert!(text.starts_with("event: count\ndata: 10\n\n"), "{text}");
        assert!(text.ends_with("event: end\ndata: lift-off\n\n"), "{text}");
    }
}
