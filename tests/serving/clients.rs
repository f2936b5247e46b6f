//! Programs that people ask servers with: curl, nghttp and h2load, openssl and Chromium.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use harness::tools::Tool;
use harness::{Cluster, Ended, Setup, guest, is_gone, until};
use nix::unistd::Pid;

/// curl's flag for a version of HTTP, and what it says that it got.
const HTTP_1: (&str, &str) = ("--http1.1", "1.1");
const HTTP_2: (&str, &str) = ("--http2-prior-knowledge", "2");
/// It offers h2c, which is declined.
const UPGRADE: (&str, &str) = ("--http2", "1.1");

/// What a worker may take while bodies pass through it, beyond what it has before: far less than a body.
const MAX_GROWTH: u64 = 16 << 20;
const MIB: u64 = 1 << 20;
/// How long one may take, in seconds.
const TRANSFER: &str = "600";

/// curl, if it speaks HTTP/2.
fn curl() -> Option<Tool> {
    let curl = Tool::find("curl").filter(|curl| curl.run(["--version"]).stdout.contains("HTTP2"));
    if curl.is_none() {
        println!("skipped: there is no curl that speaks HTTP/2");
    }
    curl
}

/// What curl prints, without the settings of its user.
fn ask(curl: &Tool, args: &[&str]) -> Ended {
    let ended = curl.run([&["-q", "--noproxy", "*", "-sS"], args].concat());
    assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    ended
}

#[test]
fn curl_is_answered_over_each_version_of_http() {
    let Some(curl) = curl() else { return };
    let cluster = Setup::new(&guest("hostile_p2")).start();
    let url = |path: &str| format!("http://{}{path}", cluster.address());
    let body = cluster.folder.path().join("body");
    std::fs::write(&body, vec![b'x'; 500_000]).unwrap();
    let body = body.to_str().unwrap();
    for (flag, version) in [HTTP_1, HTTP_2, UPGRADE] {
        let get = |path: &str| ask(&curl, &[flag, "-w", " %{http_version} %{http_code}", &url(path)]).stdout;
        assert_eq!(get("/"), format!("hello {version} 200"));
        assert_eq!(get("/status?code=404"), format!("a status {version} 404"));
        assert_eq!(get("/large?bytes=3000000").len(), 3_000_000 + format!(" {version} 200").len());
        let head = ask(&curl, &[flag, "-I", &url("/large?bytes=1000")]).stdout;
        assert!(head.starts_with("HTTP/") && head.contains("content-length: 1000\r\n"), "{head}");
        // Sent when 100 has come, and sent at once.
        let expect = ["-v", "-H", "Expect: 100-continue", "--data-binary", &format!("@{body}"), &url("/count")];
        let upload = ask(&curl, &[&[flag], &expect[..]].concat());
        let goes_on = upload.stderr.lines().filter(|line| line.starts_with("< HTTP/") && line.contains(" 100")).count();
        assert_eq!((upload.stdout.as_str(), goes_on), ("500000", 1), "{flag}: {}", upload.stderr);
        let upload = ask(&curl, &[flag, "-X", "POST", "-H", "Expect:", "-T", body, &url("/echo")]);
        assert_eq!(upload.stdout.len(), 500_000);
    }
    // One connection for all three. (Of curl 7.88 over HTTP/2 with prior knowledge, only the first request goes out.)
    let urls = [url("/"), url("/large?bytes=3"), url("/")];
    let args = [&["--http1.1", "-w", " %{num_connects}\n"], urls.each_ref().map(String::as_str).as_slice()].concat();
    assert_eq!(ask(&curl, &args).stdout, "hello 1\nxxx 0\nhello 0\n");
}

#[test]
fn nghttp_is_answered_on_many_streams() {
    let Some(nghttp) = Tool::find("nghttp") else { return println!("skipped: there is no nghttp") };
    let cluster = Setup::new(&guest("hostile_p2")).start();
    let url = |path: &str| format!("http://{}{path}", cluster.address());
    // Its own window is 64 KiB, so it has to open it again and again; it sends priorities, too.
    let ended = nghttp.run(["-n", "-v", "-m", "50", &url("/large?bytes=100000")]);
    let count = |part: &str| ended.stdout.matches(part).count();
    assert_eq!((ended.code, count(":status: 200"), count("; END_STREAM | END_HEADERS")), (Some(0), 50, 50));
    assert_eq!(count("recv RST_STREAM") + count("recv GOAWAY"), 0, "{}", ended.stdout);
    assert!(count("send WINDOW_UPDATE") > 0 && count("send PRIORITY") > 0);
    // 32 KiB of headers, which take CONTINUATION frames, and a body with padding.
    let upload = cluster.folder.path().join("body");
    std::fs::write(&upload, vec![b'x'; 300_000]).unwrap();
    let args = ["-v", "--continuation", "-b", "100", "-d", upload.to_str().unwrap(), &url("/count")];
    let ended = nghttp.run(args);
    assert!(ended.stdout.contains(":status: 200") && ended.stdout.contains("\n300000["), "{}", ended.stdout);
}

/// Its requests, and how it sums them up.
fn h2load(args: &[&str], requests: u32) {
    let Some(h2load) = Tool::find("h2load") else { return println!("skipped: there is no h2load") };
    let ended = h2load.run([args, &["-n", &requests.to_string()]].concat());
    let all = format!("{requests} done, {requests} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(ended.stdout.contains(&all) && ended.stdout.contains(&format!("{requests} 2xx")), "{ended:?}");
}

#[test]
fn h2load_loses_nothing() {
    let cluster = Setup::new(&guest("hello")).start();
    let url = format!("http://{}/", cluster.address());
    h2load(&["-c", "4", "-m", "32", &url], 2000);
    h2load(&["--h1", "-c", "4", &url], 500);
    // More streams than it may open are not opened.
    h2load(&["-c", "1", "-m", "500", &url], 500);
    until("all are counted", || (cluster.status()["totals"]["requests"] == 3000).then_some(()));
    let totals = &cluster.status()["totals"];
    assert_eq!((&totals["errors"], &totals["refused"]), (&0.into(), &0.into()));
}

/// A child that is killed when it is not needed any more.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a worker has for itself.
pub(super) fn anonymous_memory(worker: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// Gets an endless answer, of which `bytes` are read.
fn down(curl: &Tool, version: &str, address: SocketAddr, bytes: u64) {
    let url = format!("http://{address}/endless");
    let mut command = curl.command();
    // Without a word when it is cut off.
    command.args(["-q", "--noproxy", "*", "-s", "--max-time", TRANSFER, version, &url]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Killed(command.spawn().unwrap());
    let got = std::io::copy(&mut process.0.stdout.take().unwrap().take(bytes), &mut std::io::sink()).unwrap();
    assert_eq!(got, bytes, "{version}");
}

/// Sends `bytes` to a guest that counts them.
fn up(curl: &Tool, version: &str, address: SocketAddr, bytes: u64) {
    let zeros = Command::new("head").args(["-c", &bytes.to_string(), "/dev/zero"]).stdout(Stdio::piped()).spawn();
    let mut zeros = Killed(zeros.unwrap());
    let url = format!("http://{address}/count");
    let mut command = curl.command();
    command.args(["-q", "--noproxy", "*", "-sS", "--max-time", TRANSFER, version, "-X", "POST", "-T", "-", &url]);
    command.stdin(zeros.0.stdout.take().unwrap()).stdout(Stdio::piped());
    let mut process = Killed(command.spawn().unwrap());
    let mut counted = String::new();
    process.0.stdout.take().unwrap().read_to_string(&mut counted).unwrap();
    assert_eq!(counted, bytes.to_string(), "{version}");
}

/// Bodies of so many bytes, first down and then up, over both versions of HTTP at the same time.
fn pass(component: &str, bytes: u64) {
    let Some(curl) = curl() else { return };
    let limits = ["--max-body", "2GiB", "--request-timeout", "10m"];
    let cluster = Setup::new(&guest(component)).workers(1).args(&limits).start();
    let (worker, address) = (cluster.worker(0).unwrap(), cluster.address());
    // What it takes once.
    for (version, _) in [HTTP_1, HTTP_2] {
        down(&curl, version, address, MIB);
        up(&curl, version, address, MIB);
    }
    let idle = anonymous_memory(worker);
    let (passed, most) = (AtomicBool::new(false), Mutex::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !passed.load(Ordering::Relaxed) && !is_gone(worker) {
                let mut most = most.lock().unwrap();
                *most = anonymous_memory(worker).max(*most);
                drop(most);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let transfers = thread::scope(|scope| {
            let all = [HTTP_1, HTTP_2].map(|(version, _)| {
                let curl = &curl;
                scope.spawn(move || {
                    down(curl, version, address, bytes);
                    up(curl, version, address, bytes);
                })
            });
            all.map(|transfer| transfer.join().is_ok())
        });
        passed.store(true, Ordering::Relaxed);
        assert_eq!(transfers, [true, true], "both get through");
    });
    let growth = most.into_inner().unwrap().saturating_sub(idle);
    println!("{component}: {} MiB each way over both versions took {} KiB", bytes / MIB, growth / 1024);
    assert!(growth < MAX_GROWTH.min(bytes), "{growth} bytes more than {idle}");
    assert_eq!(cluster.worker(0), Some(worker));
}

#[test]
fn large_bodies_take_constant_memory() {
    pass("hostile_p3", 32 * MIB);
}

/// Minutes, if the server is not optimised.
#[test]
#[ignore = "it takes minutes: make soak"]
fn soak_bodies_of_a_gibibyte_take_constant_memory() {
    pass("hostile_p2", 1024 * MIB);
    pass("hostile_p3", 1024 * MIB);
}

/// A cluster with a listener in clear text, and one with TLS, and where the latter is. Its certificate, `cert.pem` in the
/// cluster's folder, is for localhost and 127.0.0.1.
fn https() -> Option<(Cluster, SocketAddr)> {
    if !Setup::bare(&["serve", "--help"]).run().stdout.contains("--tls-cert") {
        println!("skipped: there is no https yet");
        return None;
    }
    let Some(openssl) = Tool::find("openssl") else {
        println!("skipped: there is no openssl");
        return None;
    };
    let setup = Setup::new(&guest("scenarios")).args(&["--listen", "https://127.0.0.1:0"]);
    let [key, cert] = ["key.pem", "cert.pem"].map(|name| setup.folder.path().join(name).display().to_string());
    let of_what = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "60"];
    let names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
    let made = openssl.run(["req", "-x509"].into_iter().chain(of_what).chain(names).chain([
        "-keyout",
        key.as_str(),
        "-out",
        &cert,
    ]));
    assert_eq!(made.code, Some(0), "{made:?}");
    let cluster = setup.args(&["--tls-cert", &cert, "--tls-key", &key]).start();
    let address = cluster.address_of(1);
    Some((cluster, address))
}

fn file(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

#[test]
fn openssl_and_curl_are_answered_over_tls() {
    let Some((cluster, address)) = https() else { return };
    let openssl = Tool::find("openssl").expect("it made the certificate");
    let cert = file(cluster.folder.path(), "cert.pem");
    let at = address.to_string();
    let connect = |more: &[&str]| {
        let args = ["s_client", "-connect", &at, "-servername", "localhost", "-CAfile", &cert, "-verify_return_error"];
        openssl.run([&args[..], more].concat())
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let ended = connect(&[version, "-alpn", "h2,http/1.1"]);
        assert!(ended.stdout.contains("ALPN protocol: h2") && ended.stdout.contains("(ok)"), "{version}: {ended:?}");
        let ended = connect(&[version, "-alpn", "http/1.1"]);
        assert!(ended.stdout.contains("ALPN protocol: http/1.1"), "{version}: {ended:?}");
    }
    for old in ["-tls1", "-tls1_1"] {
        assert_ne!(connect(&[old]).code, Some(0), "{old}");
    }
    let Some(curl) = curl() else { return };
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let url = |path: &str| format!("https://{address}{path}");
        let (first, second) = (url("/headers"), url("/large?bytes=100000"));
        let args = [flag, "--cacert", &cert, "-w", "\n%{http_version} %{num_connects}\n", &first, &second];
        let said = ask(&curl, &args).stdout;
        assert!(said.contains(&format!("\n{version} 1\n")) && said.ends_with(&format!("\n{version} 0\n")), "{said}");
    }
    h2load(&["-c", "4", "-m", "32", &format!("https://{address}/headers")], 500);
}

#[test]
fn chromium_shows_a_page_over_tls() {
    let Some((cluster, address)) = https() else { return };
    let Some(chromium) = Tool::find("chromium") else { return println!("skipped: there is no chromium") };
    let profile = format!("--user-data-dir={}", file(cluster.folder.path(), "profile"));
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        // It shall ask nobody else.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--no-proxy-server",
        // Whose certificate it is, the tests with openssl see to.
        "--ignore-certificate-errors",
        &profile,
        "--dump-dom",
    ];
    let url = format!("https://{address}/headers");
    let ended = chromium.run(flags.into_iter().chain([url.as_str()]));
    // Only over HTTP/2 it says which priority a request has.
    assert!(ended.stdout.contains("GET /headers") && ended.stdout.contains("priority: "), "{ended:?}");
}
