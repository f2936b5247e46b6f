//! Tells which worker process answers, as JSON.

use serde::Serialize;
use wasmcluster_guest::worker::{self, Worker};
use wasmcluster_guest::{Json, Request};

#[derive(Serialize)]
struct Me {
    id: u64,
    slot: u32,
    pid: u32,
    generation: u64,
    digest: String,
    workers: u32,
}

#[wasmcluster_guest::main]
async fn handle(_: Request) -> Json<Me> {
    let Worker { id, slot, pid, generation, digest, workers } = worker::current();
    Json(Me { id, slot, pid, generation, digest, workers })
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::Request;
    use wasmcluster_guest::testing::Host;
    use wasmcluster_guest::worker::Worker;

    #[test]
    fn it_tells_who_answers() {
        let worker = Worker { id: 3, slot: 2, pid: 9, generation: 1, digest: "sha256:0".into(), workers: 4 };
        let answer = Host::new().with_worker(worker).call(super::handle, Request::default());
        let expected = r#"{"id":3,"slot":2,"pid":9,"generation":1,"digest":"sha256:0","workers":4}"#;
        assert_eq!(answer.text(), expected);
    }
}
