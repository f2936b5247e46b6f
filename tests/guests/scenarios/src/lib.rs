//! One guest with a path for each behaviour that the end-to-end tests need, the bad ones above all.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use futures_util::stream;
use wasmcluster_guest::http::{Method, StatusCode};
use wasmcluster_guest::time::sleep;
use wasmcluster_guest::{Body, IntoResponse, Request, Response, Result, metrics};

#[wasmcluster_guest::main]
async fn handle(request: Request) -> Result<Response> {
    let query = Query(request.uri().query().unwrap_or_default().to_owned());
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET, "/sleep") => {
            sleep(query.milliseconds("ms")?).await;
            "slept\n".into_response()
        }
        (&Method::GET, "/large") => "x".repeat(query.number("bytes")? as usize).into_response(),
        (&Method::GET, "/drip") => Response::new(drip(query.number("chunks")?, query.milliseconds("ms")?)),
        (&Method::GET, "/trap") => panic!("asked to trap"),
        (_, "/trap-after-head") => Response::new(trap_when_told(request.into_body())),
        (&Method::GET, "/error") => return Err("asked to fail".into()),
        (&Method::GET, "/env") => env(&query.text("name")),
        (&Method::GET, "/print") => print(&query.text("out"), &query.text("err"))?,
        (&Method::GET, "/print-partial") => print_partial(&query.text("out"))?,
        (&Method::GET, "/well-until") => well_until(query.milliseconds("unix_ms")?)?,
        (&Method::GET, "/tick-then-spin") => Response::new(tick_then_spin()),
        (&Method::GET, "/allocate") => allocate(query.number("mib")?),
        (&Method::GET, "/flood") => flood(query.number("lines")?)?,
        (&Method::GET, "/exit") => exit(),
        (&Method::GET, "/spin") => spin(query.milliseconds("ms")?),
        (_, "/headers") => headers(&request)?,
        (&Method::GET, "/order") => order(query.text("kind")),
        (&Method::POST, "/count") => count(request.into_body()).await?,
        // The request is dropped with its body unread.
        (_, "/abandon") => "abandoned\n".into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    };
    Ok(response)
}

/// Chunks with a pause between, and no length said before.
fn drip(chunks: u64, pause: Duration) -> Body {
    Body::from_stream(stream::unfold(0, move |sent| async move {
        if sent == chunks {
            return None;
        }
        if sent > 0 {
            sleep(pause).await;
        }
        Some((Ok::<_, wasmcluster_guest::Error>("tick\n"), sent + 1))
    }))
}

/// One chunk, and a panic as soon as the request's body goes on or ends.
fn trap_when_told(told: Body) -> Body {
    Body::from_stream(stream::unfold((false, told), |(sent, mut told)| async move {
        if sent {
            told.chunk().await.expect("the client is there");
            panic!("asked to trap after the head");
        }
        Some((Ok::<_, wasmcluster_guest::Error>("tick\n"), (true, told)))
    }))
}

fn env(name: &str) -> Response {
    match std::env::var(name) {
        Ok(value) => value.into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

fn print(out: &str, err: &str) -> Result<Response> {
    writeln!(std::io::stdout(), "{out}")?;
    writeln!(std::io::stderr(), "{err}")?;
    Ok("printed\n".into_response())
}

/// One chunk, and then nothing but work.
fn tick_then_spin() -> Body {
    Body::from_stream(stream::unfold(false, |sent| async move {
        if sent {
            spin(Duration::MAX);
        }
        Some((Ok::<_, wasmcluster_guest::Error>("tick\n"), true))
    }))
}

/// Takes memory, and writes to all of it.
fn allocate(mib: u64) -> Response {
    let bytes = vec![1_u8; (mib as usize) << 20];
    std::hint::black_box(&bytes);
    "allocated\n".into_response()
}

/// Well up to a point in time.
fn well_until(end: Duration) -> Result<Response> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(if now < end { "well\n".into_response() } else { StatusCode::SERVICE_UNAVAILABLE.into_response() })
}

fn flood(lines: u64) -> Result<Response> {
    let mut stdout = std::io::stdout().lock();
    for _ in 0..lines {
        stdout.write_all(b"a line of the flood\n")?;
    }
    Ok("flooded\n".into_response())
}

fn print_partial(out: &str) -> Result<Response> {
    let mut stdout = std::io::stdout();
    stdout.write_all(out.as_bytes())?;
    // Rust keeps an unfinished line back; the host shall see it.
    stdout.flush()?;
    Ok("printed\n".into_response())
}

#[expect(clippy::exit, reason = "what the host makes of it is what is tested")]
fn exit() -> ! {
    std::process::exit(1)
}

/// Keeps the CPU busy.
fn spin(time: Duration) -> Response {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
    "spun\n".into_response()
}

/// Keeps a metric of each kind.
fn order(kind: String) -> Response {
    let start = Instant::now();
    metrics::gauge("orders_open").add(1.0);
    metrics::gauge("last_order").set(7.0);
    metrics::counter("orders_total").with("kind", kind).add(1);
    metrics::histogram("order_seconds").record_time(start.elapsed());
    metrics::gauge("orders_open").add(-1.0);
    "ordered\n".into_response()
}

/// The head of the request as the guest sees it.
fn headers(request: &Request) -> Result<Response> {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        writeln!(text, "{name}: {}", value.as_bytes().escape_ascii())?;
    }
    Ok(text.into_response())
}

async fn count(mut body: Body) -> Result<Response> {
    let mut bytes = 0;
    while let Some(chunk) = body.chunk().await? {
        bytes += chunk.len();
    }
    Ok(format!("{bytes}\n").into_response())
}

/// The query of the URI. `+` and `%XX` are decoded; what is missing is empty.
struct Query(String);

impl Query {
    fn text(&self, name: &str) -> String {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| decode(value)).unwrap_or_default()
    }

    fn number(&self, name: &str) -> Result<u64> {
        let text = self.text(name);
        text.parse().map_err(|error| format!("{name}={text}: {error}").into())
    }

    fn milliseconds(&self, name: &str) -> Result<Duration> {
        Ok(Duration::from_millis(self.number(name)?))
    }
}

fn decode(value: &str) -> String {
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = value.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
