//! A router of axum, with state that lives as long as its instance. sdk-axum-p3 is the same source for WASI 0.3.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::Multipart;
use axum::extract::multipart::MultipartError;
use axum_extra::extract::cookie::{Cookie, CookieJar};
use serde::{Deserialize, Serialize};
use wasmcluster_guest::axum::extract::Request;
use wasmcluster_guest::axum::extract::{Form, Json, Path, Query, State};
use wasmcluster_guest::axum::http::StatusCode;
use wasmcluster_guest::axum::response::{IntoResponse, Response};
use wasmcluster_guest::axum::routing::{get, post};
use wasmcluster_guest::axum::{Router, body, middleware};
use wasmcluster_guest::websocket::{self, Closed};
use wasmcluster_guest::{Client, fetch, time};

/// Whether `warm_up` was called, as it is where instances start from a snapshot.
static IS_WARM: AtomicBool = AtomicBool::new(false);

fn warm_up() {
    IS_WARM.store(true, Ordering::Relaxed);
}

#[wasmcluster_guest::main(init = warm_up)]
fn app() -> Router {
    let visits = Arc::new(AtomicU64::new(0));
    let hashes = RandomState::new();
    Router::new()
        .route(
            "/start",
            get(move || async move { format!("{} {}", IS_WARM.load(Ordering::Relaxed), hashes.hash_one("key")) }),
        )
        .route(
            "/visits",
            get(async |State(visits): State<Arc<AtomicU64>>| (visits.fetch_add(1, Ordering::Relaxed) + 1).to_string()),
        )
        .route("/users/{id}", get(async |Path(id): Path<u32>| format!("user {id}")))
        .route("/page", get(async |Query(page): Query<Page>| Json(page)))
        .route("/sum", post(async |Json(numbers): Json<Vec<u64>>| Json(numbers.iter().sum::<u64>())))
        .route("/echo", post(async |body: body::Body| body))
        .route(
            "/sleep",
            get(async || {
                time::sleep(Duration::from_millis(1)).await;
                "slept"
            }),
        )
        .route("/client", get(async |client: Client| format!("{:?}", client.address)))
        .route("/cookies", get(cookies))
        .route("/form", post(async |Form(page): Form<Page>| format!("page {}", page.number)))
        .route("/upload", post(upload))
        .route("/nothing", get(async || StatusCode::NO_CONTENT))
        .route("/fetch", get(fetched))
        .route("/websocket/echo", get(socket).layer(middleware::map_response(layered)))
        .with_state(visits)
}

/// Counts visits in a cookie.
async fn cookies(jar: CookieJar) -> (CookieJar, String) {
    let visits = jar.get("visits").and_then(|visits| visits.value().parse().ok()).unwrap_or(0) + 1;
    let cookie = Cookie::build(("visits", visits.to_string())).path("/").http_only(true).secure(true);
    (jar.add(cookie), format!("visit {visits}"))
}

/// The parts of a form with files, each read as it comes.
async fn upload(mut form: Multipart) -> Result<String, MultipartError> {
    let mut text = String::new();
    while let Some(mut field) = form.next_field().await? {
        let name = field.name().unwrap_or_default().to_owned();
        let file = field.file_name().unwrap_or("-").to_owned();
        let mut bytes = 0;
        while let Some(chunk) = field.chunk().await? {
            bytes += chunk.len();
        }
        text += &format!("{name} {file} {bytes}\n");
    }
    Ok(text)
}

/// Sends back what comes.
async fn socket(request: Request) -> websocket::Upgrade {
    websocket::upgrade(request, async |mut socket| -> Result<(), Closed> {
        while let Some(message) = socket.receive().await {
            socket.send(message).await?;
        }
        Ok(())
    })
}

/// What opens the socket is still in the response behind this.
async fn layered(response: Response) -> Response {
    ([("x-layer", "1")], response).into_response()
}

#[derive(Serialize, Deserialize)]
struct Page {
    number: u32,
}

#[derive(Deserialize)]
struct Target {
    url: String,
}

/// The body streams through.
async fn fetched(Query(target): Query<Target>) -> Result<body::Body, (StatusCode, String)> {
    match fetch::get(target.url.as_str()).await {
        Ok(response) => Ok(body::Body::new(response.into_body())),
        Err(error) => Err((StatusCode::BAD_GATEWAY, error.to_string())),
    }
}
