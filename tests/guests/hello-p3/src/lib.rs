//! Hello, whatever the request: the least that a guest of WASI 0.3 can do whose body has its length.

use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{spawn_local, wit_future, wit_stream};

const BODY: &[u8] = b"Hello from wasmcluster!\n";

struct Component;

impl Guest for Component {
    async fn handle(_request: Request) -> Result<Response, ErrorCode> {
        let headers = [
            ("content-type".into(), b"text/plain; charset=utf-8".to_vec()),
            ("content-length".into(), BODY.len().to_string().into_bytes()),
        ];
        let (mut body, contents) = wit_stream::new();
        let (_, trailers) = wit_future::new(|| Ok(None));
        let headers = Fields::from_list(&headers).expect("two plain headers");
        let (response, _sent) = Response::new(headers, Some(contents), trailers);
        spawn_local(async move {
            // What is left is what a client that has gone did not take.
            let _ = body.write_all(BODY.to_vec()).await;
        });
        Ok(response)
    }
}

wasip3::http::service::export!(Component);
