//! What the SDK offers for WebSocket.

use std::time::Duration;

use futures_util::future::{Either, select};
use serde::Deserialize;
use wasmcluster_guest::http::{HeaderValue, StatusCode, header};
use wasmcluster_guest::websocket::{CloseCode, Closed, Socket, upgrade};
use wasmcluster_guest::{IntoResponse, Query, Request, Response, Result, time};

#[derive(Deserialize)]
struct Flood {
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    count: usize,
}

pub(crate) fn handle(path: &str, request: Request) -> Result<Response> {
    Ok(match path {
        "echo" => upgrade(request, echo).into_response(),
        "protocols" => upgrade(request, say_protocol).protocols(["chat.v2", "chat.v1"]).into_response(),
        "ticks" => upgrade(request, ticks).into_response(),
        "goodbye" => upgrade(request, goodbye).into_response(),
        "flood" => {
            let Query(Flood { bytes, count }) = Query::of(&request)?;
            upgrade(request, async move |socket| flood(socket, bytes, count).await).into_response()
        }
        "refuse" => (StatusCode::FORBIDDEN, "not you").into_response(),
        // The function that it was to run is dropped.
        "other" => instead(upgrade(request, echo).into_response()),
        "deaf" => upgrade(request, async |_socket| time::sleep(Duration::from_secs(60)).await).into_response(),
        "any-origin" => upgrade(request, echo).allow_any_origin().into_response(),
        "one-origin" => upgrade(request, echo).allow_origin("https://one.example").into_response(),
        "headers" => {
            let mut response = ([("x-test", "1")], upgrade(request, echo)).into_response();
            for cookie in ["a=1", "b=2; Path=/"] {
                response.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static(cookie));
            }
            response
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    })
}

fn instead(mut response: Response) -> Response {
    *response.status_mut() = StatusCode::OK;
    *response.body_mut() = "another answer".into();
    response
}

/// Sends back what comes. Some texts say what else to do: `close 4000 bye`, `trap`, `fail`.
async fn echo(mut socket: Socket) -> Result<()> {
    while let Some(message) = socket.receive().await {
        match message.as_text().unwrap_or_default().splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["close", code, reason] => socket.close(CloseCode(code.parse()?), reason),
            ["trap"] => panic!("trapped on purpose"),
            ["fail"] => return Err("failed on purpose".into()),
            _ => socket.send(message).await?,
        }
    }
    Ok(())
}

async fn say_protocol(mut socket: Socket) -> Result<(), Closed> {
    socket.send(socket.protocol().unwrap_or("none")).await?;
    while socket.receive().await.is_some() {}
    Ok(())
}

/// A tick each 100 ms, and in between what comes is sent back. The future that receives is dropped at each tick.
async fn ticks(mut socket: Socket) -> Result<(), Closed> {
    let sender = socket.sender();
    for tick in 1.. {
        let mut nap = Box::pin(time::sleep(Duration::from_millis(100)));
        loop {
            match select(Box::pin(socket.receive()), &mut nap).await {
                Either::Left((Some(message), _)) => sender.send(message).await?,
                Either::Left((None, _)) => return Ok(()),
                Either::Right(_) => break,
            }
        }
        sender.send(format!("tick {tick}")).await?;
    }
    Ok(())
}

/// Has a last word, also when the worker shuts down.
async fn goodbye(mut socket: Socket) {
    while socket.receive().await.is_some() {}
    log::info!("closed: {:?}", socket.closed());
    if let Err(error) = socket.send("goodbye").await {
        log::info!("nobody hears it: {error}");
    }
}

async fn flood(socket: Socket, bytes: usize, count: usize) -> Result<(), Closed> {
    for number in 1..=count {
        socket.send(vec![b'x'; bytes]).await?;
        log::info!("sent {number}");
    }
    socket.send("done").await
}
