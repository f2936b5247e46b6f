//! Streams each request's body back as it arrives, with its type and its trailers.

use wasmcluster_guest::http::header::CONTENT_TYPE;
use wasmcluster_guest::{Request, Response};

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let mut response = Response::new(body);
    if let Some(kind) = head.headers.remove(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::testing;

    use super::*;

    #[test]
    fn what_was_sent_comes_back() {
        let request = Request::post("/").header(CONTENT_TYPE, "text/csv").body("a,b".into()).expect("a request");
        let answer = testing::call(handle, request);
        assert_eq!((answer.text(), &answer.headers()[CONTENT_TYPE]), ("a,b", &"text/csv".parse().expect("a value")));
    }
}
