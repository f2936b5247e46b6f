//! Counts the requests of its instance, in a global: what a guest remembers from one request to the next.

use std::sync::atomic::{AtomicU64, Ordering};

use wasmcluster_guest::Request;

static REQUESTS: AtomicU64 = AtomicU64::new(0);

#[wasmcluster_guest::main]
async fn handle(_: Request) -> String {
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
    format!("request {number} of this instance\n")
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::{Request, testing};

    #[test]
    fn it_counts() {
        let call = || testing::call(super::handle, Request::default()).text().to_owned();
        assert_eq!([call(), call()], ["request 1 of this instance\n", "request 2 of this instance\n"]);
    }
}
