//! One guest with a path for each thing that the SDK offers. sdk-p3 is the same source for WASI 0.3.
//!
//! Files: `websocket` has the paths below `/websocket/`.

mod websocket;

use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;
use wasmcluster_guest::fetch::{self, FetchError};
use wasmcluster_guest::http::{HeaderMap, HeaderValue, StatusCode, header};
use wasmcluster_guest::sse::{self, Event};
use wasmcluster_guest::{
    Body, Error, Html, IntoResponse, Json, Path, Query, Request, Response, Result, Writer, client, config, files,
    random, time, trace, worker,
};

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Result<Response> {
    wasmcluster_guest::log::init();
    if let Some(Path(user)) = Path::<User>::of("/users/{id}/{name}", &request)? {
        return Ok(format!("{} is {}", user.id, user.name).into_response());
    }
    if let Some(Path(file)) = Path::<File>::of("/files/{*path}", &request)? {
        return Ok(file.path.into_response());
    }
    let path = request.uri().path().to_owned();
    if let Some(path) = path.strip_prefix("/websocket/") {
        return websocket::handle(path, request);
    }
    match path.split_once('/').map_or("", |(_, path)| path) {
        "fetch" | "proxy" | "post-json" | "outcome" | "fetch-text" | "follow" | "traced" => {
            outbound(&path, request).await
        }
        "sleeps" | "timeout" | "unordered" | "yield" | "keeps-config" => waiting(&path, request).await,
        "written" | "paced" | "events" | "trailers" | "unordered-writer" => Ok(streamed(&path)),
        "json" | "text" | "count" | "echo" | "cut" => incoming(&path, request).await,
        path => plain(path, &request),
    }
}

#[derive(Deserialize)]
struct User {
    id: u32,
    name: String,
}

#[derive(Deserialize)]
struct File {
    path: String,
}

#[derive(Deserialize)]
struct Page {
    word: String,
    #[serde(default)]
    times: usize,
}

/// Answers that need no waiting.
fn plain(path: &str, request: &Request) -> Result<Response> {
    if let Some(path) = request.uri().path().strip_prefix("/static/") {
        return Ok(files::serve("/public", path, request));
    }
    Ok(match path {
        "query" => {
            let Query(page) = Query::<Page>::of(request)?;
            page.word.repeat(page.times.max(1)).into_response()
        }
        "head" => head(request)?,
        "config" => {
            let key = request.uri().query().unwrap_or_default();
            format!("{:?} of {:?}", config::get(key), config::all()).into_response()
        }
        "env" => format!("{:?}", std::env::var(request.uri().query().unwrap_or_default()).ok()).into_response(),
        "client" => format!("{:?}", client(request)).into_response(),
        "html" => Html("<p>").into_response(),
        "created" => (StatusCode::CREATED, [(header::LOCATION, "/7")], Json(7)).into_response(),
        "no-content" => StatusCode::NO_CONTENT.into_response(),
        "not-modified" => (StatusCode::NOT_MODIFIED, [(header::ETAG, "\"7\"")], ()).into_response(),
        "error" => return Err("the password\nis x".into()),
        "conflict" => return Err(Error::new(StatusCode::CONFLICT, "taken already")),
        "unavailable" => return Err(Error::new(StatusCode::SERVICE_UNAVAILABLE, "the password is x")),
        // No guest may set it.
        "forbidden-header" => ([(header::TRANSFER_ENCODING, "chunked")], "never").into_response(),
        "random" => {
            let mut bytes = [0; 13];
            random::fill(&mut bytes);
            format!("{bytes:02x?} {}", random::u64()).into_response()
        }
        "log" => {
            log::error!("an error\nof two lines");
            log::warn!("a warning");
            log::info!("an info");
            log::debug!("a debug");
            tracing::info!(answer = 42, "a traced info");
            tracing::debug!("a traced debug");
            "logged".into_response()
        }
        "whoami" => {
            let worker = worker::current();
            Json((worker.id, worker.slot, worker.pid, worker.generation, worker.digest, worker.workers)).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    })
}

/// The head of the request as the guest sees it, and headers of which one comes twice.
fn head(request: &Request) -> Result<Response> {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        writeln!(text, "{name}: {}", value.as_bytes().escape_ascii())?;
    }
    let mut response = text.into_response();
    for value in ["1", "2"] {
        response.headers_mut().append("x-twice", HeaderValue::from_static(value));
    }
    Ok(response)
}

#[derive(Deserialize)]
struct Numbers {
    numbers: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct Sum {
    sum: u64,
}

/// What comes in.
async fn incoming(path: &str, request: Request) -> Result<Response> {
    Ok(match path {
        "/json" => {
            let Json(Numbers { numbers }) = Json::read(request, 64).await?;
            Json(Sum { sum: numbers.iter().sum() }).into_response()
        }
        "/text" => request.into_body().text(64).await?.to_uppercase().into_response(),
        "/count" => {
            let (mut body, mut bytes) = (request.into_body(), 0);
            while let Some(chunk) = body.chunk().await? {
                bytes += chunk.len();
            }
            bytes.to_string().into_response()
        }
        // When the client has gone on.
        "/cut" => Body::from_writer(|mut out| async move {
            out.write("begun").await?;
            request.into_body().chunk().await?;
            Err("broken on purpose".into())
        })
        .into_response(),
        // HTTP/1.1 has trailers where they are announced.
        _ => ([(header::TRAILER, "x-sum")], request.into_body()).into_response(),
    })
}

/// How large what is written is in all, and in a piece.
const PACED: usize = 64 << 20;
const PIECE: usize = 64 << 10;

/// What goes out piece by piece.
fn streamed(path: &str) -> Response {
    match path {
        "/written" => Body::from_writer(|mut out| async move {
            for word in ["one ", "", "two ", "three"] {
                out.write(word).await?;
            }
            Ok(())
        })
        .into_response(),
        "/paced" => Body::from_writer(|mut out| async move {
            for piece in 1..=PACED / PIECE {
                out.write(vec![b'x'; PIECE]).await?;
                log::info!("written {}", piece * PIECE);
            }
            Ok(())
        })
        .into_response(),
        "/events" => sse::respond(|mut events| async move {
            events.send(Event::data("a\nb").name("news").id("7")).await?;
            time::sleep(Duration::from_millis(5)).await;
            events.keep_alive().await?;
            events.send(Event::data("c")).await
        }),
        "/unordered-writer" => Body::from_writer(|out| async move {
            let mut writing: FuturesUnordered<_> = [write_three(out)].into_iter().collect();
            writing.next().await.unwrap_or(Ok(()))
        })
        .into_response(),
        _ => {
            let body = Body::from_writer(|mut out| async move {
                out.write("counted").await?;
                out.finish(HeaderMap::from_iter([(header::HeaderName::from_static("x-sum"), HeaderValue::from(7))]))
                    .await
            });
            ([(header::TRAILER, "x-sum")], body).into_response()
        }
    }
}

async fn write_three(mut out: Writer) -> Result<()> {
    for word in ["one ", "two ", "three"] {
        out.write(word).await?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Millis {
    #[serde(default)]
    ms: u64,
}

/// What takes time.
async fn waiting(path: &str, request: Request) -> Result<Response> {
    let Query(Millis { ms }) = Query::of(&request)?;
    let nap = async |ms| time::sleep(Duration::from_millis(ms)).await;
    Ok(match path {
        // The order tells that the second began before the first was over.
        "/sleeps" => {
            let order = std::cell::RefCell::new(Vec::new());
            let slow = async {
                nap(200).await;
                order.borrow_mut().push("slow");
            };
            let fast = async {
                nap(1).await;
                order.borrow_mut().push("fast");
            };
            join(slow, fast).await;
            Json(order.into_inner()).into_response()
        }
        "/keeps-config" => {
            let before = config::all();
            nap(ms).await;
            format!("{before:?} {:?}", config::all()).into_response()
        }
        "/timeout" => format!("{:?}", time::timeout(Duration::from_millis(ms), nap(20)).await).into_response(),
        // Each is polled when it was woken, and not before.
        "/unordered" => {
            let naps: FuturesUnordered<_> = [30, 10, 20, 0]
                .map(async |ms| {
                    nap(ms).await;
                    ms
                })
                .into_iter()
                .collect();
            Json(naps.collect::<Vec<_>>().await).into_response()
        }
        // One that wakes itself does not keep the other from its end.
        _ => {
            let mut sleeping = pin!(nap(10));
            let mut polls = 0_u64;
            poll_fn(|context| match sleeping.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => {
                    polls += 1;
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
            })
            .await;
            (if polls > 0 { "yielded" } else { "never" }).into_response()
        }
    })
}

#[derive(Deserialize)]
struct Target {
    url: String,
    timeout: Option<u64>,
    idle: Option<u64>,
}

/// Requests of the guest's own.
async fn outbound(path: &str, mut request: Request) -> Result<Response> {
    let Query(target) = Query::<Target>::of(&request)?;
    let limits = |mut fetch: fetch::Fetch| {
        if let Some(ms) = target.timeout {
            fetch = fetch.timeout(Duration::from_millis(ms));
        }
        if let Some(ms) = target.idle {
            fetch = fetch.idle_timeout(Duration::from_millis(ms));
        }
        fetch
    };
    match path {
        "/fetch" => limits(fetch::get(target.url.as_str())).header("x-from", "guest").await,
        "/fetch-text" => Ok(limits(fetch::get(target.url.as_str())).await?.into_body().text(64).await?.into_response()),
        "/traced" => {
            trace::init();
            let work = async {
                tracing::info!(step = 1, "asking");
                limits(fetch::get(target.url.as_str())).await
            };
            work.instrument(tracing::info_span!("work", article = 7)).await
        }
        "/follow" => limits(fetch::get(target.url.as_str())).follow_redirects(3).await,
        "/post-json" => {
            let response = limits(fetch::post(target.url.as_str())).json(&Sum { sum: 6 }).await?;
            let Json(sum) = Json::<Sum>::read(response, 64).await?;
            Ok(Json(sum.sum + 1).into_response())
        }
        "/proxy" => {
            *request.uri_mut() = target.url.parse()?;
            limits(fetch::request(request)).await
        }
        _ => Ok(match limits(fetch::get(target.url.as_str())).await {
            Ok(response) => response.status().as_str().to_owned(),
            Err(error) => match error.downcast_ref::<FetchError>() {
                Some(FetchError::Invalid(_)) => format!("invalid: {error}"),
                Some(FetchError::Denied(_)) => format!("denied: {error}"),
                Some(FetchError::TimedOut) => "timed out".into(),
                Some(FetchError::Failed(_)) => format!("failed: {error}"),
                _ => format!("another error: {error}"),
            },
        }
        .into_response()),
    }
}
