//! A JSON API of notes, with axum. They live in the memory of one instance: see the README for how long that is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use wasmcluster_guest::axum::Router;
use wasmcluster_guest::axum::extract::{Json, Path, State};
use wasmcluster_guest::axum::http::StatusCode;
use wasmcluster_guest::axum::routing::get;

/// How many there may be at a time.
const MAX_NOTES: usize = 1000;

/// Called once for each instance, when its first request comes.
#[wasmcluster_guest::main]
fn app() -> Router {
    Router::new()
        .route("/notes", get(list).post(add))
        .route("/notes/{id}", get(read).delete(remove))
        .with_state(Notes::default())
}

#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    notes: BTreeMap<u64, Note>,
    last_id: u64,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Serialize)]
struct Note {
    id: u64,
    text: String,
}

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

async fn list(State(notes): State<Notes>) -> Json<Vec<Note>> {
    Json(notes.lock().notes.values().cloned().collect())
}

async fn add(State(notes): State<Notes>, Json(new): Json<NewNote>) -> Result<(StatusCode, Json<Note>), StatusCode> {
    let mut kept = notes.lock();
    if kept.notes.len() >= MAX_NOTES {
        return Err(StatusCode::INSUFFICIENT_STORAGE);
    }
    kept.last_id += 1;
    let note = Note { id: kept.last_id, text: new.text };
    kept.notes.insert(note.id, note.clone());
    Ok((StatusCode::CREATED, Json(note)))
}

async fn read(State(notes): State<Notes>, Path(id): Path<u64>) -> Result<Json<Note>, StatusCode> {
    notes.lock().notes.get(&id).cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn remove(State(notes): State<Notes>, Path(id): Path<u64>) -> StatusCode {
    match notes.lock().notes.remove(&id) {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::NOT_FOUND,
    }
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::{Request, testing};

    #[test]
    fn notes_are_kept_until_they_are_removed() {
        // One application, as in one instance.
        let app = super::app();
        let send = |method: &str, path: &str, body: &'static str| {
            let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
            let answer = testing::call(|| app.clone(), request.body(body.into()).expect("a request"));
            (answer.status().as_u16(), answer.text().to_owned())
        };
        assert_eq!(send("POST", "/notes", r#"{"text":"milk"}"#), (201, r#"{"id":1,"text":"milk"}"#.into()));
        assert_eq!(send("GET", "/notes/1", ""), (200, r#"{"id":1,"text":"milk"}"#.into()));
        assert_eq!(send("GET", "/notes", ""), (200, r#"[{"id":1,"text":"milk"}]"#.into()));
        assert_eq!(send("DELETE", "/notes/1", "").0, 204);
        assert_eq!(send("GET", "/notes/1", "").0, 404);
        assert_eq!(send("POST", "/notes", "{}").0, 422);
    }
}
