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
