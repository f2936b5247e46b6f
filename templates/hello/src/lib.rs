//! Answers every request with one line.

use wasmcluster_guest::Request;

#[wasmcluster_guest::main]
async fn handle(_: Request) -> &'static str {
    "Hello from wasmcluster!\n"
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::testing;

    use super::*;

    #[test]
    fn says_hello() {
        let answer = testing::call(handle, Request::default());
        assert_eq!(
            (answer.status().as_u16(), answer.text()),
            (200, "Hello from wasmcluster!\n")
        );
    }
}
