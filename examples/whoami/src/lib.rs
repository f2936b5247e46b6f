//! Tells which worker process answers, as JSON.

use wasmcluster_guest::http::header::CONTENT_TYPE;
use wasmcluster_guest::worker::{self, Worker};
use wasmcluster_guest::{Request, Response, Result};

#[wasmcluster_guest::main]
async fn handle(_: Request) -> Result<Response> {
    let Worker { id, slot, pid, generation, digest, workers, .. } = worker::current();
    // Numbers, and a digest of hexadecimal digits: nothing that JSON would have to escape.
    let json = format!(
        "{{\"id\":{id},\"slot\":{slot},\"pid\":{pid},\"generation\":{generation},\"digest\":\"{digest}\",\"workers\":{workers}}}\n"
    );
    Ok(Response::builder().header(CONTENT_TYPE, "application/json").body(json.into())?)
}
