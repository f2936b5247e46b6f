//! A JSON API: POST /count counts the words and characters of a text. Errors are JSON too.

use serde::{Deserialize, Serialize};
use wasmcluster_guest::axum::extract::rejection::JsonRejection;
use wasmcluster_guest::axum::http::StatusCode;
use wasmcluster_guest::axum::response::{IntoResponse, Response};
use wasmcluster_guest::axum::routing::{get, post};
use wasmcluster_guest::axum::{Json, Router};

// Called once, when the component is compiled, or by each instance if it asks for the time or the
// environment. By default an instance serves one request, so a counter in axum's `State` never
// passes 1. README.md says what to do instead.
#[wasmcluster_guest::main]
fn app() -> Router {
    Router::new()
        .route("/count", post(count))
        .route("/health", get("well\n"))
        .fallback(async || {
            Refusal(
                StatusCode::NOT_FOUND,
                "no such route; there are POST /count and GET /health".into(),
            )
        })
}

#[derive(Deserialize)]
struct Question {
    text: String,
}

#[derive(Serialize)]
struct Answer {
    words: usize,
    characters: usize,
}

async fn count(question: Result<Json<Question>, JsonRejection>) -> Result<Json<Answer>, Refusal> {
    let Json(Question { text }) = question?;
    Ok(Json(Answer {
        words: text.split_whitespace().count(),
        characters: text.chars().count(),
    }))
}

/// Why there is no answer.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
        }
        (self.0, Json(Body { error: self.1 })).into_response()
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

#[cfg(test)]
mod tests {
    use wasmcluster_guest::{Request, testing};

    use super::*;

    #[track_caller]
    fn check(path: &str, body: &'static str, status: u16, expected: &str) {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .body(body.into())
            .unwrap();
        let answer = testing::call(app, request);
        assert_eq!(answer.status().as_u16(), status);
        assert!(answer.text().contains(expected), "{}", answer.text());
    }

    #[test]
    fn texts_are_counted_and_errors_are_json() {
        check(
            "/count",
            r#"{"text":"two words"}"#,
            200,
            r#"{"words":2,"characters":9}"#,
        );
        check("/count", r#"{"text":1}"#, 422, r#"{"error":"#);
        check("/count", "{", 400, r#"{"error":"#);
        check("/", "", 404, r#"{"error":"no such route"#);
    }
}
