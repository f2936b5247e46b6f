//! A JSON API of notes, with axum. They are kept in a key-value store, which all workers share.

use serde::{Deserialize, Serialize};
use wasmcluster_guest::axum::Router;
use wasmcluster_guest::axum::body::Body;
use wasmcluster_guest::axum::extract::{Json, Path};
use wasmcluster_guest::axum::http::StatusCode;
use wasmcluster_guest::axum::response::{IntoResponse, Response};
use wasmcluster_guest::axum::routing::get;
use wasmcluster_guest::kv::{self, KvError, Store};

/// What the keys of notes begin with.
const NOTE: &str = "note:";

/// Called once, when the component is compiled: all instances start from what it returns, as it asks the host for nothing.
#[wasmcluster_guest::main]
fn app() -> Router {
    Router::new().route("/notes", get(list).post(add)).route("/notes/{id}", get(read).delete(remove))
}

#[derive(Deserialize, Serialize)]
struct Note {
    id: i64,
    text: String,
}

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

/// What a store could not do.
struct Unavailable(KvError);

impl From<KvError> for Unavailable {
    fn from(error: KvError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Unavailable {
    fn into_response(self) -> Response {
        // Which logs it, and tells the client no more than the status.
        let error = wasmcluster_guest::Error::new(StatusCode::SERVICE_UNAVAILABLE, self.0);
        wasmcluster_guest::IntoResponse::into_response(error).map(Body::new)
    }
}

async fn notes() -> Result<Store, KvError> {
    kv::open("default").await
}

/// Keys in the order of the numbers.
fn key(id: i64) -> String {
    format!("{NOTE}{id:019}")
}

async fn list() -> Result<Json<Vec<Note>>, Unavailable> {
    let store = notes().await?;
    let (mut pages, mut notes) = (store.keys(), Vec::new());
    while let Some(mut keys) = pages.next().await? {
        keys.retain(|key| key.starts_with(NOTE));
        // Whoever removes one meanwhile leaves a gap.
        notes.extend(store.get_many::<Note>(&keys).await?.into_iter().flatten());
    }
    Ok(Json(notes))
}

async fn add(Json(new): Json<NewNote>) -> Result<(StatusCode, Json<Note>), Unavailable> {
    let store = notes().await?;
    let note = Note { id: store.increment("last-id", 1).await?, text: new.text };
    store.set(&key(note.id), &note).await?;
    Ok((StatusCode::CREATED, Json(note)))
}

async fn read(Path(id): Path<i64>) -> Result<Response, Unavailable> {
    let note: Option<Note> = notes().await?.get(&key(id)).await?;
    Ok(note.map_or(StatusCode::NOT_FOUND.into_response(), |note| Json(note).into_response()))
}

async fn remove(Path(id): Path<i64>) -> Result<StatusCode, Unavailable> {
    let (store, key) = (notes().await?, key(id));
    if !store.exists(&key).await? {
        return Ok(StatusCode::NOT_FOUND);
    }
    store.delete(&key).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::Request;
    use wasmcluster_guest::testing::Host;

    #[test]
    fn notes_are_kept_until_they_are_removed() {
        let host = Host::new();
        let send = |method: &str, path: &str, body: &'static str| {
            let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
            // Each in an instance of its own.
            let answer = host.call(super::app, request.body(body.into()).expect("a request"));
            (answer.status().as_u16(), answer.text().to_owned())
        };
        assert_eq!(send("POST", "/notes", r#"{"text":"milk"}"#), (201, r#"{"id":1,"text":"milk"}"#.into()));
        assert_eq!(send("POST", "/notes", r#"{"text":"tea"}"#), (201, r#"{"id":2,"text":"tea"}"#.into()));
        assert_eq!(send("GET", "/notes/1", ""), (200, r#"{"id":1,"text":"milk"}"#.into()));
        let both = r#"[{"id":1,"text":"milk"},{"id":2,"text":"tea"}]"#;
        assert_eq!(send("GET", "/notes", ""), (200, both.into()));
        assert_eq!(send("DELETE", "/notes/1", "").0, 204);
        assert_eq!(send("GET", "/notes/1", "").0, 404);
        assert_eq!(send("DELETE", "/notes/1", "").0, 404);
        assert_eq!(send("POST", "/notes", "{}").0, 422);
    }
}
