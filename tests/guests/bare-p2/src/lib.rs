//! The answer of `examples/hello`, byte for byte, on the bare bindings: what the SDK's cost is measured against. Like a
//! handler of the SDK it is given the head of its request, fetched with no call more than that takes.

use std::hint::black_box;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

const BODY: &[u8] = b"Hello from wasmcluster!\n";

struct Component;

impl Guest for Component {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        black_box(request.method());
        black_box((request.scheme(), request.authority(), request.path_with_query()));
        black_box(request.headers().entries());
        let headers = [
            ("content-type".into(), b"text/plain; charset=utf-8".to_vec()),
            ("content-length".into(), BODY.len().to_string().into_bytes()),
        ];
        let response = OutgoingResponse::new(Fields::from_list(&headers).expect("two plain headers"));
        let body = response.body().expect("the body is opened once");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("the stream is opened once");
        // A new body has room for one short line.
        if stream.check_write().is_ok_and(|permit| permit >= BODY.len() as u64) && stream.write(BODY).is_ok() {
            drop(stream);
            let _ = OutgoingBody::finish(body, None);
        }
    }
}

wasip2::http::proxy::export!(Component);
