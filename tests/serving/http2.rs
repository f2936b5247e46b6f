//! HTTP/2 in clear text: the same promises as over HTTP/1.1, for each of a connection's streams.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::client::Builder;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request};
use nix::sys::signal::{Signal, kill};

use harness::client::{get, soon};
use harness::http2::{
    ACK, Client, DATA, END_STREAM, Frame, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, PING, PREFACE, RST_STREAM, SETTINGS,
    Stream, Wire, frame, head, piece, request, send_all, was_not_begun, whole,
};
use harness::load::{Load, Reuse};
use harness::{Cluster, Setup, guest, until};

use super::clients::anonymous_memory;

/// Guests of both versions of WASI, with the same paths.
const GUESTS: [&str; 2] = ["hostile_p2", "hostile_p3"];
/// What a worker may grow by while bodies go through it that are many times as large, in bytes.
const GROWTH: u64 = 32 << 20;

fn serve(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

fn of_worker(cluster: &Cluster, name: &str) -> u64 {
    cluster.status()["workers"][0][name].as_u64().unwrap()
}

fn totals(cluster: &Cluster, name: &str) -> u64 {
    cluster.status()["totals"][name].as_u64().unwrap()
}

#[track_caller]
fn in_flight_are(cluster: &Cluster, number: u64) {
    until(&format!("{number} are in flight"), || (of_worker(cluster, "in_flight") == number).then_some(()));
}

/// Memory of its only worker that no file is behind, in bytes.
fn anonymous(cluster: &Cluster) -> u64 {
    anonymous_memory(cluster.worker(0).unwrap())
}

fn get_request(path: &str) -> Request<()> {
    request(Method::GET, path)
}

fn post_request(path: &str) -> Request<()> {
    request(Method::POST, path)
}

/// The next piece of an answer that goes on.
async fn next_piece(body: &mut RecvStream) -> Bytes {
    piece(body).await.unwrap().unwrap()
}

fn begin_drain(cluster: &Cluster) {
    kill(cluster.worker(0).unwrap(), Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_are_served_on_one_port() {
    let cluster = Setup::new(&guest("hello")).start();
    let mut client = Client::open(cluster.address()).await;
    for _ in 0..3 {
        let (old, new) = (get(cluster.address(), "/").await.unwrap(), client.get("/").await.unwrap());
        assert_eq!((old.status, new.status), (200, 200));
        assert_eq!(old.body, new.body);
        for name in ["content-length", "content-type"] {
            assert_eq!(old.headers[name], new.headers[name]);
        }
        assert!(new.headers.contains_key("date") && !new.headers.contains_key("connection"), "{new:?}");
    }
}

/// Which protocol a client speaks is clear when the preface is whole, or something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preface_may_come_byte_by_byte() {
    let cluster = serve("hostile_p2", &["--header-timeout", "1s"]);
    let mut wire = Wire::silent(cluster.address()).await;
    for byte in PREFACE {
        wire.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    wire.send(&frame(SETTINGS, 0, 0, &[])).await;
    wire.get(1, "/").await;
    assert_eq!(wire.find(DATA).await.unwrap().payload, b"hello");
    for (target, said) in [
        ("PRIX /headers HTTP/1.1", "Other(\"PRIX\")"),
        ("PRI /headers HTTP/1.1", "Other(\"PRI\")"),
        ("PUT /headers HTTP/1.1", "Put"),
        ("P /headers HTTP/1.1", "Other(\"P\")"),
    ] {
        let mut wire = Wire::silent(cluster.address()).await;
        for byte in format!("{target}\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes() {
            wire.send(&[*byte]).await;
        }
        let answer = String::from_utf8(wire.rest().await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(said), "{target}: {answer}");
    }
    let mut wire = Wire::silent(cluster.address()).await;
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n").await;
    assert!(wire.rest().await.starts_with(b"HTTP/1.1 400 "));
}

/// Its preface, its first settings, a frame, a head: what a client has begun with, it is to end in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_begins_it_ends_within_the_header_timeout() {
    let cluster = serve("hostile_p2", &["--header-timeout", "300ms"]);
    let mut wire = Wire::silent(cluster.address()).await;
    wire.send(&PREFACE[..20]).await;
    assert!(wire.rest().await.starts_with(b"HTTP/1.1 408 "));
    let settings = frame(SETTINGS, 0, 0, &[]);
    let headers = head(1, END_STREAM, "GET", "/");
    let mut unfinished = headers.clone();
    unfinished[4] = END_STREAM;
    let beginnings: [&[&[u8]]; 5] = [
        &[],
        &[&settings[..5]],
        &[&settings, &headers[..4]],
        &[&settings, &headers[..20]],
        // CONTINUATION is to follow.
        &[&settings, &unfinished],
    ];
    for (number, bytes) in beginnings.into_iter().enumerate() {
        let mut wire = Wire::silent(cluster.address()).await;
        wire.send(&[PREFACE, &bytes.concat()].concat()).await;
        let goaway = wire.find(GOAWAY).await.unwrap();
        assert_eq!((goaway.number(0), wire.next().await), (0, None), "{number}");
    }
    assert_eq!(totals(&cluster, "timeouts"), 6);
    // One that owes nothing is idle, also if its preface came in two pieces.
    for parts in [[PREFACE, &settings].concat(), PREFACE.to_vec()] {
        let mut wire = Wire::silent(cluster.address()).await;
        wire.send(&parts[..10]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        wire.send(&parts[10..]).await;
        if parts.len() == PREFACE.len() {
            wire.send(&settings).await;
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
        wire.get(1, "/").await;
        assert_eq!(wire.find(DATA).await.unwrap().payload, b"hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_go_both_ways() {
    for name in ["hostile_p2", "hostile_p3", "sdk", "sdk_p3", "echo"] {
        let cluster = serve(name, &[]);
        let mut client = Client::open(cluster.address()).await;
        let mut stream = client.begin(post_request("/echo")).await.unwrap();
        assert!(send_all(&mut stream.body, Bytes::from_static(b"some bytes"), false).await);
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from(10))]);
        let mut sent = trailers.clone();
        // Who the client is, it does not say itself.
        sent.insert("client-cert", HeaderValue::from_static("forged"));
        stream.body.send_trailers(sent).unwrap();
        let answer = stream.whole().await.unwrap();
        assert_eq!((answer.status, answer.text(), &answer.trailers), (200, "some bytes", &Some(trailers)), "{name}");
        // None are made up.
        assert_eq!(client.post("/echo", "more").await.unwrap().trailers, None, "{name}");
    }
    for name in ["sdk", "sdk_p3"] {
        let cluster = serve(name, &[]);
        let answer = Client::open(cluster.address()).await.get("/trailers").await.unwrap();
        assert_eq!(
            (answer.text(), &answer.trailers.as_ref().unwrap()["x-sum"]),
            ("counted", &HeaderValue::from(7)),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_owe_no_body_have_none() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut client = Client::open(cluster.address()).await;
        for (method, path, status, length) in [
            (Method::HEAD, "/", 200, Some("5")),
            (Method::HEAD, "/large", 200, Some("1048576")),
            (Method::HEAD, "/trickle?ms=1", 200, None),
            (Method::GET, "/no-content", 204, None),
            (Method::GET, "/not-modified", 304, None),
            (Method::GET, "/status?code=304", 304, None),
        ] {
            let asked = client.ask(request(method.clone(), path)).await.unwrap();
            let answer = asked.head().await.unwrap();
            let found = answer.headers().get("content-length").map(|length| length.to_str().unwrap());
            assert_eq!((answer.status().as_u16(), found), (status, length), "{name}: {method} {path}");
            assert!(answer.body().is_end_stream(), "{name}: {method} {path}: its head is its end");
            assert!(answer.headers().contains_key("date"), "{name}: {answer:?}");
        }
        // One that is there at once has its length. On a busy machine a guest may be interrupted between head and end.
        let mut lengths = Vec::new();
        while !lengths.contains(&Some("8".parse().unwrap())) {
            let answer = client.get("/status?code=201").await.unwrap();
            assert_eq!(answer.status, 201, "{name}");
            let length = answer.headers.get("content-length").cloned();
            assert!(length.is_none() || length == Some("8".parse().unwrap()), "{name}: {length:?}");
            lengths.push(length);
            assert!(lengths.len() < 100, "{name}: {lengths:?}");
        }
        // The guest behind the one that trickles is not waited for, and stopped later.
        assert_eq!(totals(&cluster, "aborted"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_see_the_head_of_a_request_as_over_http_1() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut client = Client::open(cluster.address()).await;
        let asked = Request::get("http://test:81/headers?a=b");
        let asked = asked.header("cookie", "a=1").header("cookie", "b=2").header("x-request-id", "mine");
        let answer = client.ask(asked.body(()).unwrap()).await.unwrap().whole().await.unwrap();
        let lines: Vec<&str> = answer.text().lines().collect();
        assert!(lines[0].ends_with("Get Some(\"/headers?a=b\")"), "{name}: {lines:?}");
        assert_eq!(lines[1], "authority: Some(\"test:81\")", "{name}");
        assert!(lines.contains(&"cookie: a=1; b=2"), "{name}: {lines:?}");
        assert_eq!(answer.headers["x-request-id"], "mine");
    }
}

/// An interim answer that comes before the head, if there is one.
async fn interim(stream: &mut Stream) -> Option<u16> {
    let interim = soon(poll_fn(|context| stream.answer.poll_informational(context))).await?;
    Some(interim.unwrap().status().as_u16())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_to_go_on_when_its_body_is_wanted() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut client = Client::open(cluster.address()).await;
        let mut expecting = post_request("/count");
        expecting.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
        let mut to = async |path: &str| {
            *expecting.uri_mut() = format!("http://test{path}").parse().unwrap();
            client.begin(expecting.clone()).await.unwrap()
        };
        for path in ["/count", "/echo"] {
            let mut stream = to(path).await;
            let told = interim(&mut stream).await;
            // A guest that answers before it reads may have answered already, if others had the processor in between.
            assert!(told == Some(100) || (told.is_none() && path == "/echo"), "{name} {path}: {told:?}");
            assert!(send_all(&mut stream.body, Bytes::from_static(b"5"), true).await);
            assert!(["1", "5"].contains(&stream.whole().await.unwrap().text()), "{name} {path}");
        }
        let mut stream = to("/ignore-upload").await;
        assert_eq!(interim(&mut stream).await, None, "{name}: nobody reads it");
        assert_eq!(stream.whole().await.unwrap().text(), "ignored");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_on_its_stream() {
    let args = ["--max-body", "1MiB", "--max-headers", "20", "--max-header-bytes", "8KiB"];
    for name in GUESTS {
        let cluster = serve(name, &args);
        let mut client = Client::open(cluster.address()).await;
        let mut announced = post_request("/count");
        announced.headers_mut().insert("content-length", HeaderValue::from(2 << 20));
        assert_eq!(client.begin(announced).await.unwrap().whole().await.unwrap().status, 413, "{name}");
        assert_eq!(client.post("/count", vec![0; 2 << 20]).await.unwrap().status, 413, "{name}");
        assert_eq!(client.post("/count", vec![0; 1 << 20]).await.unwrap().text(), "1048576", "{name}");
        let mut many = get_request("/");
        let mut large = many.clone();
        for number in 0..21 {
            many.headers_mut().append("x-many", HeaderValue::from(number));
        }
        large.headers_mut().append("x-large", "x".repeat(9000).parse().unwrap());
        for refused in [many, large] {
            assert_eq!(client.ask(refused).await.unwrap().whole().await.unwrap().status, 431, "{name}");
        }
        assert_eq!(client.get("/").await.unwrap().text(), "hello", "{name}: the others go on");
        in_flight_are(&cluster, 0);
    }
}

/// So many are at work, as many again wait, and whoever comes then is told to come again, over the same connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_worker_refuses_streams_and_goes_on_with_others() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-in-flight", "2", "--request-timeout", "10m"]);
        let mut client = Client::open(cluster.address()).await;
        let mut trickling = client.ask(get_request("/trickle?ms=20")).await.unwrap().head().await.unwrap().into_body();
        next_piece(&mut trickling).await;
        let mut waiting = client.ask(get_request("/wait")).await.unwrap();
        in_flight_are(&cluster, 2);
        let patient = [client.ask(get_request("/")).await.unwrap(), client.ask(get_request("/")).await.unwrap()];
        in_flight_are(&cluster, 4);
        let refused = client.get("/").await.unwrap();
        assert_eq!((refused.status, &refused.headers["retry-after"]), (503, &HeaderValue::from(1)), "{name}");
        next_piece(&mut trickling).await;
        // Its place is free at once.
        waiting.body.send_reset(Reason::CANCEL);
        for waiting in patient {
            assert_eq!(waiting.whole().await.unwrap().text(), "hello", "{name}");
        }
        next_piece(&mut trickling).await;
        drop((trickling, client, waiting));
        in_flight_are(&cluster, 0);
        assert_eq!((totals(&cluster, "rejected"), totals(&cluster, "aborted")), (1, 2), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_late_is_answered_for_and_others_go_on() {
    for name in GUESTS {
        let cluster = serve(name, &["--request-timeout", "500ms"]);
        let mut client = Client::open(cluster.address()).await;
        let mut trickling = client.ask(get_request("/trickle?ms=20")).await.unwrap().head().await.unwrap().into_body();
        let late = client.ask(get_request("/wait")).await.unwrap();
        let mut owing = client.begin(post_request("/count")).await.unwrap();
        assert!(send_all(&mut owing.body, Bytes::from_static(b"some"), false).await);
        next_piece(&mut trickling).await;
        assert_eq!(late.whole().await.unwrap().status, 504, "{name}");
        // The client is to blame.
        assert_eq!(owing.whole().await.unwrap().status, 408, "{name}");
        next_piece(&mut trickling).await;
        assert_eq!(client.get("/").await.unwrap().text(), "hello", "{name}");
        drop((client, trickling));
        in_flight_are(&cluster, 0);
        assert_eq!((totals(&cluster, "timeouts"), totals(&cluster, "errors")), (2, 1), "{name}");
    }
}

/// While its guest waits, while it computes, while it sends, while the client sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_reset_takes_its_guest_along() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-in-flight", "1", "--request-timeout", "10m"]);
        let mut client = Client::open(cluster.address()).await;
        let mut aborted = 0;
        for path in ["/wait", "/spin", "/trickle?ms=20", "/endless", "/count", "/echo"] {
            let mut stream = client.begin(post_request(path)).await.unwrap();
            assert!(send_all(&mut stream.body, Bytes::from_static(b"some"), false).await);
            in_flight_are(&cluster, 1);
            stream.body.send_reset(Reason::CANCEL);
            drop(stream);
            // It had the only place.
            assert_eq!(client.get("/").await.unwrap().text(), "hello", "{name} {path}");
            aborted += 1;
            until("it is counted", || (totals(&cluster, "aborted") == aborted).then_some(()));
        }
        for path in ["/wait", "/trickle?ms=20", "/count"] {
            let mut client = Client::open(cluster.address()).await;
            let mut stream = client.begin(post_request(path)).await.unwrap();
            assert!(send_all(&mut stream.body, Bytes::from_static(b"some"), false).await);
            in_flight_are(&cluster, 1);
            drop((client, stream));
            in_flight_are(&cluster, 0);
            aborted += 1;
            until("it is counted", || (totals(&cluster, "aborted") == aborted).then_some(()));
        }
        // Those that were cut are no errors.
        assert_eq!((totals(&cluster, "errors"), totals(&cluster, "crashes")), (0, 0), "{name}");
    }
}

/// Requests that share an instance: one that is taken back costs the others nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_in_an_instance_do_not_mix() {
    let cluster = serve("hostile_p3", &["--max-instance-concurrent-reuse-count", "4"]);
    let client = Client::open(cluster.address()).await;
    let streams = (0..32_u8).map(|number| {
        let mut client = client.clone();
        tokio::spawn(async move {
            for round in 0..10 {
                let mut stream = client.begin(post_request("/echo")).await.unwrap();
                let body = Bytes::from(vec![number; 1000 * (round + 1)]);
                if number % 4 == 0 {
                    assert!(send_all(&mut stream.body, body, false).await);
                    stream.body.send_reset(Reason::CANCEL);
                } else {
                    let (sent, answer) =
                        tokio::join!(send_all(&mut stream.body, body.clone(), true), soon(stream.answer));
                    assert!(sent && whole(answer.unwrap()).await.unwrap().body == body, "{number}");
                }
            }
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        stream.await.unwrap();
    }
    in_flight_are(&cluster, 0);
    assert_eq!((totals(&cluster, "traps"), totals(&cluster, "crashes")), (0, 0));
}

/// A client that does not read stops its guest, and nobody else of its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_read_stops_its_guest() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut builder = Builder::new();
        builder.initial_window_size(64 << 10).initial_connection_window_size(1 << 20);
        let mut client = Client::with(cluster.address(), &builder).await;
        assert_eq!(client.get("/").await.unwrap().text(), "hello");
        let before = anonymous(&cluster);
        let mut unread = Vec::new();
        for _ in 0..4 {
            let answer = client.ask(get_request("/endless")).await.unwrap().head().await.unwrap().into_body();
            unread.push(answer);
        }
        for _ in 0..50 {
            assert_eq!(client.get("/large?bytes=300000").await.unwrap().body.len(), 300_000, "{name}");
        }
        let now = anonymous(&cluster);
        assert!(now < before + GROWTH, "{name}: {before}, then {now}");
        // What was held back comes when it is asked for.
        for body in &mut unread {
            let mut read = 0;
            while read < 1 << 20 {
                read += next_piece(body).await.len();
            }
        }
        drop((client, unread));
        in_flight_are(&cluster, 0);
    }
}

/// A guest that does not read stops its client, and nobody else of its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_not_read_stops_its_client() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut client = Client::open(cluster.address()).await;
        let mut stopped = Vec::new();
        for _ in 0..4 {
            let mut stream = client.begin(post_request("/wait")).await.unwrap();
            let body = Bytes::from(vec![0; 8 << 20]);
            stopped.push(tokio::spawn(async move { send_all(&mut stream.body, body, true).await }));
        }
        in_flight_are(&cluster, 4);
        for _ in 0..20 {
            assert_eq!(client.post("/count", vec![0; 1 << 20]).await.unwrap().text(), "1048576", "{name}");
        }
        assert!(stopped.iter().all(|sending| !sending.is_finished()), "{name}: somebody took 8 MiB");
        stopped.iter().for_each(tokio::task::JoinHandle::abort);
        drop(client);
        in_flight_are(&cluster, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_64_mib_each_way_in_little_memory() {
    for (app, path) in [("echo", "/"), ("bare-p3", "/echo")] {
        let cluster = serve(app, &[]);
        let mut client = Client::open(cluster.address()).await;
        assert_eq!(client.post(path, "first").await.unwrap().text(), "first");
        let before = anonymous(&cluster);
        let mut stream = client.begin(post_request(path)).await.unwrap();
        let part: Vec<u8> = (0..1 << 18_u32).flat_map(u32::to_le_bytes).collect();
        let all = Bytes::from(part.repeat(64));
        let (mut expected, to_send) = (all.clone(), all);
        let sending = tokio::spawn(async move { send_all(&mut stream.body, to_send, true).await });
        let mut answer = soon(stream.answer).await.unwrap().into_body();
        let (mut length, mut most) = (0, 0);
        while let Some(data) = piece(&mut answer).await {
            let data = data.unwrap();
            let had = length >> 23;
            length += data.len();
            assert!(data == expected.split_to(data.len()), "differs before byte {length}");
            if length >> 23 > had {
                most = most.max(anonymous(&cluster));
            }
        }
        assert_eq!(length, 64 << 20);
        assert!(sending.await.unwrap());
        println!("{app}: 64 MiB up and down through one stream: {} KiB more", most.saturating_sub(before) >> 10);
        assert!(most < before + GROWTH, "{app}: {before}, then {most}");
    }
}

/// Frames that are small cost more than the bytes in them: those that wait for a guest to read them are bounded, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_frames_that_nobody_reads_do_not_fill_the_memory() {
    let cluster = serve("hostile_p2", &[]);
    let mut wire = Wire::open(cluster.address(), &[]).await;
    let streams: Vec<u32> = (0..14).map(|n| 2 * n + 1).collect();
    for stream in &streams {
        wire.send(&head(*stream, 0, "POST", "/wait")).await;
    }
    in_flight_are(&cluster, 14);
    let before = anonymous(&cluster);
    for stream in &streams {
        wire.send(&frame(DATA, 0, *stream, b"x").repeat(60_000)).await;
    }
    assert_eq!(wire.find(GOAWAY).await.unwrap().number(4), u32::from(Reason::ENHANCE_YOUR_CALM));
    let now = anonymous(&cluster);
    assert!(now < before + GROWTH, "{before}, then {now}");
    drop(wire);
    in_flight_are(&cluster, 0);
    // Many that are read, if late, are fine: short messages, as gRPC has them.
    let mut client = Client::open(cluster.address()).await;
    let mut stream = client.begin(post_request("/count")).await.unwrap();
    for number in 1..=40_000 {
        assert!(send_all(&mut stream.body, Bytes::from_static(b"a short message"), number == 40_000).await);
    }
    assert_eq!(stream.whole().await.unwrap().text(), "600000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_one_by_one() {
    let cluster = serve("events", &[]);
    let mut client = Client::open(cluster.address()).await;
    let mut events = client.ask(get_request("/events?from=2")).await.unwrap().head().await.unwrap().into_body();
    for event in ["data: 2\n\n", "data: 1\n\n", "event: end\ndata: Lift-off!\n\n"] {
        // The next is not there yet.
        assert_eq!(next_piece(&mut events).await, event);
    }
    assert!(piece(&mut events).await.is_none_or(|end| end.unwrap().is_empty()));
}

/// A client that takes nothing of an answer loses that answer. Its connection goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_client_takes_nothing_is_reset() {
    for name in GUESTS {
        let cluster = serve(name, &["--stream-timeout", "500ms"]);
        let mut wire = Wire::open(cluster.address(), &[(INITIAL_WINDOW_SIZE, 0)]).await;
        for (number, path) in ["/", "/large", "/endless"].into_iter().enumerate() {
            wire.get(2 * number as u32 + 1, path).await;
        }
        for _ in 0..3 {
            let reset = wire.find(RST_STREAM).await.unwrap();
            assert_eq!(reset.number(0), u32::from(Reason::INTERNAL_ERROR), "{name}");
        }
        wire.send(&head(7, END_STREAM, "HEAD", "/")).await;
        assert_eq!(wire.find(HEADERS).await.unwrap().stream, 7, "{name}");
        in_flight_are(&cluster, 0);
        assert_eq!((totals(&cluster, "timeouts"), totals(&cluster, "aborted")), (3, 3), "{name}");
        cluster.stderr.find("an answer was cut: no data moved for 500ms");
        // Nor one that reads nothing of its connection.
        let mut builder = Builder::new();
        builder.initial_window_size(16 << 20).initial_connection_window_size(64 << 20);
        let mut deaf = Wire::open(cluster.address(), &[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
        deaf.send(&frame(harness::http2::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())).await;
        deaf.get(1, "/endless").await;
        until("it is cut", || (totals(&cluster, "timeouts") == 4).then_some(()));
        in_flight_are(&cluster, 0);
    }
}

/// Something moves all the time, but too little: no silence would ever end the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_drips_is_reset_either_way() {
    let cluster = serve("hostile_p2", &["--stream-timeout", "2s", "--min-rate", "100KiB"]);
    let dripping = async |mut wire: Wire, drop: Vec<u8>| {
        // The client takes its time; what is waited for is the reset.
        loop {
            match tokio::time::timeout(Duration::from_millis(50), wire.find(RST_STREAM)).await {
                Ok(reset) => return reset.unwrap().number(0),
                Err(_) => wire.send(&drop).await,
            }
        }
    };
    let mut taking = Wire::open(cluster.address(), &[(INITIAL_WINDOW_SIZE, 1024)]).await;
    taking.get(1, "/endless").await;
    let taking = dripping(taking, frame(harness::http2::WINDOW_UPDATE, 0, 1, &1024_u32.to_be_bytes()));
    let mut sending = Wire::open(cluster.address(), &[]).await;
    sending.send(&head(1, 0, "POST", "/echo")).await;
    let sending = dripping(sending, frame(DATA, 0, 1, b"x"));
    let error = u32::from(Reason::INTERNAL_ERROR);
    assert_eq!(soon(async { tokio::join!(taking, sending) }).await, (error, error));
    assert_eq!(totals(&cluster, "timeouts"), 2);
    cluster.stderr.find("its client is too slow; see --min-rate");
    in_flight_are(&cluster, 0);
}

/// The server has said that the connection ends, and how far it goes.
fn last_stream(goaway: &Frame) -> u32 {
    assert_eq!((goaway.kind, goaway.number(4)), (GOAWAY, 0), "{goaway:?}");
    goaway.number(0)
}

/// First the client is told to open nothing more. When it has heard of that, it is told which of its streams were seen: all
/// that it had opened by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_serves_streams_until_the_client_knows_of_it() {
    for name in GUESTS {
        let args = ["--drain-idle-grace", "60s", "--drain-timeout", "10m"];
        let cluster = serve(name, &args);
        let mut wire = Wire::open(cluster.address(), &[]).await;
        wire.get(1, "/trickle?ms=20").await;
        wire.find(DATA).await.unwrap();
        begin_drain(&cluster);
        assert_eq!(last_stream(&wire.find(GOAWAY).await.unwrap()), (1 << 31) - 1, "{name}");
        let ping = wire.find(PING).await.unwrap();
        for stream in [3, 5, 7] {
            wire.get(stream, "/").await;
            let mut body = wire.find(DATA).await.unwrap();
            while body.stream != stream {
                body = wire.find(DATA).await.unwrap();
            }
            assert_eq!(body.payload, b"hello", "{name}");
        }
        // On its way when the client hears of it.
        wire.get(9, "/sleep?ms=300").await;
        wire.send(&frame(PING, ACK, 0, &ping.payload)).await;
        wire.get(11, "/").await;
        assert_eq!(last_stream(&wire.find(GOAWAY).await.unwrap()), 9, "{name}");
        let mut body = wire.find(DATA).await.unwrap();
        while body.stream == 1 {
            body = wire.find(DATA).await.unwrap();
        }
        assert_eq!((body.stream, &body.payload[..]), (9, &b"waited"[..]), "{name}");
        // The one that was there before goes on, and is the last.
        wire.find(DATA).await.unwrap();
        wire.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await;
        while let Some(frame) = wire.next().await {
            assert!(frame.kind != HEADERS && frame.stream != 11, "{name}: {frame:?}");
        }
        until("the old worker is gone", || (cluster.children().len() == 1).then_some(()));
    }
}

/// A client that does not answer is asked for nothing more than silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_hear_of_a_drain_is_closed_after_the_grace() {
    let cluster = serve("hostile_p2", &["--drain-idle-grace", "200ms", "--drain-timeout", "10m"]);
    let mut fresh = Wire::open(cluster.address(), &[]).await;
    let mut idle = Wire::open(cluster.address(), &[]).await;
    idle.get(1, "/").await;
    assert_eq!(idle.find(DATA).await.unwrap().payload, b"hello");
    let mut busy = Wire::open(cluster.address(), &[]).await;
    busy.get(1, "/sleep?ms=1000").await;
    in_flight_are(&cluster, 1);
    begin_drain(&cluster);
    for wire in [&mut idle, &mut busy] {
        assert_eq!(last_stream(&wire.find(GOAWAY).await.unwrap()), (1 << 31) - 1);
    }
    // Its first request may be on its way: it is not sent away before the grace is over.
    assert_eq!((last_stream(&fresh.find(GOAWAY).await.unwrap()), fresh.next().await), (0, None));
    assert_eq!((last_stream(&idle.find(GOAWAY).await.unwrap()), idle.next().await), (1, None));
    assert_eq!(busy.find(DATA).await.unwrap().payload, b"waited");
    assert_eq!((last_stream(&busy.find(GOAWAY).await.unwrap()), busy.next().await), (1, None));
    until("the old worker is gone", || (cluster.children().len() == 1).then_some(()));
}

/// Over both protocols: after so many requests, or so much time, with a word that lets clients go without a loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_retire_without_a_failed_request() {
    for args in [["--max-connection-requests", "10"], ["--max-connection-age", "1s"]] {
        let cluster = serve("hostile_p2", &args);
        let one = Load::start(cluster.address(), 4, Reuse::KeepAlive);
        let two = Load::start_http2(cluster.address(), 2, 8);
        until("they were replaced twice", || (one.connections() >= 12 && two.connections() >= 6).then_some(()));
        println!("{args:?}: {} of {} sent again over HTTP/2", two.again(), two.answered());
        one.end_well().await;
        two.end_well().await;
        assert_eq!((totals(&cluster, "aborted"), totals(&cluster, "errors")), (0, 0), "{args:?}");
    }
    // Also one that nobody uses, and one that is in use.
    let cluster = serve("hostile_p2", &["--max-connection-age", "1s", "--drain-idle-grace", "60s"]);
    let mut idle = Wire::open(cluster.address(), &[]).await;
    idle.get(1, "/").await;
    assert_eq!(idle.find(DATA).await.unwrap().payload, b"hello");
    let mut busy = Wire::open(cluster.address(), &[]).await;
    busy.get(1, "/wait").await;
    for wire in [&mut idle, &mut busy] {
        assert_eq!(last_stream(&wire.find(GOAWAY).await.unwrap()), (1 << 31) - 1);
    }
    let mut last = Wire::open(cluster.address(), &[]).await;
    last.get(1, "/").await;
    assert_eq!(last.find(DATA).await.unwrap().payload, b"hello");
}

/// All that came whole is answered before the server closes its side, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_before_a_half_close_are_answered() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        for path in ["/", "/no-content", "/sleep?ms=50", "/large"] {
            for count in [1_u32, 3] {
                let mut wire = Wire::open(cluster.address(), &[(INITIAL_WINDOW_SIZE, 1 << 24)]).await;
                // Together with the settings, and with the end.
                let heads: Vec<u8> = (0..count).flat_map(|n| head(2 * n + 1, END_STREAM, "GET", path)).collect();
                wire.send(&frame(harness::http2::WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes())).await;
                wire.send(&heads).await;
                wire.half_close().await;
                let (mut answered, mut ended) = (0, 0);
                while let Some(frame) = wire.next().await {
                    answered += u32::from(frame.kind == HEADERS);
                    ended += u32::from(matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0);
                }
                assert_eq!((answered, ended), (count, count), "{name} {path}");
            }
        }
        in_flight_are(&cluster, 0);
        assert_eq!(totals(&cluster, "aborted"), 0, "{name}");
        // It is not waited for without end.
        let mut wire = Wire::open(cluster.address(), &[]).await;
        wire.get(1, "/wait").await;
        wire.half_close().await;
        until("it is counted", || (totals(&cluster, "aborted") == 1).then_some(()));
        in_flight_are(&cluster, 0);
    }
}

/// An idle connection makes room, and its client is told so: what it sent meanwhile, it may send again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_of_many_streams_makes_room() {
    let cluster = serve("hostile_p2", &["--max-connections", "4"]);
    let mut idle = Wire::open(cluster.address(), &[]).await;
    idle.get(1, "/").await;
    idle.find(DATA).await.unwrap();
    let mut busy = Wire::open(cluster.address(), &[]).await;
    busy.get(1, "/trickle?ms=20").await;
    busy.find(DATA).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..4 {
        let mut other = Client::open(cluster.address()).await;
        match other.get("/").await {
            Ok(answer) => assert_eq!(answer.status, 200),
            Err(error) => assert!(was_not_begun(&error), "{error}"),
        }
        others.push(other);
    }
    assert_eq!(last_stream(&idle.find(GOAWAY).await.unwrap()), 1);
    assert_eq!(idle.next().await, None);
    for _ in 0..3 {
        busy.find(DATA).await.unwrap();
    }
}

/// Connections that end in the middle of everything leave nothing behind, and nobody waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_leave_nothing_behind() {
    for name in GUESTS {
        let cluster = serve(name, &["--request-timeout", "10m"]);
        let reset = frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
        let goaway = frame(GOAWAY, 0, 0, &[0; 8]);
        let post = |path| head(1, 0, "POST", path);
        let cases: [&[&[u8]]; 8] = [
            &[&post("/count"), &frame(DATA, 0, 1, b"some")],
            &[&post("/count"), &frame(DATA, 0, 1, b"some")[..11]],
            &[&post("/echo"), &frame(DATA, 0, 1, b"some")],
            &[&post("/endless")],
            &[&post("/trickle?ms=5"), &goaway],
            &[&post("/wait"), &reset, &head(3, 0, "POST", "/wait")],
            &[&post("/wait"), &frame(PING, 0, 0, &[0; 7])],
            &[&post("/wait"), &frame(DATA, 0, 5, b"idle")],
        ];
        for (number, case) in cases.into_iter().enumerate() {
            let mut wires = Vec::new();
            for _ in 0..4 {
                let mut wire = Wire::open(cluster.address(), &[]).await;
                wire.send(&case.concat()).await;
                wires.push(wire);
            }
            // Whether it is begun or not by the time that it breaks.
            if number < 5 {
                in_flight_are(&cluster, 4);
            }
            drop(wires);
            in_flight_are(&cluster, 0);
            until("none is open", || (of_worker(&cluster, "connections") == 0).then_some(()));
        }
        let worker = cluster.worker(0).unwrap();
        let spent = || {
            let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
            let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        // In hundredths of a second.
        let before = spent();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(spent() - before < 40, "{name}: its worker does not rest");
        assert_eq!(totals(&cluster, "crashes"), 0);
    }
}
