//! A chat room over WebSocket.
//!
//! Files: `room` knows who is there and passes on what they say, `page.html` is the client.

mod room;

use serde::Deserialize;
use wasmcluster_guest::http::StatusCode;
use wasmcluster_guest::websocket::{self, CloseCode, Socket};
use wasmcluster_guest::{Error, Html, IntoResponse, Query, Request, Response, Result};

use room::Event;

const PAGE: &str = include_str!("page.html");
const RESTARTS: &str = "the server restarts";

/// Limits in characters. The page has the same.
const MAX_NAME: usize = 24;
const MAX_TEXT: usize = 500;

#[derive(Deserialize)]
struct Join {
    name: String,
}

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Result<Response> {
    Ok(match request.uri().path() {
        "/" => Html(PAGE).into_response(),
        "/chat" => {
            let Query(Join { name }) = Query::of(&request)?;
            let name = line(&name, MAX_NAME)
                .ok_or_else(|| Error::new(StatusCode::BAD_REQUEST, format!("a name has 1 to {MAX_NAME} characters")))?;
            websocket::upgrade(request, async |socket| chat(socket, name).await).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    })
}

/// From the moment that a member joins until it leaves.
async fn chat(mut socket: Socket, name: String) {
    let Some(member) = room::join(name, socket.sender()) else {
        return socket.close(CloseCode::TRY_AGAIN_LATER, "the room is full");
    };
    while let Some(message) = socket.receive().await {
        let Some(text) = message.as_text() else {
            return socket.close(CloseCode::UNSUPPORTED, "this room speaks text");
        };
        match line(text, MAX_TEXT) {
            Some(text) => member.say(text),
            None => member.tell(format!("a message has 1 to {MAX_TEXT} characters")),
        }
    }
    // All leave now. That is not worth a message each, and this is to be the last.
    if socket.closed().is_some_and(|closed| closed.code == CloseCode::GOING_AWAY) {
        member.leave_silently();
        if socket.send(Event::note(RESTARTS)).await.is_ok() {
            socket.close(CloseCode::GOING_AWAY, RESTARTS);
        }
    }
}

/// As one line without spaces around it. `None` if that is empty or too long.
fn line(text: &str, max: usize) -> Option<String> {
    let line: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let line = line.trim();
    (1..=max).contains(&line.chars().count()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests;
