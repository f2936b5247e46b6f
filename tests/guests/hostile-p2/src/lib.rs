//! A guest of WASI 0.2 with a path for each way to be hostile. Paths that do not depend on the version of HTTP are in
//! the crate `misdeeds`, and so is the form of all answers.

mod outbound;
mod sending;

use std::sync::atomic::{AtomicBool, Ordering};

use misdeeds::{Answer, Outcome, Query, debug};
use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::StreamError;

use sending::{body_of, send, start};

/// A millisecond in the unit of WASI's clocks.
const MILLISECOND: u64 = 1_000_000;
/// For ever, as far as any test can tell.
const YEAR: u64 = 365 * 24 * 3_600_000 * MILLISECOND;
/// What `/endless` sends at once.
const PIECE: u64 = 65_536;

/// This instance has answered.
static USED: AtomicBool = AtomicBool::new(false);

struct Component;

impl Guest for Component {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = misdeeds::split(&target);
        match path {
            "/silent" => {}
            // As guests of some languages: only the first request of an instance is answered. Each has its effect.
            "/once" => {
                #[expect(clippy::print_stdout, reason = "a test counts how often it was asked")]
                {
                    println!("effect of {:?}", request.method());
                }
                if !USED.swap(true, Ordering::Relaxed) {
                    send(out, Answer::of(Ok("once".into())));
                }
            }
            "/unwritten-body" => {
                let fields = Fields::from_list(&[("content-length".into(), b"5".to_vec())]).expect("a good field");
                ResponseOutparam::set(out, Ok(OutgoingResponse::new(fields)));
            }
            "/error-code" => {
                let text = query.text("text").unwrap_or("asked to fail".into());
                ResponseOutparam::set(out, Err(ErrorCode::InternalError(Some(text))));
            }
            "/only-head" => only_head(out),
            "/trap-after-head" => trap_after_head(out, query.number("bytes", 5), query.number("ms", 100)),
            "/endless" => endless(out),
            "/trickle" => trickle(out, query.number("ms", 100)),
            "/echo" => echo(&request, out),
            "/linger" => {
                send(out, Answer::of(Ok("lingering".into())));
                wait(query.nanoseconds("ms").unwrap_or(YEAR));
            }
            "/linger-spin" => {
                send(out, Answer::of(Ok("lingering".into())));
                misdeeds::spin();
            }
            _ => send(out, answer(path, &query, &request)),
        }
    }
}

wasip2::http::proxy::export!(Component);

fn answer(path: &str, query: &Query, request: &IncomingRequest) -> Answer {
    Answer::of(match path {
        "/wait" => Ok(wait(YEAR)),
        "/sleep" => Ok(wait(query.nanoseconds("ms").unwrap_or_default())),
        "/hold" => hold(query),
        "/leak" => leak(),
        "/keep-fields" => keep_fields(query),
        "/keep-requests" => keep_requests(query),
        "/giant-list" => Fields::from_list(&misdeeds::giant_field(query)).map(|_| "taken".into()).map_err(debug),
        "/giant-fields" => {
            let fields = misdeeds::fields(query.number("n", 1_000_000));
            Fields::from_list(&fields).map(|_| "taken".into()).map_err(debug)
        }
        "/ignore-upload" => Ok("ignored".into()),
        "/count" => count(request),
        "/headers" => Ok(headers(request)),
        "/fetch" => outbound::fetch(query),
        "/fetch-many" => Ok(outbound::fetch_many(query)),
        "/relay" => outbound::relay(query),
        _ => return misdeeds::answer(path, query),
    })
}

fn wait(nanoseconds: u64) -> String {
    subscribe_duration(nanoseconds).block();
    "waited".into()
}

fn hold(query: &Query) -> Outcome {
    let taken = misdeeds::take(query.number("mib", 1))?;
    wait(query.nanoseconds("ms").unwrap_or_default());
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
    let kept: Result<Vec<_>, _> = (0..query.number("n", 900))
        .map(|_| {
            let request = OutgoingRequest::new(Fields::new());
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

/// A head with a length and no body, whose end the interface does not like.
fn only_head(out: ResponseOutparam) {
    let fields = Fields::from_list(&[("content-length".into(), b"5".to_vec())]).expect("a good field");
    let response = OutgoingResponse::new(fields);
    let body = response.body().expect("the body is opened once");
    ResponseOutparam::set(out, Ok(response));
    OutgoingBody::finish(body, None).expect("a body of the length that was said");
}

fn trap_after_head(out: ResponseOutparam, bytes: u64, milliseconds: u64) {
    let body = start(out);
    let stream = body.write().expect("the stream is opened once");
    let _ = sending::write(&stream, &vec![b'x'; bytes as usize]);
    // The head is on its way when the trap comes, if there is time.
    if milliseconds > 0 {
        wait(milliseconds * MILLISECOND);
    }
    panic!("asked to trap after the head");
}

fn endless(out: ResponseOutparam) {
    let body = start(out);
    let stream = body.write().expect("the stream is opened once");
    let piece = [b'x'; PIECE as usize];
    while sending::write(&stream, &piece).is_ok() {}
}

fn trickle(out: ResponseOutparam, milliseconds: u64) {
    let body = start(out);
    let stream = body.write().expect("the stream is opened once");
    while sending::write(&stream, b"drip\n").is_ok() {
        wait(milliseconds.saturating_mul(MILLISECOND));
    }
}

/// Body and trailers. What cannot be read or written ends it, without the end of a good body.
fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let incoming = request.consume().expect("the body is taken once");
    let source = incoming.stream().expect("the stream is opened once");
    let body = start(out);
    let target = body.write().expect("the stream is opened once");
    loop {
        match source.blocking_read(PIECE) {
            Ok(bytes) if sending::write(&target, &bytes).is_ok() => {}
            Err(StreamError::Closed) => break,
            Ok(_) | Err(StreamError::LastOperationFailed(_)) => return,
        }
    }
    drop((target, source));
    if let Ok(trailers) = sending::trailers_of(incoming) {
        sending::finish(body, trailers);
    }
}

fn count(request: &IncomingRequest) -> Outcome {
    let incoming = request.consume().expect("the body is taken once");
    let mut bytes = 0;
    body_of(&incoming, |piece| bytes += piece.len())?;
    Ok(bytes.to_string())
}

fn headers(request: &IncomingRequest) -> String {
    let mut lines = format!("{:?} {:?}\n", request.method(), request.path_with_query());
    lines += &format!("authority: {:?}\n", request.authority());
    for (name, value) in request.headers().entries() {
        lines += &format!("{name}: {}\n", value.escape_ascii());
    }
    lines
}
