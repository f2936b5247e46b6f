//! A guest of WASI 0.3 that answers, and holds back pressure for ever: no further call enters the same instance.

use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::wit_bindgen::backpressure_inc;
use wasip3::wit_future;

struct Component;

impl Guest for Component {
    async fn handle(_: Request) -> Result<Response, ErrorCode> {
        backpressure_inc();
        let (_, trailers) = wit_future::new(|| Ok(None));
        let (response, _) = Response::new(Fields::new(), None, trailers);
        Ok(response)
    }
}

wasip3::http::service::export!(Component);
