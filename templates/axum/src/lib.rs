//! An axum application with two routes.

use wasmcluster_guest::axum::Router;
use wasmcluster_guest::axum::extract::Path;
use wasmcluster_guest::axum::routing::get;

// Called once, when the component is compiled, or by each instance if it asks for the time or the
// environment. By default an instance serves one request, so a counter in axum's `State` never
// passes 1. README.md says what to do instead.
#[wasmcluster_guest::main]
fn app() -> Router {
    Router::new()
        .route("/", get(index))
        .route("/hello/{name}", get(hello))
}

async fn index() -> &'static str {
    "Try /hello/you\n"
}

async fn hello(Path(name): Path<String>) -> String {
    format!("Hello, {name}!\n")
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::{Body, Request, testing};

    use super::*;

    #[test]
    fn each_route_answers() {
        for (path, status, text) in [
            ("/", 200, "Try /hello/you\n"),
            ("/hello/Ada", 200, "Hello, Ada!\n"),
            ("/nowhere", 404, ""),
        ] {
            let answer = testing::call(app, Request::get(path).body(Body::empty()).unwrap());
            assert_eq!(
                (answer.status().as_u16(), answer.text()),
                (status, text),
                "{path}"
            );
        }
    }
}
