//! Answers every request with one line.

use wasmcluster_guest::Request;

#[wasmcluster_guest::main]
async fn handle(_: Request) -> &'static str {
    "Hello from wasmcluster!\n"
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::{Request, testing};

    #[test]
    fn it_says_hello() {
        assert_eq!(testing::call(super::handle, Request::default()).text(), "Hello from wasmcluster!\n");
    }
}
