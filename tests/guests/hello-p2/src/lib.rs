//! Hello, whatever the request: the least that a guest of WASI 0.2 can do.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

const BODY: &[u8] = b"Hello from wasmcluster!\n";

struct Component;

impl Guest for Component {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
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
