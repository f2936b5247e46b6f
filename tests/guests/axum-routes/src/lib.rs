//! What hello says, behind a router of axum with twenty routes: what a router costs an instance that lives for one request.

use wasmcluster_guest::axum::Router;
use wasmcluster_guest::axum::extract::Path;
use wasmcluster_guest::axum::routing::{get, post};

#[wasmcluster_guest::main]
fn app() -> Router {
    ["users", "orders", "articles", "comments", "sessions", "files"].into_iter().fold(
        Router::new().route("/", get(hello)).route("/health", get(hello)),
        |router, things| {
            router
                .route(&format!("/{things}"), get(hello).post(hello))
                .route(&format!("/{things}/{{id}}"), get(one).delete(one))
                .route(&format!("/{things}/{{id}}/archive"), post(one))
        },
    )
}

async fn hello() -> &'static str {
    "Hello from wasmcluster!\n"
}

async fn one(Path(id): Path<u32>) -> String {
    format!("{id}\n")
}
