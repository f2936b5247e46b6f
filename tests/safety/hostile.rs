//! Guests and clients that mean harm. Whatever they do costs them their own answer: the worker stays, whoever behaves is
//! served by it meanwhile, and nothing is left behind. Which test shows what is in `tests/hostile.md`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use harness::client::{Upload, get, soon};
use harness::http2::{self, Wire};
use harness::load::{Load, Reuse};
use harness::{Cluster, Setup, fixture, guest, until};

/// Guests of both versions of WASI, with the same misdeeds.
const GUESTS: [&str; 2] = ["hostile_p2", "hostile_p3"];
/// Rounds in which nothing may grow, and how often that is tried: until pools and caches are as large as they get.
const ROUNDS: usize = 5;
const WARM_UP: usize = 6;
/// By how much the allocator's own affairs may move a worker's resident memory, in bytes. An instance that is not given
/// back is more than a MiB.
const RSS_TOLERANCE: u64 = 4 << 20;

/// One worker, so that whoever behaves meets those that do not.
fn serve(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

/// What a worker holds while nobody wants anything of it.
#[derive(Debug)]
struct Idle {
    pid: Pid,
    descriptors: usize,
    rss: u64,
}

impl Idle {
    /// Waits until no request and no connection is left.
    #[track_caller]
    fn of(cluster: &Cluster) -> Self {
        until("nothing is left in the worker", || {
            let worker = cluster.status()["workers"][0].clone();
            let pid = Pid::from_raw(worker["pid"].as_i64()? as i32);
            let is_idle = worker["in_flight"] == 0 && worker["connections"] == 0;
            let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
            is_idle.then(|| Self { pid, descriptors, rss: worker["rss_bytes"].as_u64().unwrap() })
        })
    }
}

/// Lets it happen again and again beside somebody who behaves. Nothing of it may stay, and nothing pile up: pools and
/// caches grow for a while, what leaks grows with every round.
async fn again_and_again(cluster: &Cluster, happens: impl AsyncFn()) {
    let load = Load::start(cluster.address(), 1, Reuse::WithPauses);
    happens().await;
    assert!(load.end_well().await > 0);
    let mut before = Idle::of(cluster);
    for _ in 0..WARM_UP {
        let load = Load::start(cluster.address(), 1, Reuse::WithPauses);
        for _ in 0..ROUNDS {
            happens().await;
        }
        assert!(load.end_well().await > 0);
        let after = Idle::of(cluster);
        assert_eq!(after.pid, before.pid, "the worker is another");
        assert_eq!(cluster.status()["totals"]["crashes"], 0);
        println!("{before:?}, then {after:?}");
        if after.descriptors == before.descriptors && after.rss <= before.rss + RSS_TOLERANCE {
            return;
        }
        before = after;
    }
    panic!("it piles up, after {WARM_UP} times {ROUNDS} rounds still: {before:?}");
}

/// What comes of a misdeed.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// An answer of the server's own, with this status.
    Status(u16),
    /// That with status 500; or the interface said no, and the guest lived to tell.
    Refused,
    /// The guest's own answer, which contains this.
    Says(&'static str),
    /// No complete answer.
    Cut,
    /// That, or status 500, if a byte of the answer was sent by the time that it failed, or none.
    Failed,
}
use Outcome::{Cut, Failed, Refused, Says, Status};

/// A request for `path`, whose connection is then to be closed.
fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
}

/// What comes back to the end of the connection. It may be closed before all of the request was taken.
async fn exchange(address: SocketAddr, request: &str) -> Vec<u8> {
    let mut stream = soon(TcpStream::connect(address)).await.unwrap();
    let _ = soon(stream.write_all(request.as_bytes())).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    answer
}

/// Sends `request` over a connection of its own, and waits in the background for what comes back.
fn begin(cluster: &Cluster, request: &str) -> JoinHandle<Vec<u8>> {
    let (address, request) = (cluster.address(), request.to_owned());
    tokio::spawn(async move { exchange(address, &request).await })
}

/// An answer as it came over the wire, with a chunked body left as it is.
#[derive(Debug)]
struct Message {
    status: u16,
    fields: Vec<(String, String)>,
    body: String,
}

impl Message {
    /// `None` of one that was cut; nothing may follow a whole one.
    fn whole(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().unwrap();
        let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let fields = lines.map(|line| field(line).unwrap()).collect();
        let message = Self { status, fields, body: body.to_owned() };
        let is_whole = match message.field("content-length") {
            Some(length) => {
                let length = length.parse().unwrap();
                assert!(body.len() <= length, "something follows: {text}");
                body.len() == length
            }
            None => {
                status == 204 || message.field("transfer-encoding")? == "chunked" && body.ends_with("\r\n0\r\n\r\n")
            }
        };
        is_whole.then_some(message)
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// It tells how the log calls the request, and nothing of what happened inside.
    fn is_discreet(&self, cluster: &Cluster) {
        const NAMES: [&str; 6] =
            ["connection", "content-length", "content-type", "date", "retry-after", "x-request-id"];
        assert!(self.fields.iter().all(|(name, _)| NAMES.contains(&name.as_str())), "{self:?}");
        let id = self.field("x-request-id").unwrap();
        assert!(self.body.ends_with(&format!(" (request {id})\n")), "{self:?}");
        for inside in ["wasm", "trap", "panic", "backtrace", "hostile", "/", ".rs", "::"] {
            assert!(!self.body.contains(inside), "it shows {inside}: {self:?}");
        }
        // What clients bring about themselves is only counted.
        if ![413, 503].contains(&self.status) {
            cluster.stderr.find(&format!("request=\"{id}\""));
        }
    }
}

/// Sends `request` and sees what comes of it.
async fn commit(cluster: &Cluster, request: &str, outcome: Outcome) {
    judge(cluster, request, outcome, &exchange(cluster.address(), request).await);
}

#[track_caller]
fn judge(cluster: &Cluster, request: &str, outcome: Outcome, answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    assert!(text.matches("HTTP/1.1 ").count() <= 1 && !text.contains("\nx-injected"), "{request}: {text}");
    match (outcome, Message::whole(answer)) {
        (Cut | Failed, None) => {}
        (Status(status), Some(message)) if message.status == status => message.is_discreet(cluster),
        (Refused | Failed, Some(message)) if message.status == 500 => message.is_discreet(cluster),
        (Refused, Some(message)) if message.status == 200 && message.body.starts_with("error: ") => {}
        (Says(part), Some(message)) if message.status == 200 && message.body.contains(part) => {}
        _ => panic!("{outcome:?} was expected of {request}, and this came: {text}"),
    }
}

/// All of these at the same time, again and again, from guests of both versions.
async fn check(args: &[&str], misdeeds: &[(String, Outcome)]) {
    for name in GUESTS {
        check_guest(name, args, misdeeds).await;
    }
}

async fn check_guest(name: &str, args: &[&str], misdeeds: &[(String, Outcome)]) -> Cluster {
    let cluster = serve(name, args);
    again_and_again(&cluster, async || {
        let begun: Vec<_> = misdeeds.iter().map(|(request, _)| begin(&cluster, request)).collect();
        for ((request, outcome), answer) in misdeeds.iter().zip(begun) {
            judge(&cluster, request, *outcome, &answer.await.unwrap());
        }
    })
    .await;
    let panics = |line: &String| line.contains("panicked at") && !line.contains("thread '<unnamed>' (1) ");
    assert_eq!(cluster.stderr.lines().into_iter().find(panics), None, "only guests panic");
    cluster
}

/// Requests for these paths.
fn table(paths: &[(&str, Outcome)]) -> Vec<(String, Outcome)> {
    paths.iter().map(|(path, outcome)| (request(path), *outcome)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_that_fail_are_answered_for() {
    let paths = [
        ("/recurse", Status(500)),
        ("/silent", Status(500)),
        ("/error-code", Status(500)),
        ("/trap", Status(500)),
        ("/exit", Status(500)),
        ("/exit?code=1", Status(500)),
        ("/trap-after-head", Cut),
        ("/trap-after-head?bytes=100000", Cut),
    ];
    check(&[], &table(&paths)).await;
}

/// Its instances want no more calls after the first, and nobody can tell by looking at one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_that_hold_back_pressure_hold_back_nobody() {
    let cluster = serve("holds_back_p3", &["--max-instance-reuse-count", "100"]);
    for _ in 0..3 {
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    }
}

/// Loops, waits, and what goes on behind the answer, each for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_that_do_not_end_are_ended() {
    let silent = silent().await;
    let fetch = format!("/fetch?url=http://{silent}/&first-byte-ms=600000");
    let paths = [
        ("/spin", Status(504)),
        ("/wait", Status(504)),
        (fetch.as_str(), Status(504)),
        ("/linger", Says("lingering")),
        ("/linger-spin", Says("lingering")),
    ];
    check(&["--request-timeout", "1s", "--allow-host", &format!("http://{silent}")], &table(&paths)).await;
}

/// Takes connections and what comes over them, and says nothing.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
        }
    });
    address
}

/// Memory and handles without end, and more than the host is willing to take or give at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_that_want_too_much_do_not_get_it() {
    let paths = [
        ("/grow-memory", Status(500)),
        ("/leak", Status(500)),
        ("/leak-pollables", Status(500)),
        ("/giant-list?mib=64", Status(500)),
        ("/giant-fields?n=400000", Status(500)),
        ("/giant-random", Status(500)),
        ("/giant-write?mib=64", Status(500)),
    ];
    check(&[], &table(&paths)).await;
}

/// Header fields and requests that a guest keeps are memory that it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_host_keeps_for_a_guest_counts_as_its_memory() {
    const STOPPED: &str = "the guest was stopped: its header fields and requests take up ";
    let cases = [
        (&[][..], "/keep-fields", "and the limit is 8MiB"),
        (&[], "/keep-requests", "and the limit is 8MiB"),
        (&["--max-memory", "4MiB"], "/keep-fields", "together with its own memory is over --max-memory 4MiB"),
        (&["--max-memory", "4MiB", "--max-worker-memory", "4MiB"], "/keep-fields", "is over --max-memory 4MiB"),
    ];
    for name in GUESTS {
        for (args, path, why) in cases {
            let cluster = serve(name, args);
            let before = Idle::of(&cluster).rss;
            for _ in 0..ROUNDS {
                commit(&cluster, &request(path), Status(500)).await;
            }
            let line = cluster.stderr.find(STOPPED);
            assert!(line.contains(why), "{name} {path}: {line}");
            let after = Idle::of(&cluster).rss;
            assert!(after < before + (32 << 20), "{name} {path}: {before} bytes, then {after}");
            commit(&cluster, &request("/keep-fields?n=10"), Says("10 kept")).await;
        }
    }
}

/// Of the memory of instances that are gone, a little stays for those to come, and never more than that, whatever parts of it
/// they wrote to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_instances_that_are_gone_is_bounded() {
    const IN_FLIGHT: usize = 32;
    // Of an eighth of it, each has its part.
    const MAX_WORKER_MEMORY: u64 = 256 << 20;
    const PART: u64 = MAX_WORKER_MEMORY / 8 / IN_FLIGHT as u64;
    let args = "--max-memory 32MiB --max-worker-memory 256MiB --max-in-flight 32 --max-instance-reuse-count 1";
    for name in GUESTS {
        let cluster = serve(name, &args.split(' ').collect::<Vec<_>>());
        commit(&cluster, &request("/touch-last?mib=28"), Says("touched")).await;
        let before = Idle::of(&cluster).rss;
        for mib in (1..28).rev() {
            commit(&cluster, &request(&format!("/touch-last?mib={mib}")), Says("touched")).await;
        }
        let after = Idle::of(&cluster).rss;
        assert!(after <= before + PART + RSS_TOLERANCE, "{name}: one by one, {before} bytes, then {after}");

        let all: Vec<_> = (0..24).map(|_| begin(&cluster, &request("/hold?mib=6&ms=500"))).collect();
        for one in all {
            judge(&cluster, "/hold", Says("held"), &one.await.unwrap());
        }
        let after = Idle::of(&cluster).rss;
        // Each has had a stack besides, and a connection.
        let most = before + 24 * (PART + (64 << 10)) + RSS_TOLERANCE;
        assert!(after <= most, "{name}: all together, {before} bytes, then {after} of at most {most}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_bounded() {
    let cluster = Setup::new(&fixture("grows-tables.wat")).workers(1).start();
    for _ in 0..ROUNDS {
        commit(&cluster, &request("/"), Status(500)).await;
    }
    Idle::of(&cluster);
    assert_eq!(cluster.status()["totals"]["crashes"], 0);
}

/// A length that is not the body's. Once the head is sent, the next request of the connection must not be answered: nobody
/// could tell where.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_another_length_than_they_say_are_refused_or_cut() {
    let long = "/short-body?tens=100000";
    let pipelined = format!("GET {long} HTTP/1.1\r\nhost: test\r\n\r\n{}", request("/"));
    let refused = ["/short-body", "/long-body"].map(|path| (request(path), Failed));
    check(&[], &[&refused[..], &[(request(long), Cut), (pipelined, Cut)]].concat()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_cut_are_counted_and_logged() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        for (errors, path) in ["/trap-after-head", "/short-body?tens=100000"].into_iter().enumerate() {
            commit(&cluster, &request(path), Cut).await;
            let id = format!("request=\"1-{}\"", errors + 1);
            let is_cut = |line: &String| line.contains("an answer was cut") && line.contains(&id);
            until("its log says so", || cluster.stderr.lines().into_iter().find(is_cut));
            assert_eq!(cluster.status()["totals"]["errors"], errors + 1, "{name} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_heads_of_answers_are_refused() {
    let paths = [
        ("/many-fields?n=10000", Refused),
        ("/large-field", Refused),
        ("/split-field", Refused),
        ("/forbidden-field", Refused),
        ("/forbidden-field?name=transfer-encoding", Refused),
        ("/forbidden-field?name=keep-alive", Refused),
        ("/forbidden-field?name=a%20b", Refused),
        ("/forbidden-field?name=x%0d%0ax-injected", Refused),
        ("/two-lengths", Refused),
        ("/bad-length", Refused),
        ("/status?code=101", Status(500)),
        ("/status?code=0", Refused),
        ("/status?code=99", Refused),
        ("/status?code=1000", Refused),
    ];
    check(&[], &table(&paths)).await;
}

/// The ends of what clocks and files know, no time at all, and ports that there are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_numbers_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let silent = silent().await;
    let fetch = |rest: &str| format!("/fetch?url=http://{rest}");
    let mut misdeeds = vec![(request("/times"), Says("ok")), (request("/times?path=/data/file"), Says("ok"))];
    for option in ["connect-ms", "first-byte-ms", "between-ms"] {
        // Whichever time is none, an answer that does not come is waited for in vain.
        misdeeds.push((request(&fetch(&format!("{silent}/&{option}=0&first-byte-ms=50"))), Says("error: ")));
    }
    for port in ["0", "65536", "4294967297", "-1", "", "+80", "0x50"] {
        misdeeds.push((request(&fetch(&format!("127.0.0.1:{port}/"))), Says("error: ")));
    }
    let dir = format!("{}::/data", folder.path().display());
    check(&["--allow-host", &format!("http://{silent}"), "--dir", &dir], &misdeeds).await;
}

/// What an earlier request left in memory is not there for a later one that has an instance of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_stay_with_their_request() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-instance-reuse-count", "1"]);
        for _ in 0..ROUNDS {
            commit(&cluster, &request("/secret?set=password"), Says("stored")).await;
            commit(&cluster, &request("/secret"), Says("nothing")).await;
        }
    }
}

/// Sixteen requests at the same time, of which one fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_costs_one_of_sixteen_answers() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        again_and_again(&cluster, async || {
            let mut echoes = Vec::new();
            for _ in 0..15 {
                let Upload { mut body, answer } = Upload::start(cluster.address(), "/echo").await;
                body.send_data("first".into()).await.unwrap();
                let mut echo = answer.await.unwrap().unwrap().into_body();
                assert_eq!(soon(echo.frame()).await.unwrap().unwrap().into_data().unwrap(), "first", "{name}");
                echoes.push((body, echo));
            }
            commit(&cluster, &request("/trap"), Status(500)).await;
            for (mut body, echo) in echoes {
                body.send_data("last".into()).await.unwrap();
                drop(body);
                assert_eq!(soon(echo.collect()).await.unwrap().to_bytes(), "last", "{name}");
            }
        })
        .await;
    }
}

/// What all instances of a worker take together is bounded, and all of it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_a_worker_is_shared() {
    for name in GUESTS {
        let cluster =
            serve(name, &["--max-memory", "64MiB", "--max-worker-memory", "128MiB", "--request-timeout", "10m"]);
        again_and_again(&cluster, async || {
            // There is room for three of them.
            let mut holding: Vec<_> = (0..5).map(|_| begin(&cluster, &request("/hold?mib=36&ms=600000"))).collect();
            let is_over = |holding: &[JoinHandle<_>]| holding.iter().filter(|task| task.is_finished()).count() == 2;
            until("two of them do not get theirs", || is_over(&holding).then_some(()));
            for refused in holding.extract_if(.., |task| task.is_finished()) {
                let message = Message::whole(&refused.await.unwrap()).unwrap();
                assert!(message.status == 503 || message.body == "error: out of memory", "{name}: {message:?}");
            }
            assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "hello", "{name}");
            holding.iter().for_each(JoinHandle::abort);
            until("it is given back", || (cluster.in_flight() == Some(0)).then_some(()));
        })
        .await;
    }
}

/// A worker whose memory is taken cannot even begin: whoever comes then is to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_memory_tells_clients_to_come_again() {
    for name in GUESTS {
        let cluster =
            serve(name, &["--max-memory", "16MiB", "--max-worker-memory", "16MiB", "--request-timeout", "10m"]);
        let mut holding: Vec<JoinHandle<_>> = Vec::new();
        while !holding.iter().any(JoinHandle::is_finished) {
            assert!(holding.len() < 64, "{name}: memory without end");
            holding.push(begin(&cluster, &request("/hold?mib=0&ms=600000")));
            until("it holds, or somebody is refused", || {
                let in_flight = cluster.status()["workers"][0]["in_flight"].as_u64();
                let is_over = holding.iter().any(JoinHandle::is_finished);
                (in_flight == Some(holding.len() as u64) || is_over).then_some(())
            });
        }
        let refused = holding.extract_if(.., |task| task.is_finished()).next().unwrap();
        let refused = Message::whole(&refused.await.unwrap()).unwrap();
        assert!([500, 503].contains(&refused.status), "{refused:?}");
        refused.is_discreet(&cluster);
        assert_eq!(refused.field("retry-after").is_some(), refused.status == 503, "{refused:?}");
        holding.iter().for_each(JoinHandle::abort);
        Idle::of(&cluster);
        assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "hello", "{name}");
    }
}

/// An answer without end, and a client that reads none of it: what was made so far is all that is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_reads_is_held_back_and_cut() {
    /// For the guest's instance, and what is made but not read yet.
    const RSS_PER_CLIENT: u64 = 8 << 20;
    for name in GUESTS {
        let cluster = serve(name, &["--stream-timeout", "1s"]);
        let idle = Idle::of(&cluster).rss;
        again_and_again(&cluster, async || {
            let before = cluster.status()["totals"]["timeouts"].as_u64().unwrap();
            let mut clients = Vec::new();
            for _ in 0..4 {
                let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
                stream.write_all(request("/endless").as_bytes()).await.unwrap();
                clients.push(stream);
            }
            until("they are cut off", || {
                let status = cluster.status();
                let rss = status["workers"][0]["rss_bytes"].as_u64().unwrap();
                assert!(rss < idle + 4 * RSS_PER_CLIENT, "{name}: {rss} bytes are held");
                (status["totals"]["timeouts"] == before + 4).then_some(())
            });
            for mut client in clients {
                let mut answer = Vec::new();
                let _ = soon(client.read_to_end(&mut answer)).await;
                judge(&cluster, "/endless", Cut, &answer);
            }
        })
        .await;
    }
}

/// It takes its time, many times longer than nothing may move, but it does not stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_is_not_cut_off() {
    const SILENCE: Duration = Duration::from_secs(3);
    const BYTES_PER_MS: usize = 200;
    let cluster = serve("hostile_p2", &["--stream-timeout", "3s"]);
    let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
    stream.write_all(request("/endless").as_bytes()).await.unwrap();
    let (began, mut read) = (Instant::now(), 0);
    while began.elapsed() < 4 * SILENCE {
        let due = began.elapsed().as_millis() as usize * BYTES_PER_MS - read;
        stream.read_exact(&mut vec![0; due]).await.unwrap();
        read += due;
        assert_eq!(cluster.status()["totals"]["timeouts"], 0, "it was cut off");
    }
}

/// Something moves all the time, but too little: no silence would ever end it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_drips_is_cut_either_way() {
    const PAUSE: Duration = Duration::from_millis(50);
    let cluster = serve("hostile_p2", &["--stream-timeout", "2s", "--min-rate", "100KiB"]);
    let downloads = async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        let mut stream = socket.connect(cluster.address()).await.unwrap();
        stream.write_all(request("/endless").as_bytes()).await.unwrap();
        let (mut answer, mut piece) = (Vec::new(), [0; 2048]);
        while let Ok(length @ 1..) = stream.read(&mut piece).await {
            answer.extend_from_slice(&piece[..length]);
            tokio::time::sleep(PAUSE).await;
        }
        judge(&cluster, "/endless", Cut, &answer);
    };
    let uploads = async {
        let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
        let head = "POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let mut answer = Vec::new();
        let dripping = async {
            while writer.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            _ = reader.read_to_end(&mut answer) => {}
            () = dripping => {}
        }
        judge(&cluster, "/echo", Cut, &answer);
    };
    soon(async { tokio::join!(downloads, uploads) }).await;
    assert_eq!(cluster.status()["totals"]["timeouts"], 2);
    cluster.stderr.find("its client is too slow; see --min-rate");
    Idle::of(&cluster);
}

/// Sends a body without end to `path` until that is not wanted any more; what comes back.
async fn send_for_ever(address: SocketAddr, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
    let sending = async {
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        let _ = writer.write_all(head.as_bytes()).await;
        while writer.write_all(chunk.as_bytes()).await.is_ok() {}
    };
    let mut answer = Vec::new();
    // What ends the one ends the other.
    let _ = soon(async { tokio::join!(sending, reader.read_to_end(&mut answer)) }).await;
    answer
}

/// Bodies that the guest does not want, that are too long, and that do not come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_lead_nowhere_are_ended() {
    let post = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\nbut this");
    for name in GUESTS {
        let cluster = serve(name, &["--max-body", "1MiB", "--request-timeout", "2s", "--stream-timeout", "1s"]);
        again_and_again(&cluster, async || {
            let outcomes = [("/count", Status(408)), ("/echo", Cut), ("/ignore-upload", Says("ignored"))];
            let begun = outcomes.map(|(path, outcome)| (path, outcome, begin(&cluster, &post(path))));
            let address = cluster.address();
            let (counted, ignored) =
                tokio::join!(send_for_ever(address, "/count"), send_for_ever(address, "/ignore-upload"));
            judge(&cluster, "/count without end", Status(413), &counted);
            judge(&cluster, "/ignore-upload without end", Says("ignored"), &ignored);
            for (path, outcome, answer) in begun {
                judge(&cluster, path, outcome, &answer.await.unwrap());
            }
        })
        .await;
    }
}

/// While their guest waits, while it sends, while they send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish_take_their_guests_along() {
    let upload = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\nsome");
    let paths = ["/wait", "/spin", "/endless", "/trickle?ms=10", "/hold?mib=8&ms=600000"];
    let requests: Vec<_> = paths.map(request).into_iter().chain(["/count", "/echo"].map(upload)).collect();
    for name in GUESTS {
        let cluster = serve(name, &["--request-timeout", "10m"]);
        let in_flight = || cluster.status()["workers"][0]["in_flight"].as_u64();
        again_and_again(&cluster, async || {
            let mut clients = Vec::new();
            for request in &requests {
                let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                clients.push(stream);
            }
            until("all are served", || (in_flight()? >= clients.len() as u64).then_some(()));
            drop(clients);
            until("none is any more", || (in_flight()? == 0).then_some(()));
        })
        .await;
    }
}

/// What a client of HTTP/2 does, and the error that its connection ends with (RFC 9113, section 7).
const ENHANCE_YOUR_CALM: u32 = 11;

/// Opens a connection and sends `flood`, until the server has had enough.
async fn flood(address: SocketAddr, flood: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    let mut wire = Wire::open(address, &[]).await;
    for round in 0..200 {
        wire.send(&(0..100).flat_map(|number| flood(100 * round + number)).collect::<Vec<_>>()).await;
    }
    wire.find(http2::GOAWAY).await.map(|goaway| goaway.number(4))
}

/// Streams that are opened and reset at once, before their guests have begun, while they work, and by our own fault; pings,
/// settings, priorities, windows, empty frames. Twenty thousand of each over each of several connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_end_their_connection_alone() {
    let reset = |stream| http2::frame(http2::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let open = |number: u32, path: &str| http2::head(2 * number + 1, http2::END_STREAM, "GET", path);
    for name in GUESTS {
        let cluster = serve(name, &["--request-timeout", "10m"]);
        let address = cluster.address();
        again_and_again(&cluster, async || {
            let ended = tokio::join!(
                flood(address, |number| [open(number, "/wait"), reset(2 * number + 1)].concat()),
                // By the time that it is reset, a guest is at work.
                flood(address, |number| {
                    let past = number.checked_sub(20).map(|past| reset(2 * past + 1)).unwrap_or_default();
                    [open(number, "/trickle?ms=10"), past].concat()
                }),
                // A window that overflows makes the server reset.
                flood(address, |number| {
                    let window = http2::frame(http2::WINDOW_UPDATE, 0, 2 * number + 1, &(u32::MAX >> 1).to_be_bytes());
                    [open(number, "/wait"), window].concat()
                }),
                flood(address, |_| http2::frame(http2::PING, 0, 0, &[0; 8])),
                flood(address, |_| http2::frame(http2::SETTINGS, 0, 0, &[])),
                flood(address, |_| http2::frame(2, 0, 1, &[0, 0, 0, 3, 0])),
                flood(address, |_| http2::frame(http2::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
                flood(address, |number| match number {
                    0 => http2::head(1, 0, "POST", "/wait"),
                    _ => http2::frame(http2::DATA, 0, 1, &[]),
                }),
                flood(address, |_| http2::frame(77, 0, 0, &[])),
            );
            assert_eq!(<[Option<u32>; 9]>::from(ended), [Some(ENHANCE_YOUR_CALM); 9], "{name}");
        })
        .await;
    }
}

/// Header blocks without end, and such as become very large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_end_are_bounded() {
    const CONTINUATION: u8 = 9;
    // A field of 4000 bytes goes into the table, and is named again and again.
    let mut bomb = http2::head(1, http2::END_STREAM, "GET", "/")[9..].to_vec();
    bomb.extend_from_slice(b"\x40\x01x\x7f\xa1\x1e");
    bomb.extend_from_slice(&[b'x'; 4000]);
    bomb.extend_from_slice(&[0xbe; 12_000]);
    let bomb = http2::frame(http2::HEADERS, http2::END_STREAM | http2::END_HEADERS, 1, &bomb);
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let address = cluster.address();
        again_and_again(&cluster, async || {
            let endless = flood(address, |number| match number {
                0 => http2::frame(http2::HEADERS, 0, 1, &[]),
                _ => http2::frame(CONTINUATION, 0, 1, b"\x00\x01x\x01x"),
            });
            let expanding = async {
                let mut wire = Wire::open(address, &[]).await;
                wire.send(&bomb).await;
                wire.find(http2::GOAWAY).await.map(|goaway| goaway.number(4))
            };
            assert_eq!(tokio::join!(endless, expanding), (Some(ENHANCE_YOUR_CALM), Some(ENHANCE_YOUR_CALM)), "{name}");
        })
        .await;
    }
}

/// Output without end, in lines and without: the worker passes on so much of each stream, and counts what it drops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_output_are_bounded_and_counted() {
    /// Bytes per second, and again in a burst.
    const RATE: u64 = 1 << 20;
    let paths = [("/flood?lines=1000000000000", Status(504)), ("/flood-partial?bytes=1000000000000", Status(504))];
    for name in GUESTS {
        let began = Instant::now();
        let cluster = check_guest(name, &["--request-timeout", "1s"], &table(&paths)).await;
        assert!(cluster.status()["totals"]["lines_dropped"].as_u64() > Some(0), "{name}");
        let passed_on = cluster.stdout.lines().iter().map(|line| line.split_once("] ").unwrap().1.len() as u64).sum();
        let seconds = began.elapsed().as_secs() + 1;
        assert!((1..=(seconds + 1) * RATE).contains(&passed_on), "{name}: {passed_on} bytes in {seconds} s");
    }
}

/// A request whose worker dies each time it is sent; no guest can do that, so the test does. It takes nobody along but
/// those in the same worker, and that it comes again and again is noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_kills_its_worker_leaves_the_others_alone() {
    /// One more than may be within a minute.
    const DEATHS: u64 = 6;
    let cluster = Setup::new(&guest("hostile_p2")).start();
    for _ in 0..DEATHS {
        until("two workers are idle", || {
            let status = cluster.status();
            let mut workers = status["workers"].as_array().unwrap().iter();
            workers.all(|worker| worker["state"] == "ready" && worker["in_flight"] == 0).then_some(())
        });
        let deadly = begin(&cluster, &request("/wait"));
        let victim = until("it is in flight", || {
            let status = cluster.status();
            let workers = status["workers"].as_array().unwrap();
            let victim = workers.iter().find(|worker| worker["in_flight"] == 1)?;
            Some(Pid::from_raw(victim["pid"].as_i64()? as i32))
        });
        kill(victim, Signal::SIGKILL).unwrap();
        until("it is dead", || (!cluster.children().contains(&victim)).then_some(()));
        assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "hello");
        assert_eq!(deadly.await.unwrap(), b"", "nobody else answers for it");
    }
    let status = cluster.status();
    assert_eq!((&status["totals"]["crashes"], &status["totals"]["aborted"]), (&DEATHS.into(), &DEATHS.into()));
    assert_eq!((&status["degraded"], &status["state"]), (&true.into(), &"degraded".into()), "{status}");
    let died = cluster.stderr.lines().into_iter().filter(|line| line.contains("a worker died"));
    assert_eq!(died.count() as u64, DEATHS);
}
