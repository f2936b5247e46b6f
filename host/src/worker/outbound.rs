//! Outbound requests.

use http::{HeaderName, Request, Response};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

/// Outbound requests: none, as long as no host can be granted.
pub(super) struct Hooks;

type Sent = Result<(), Error>;

impl WasiHttpHooks for Hooks {
    /// As by default, without an allocation for each header.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Sent> + Send>,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Box<dyn Future<Output = Sent> + Send>), Error>> + Send>
    {
        Box::new(async { Err(Error::HttpRequestDenied) })
    }
}
