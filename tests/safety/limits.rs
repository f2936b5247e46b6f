//! What one request, its guest and its client may take; and that nobody else pays for it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;

use harness::client::{Connection, get};
use harness::{Cluster, Setup, guest, http2, until};

/// One worker, so that a good request meets the bad one's worker.
fn cluster(args: &[&str]) -> Cluster {
    Setup::new(&guest("scenarios")).workers(1).args(args).start()
}

/// The worker is the same, it answers, and nothing is left of the request before.
async fn is_well(cluster: &Cluster, worker: nix::unistd::Pid) {
    assert_eq!(get(cluster.address(), "/headers").await.unwrap().status, 200);
    assert_eq!(cluster.worker(0), Some(worker));
    until("nothing is left", || (cluster.in_flight() == Some(0)).then_some(()));
}

fn timeouts(cluster: &Cluster) -> u64 {
    cluster.status()["totals"]["timeouts"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_takes_too_long_is_answered_for() {
    let cluster = cluster(&["--request-timeout", "500ms"]);
    let worker = cluster.worker(0).unwrap();
    // It waits in a host call, or it computes.
    for (timed_out, path) in ["/sleep?ms=600000", "/spin?ms=600000"].into_iter().enumerate() {
        let late = tokio::spawn({
            let address = cluster.address();
            async move { get(address, path).await.unwrap() }
        });
        until("it is at work", || (cluster.in_flight() == Some(1)).then_some(()));
        assert_eq!(get(cluster.address(), "/headers").await.unwrap().status, 200, "beside {path}");
        assert_eq!(late.await.unwrap().status, 504, "{path}");
        is_well(&cluster, worker).await;
        assert_eq!(timeouts(&cluster), timed_out as u64 + 1);
    }
    let line = cluster.stderr.find("no answer within 500ms");
    assert!(line.contains("request=\"1-"), "{line}");
}

/// Its time is that of the answer's head: a body may take longer, as long as something moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_lives_as_long_as_something_moves() {
    let cluster = cluster(&["--request-timeout", "2s", "--stream-timeout", "2s"]);
    let mut connection = Connection::open(cluster.address()).await;
    let answer = connection.get("/drip?chunks=40&ms=100").await.unwrap();
    assert_eq!(answer.body.len(), 40 * "tick\n".len());
    assert_eq!(timeouts(&cluster), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_answer_is_cut() {
    let cluster = cluster(&["--stream-timeout", "500ms"]);
    let worker = cluster.worker(0).unwrap();
    // The guest waits, or computes, behind its first piece.
    for (cut, path) in ["/drip?chunks=2&ms=600000", "/tick-then-spin"].into_iter().enumerate() {
        let mut connection = Connection::open(cluster.address()).await;
        let mut body = connection.begin(path).await;
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "tick\n", "{path}");
        assert!(body.collect().await.is_err(), "an answer that was cut is seen as cut");
        is_well(&cluster, worker).await;
        assert_eq!(timeouts(&cluster), cut as u64 + 1);
    }
    cluster.stderr.find("no data moved for 500ms");
}

/// An answer without end, and a client that does not read it: it is held back, and cut in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_cut_off() {
    let cluster = cluster(&["--stream-timeout", "500ms"]);
    let worker = cluster.worker(0).unwrap();
    let mut stream = TcpStream::connect(cluster.address()).unwrap();
    stream.write_all(b"GET /drip?chunks=1000000000&ms=0 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    until("it is cut off", || (timeouts(&cluster) == 1).then_some(()));
    is_well(&cluster, worker).await;
    drop(stream);
}

/// Sends these bytes and reads what comes back, to the end of the connection.
fn exchange(cluster: &Cluster, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(cluster.address()).unwrap();
    // It may be cut off before it is through.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_bounded() {
    let cluster = cluster(&["--max-body", "10KiB"]);
    let worker = cluster.worker(0).unwrap();
    let head = "POST /count HTTP/1.1\r\nhost: test\r\nconnection: close\r\n";
    let sized = |bytes: usize| format!("{head}content-length: {bytes}\r\n\r\n{}", "x".repeat(bytes));
    let chunked = |chunks: usize| {
        let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
        format!("{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(chunks))
    };
    for (request, status) in [
        (sized(10 * 1024), "200"),
        (sized(10 * 1024 + 1), "413"),
        (chunked(10), "200"),
        (chunked(11), "413"),
        // Said, but never sent: it is not waited for.
        (format!("{head}content-length: 1000000000000\r\n\r\n"), "413"),
    ] {
        let answer = exchange(&cluster, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        is_well(&cluster, worker).await;
    }
}

/// The client is slow, not the guest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_does_not_come_is_the_clients_fault() {
    let cluster = cluster(&["--request-timeout", "500ms"]);
    let worker = cluster.worker(0).unwrap();
    let request = b"POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nbut this";
    let answer = exchange(&cluster, request);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
    is_well(&cluster, worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_bounded() {
    let cluster = cluster(&["--max-headers", "10", "--max-header-bytes", "16KiB"]);
    let worker = cluster.worker(0).unwrap();
    let fields = |number: usize| (1..number).map(|field| format!("x-{field}: 1\r\n")).collect::<String>();
    let head = |fields: &str| format!("GET /headers HTTP/1.1\r\nhost: test\r\n{fields}connection: close\r\n\r\n");
    for (request, status) in [
        (head(&fields(9)), "200"),
        (head(&fields(20)), "431"),
        (head(&format!("x-long: {}\r\n", "x".repeat(10 * 1024))), "200"),
        (head(&format!("x-long: {}\r\n", "x".repeat(200 * 1024))), "431"),
    ] {
        let answer = exchange(&cluster, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        is_well(&cluster, worker).await;
    }
}

/// Byte by byte, for ever: a client that only keeps a place occupied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_head_is_answered_408() {
    let cluster = cluster(&["--header-timeout", "500ms"]);
    let worker = cluster.worker(0).unwrap();
    let mut slow = TcpStream::connect(cluster.address()).unwrap();
    let mut writer = slow.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for byte in b"GET / HTTP/1.1\r\nx-slow: ".iter().chain(std::iter::repeat(&b'x')) {
            if writer.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer:?}");
    assert_eq!(timeouts(&cluster), 1);
    drop(slow);
    writing.join().unwrap();
    is_well(&cluster, worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_in_the_end() {
    let cluster = cluster(&["--keep-alive-timeout", "500ms"]);
    let worker = cluster.worker(0).unwrap();
    let (mut silent, mut idle) =
        (TcpStream::connect(cluster.address()).unwrap(), TcpStream::connect(cluster.address()).unwrap());
    idle.write_all(b"GET /headers HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    let mut answer = String::new();
    assert_eq!(silent.read_to_string(&mut answer).unwrap(), 0, "an orderly end");
    idle.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop((silent, idle));
    is_well(&cluster, worker).await;
    assert_eq!(timeouts(&cluster), 0, "that is nobody's fault");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded() {
    let cluster = cluster(&["--max-memory", "32MiB"]);
    let worker = cluster.worker(0).unwrap();
    let mut connection = Connection::open(cluster.address()).await;
    assert_eq!(connection.request(Method::GET, "/allocate?mib=8", "").await.unwrap().status, 200);
    assert_eq!(connection.request(Method::GET, "/allocate?mib=64", "").await.unwrap().status, 500);
    is_well(&cluster, worker).await;
}

/// What instances hold that wait for their next request is there for those at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_instances_starve_nobody() {
    let args = ["--max-memory", "64MiB", "--max-worker-memory", "128MiB", "--max-instance-reuse-count", "100"];
    let cluster = Setup::new(&guest("hostile_p3")).workers(1).args(&args).start();
    let address = cluster.address();
    let hold = |path: &'static str| tokio::spawn(async move { get(address, path).await.unwrap().text().to_owned() });
    for held in [(); 5].map(|()| hold("/hold?mib=20&ms=1000")) {
        held.await.unwrap();
    }
    assert_eq!(hold("/hold?mib=60").await.unwrap(), "held");
}

/// So many are at work, as many again wait, and whoever comes then is told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_are_bounded() {
    let cluster = cluster(&["--max-in-flight", "2"]);
    let worker = cluster.worker(0).unwrap();
    // Connections first: a worker that is full accepts no more.
    let mut connections = Vec::new();
    for _ in 0..5 {
        let mut connection = Connection::open(cluster.address()).await;
        assert_eq!(connection.get("/headers").await.unwrap().status, 200);
        connections.push(connection);
    }
    let mut begin = |path: &'static str| {
        let mut connection = connections.pop().unwrap();
        tokio::spawn(async move { connection.get(path).await.unwrap() })
    };
    let in_flight = |number: u64| until("they are there", || (cluster.in_flight() == Some(number)).then_some(()));
    let [first, second] = [begin("/sleep?ms=600000"), begin("/sleep?ms=600000")];
    in_flight(2);
    let patient = [begin("/headers"), begin("/headers")];
    in_flight(4);
    let refused = begin("/headers").await.unwrap();
    assert_eq!((refused.status, &refused.headers["retry-after"]), (503, &"1".parse().unwrap()));
    // One of those at work gives its place up: its client leaves.
    first.abort();
    for waiting in patient {
        assert_eq!(waiting.await.unwrap().status, 200);
    }
    second.abort();
    is_well(&cluster, worker).await;
    assert_eq!(cluster.status()["totals"]["rejected"], 1);
}

/// A new connection waits for a moment in the kernel's queue, for a sibling that there is not, and is then told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_are_full_clients_are_told_to_come_again() {
    let cluster = cluster(&["--max-in-flight", "1"]);
    let worker = cluster.worker(0).unwrap();
    let address = cluster.address();
    let endless = tokio::spawn(async move { get(address, "/sleep?ms=600000").await });
    until("it is at work", || (cluster.in_flight() == Some(1)).then_some(()));
    // A thread that waits for a connection already still takes one, which then waits for its turn.
    let clients: Vec<_> =
        (0..4).map(|_| tokio::spawn(async move { get(address, "/headers").await.unwrap() })).collect();
    until("the others are told", || (clients.iter().filter(|client| client.is_finished()).count() >= 3).then_some(()));
    endless.abort();
    let mut refused = 0;
    for client in clients {
        let answer = client.await.unwrap();
        if answer.status == 503 {
            refused += 1;
            assert_eq!(
                (&answer.headers["retry-after"], &answer.headers["connection"]),
                (&"1".parse().unwrap(), &"close".parse().unwrap())
            );
        }
    }
    assert!(refused >= 3, "{refused}");
    is_well(&cluster, worker).await;
    assert_eq!(cluster.status()["totals"]["rejected"], refused);
}

/// Whoever finds one worker full is served by the other; all but one at each listener, for whom the full worker's thread
/// waits already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_worker_leaves_connections_to_its_sibling() {
    let args = ["--max-in-flight", "1", "--listen", "127.0.0.1:0"];
    let cluster = Setup::new(&guest("scenarios")).workers(2).args(&args).start();
    let addresses = [cluster.address(), cluster.address_of(1)];
    let address = addresses[0];
    let endless = tokio::spawn(async move { get(address, "/sleep?ms=600000").await });
    let busy = || {
        let status = cluster.status();
        let workers = status["workers"].as_array().unwrap().clone();
        workers.into_iter().find(|worker| worker["in_flight"].as_u64() > Some(0))
    };
    until("it is at work", busy);
    let mut waiting = Vec::new();
    for (number, address) in addresses.into_iter().enumerate() {
        for _ in 0..10 {
            let mut answer = tokio::spawn(async move { get(address, "/headers").await.unwrap().status });
            match tokio::time::timeout(Duration::from_secs(3), &mut answer).await {
                Ok(status) => assert_eq!(status.unwrap(), 200),
                Err(_) => waiting.push(answer),
            }
        }
        assert!(waiting.len() <= number + 1, "{} wait for the full worker", waiting.len());
    }
    endless.abort();
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert_eq!(cluster.status()["totals"]["rejected"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_that_is_idle_for_longest_makes_room() {
    let cluster = cluster(&["--max-connections", "3"]);
    let worker = cluster.worker(0).unwrap();
    let request = b"GET /headers HTTP/1.1\r\nhost: test\r\n\r\n";
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(cluster.address()).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        idle.push(stream);
    }
    let connections =
        |number: u64| until("so many", || (cluster.status()["workers"][0]["connections"] == number).then_some(()));
    // For the third, the first had to go: there is always room for one more.
    connections(2);
    is_well(&cluster, worker).await;
    let mut rest = String::new();
    idle[0].read_to_string(&mut rest).unwrap();
    assert!(rest.contains("GET /headers\n"), "an orderly end: {rest}");
    // The last one that spoke is still there.
    idle[2].write_all(b"GET /headers HTTP/1.1\r\nhost: last\r\nconnection: close\r\n\r\n").unwrap();
    rest.clear();
    idle[2].read_to_string(&mut rest).unwrap();
    assert!(rest.contains("GET /headers\n") && rest.contains("host: last"), "{rest}");
    is_well(&cluster, worker).await;
}

/// Connections that are in use are not closed for others, and a newcomer has its chance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_in_use_are_not_closed_for_others() {
    let cluster = cluster(&["--max-connections", "3"]);
    let worker = cluster.worker(0).unwrap();
    let mut slow = [(); 2].map(|()| TcpStream::connect(cluster.address()).unwrap());
    for stream in &mut slow {
        stream.write_all(b"GET /sleep?ms=2000 HTTP/1.1\r\nhost: slow\r\nconnection: close\r\n\r\n").unwrap();
    }
    until("they are there", || (cluster.status()["workers"][0]["connections"] == 2).then_some(()));
    for _ in 0..6 {
        let answer = get(cluster.address(), "/headers").await.expect("no reset");
        assert!([200, 503].contains(&answer.status), "{}", answer.status);
    }
    for stream in &mut slow {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    is_well(&cluster, worker).await;
    let one = self::cluster(&["--max-connections", "1"]);
    for _ in 0..3 {
        assert_eq!(get(one.address(), "/headers").await.unwrap().status, 200);
    }
}

/// An answer of HTTP/1.0 without a length ends with its connection: when it is cut, that must not look like its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_answer_that_is_cut_ends_in_a_reset() {
    let cluster = cluster(&["--stream-timeout", "500ms"]);
    for (path, ends_well) in [("/drip?chunks=3&ms=1", true), ("/drip?chunks=2&ms=600000", false)] {
        let mut stream = TcpStream::connect(cluster.address()).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert_eq!(ended.is_ok(), ends_well, "{}", answer.escape_ascii());
    }
}

/// When there is no memory left, the kernel is to end workers before their primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_go_before_their_primary() {
    let cluster = cluster(&[]);
    let score = |pid: String| -> i32 {
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    let worker = cluster.worker(0).unwrap();
    assert!(score(worker.to_string()) > score(cluster.status()["pid"].to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_in_force_are_shown() {
    let cluster = cluster(&["--max-memory", "32MiB", "--max-worker-memory", "1GiB", "--request-timeout", "1500ms"]);
    let limits = cluster.status()["limits"].clone();
    assert_eq!((&limits["max-memory"], &limits["max-worker-memory"]), (&"32MiB".into(), &"1GiB".into()));
    assert_eq!((&limits["request-timeout"], &limits["max-connections"]), (&"1s 500ms".into(), &"4096".into()));
    assert_eq!(limits["fixed"]["stack"], "512KiB");
    let table = cluster.command(&["status"]);
    assert!(table.stdout.contains("max-memory 32MiB"), "{}", table.stdout);
}

fn rss(cluster: &Cluster) -> u64 {
    cluster.status()["workers"][0]["rss_bytes"].as_u64().unwrap()
}

/// Heads of more than 180 MiB in all, each of which a worker would hold twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_do_not_come_to_their_end_do_not_fill_the_memory() {
    let cluster = cluster(&["--max-connections", "1600", "--max-header-bytes", "128KiB", "--header-timeout", "5m"]);
    let worker = cluster.worker(0).unwrap();
    let before = rss(&cluster);
    let head = format!("GET /headers HTTP/1.1\r\nhost: test\r\nx: {}", "x".repeat(120 * 1024));
    let mut slow = Vec::new();
    for _ in 0..1500 {
        let mut stream = TcpStream::connect(cluster.address()).unwrap();
        // It may be refused before it is through.
        let _ = stream.write_all(head.as_bytes());
        slow.push(stream);
    }
    // The budget is 25 MiB.
    until("most have made room", || (timeouts(&cluster) >= 1200).then_some(()));
    // All heads together have 176 MiB. The allocator takes its time to give back what is free.
    let most = rss(&cluster);
    assert!(most < before + (190 << 20), "{before} bytes, then {most}");
    until("the memory is given back", || (rss(&cluster) < before + (100 << 20)).then_some(()));
    let mut answer = [0; 12];
    slow[0].read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    is_well(&cluster, worker).await;
    let complaint = "the connections that took longest were closed; see --header-timeout and --max-header-bytes";
    cluster.stderr.find(complaint);
    let complaints = cluster.stderr.lines().iter().filter(|line| line.contains(complaint)).count();
    assert!(complaints < 10, "{complaints} lines");
}

/// The same over HTTP/2, when nobody speaks HTTP/1: the frames of a head are kept until the last of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_their_last_frame_do_not_fill_the_memory() {
    const CONTINUATION: u8 = 9;
    let cluster = cluster(&["--max-connections", "1600", "--max-header-bytes", "128KiB", "--header-timeout", "5m"]);
    let worker = cluster.worker(0).unwrap();
    // Four fields of 4000 bytes in each frame.
    let fields = [&b"\x00\x01x\x7f\xa1\x1e"[..], &[b'x'; 4000]].concat().repeat(4);
    let mut head = [http2::PREFACE, &http2::frame(http2::SETTINGS, 0, 0, &[])].concat();
    head.extend(http2::frame(http2::HEADERS, http2::END_STREAM, 1, &fields));
    (0..6).for_each(|_| head.extend(http2::frame(CONTINUATION, 0, 1, &fields)));
    let mut slow = Vec::new();
    for _ in 0..1500 {
        let mut stream = TcpStream::connect(cluster.address()).unwrap();
        // It may be refused before it is through.
        let _ = stream.write_all(&head);
        slow.push(stream);
    }
    // The budget is 25 MiB, of which each connection has 16 KiB beside.
    until("most have made room", || (timeouts(&cluster) >= 1100).then_some(()));
    is_well(&cluster, worker).await;
    cluster.stderr.find("the connections that took longest were closed; see --header-timeout and --max-header-bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_do_not_come_to_their_end_do_not_keep_others_out() {
    let cluster = cluster(&["--max-connections", "20", "--header-timeout", "5m"]);
    // A thread may accept one more than there may be, and some stay in the queue.
    let slow: Vec<TcpStream> = (0..25)
        .map(|_| {
            let mut stream = TcpStream::connect(cluster.address()).unwrap();
            stream.write_all(b"GET / HT").unwrap();
            stream
        })
        .collect();
    let connections = || cluster.status()["workers"][0]["connections"].as_u64().unwrap();
    until("all places are taken", || (connections() >= 20).then_some(()));
    // They may take a second before they make room.
    loop {
        match get(cluster.address(), "/headers").await.unwrap().status {
            200 => break,
            status => assert_eq!(status, 503),
        }
    }
    assert!((1..=10).contains(&timeouts(&cluster)), "{}", timeouts(&cluster));
    cluster.stderr.find("those that have waited longest for a request's head get a 408");
    drop(slow);
}

/// A request may follow before the answer is sent, as the body of the one before is not read. A Unix socket holds little.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads_do_not_pile_up() {
    let cluster = Setup::new(&guest("hostile_p2"))
        .workers(1)
        .args(&["--listen", "unix:socket", "--stream-timeout", "5m"])
        .start();
    let worker = cluster.worker(0).unwrap();
    // The guest drops the body before its answer, or a while after it.
    for path in ["/ignore-upload", "/linger?ms=1"] {
        let request = format!("HEAD {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\n\r\nx");
        let mut stream = UnixStream::connect(cluster.folder.path().join("socket")).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let (many, mut sent) = (request.repeat(10), 0);
        while let Ok(bytes) = stream.write(many.as_bytes()) {
            sent += bytes;
            assert!(sent < 1 << 20, "the worker takes them all: {} requests", sent / request.len());
        }
        // What its guests still do behind their answers comes to an end.
        until("one is being answered", || (cluster.in_flight() == Some(1)).then_some(()));
        drop(stream);
        is_well(&cluster, worker).await;
    }
}
