//! Answers every request with one line.

use wasmcluster_guest::Request;

#[wasmcluster_guest::main]
async fn handle(_: Request) -> &'static str {
    "Hello from wasmcluster!\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_hello() {
        let answer = pollster::block_on(handle(Request::default()));
        assert_eq!(answer, "Hello from wasmcluster!\n");
    }
}
