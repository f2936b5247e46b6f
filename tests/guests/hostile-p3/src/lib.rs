//! A guest of WASI 0.3 with a path for each way to be hostile. Paths that do not depend on the version of HTTP are in
//! the crate `misdeeds`, and so is the form of all answers.

mod outbound;
mod sending;
mod sockets;
mod times;

use misdeeds::{Answer, Outcome, Query, debug};
use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use wasip3::wit_bindgen::StreamWriter;
use wasip3::{spawn_local, wit_future};

use sending::{respond, streamed};

/// A millisecond in the unit of WASI's clocks.
const MILLISECOND: u64 = 1_000_000;
/// For ever, as far as any test can tell.
const YEAR: u64 = 365 * 24 * 3_600_000 * MILLISECOND;
/// What `/endless` sends at once.
const PIECE: usize = 65_536;

struct Component;

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = misdeeds::split(&target);
        match path {
            "/silent" => return Err(ErrorCode::InternalError(None)),
            "/error-code" => {
                let text = query.text("text").unwrap_or("asked to fail".into());
                return Err(ErrorCode::InternalError(Some(text)));
            }
            "/error-trailers" => return Ok(sending::ended_with_error(query.text("text").unwrap_or_default())),
            "/trap-after-head" => {
                return Ok(trap_after_head(query.number("bytes", 5), query.number("ms", 100)));
            }
            "/endless" => return Ok(streamed(Fields::new(), endless)),
            "/trickle" => return Ok(trickle(query.number("ms", 100))),
            "/echo" => return Ok(echo(request)),
            // What was spawned goes on after the answer.
            "/linger" => drop(spawn_local(wait_for(YEAR))),
            "/linger-spin" => drop(spawn_local(spin_later())),
            _ => {}
        }
        Ok(respond(answer(path, &query, request).await))
    }
}

wasip3::http::service::export!(Component);

async fn answer(path: &str, query: &Query, request: Request) -> Answer {
    Answer::of(match path {
        "/wait" => Ok(wait(YEAR).await),
        "/sleep" => Ok(wait(query.nanoseconds("ms").unwrap_or_default()).await),
        "/hold" => hold(query).await,
        "/linger" | "/linger-spin" => Ok("lingering".into()),
        "/leak" => leak(),
        "/keep-fields" => keep_fields(query),
        "/keep-requests" => keep_requests(query),
        "/giant-list" => Fields::from_list(&misdeeds::giant_field(query)).map(|_| "taken".into()).map_err(debug),
        "/giant-fields" => {
            let fields = misdeeds::fields(query.number("n", 1_000_000));
            Fields::from_list(&fields).map(|_| "taken".into()).map_err(debug)
        }
        "/ignore-upload" => Ok("ignored".into()),
        "/count" => count(request).await,
        "/headers" => Ok(headers(&request)),
        "/scheme" => Ok(debug(request.get_scheme())),
        "/fetch" => outbound::fetch(query).await,
        "/fetch-many" => Ok(outbound::fetch_many(query).await),
        "/relay" => outbound::relay(query).await,
        "/tcp-async" => sockets::tcp(query).await,
        "/many-tcp-async" => sockets::many(query).await,
        "/listen-async" => sockets::listen(query),
        "/udp-async" => sockets::udp(query).await,
        "/resolve-async" => sockets::resolve(query.text("name").unwrap_or_default()).await,
        "/times" => Ok(misdeeds::times(query) + &times::odd_times(query).await),
        _ => return misdeeds::answer(path, query),
    })
}

async fn wait(nanoseconds: u64) -> String {
    wait_for(nanoseconds).await;
    "waited".into()
}

async fn hold(query: &Query) -> Outcome {
    let taken = misdeeds::take(query.number("mib", 1))?;
    wait(query.nanoseconds("ms").unwrap_or_default()).await;
    drop(taken);
    Ok("held".into())
}

/// So many sets of fields, each as large as it may be.
fn keep_fields(query: &Query) -> Outcome {
    let kept: Result<Vec<_>, _> =
        (0..query.number("n", 900)).map(|_| Fields::from_list(&misdeeds::large_field())).collect();
    kept.map(|kept| format!("{} kept", kept.len())).map_err(debug)
}

/// So many requests that are never sent, with a method of 1 MiB each.
fn keep_requests(query: &Query) -> Outcome {
    let kept: Result<Vec<_>, _> = (0..query.number("n", 200))
        .map(|_| {
            let (_, trailers) = wit_future::new(|| Ok(None));
            let (request, _) = Request::new(Fields::new(), None, trailers, None);
            request.set_method(&Method::Other("M".repeat(1 << 20))).map(|()| request)
        })
        .collect();
    kept.map(|kept| format!("{} kept", kept.len())).map_err(debug)
}

fn leak() -> Outcome {
    loop {
        std::mem::forget(Fields::new());
    }
}

/// The host gets its chance to send the answer first: it cannot, while this spins.
async fn spin_later() {
    wait_for(100 * MILLISECOND).await;
    misdeeds::spin();
}

fn trap_after_head(bytes: u64, milliseconds: u64) -> Response {
    streamed(Fields::new(), async move |mut body| {
        body.write_all(vec![b'x'; bytes as usize]).await;
        // The head is on its way when the trap comes, if there is time.
        if milliseconds > 0 {
            wait_for(milliseconds * MILLISECOND).await;
        }
        panic!("asked to trap after the head");
    })
}

async fn endless(mut body: StreamWriter<u8>) {
    while body.write_all(vec![b'x'; PIECE]).await.is_empty() {}
}

fn trickle(milliseconds: u64) -> Response {
    streamed(Fields::new(), async move |mut body| {
        while body.write_all(b"drip\n".to_vec()).await.is_empty() {
            wait_for(milliseconds.saturating_mul(MILLISECOND)).await;
        }
    })
}

/// The host moves the bytes from one to the other.
fn echo(request: Request) -> Response {
    let (_, told) = wit_future::new(|| Ok(()));
    let (contents, trailers) = Request::consume_body(request, told);
    let (response, _) = Response::new(Fields::new(), Some(contents), trailers);
    response
}

async fn count(request: Request) -> Outcome {
    let (_, told) = wit_future::new(|| Ok(()));
    let (contents, trailers) = Request::consume_body(request, told);
    let mut bytes = 0;
    sending::body_of(contents, trailers, |piece| bytes += piece.len()).await?;
    Ok(bytes.to_string())
}

fn headers(request: &Request) -> String {
    let mut lines = format!("{:?} {:?}\n", request.get_method(), request.get_path_with_query());
    lines += &format!("authority: {:?}\n", request.get_authority());
    for (name, value) in request.get_headers().copy_all() {
        lines += &format!("{name}: {}\n", value.escape_ascii());
    }
    lines
}
