//! Counts requests: those of its instance, in a global, and all of them, in a key-value store.

use std::sync::atomic::{AtomicU64, Ordering};

use wasmcluster_guest::{Request, Result, kv};

static REQUESTS: AtomicU64 = AtomicU64::new(0);

#[wasmcluster_guest::main]
async fn handle(_: Request) -> Result<String> {
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
    let all = kv::open("default").await?.increment("requests", 1).await?;
    Ok(format!("request {number} of this instance, {all} of all\n"))
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::Request;
    use wasmcluster_guest::testing::Host;

    #[test]
    fn it_counts() {
        let host = Host::new();
        let call = || host.call(super::handle, Request::default()).text().to_owned();
        assert_eq!([call(), call()], [1, 2].map(|n| format!("request {n} of this instance, {n} of all\n")));
    }
}
