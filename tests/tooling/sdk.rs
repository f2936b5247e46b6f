//! What the SDK offers, in components of WASI 0.2 and of WASI 0.3 that are made from the same source.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use harness::client::{Answer, Connection, Upload, get, soon, whole};
use harness::upstream;
use harness::{Cluster, Setup, guest, until};

/// Makes of each function a test for each world, with a guest of that world.
macro_rules! in_worlds {
    ($($world:ident with $guest:literal),*: $tests:tt) => {
        $(in_worlds! { @ $world $guest $tests })*
    };
    (@ $world:ident $guest:literal { $($test:ident)* }) => {
        mod $world {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test($guest).await;
                }
            )*
        }
    };
}

in_worlds! { p2 with "sdk", p3 with "sdk-p3": {
    paths_and_queries_are_read
    heads_come_and_go
    json_is_read_and_answered
    text_is_read_up_to_a_limit
    errors_are_told_to_whom_they_concern
    answers_without_a_body_have_none
    uploads_are_read_piece_by_piece
    bodies_are_written_piece_by_piece
    a_slow_reader_stops_the_writer
    a_body_that_fails_is_seen_as_cut
    trailers_go_both_ways
    events_are_sent
    time_passes
    numbers_are_random
    the_environment_says_what_is_logged
    the_worker_is_known
    values_are_read
    requests_are_sent
    bodies_stream_through
    what_cannot_be_fetched_says_why
    slow_servers_are_not_waited_for
    redirects_are_followed
    files_are_served
} }

fn cluster(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

/// With an upstream that its guest may send requests to.
async fn with_upstream(name: &str) -> (Cluster, SocketAddr) {
    let upstream = upstream::start().await;
    (cluster(name, &["--allow-host", &format!("http://{upstream}")]), upstream)
}

async fn request(cluster: &Cluster, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
    let mut connection = Connection::open(cluster.address()).await;
    whole(connection.send(method, path, Full::new(body.into())).await.unwrap()).await.unwrap()
}

async fn post(cluster: &Cluster, path: &str, body: impl Into<Bytes>) -> Answer {
    request(cluster, Method::POST, path, body).await
}

#[track_caller]
fn check(answer: &Answer, status: u16, body: &str) {
    assert_eq!((answer.status, answer.text()), (status, body));
}

async fn paths_and_queries_are_read(name: &str) {
    let cluster = cluster(name, &[]);
    let answer = async |path| get(cluster.address(), path).await.unwrap();
    check(&answer("/users/7/ada%20l+b").await, 200, "7 is ada l+b");
    check(&answer("/users/7").await, 404, "404 Not Found\n");
    assert_eq!(answer("/users/x/ada").await.status, 400);
    check(&answer("/files/a/b%2Fc").await, 200, "a/b/c");
    check(&answer("/query?word=a%20+%26").await, 200, "a  &");
    check(&answer("/query?times=3&word=a").await, 200, "aaa");
    for path in ["/query", "/query?times=1", "/query?word=a&times=x"] {
        let refused = answer(path).await;
        assert_eq!(refused.status, 400);
        assert!(refused.text().starts_with("the query is not as expected: "), "{}", refused.text());
    }
}

async fn heads_come_and_go(name: &str) {
    let cluster = cluster(name, &[]);
    let mut connection = Connection::open(cluster.address()).await;
    let request = Request::patch("/head?a=b&c").header("host", "a.test:8080").header("x-odd", &b"\xff"[..]);
    let request = request.header("x-two", "1").header("x-two", "2").body(Full::<Bytes>::default()).unwrap();
    let answer = whole(connection.send_request(request).await.unwrap()).await.unwrap();
    assert_eq!(answer.headers.get_all("x-twice").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
    let lines: Vec<&str> = answer.text().lines().collect();
    assert_eq!(lines[0], "PATCH /head?a=b&c");
    for line in ["host: a.test:8080", "x-odd: \\xff", "x-two: 1", "x-two: 2"] {
        assert!(lines.contains(&line), "{lines:?}");
    }
    let created = get(cluster.address(), "/created").await.unwrap();
    check(&created, 201, "7");
    assert_eq!(
        (&created.headers["location"], &created.headers["content-type"]),
        (&HeaderValue::from_static("/7"), &HeaderValue::from_static("application/json"))
    );
    assert_eq!(get(cluster.address(), "/html").await.unwrap().headers["content-type"], "text/html; charset=utf-8");
}

async fn json_is_read_and_answered(name: &str) {
    let cluster = cluster(name, &[]);
    let sum = post(&cluster, "/json", r#"{"numbers":[1,2,3]}"#).await;
    check(&sum, 200, r#"{"sum":6}"#);
    assert_eq!(sum.headers["content-type"], "application/json");
    for wrong in ["", "{", r#"{"numbers":1}"#, r#"{"numbers":[1]"#, "[]"] {
        let refused = post(&cluster, "/json", wrong).await;
        assert_eq!(refused.status, 400, "{wrong}");
        assert!(refused.text().starts_with("the body is not the expected JSON: "), "{}", refused.text());
    }
    let large = format!(r#"{{"numbers":[{}1]}}"#, "1,".repeat(64));
    check(&post(&cluster, "/json", large).await, 413, "the body is larger than 64 bytes\n");
}

async fn text_is_read_up_to_a_limit(name: &str) {
    let cluster = cluster(name, &[]);
    check(&post(&cluster, "/text", "").await, 200, "");
    check(&post(&cluster, "/text", "a".repeat(64)).await, 200, &"A".repeat(64));
    check(&post(&cluster, "/text", "a".repeat(65)).await, 413, "the body is larger than 64 bytes\n");
    assert_eq!(post(&cluster, "/text", &b"\xff"[..]).await.status, 400);
    // One that does not say before how long it is.
    let Upload { mut body, answer } = Upload::start(cluster.address(), "/text").await;
    for _ in 0..2 {
        // The second may find that nobody reads any more.
        let _ = body.send_data(Bytes::from("a".repeat(33))).await;
    }
    let answer = whole(answer.await.unwrap().unwrap()).await.unwrap();
    check(&answer, 413, "the body is larger than 64 bytes\n");
}

async fn errors_are_told_to_whom_they_concern(name: &str) {
    let cluster = cluster(name, &[]);
    let answer = async |path| get(cluster.address(), path).await.unwrap();
    check(&answer("/error").await, 500, "Internal Server Error\n");
    let told = cluster.stderr.find("handler failed");
    assert_eq!(told, "[worker 1 g 1 request 1-1 GET /error] handler failed: the password is x");
    check(&answer("/conflict").await, 409, "taken already\n");
    check(&answer("/unavailable").await, 503, "Service Unavailable\n");
    check(&answer("/forbidden-header").await, 500, "Internal Server Error\n");
    cluster.stderr.find("the host refused its headers");
    assert!(!cluster.stderr.lines().iter().any(|line| line.contains("taken already")));
    assert_eq!(cluster.status()["totals"]["traps"], 0);
}

async fn answers_without_a_body_have_none(name: &str) {
    let cluster = cluster(name, &[]);
    // One connection for all: what should not be there would be taken for the next answer.
    let mut connection = Connection::open(cluster.address()).await;
    for round in 0..2 {
        let head = connection.request(Method::HEAD, "/html", "").await.unwrap();
        assert_eq!((head.status, head.body.len()), (200, 0), "round {round}");
        assert_eq!(head.headers["content-length"], "3");
        let streamed = connection.request(Method::HEAD, "/written", "").await.unwrap();
        assert_eq!((streamed.status, streamed.body.len()), (200, 0));
        let nothing = connection.get("/no-content").await.unwrap();
        assert_eq!((nothing.status, nothing.body.len()), (204, 0));
        assert!(!nothing.headers.contains_key("content-length"));
        let same = connection.get("/not-modified").await.unwrap();
        assert_eq!((same.status, same.body.len()), (304, 0));
        assert_eq!(same.headers["etag"], "\"7\"");
        assert!(!same.headers.contains_key("content-length"));
    }
}

/// Of a guest that could not hold it.
async fn uploads_are_read_piece_by_piece(name: &str) {
    const PIECE: usize = 1 << 20;
    let cluster = cluster(name, &["--max-memory", "8MiB"]);
    let Upload { mut body, answer } = Upload::start(cluster.address(), "/count").await;
    for _ in 0..32 {
        body.send_data(Bytes::from(vec![b'x'; PIECE])).await.unwrap();
    }
    drop(body);
    check(&whole(answer.await.unwrap().unwrap()).await.unwrap(), 200, &(32 * PIECE).to_string());
    // Back while it is on its way.
    let Upload { mut body, answer } = Upload::start(cluster.address(), "/echo").await;
    body.send_data("first".into()).await.unwrap();
    let mut answer = answer.await.unwrap().unwrap().into_body();
    assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    body.send_data("last".into()).await.unwrap();
    drop(body);
    assert_eq!(soon(answer.collect()).await.unwrap().to_bytes(), "last");
}

async fn bodies_are_written_piece_by_piece(name: &str) {
    let cluster = cluster(name, &[]);
    for path in ["/written", "/unordered-writer"] {
        check(&get(cluster.address(), path).await.unwrap(), 200, "one two three");
    }
}

async fn a_slow_reader_stops_the_writer(name: &str) {
    const ALL: usize = 64 << 20;
    let cluster = cluster(name, &["--max-memory", "8MiB"]);
    let written = || {
        let last = cluster
            .stderr
            .lines()
            .into_iter()
            .rev()
            .find_map(|line| line.split_once("written ").map(|(_, n)| n.parse().unwrap()));
        last.unwrap_or(0_usize)
    };
    let mut connection = Connection::open(cluster.address()).await;
    let mut body = connection.begin("/paced").await;
    let first = soon(body.frame()).await.unwrap().unwrap().into_data().unwrap();
    // Nothing tells that it stands still, but that it has not gone on while others were served.
    let mut before = usize::MAX;
    while written() != before {
        before = written();
        for _ in 0..20 {
            check(&get(cluster.address(), "/timeout?ms=100").await.unwrap(), 200, "Ok(())");
        }
    }
    assert!(before < ALL / 2, "{before} bytes written, and {} read", first.len());
    assert_eq!(first.len() + soon(body.collect()).await.unwrap().to_bytes().len(), ALL);
    until("all is written", || (written() == ALL).then_some(()));
}

async fn a_body_that_fails_is_seen_as_cut(name: &str) {
    let cluster = cluster(name, &[]);
    let Upload { mut body, answer } = Upload::start(cluster.address(), "/cut").await;
    let mut answer = answer.await.unwrap().unwrap().into_body();
    assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "begun");
    body.send_data("go on".into()).await.unwrap();
    assert!(soon(answer.frame()).await.unwrap().is_err());
    assert!(cluster.stderr.find("cut short").ends_with("response body cut short: broken on purpose"));
}

async fn trailers_go_both_ways(name: &str) {
    let (cluster, upstream) = with_upstream(name).await;
    let mut connection = Connection::open(cluster.address()).await;
    let request = Request::get("/trailers").header("te", "trailers").body(Channel::new(1).1).unwrap();
    let counted = soon(connection.send_request(request).await.unwrap().into_body().collect()).await.unwrap();
    assert_eq!(counted.trailers().unwrap()["x-sum"], "7");
    assert_eq!(counted.to_bytes(), "counted");
    for path in ["/echo".to_owned(), format!("/proxy?url=http://{upstream}/echo")] {
        let (mut body, channel) = Channel::<Bytes>::new(4);
        let request = Request::post(&path).header("te", "trailers").header("trailer", "x-sum").body(channel).unwrap();
        body.send_data("data".into()).await.unwrap();
        body.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "9".parse().unwrap())])).await.unwrap();
        drop(body);
        let echoed = soon(connection.send_request(request).await.unwrap().into_body().collect()).await.unwrap();
        assert_eq!(echoed.trailers().unwrap_or_else(|| panic!("{path} has none"))["x-sum"], "9");
        assert_eq!(echoed.to_bytes(), "data");
    }
}

async fn events_are_sent(name: &str) {
    let cluster = cluster(name, &[]);
    let answer = get(cluster.address(), "/events").await.unwrap();
    check(&answer, 200, "event: news\nid: 7\ndata: a\ndata: b\n\n:\n\ndata: c\n\n");
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache");
}

async fn time_passes(name: &str) {
    let cluster = cluster(name, &[]);
    let answer = async |path| get(cluster.address(), path).await.unwrap();
    check(&answer("/sleeps").await, 200, r#"["fast","slow"]"#);
    check(&answer("/timeout?ms=1").await, 200, "Err(Elapsed)");
    check(&answer("/timeout?ms=0").await, 200, "Err(Elapsed)");
    check(&answer("/timeout?ms=60000").await, 200, "Ok(())");
    check(&answer("/unordered").await, 200, "[0,10,20,30]");
    check(&answer("/yield").await, 200, "yielded");
}

async fn numbers_are_random(name: &str) {
    let cluster = cluster(name, &[]);
    let one = get(cluster.address(), "/random").await.unwrap();
    let two = get(cluster.address(), "/random").await.unwrap();
    assert_eq!((one.status, two.status), (200, 200));
    assert_ne!(one.text(), two.text());
}

async fn the_environment_says_what_is_logged(name: &str) {
    let lines = [
        ("error", "ERROR sdk: an error of two lines"),
        ("warn", "WARN  sdk: a warning"),
        ("info", "INFO  sdk: an info"),
        ("info", "INFO  sdk: a traced info answer=42"),
        ("debug", "DEBUG sdk: a debug"),
        ("debug", "DEBUG sdk: a traced debug"),
    ];
    for (level, shown) in
        [(None, 4), (Some("LOG_LEVEL=warn"), 2), (Some("LOG_LEVEL=debug"), 6), (Some("LOG_LEVEL=off"), 0)]
    {
        let args: Vec<&str> = level.iter().flat_map(|level| ["--env", level]).collect();
        let cluster = cluster(name, &args);
        check(&get(cluster.address(), "/log").await.unwrap(), 200, "logged");
        // What it has written is here when this is.
        get(cluster.address(), "/error").await.unwrap();
        cluster.stderr.find("handler failed");
        let logged = cluster.stderr.lines();
        for (index, (_, line)) in lines.iter().enumerate() {
            // A target is a crate's name.
            let line = line.replace("sdk:", &format!("{}:", name.replace('-', "_")));
            assert_eq!(
                logged.iter().any(|logged| logged.ends_with(&line)),
                index < shown,
                "{level:?}: {line}: {logged:#?}"
            );
        }
    }
}

async fn the_worker_is_known(name: &str) {
    let cluster = cluster(name, &[]);
    let who: Value = serde_json::from_str(get(cluster.address(), "/whoami").await.unwrap().text()).unwrap();
    let status = cluster.status();
    let worker = &status["workers"][0];
    let expected = [
        &worker["id"],
        &worker["slot"],
        &worker["pid"],
        &worker["generation"],
        &status["generation"]["digest"],
        &1.into(),
    ];
    assert_eq!(who.as_array().unwrap().iter().collect::<Vec<_>>(), expected);
}

async fn values_are_read(name: &str) {
    let cluster = cluster(name, &["--set", "a.b=c", "--set", "empty="]);
    let config = async |key: &str| get(cluster.address(), &format!("/config?{key}")).await.unwrap().text().to_owned();
    assert_eq!(config("a.b").await, r#"Some("c") of {"a.b": "c", "empty": ""}"#);
    assert!(config("empty").await.starts_with(r#"Some("")"#) && config("none").await.starts_with("None"));
}

async fn requests_are_sent(name: &str) {
    let (cluster, upstream) = with_upstream(name).await;
    let answer = async |path: &str| get(cluster.address(), path).await.unwrap();
    let got = answer(&format!("/fetch?url=http://{upstream}/head?a=b")).await;
    assert_eq!((got.status, &got.headers["x-upstream"]), (200, &HeaderValue::from_static("yes")));
    assert!(got.text().starts_with("GET /head?a=b\n"), "{}", got.text());
    assert!(got.text().contains("x-from: guest\n") && got.text().contains(&format!("host: {upstream}\n")));
    assert!(!got.text().contains("content-length") && !got.text().contains("transfer-encoding"), "{}", got.text());
    check(&answer(&format!("/fetch?url=http://{upstream}/missing")).await, 404, "nothing here");
    check(&answer(&format!("/post-json?url=http://{upstream}/echo")).await, 200, "7");
    // A server's bad answer is not the client's fault.
    check(&answer(&format!("/post-json?url=http://{upstream}/missing")).await, 502, "Bad Gateway\n");
    cluster.stderr.find("the body is not the expected JSON");
    check(&answer(&format!("/fetch-text?url=http://{upstream}/missing")).await, 200, "nothing here");
    check(&answer(&format!("/fetch-text?url=http://{upstream}/head?{}", "x".repeat(99))).await, 502, "Bad Gateway\n");
}

async fn bodies_stream_through(name: &str) {
    let (cluster, upstream) = with_upstream(name).await;
    let path = format!("/proxy?url=http://{upstream}/echo");
    // A known length stays known, in both directions.
    check(&post(&cluster, &path, "abc").await, 200, "abc");
    let head = post(&cluster, &format!("/proxy?url=http://{upstream}/head"), "abc").await;
    assert!(head.text().starts_with("POST /head\n") && head.text().contains("content-length: 3\n"), "{}", head.text());
    let only = request(&cluster, Method::HEAD, &format!("/proxy?url=http://{upstream}/missing"), "").await;
    assert_eq!((only.status, &only.headers["content-length"]), (404, &HeaderValue::from_static("12")));
    let Upload { mut body, answer } = Upload::start(cluster.address(), &path).await;
    body.send_data("first".into()).await.unwrap();
    let mut answer = answer.await.unwrap().unwrap().into_body();
    assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    // Much more than what the way between could hold.
    let sending = tokio::spawn(async move {
        for _ in 0..32 {
            body.send_data(Bytes::from(vec![b'x'; 1 << 20])).await.unwrap();
        }
    });
    assert_eq!(soon(answer.collect()).await.unwrap().to_bytes().len(), 32 << 20);
    sending.await.unwrap();
}

async fn what_cannot_be_fetched_says_why(name: &str) {
    let (cluster, upstream) = with_upstream(name).await;
    let nowhere = upstream::nowhere().await;
    let outcome =
        async |url: &str| get(cluster.address(), &format!("/outcome?url={url}")).await.unwrap().text().to_owned();
    assert_eq!(outcome(&format!("http://{upstream}/head")).await, "200");
    let denied = outcome(&format!("http://{nowhere}/")).await;
    assert!(cluster.stderr.find("denied to the guest: ").contains("method=\"GET\" path=\"/outcome\""));
    assert!(denied.starts_with("denied: ") && denied.ends_with(&format!("--allow-host http://{nowhere}")), "{denied}");
    assert!(outcome("/relative").await.starts_with("invalid: the request cannot be sent: its URI must be absolute"));
    assert!(outcome("a%20b").await.starts_with("invalid: the request cannot be sent: its URI is not valid"));
    let granted = self::cluster(name, &["--allow-host", &format!("http://{nowhere}")]);
    let refused = get(granted.address(), &format!("/outcome?url=http://{nowhere}/")).await.unwrap();
    assert!(refused.text().starts_with("failed: the request failed: connection-refused"), "{}", refused.text());
    // Not caught, it is the guest's failure.
    check(
        &get(granted.address(), &format!("/fetch?url=http://{nowhere}/")).await.unwrap(),
        500,
        "Internal Server Error\n",
    );
    granted.stderr.find("handler failed: the request failed: connection-refused");
}

async fn slow_servers_are_not_waited_for(name: &str) {
    let (cluster, upstream) = with_upstream(name).await;
    let late = get(cluster.address(), &format!("/outcome?url=http://{upstream}/never&timeout=50")).await.unwrap();
    check(&late, 200, "timed out");
    // The head comes in time, and then nothing more.
    let path = format!("/fetch?url=http://{upstream}/silent&timeout=30000&idle=50");
    let mut body = Connection::open(cluster.address()).await.begin(&path).await;
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "begun");
    assert!(soon(body.frame()).await.unwrap().is_err());
    cluster.stderr.find("response body cut short");
}

async fn redirects_are_followed(name: &str) {
    let (cluster, upstream) = with_upstream(name).await;
    let answer = async |path: &str| get(cluster.address(), path).await.unwrap();
    check(&answer(&format!("/fetch?url=http://{upstream}/moved")).await, 302, "moved");
    let followed = answer(&format!("/follow?url=http://{upstream}/moved")).await;
    assert!(followed.status == 200 && followed.text().starts_with("GET /head?moved\n"), "{}", followed.text());
}

async fn files_are_served(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let large: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    for (file, text) in [("large.txt", &*large), ("app.js", "plain"), ("app.js.gz", "gzipped"), (".env", "secret")] {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    std::os::unix::fs::symlink("/etc/hostname", folder.path().join("outside")).unwrap();
    let cluster = cluster(name, &["--dir", &format!("{}::/public:ro", folder.path().display())]);
    let mut connection = Connection::open(cluster.address()).await;
    let mut ask = async |method: Method, path: &str, headers: &[(&str, &str)]| {
        let request = headers.iter().fold(Request::builder(), |request, (name, value)| request.header(*name, *value));
        let request = request.method(method).uri(path).body(Full::<Bytes>::default()).unwrap();
        whole(connection.send_request(request).await.unwrap()).await.unwrap()
    };
    let whole = ask(Method::GET, "/static/large.txt", &[]).await;
    check(&whole, 200, &large);
    assert_eq!(whole.headers["content-length"], large.len().to_string());
    let tag = whole.headers["etag"].to_str().unwrap();
    check(&ask(Method::GET, "/static/large.txt", &[("if-none-match", tag)]).await, 304, "");
    let date = whole.headers["last-modified"].to_str().unwrap();
    check(&ask(Method::GET, "/static/large.txt", &[("if-modified-since", date)]).await, 304, "");
    let part = ask(Method::GET, "/static/large.txt", &[("range", "bytes=100000-100009")]).await;
    check(&part, 206, &large[100_000..100_010]);
    assert_eq!(part.headers["content-range"], format!("bytes 100000-100009/{}", large.len()));
    let head = ask(Method::HEAD, "/static/large.txt", &[]).await;
    check(&head, 200, "");
    assert_eq!(head.headers["content-length"], large.len().to_string());
    let compressed = ask(Method::GET, "/static/app.js", &[("accept-encoding", "gzip, deflate, br")]).await;
    check(&compressed, 200, "gzipped");
    assert_eq!(compressed.headers["content-encoding"], "gzip");
    for path in ["/static/.env", "/static/none", "/static/outside", "/static/..%2f..%2fetc/hostname"] {
        assert_eq!(ask(Method::GET, path, &[]).await.status, 404, "{path}");
    }
}

in_worlds! { axum_p2 with "sdk-axum", axum_p3 with "sdk-axum-p3": {
    a_router_answers
    a_router_lives_as_long_as_its_instance
    a_router_s_bodies_stream
    a_router_reads_forms_and_cookies
} }

async fn a_router_answers(name: &str) {
    let cluster = cluster(name, &[]);
    let answer = async |path| get(cluster.address(), path).await.unwrap();
    check(&answer("/users/7").await, 200, "user 7");
    assert_eq!(answer("/users/x").await.status, 400);
    assert_eq!(answer("/nowhere").await.status, 404);
    check(&answer("/page?number=2").await, 200, r#"{"number":2}"#);
    assert_eq!(answer("/page").await.status, 400);
    check(&answer("/sleep").await, 200, "slept");
    check(&answer("/nothing").await, 204, "");
    let mut connection = Connection::open(cluster.address()).await;
    let json = Request::post("/sum").header("content-type", "application/json").body(Full::from("[1,2]")).unwrap();
    check(&whole(connection.send_request(json).await.unwrap()).await.unwrap(), 200, "3");
    assert_eq!(post(&cluster, "/sum", "[1,2]").await.status, 415);
    assert_eq!(request(&cluster, Method::GET, "/sum", "").await.status, 405);
    let head = connection.request(Method::HEAD, "/users/7", "").await.unwrap();
    assert_eq!((head.status, &head.headers["content-length"]), (200, &HeaderValue::from_static("6")));
    check(&connection.get("/users/8").await.unwrap(), 200, "user 8");
}

async fn a_router_lives_as_long_as_its_instance(name: &str) {
    for (reuse, expected) in [("1", [1, 1, 1, 1]), ("3", [1, 2, 3, 1])] {
        let cluster = cluster(name, &["--max-instance-reuse-count", reuse]);
        for expected in expected {
            check(&get(cluster.address(), "/visits").await.unwrap(), 200, &expected.to_string());
        }
    }
}

async fn a_router_s_bodies_stream(name: &str) {
    let (cluster, upstream) = with_upstream(name).await;
    check(&post(&cluster, "/echo", "abc").await, 200, "abc");
    let Upload { mut body, answer } = Upload::start(cluster.address(), "/echo").await;
    body.send_data("first".into()).await.unwrap();
    let mut answer = answer.await.unwrap().unwrap().into_body();
    assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    drop(body);
    assert!(soon(answer.collect()).await.unwrap().to_bytes().is_empty());
    let path = format!("/fetch?url=http://{upstream}/missing");
    check(&get(cluster.address(), &path).await.unwrap(), 200, "nothing here");
    let denied = get(cluster.address(), "/fetch?url=http://127.0.0.1:1/").await.unwrap();
    assert_eq!(denied.status, 502);
    assert!(denied.text().ends_with("--allow-host http://127.0.0.1:1"), "{}", denied.text());
}

async fn a_router_reads_forms_and_cookies(name: &str) {
    let cluster = cluster(name, &[]);
    let mut connection = Connection::open(cluster.address()).await;
    let mut post = async |path: &str, kind: &str, body: String| {
        let request = Request::post(path).header("content-type", kind).body(Full::from(body)).unwrap();
        whole(connection.send_request(request).await.unwrap()).await.unwrap()
    };
    check(&post("/form", "application/x-www-form-urlencoded", "number=7".into()).await, 200, "page 7");
    assert_eq!(post("/form", "application/x-www-form-urlencoded", "number=x".into()).await.status, 422);
    assert_eq!(post("/form", "text/plain", "number=7".into()).await.status, 415);
    let field =
        |name: &str, rest: &str| format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"{rest}\r\n\r\n");
    let (text, file) = (field("text", ""), field("file", "; filename=\"a.bin\""));
    let body = format!("{text}hello\r\n{file}{}\r\n--b--\r\n", "x".repeat(300_000));
    let kind = "multipart/form-data; boundary=b";
    check(&post("/upload", kind, body.clone()).await, 200, "text - 5\nfile a.bin 300000\n");
    assert_eq!(post("/upload", kind, body[..1000].into()).await.status, 400);

    let mut ask = async |cookie: &str| {
        let request = Request::get("/cookies").header("cookie", cookie).body(Full::default()).unwrap();
        whole(connection.send_request(request).await.unwrap()).await.unwrap()
    };
    for (cookie, visit) in [("other=1", 1), ("other=1; visits=7", 8)] {
        let answer = ask(cookie).await;
        check(&answer, 200, &format!("visit {visit}"));
        assert_eq!(answer.headers["set-cookie"], format!("visits={visit}; HttpOnly; Secure; Path=/"));
    }
    check(&get(cluster.address(), "/client").await.unwrap(), 200, "Some(127.0.0.1)");
}
