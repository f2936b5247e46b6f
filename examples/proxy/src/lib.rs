//! Passes every request on to another server, whose address is in the environment variable `UPSTREAM`. Both bodies stream.

use std::time::Duration;

use wasmcluster_guest::fetch::{self, FetchError};
use wasmcluster_guest::http::StatusCode;
use wasmcluster_guest::{Error, Request, Response, Result};

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Result<Response> {
    let upstream = std::env::var("UPSTREAM").map_err(|_| "UPSTREAM is not set: serve with --env UPSTREAM=http://…")?;
    pass(request, &upstream).await
}

async fn pass(mut request: Request, upstream: &str) -> Result<Response> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = format!("{upstream}{path}").parse()?;
    fetch::request(request).timeout(Duration::from_secs(10)).await.map_err(|error| {
        let status = match error.downcast_ref() {
            Some(FetchError::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
            Some(FetchError::Failed(_)) => StatusCode::BAD_GATEWAY,
            // Not granted, or not a URL: whoever serves this has to know.
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Error::new(status, error.into_inner())
    })
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::testing::Host;
    use wasmcluster_guest::{Request, time};

    use super::*;

    fn get(host: &Host) -> (u16, String) {
        let request = Request::get("http://here/a?b").body(().into()).expect("a request");
        let answer = host.call(|request| pass(request, "http://upstream"), request);
        (answer.status().as_u16(), answer.text().to_owned())
    }

    #[test]
    fn a_request_goes_on_with_its_path() {
        let host = Host::new().on_fetch(|request| async move { request.uri().to_string() });
        assert_eq!(get(&host), (200, "http://upstream/a?b".into()));
    }

    #[test]
    fn a_slow_upstream_is_a_504() {
        let host = Host::new().on_fetch(|_| async { time::sleep(Duration::from_secs(60)).await });
        assert_eq!(get(&host).0, 504);
    }

    #[test]
    fn one_that_is_not_granted_is_a_500() {
        assert_eq!(get(&Host::new()), (500, "Internal Server Error\n".into()));
    }
}
