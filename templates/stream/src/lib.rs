//! An endless stream of server-sent events, a number each second, for as long as the client stays.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::stream::unfold;
use wasmcluster_guest::http::header::CONTENT_TYPE;
use wasmcluster_guest::{Body, Request, Response, Result, http, time};

#[wasmcluster_guest::main]
async fn handle(_: Request) -> Result<Response> {
    // Each event is made when the client has taken the one before.
    let events = unfold(0, |number| async move {
        if number > 0 {
            time::sleep(Duration::from_secs(1)).await;
        }
        Some((Ok::<_, Infallible>(event(number)), number + 1))
    });
    let response = http::Response::builder().header(CONTENT_TYPE, "text/event-stream");
    Ok(response.body(Body::from_stream(events))?)
}

/// In the form of <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
fn event(number: u64) -> String {
    format!("event: tick\ndata: {number}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_comes_at_once() {
        let answer = pollster::block_on(handle(Request::default())).unwrap();
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/event-stream");
        let first = pollster::block_on(answer.into_body().chunk()).unwrap().unwrap();
        assert_eq!(first, "event: tick\ndata: 0\n\n");
    }
}
