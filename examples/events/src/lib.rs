//! Counts down with server-sent events: one each second, on one response.

use std::time::Duration;

use serde::Deserialize;
use wasmcluster_guest::http::StatusCode;
use wasmcluster_guest::sse::{self, Event};
use wasmcluster_guest::{Html, IntoResponse, Query, Request, Response, Result, time};

const PAGE: &str = "<!doctype html>
<title>Countdown</title>
<h1>…</h1>
<script>
    const show = (text) => document.querySelector('h1').textContent = text;
    const events = new EventSource('/events');
    events.onmessage = (event) => show(event.data);
    // Closed, or the browser would ask again.
    events.addEventListener('end', (event) => { show(event.data); events.close(); });
</script>
";

#[derive(Deserialize)]
struct Countdown {
    #[serde(default = "ten")]
    from: u32,
}

fn ten() -> u32 {
    10
}

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Result<Response> {
    Ok(match request.uri().path() {
        "/" => Html(PAGE).into_response(),
        "/events" => {
            let Query(Countdown { from }) = Query::of(&request)?;
            count_down(from)
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    })
}

/// Runs while the client reads: when it leaves, this is dropped.
fn count_down(from: u32) -> Response {
    sse::respond(move |mut events| async move {
        for left in (1..=from).rev() {
            events.send(Event::data(left.to_string())).await?;
            time::sleep(Duration::from_secs(1)).await;
        }
        events.send(Event::data("Lift-off!").name("end")).await
    })
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::{Request, testing};

    /// Time is virtual here.
    #[test]
    fn it_counts_down() {
        let get = |path| testing::call(super::handle, Request::get(path).body(().into()).expect("a request"));
        assert_eq!(get("/events?from=2").text(), "data: 2\n\ndata: 1\n\nevent: end\ndata: Lift-off!\n\n");
        assert_eq!(get("/events").text().matches("data: ").count(), 11);
        assert_eq!(get("/events?from=x").status(), 400);
        assert_eq!(get("/").headers()["content-type"], "text/html; charset=utf-8");
    }
}
