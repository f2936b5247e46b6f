//! What a guest may do: what it was granted, and nothing else.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};

use harness::client::{Connection, get};
use harness::{Cluster, Setup, guest};

/// Guests of both versions of WASI, which do the same.
const GUESTS: [&str; 2] = ["hostile_p2", "hostile_p3"];

/// Answers every request with its own head, until the test ends.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    address
}

fn answer(mut stream: impl Read + Write) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", head.len());
    let _ = stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(&head)).and_then(|()| stream.flush());
}

/// What the guest says of `path`.
async fn ask(cluster: &Cluster, path: &str) -> String {
    let answer = get(cluster.address(), path).await.unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.text().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_reached_that_was_not_granted() {
    let upstream = upstream();
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(1).start();
        let own = cluster.address();
        for url in [
            format!("http://{upstream}/"),
            format!("http://{own}/"),
            format!("http://localhost:{}/", upstream.port()),
            "http://169.254.169.254/latest/meta-data/".into(),
            "http://10.0.0.1/".into(),
            "http://[::ffff:127.0.0.1]/".into(),
            "http://[fe80::1]/".into(),
            "http://example.com/".into(),
            "https://example.com/".into(),
        ] {
            let said = ask(&cluster, &format!("/fetch?url={url}")).await;
            assert!(said.contains("HttpRequestDenied"), "{name} {url}: {said}");
        }
        // Once for each, with the flag that would grant it.
        let flag = format!("grant it with --allow-host http://{upstream}");
        assert!(cluster.stderr.find(&flag).contains("request=\"1-"));
        ask(&cluster, &format!("/fetch?url=http://{upstream}/again")).await;
        cluster.stderr.find("grant it with --allow-host https://example.com");
        assert_eq!(cluster.stderr.lines().iter().filter(|line| line.contains(&flag)).count(), 1);
        // Nor by a socket.
        for path in [format!("/tcp?addr={upstream}"), format!("/udp?addr={upstream}")] {
            let said = ask(&cluster, &path).await;
            assert!(said.contains("access-denied"), "{name} {path}: {said}");
        }
        assert!(ask(&cluster, "/resolve?name=localhost").await.contains("permanent-resolver-failure"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn granted_hosts_are_reached_and_no_others() {
    let (upstream, other) = (upstream(), upstream());
    let port = upstream.port();
    for name in GUESTS {
        let grants = [format!("http://{upstream}"), format!("http://localhost:{port}")];
        let args = ["--allow-host", &grants[0], "--allow-host", &grants[1]];
        let cluster = Setup::new(&guest(name)).workers(1).args(&args).start();
        let said = ask(&cluster, &format!("/fetch?url=http://{upstream}/path?query=1")).await;
        assert!(said.contains("GET /path?query=1 HTTP/1.1\r\n"), "{name}: {said}");
        assert!(
            said.contains(&format!("host: {upstream}\r\n")) && said.contains("cdn-loop: wasmcluster\r\n"),
            "{said}"
        );
        assert!(ask(&cluster, &format!("/fetch?url=http://localhost:{port}/")).await.contains("host: localhost"));
        for (url, error) in [
            (format!("http://{other}/"), "HttpRequestDenied"),
            (format!("https://{upstream}/"), "HttpRequestDenied"),
            // An address in disguise, and a user that hides one.
            (format!("http://127.1:{port}/"), "HttpRequestUriInvalid"),
            (format!("http://2130706433:{port}/"), "HttpRequestUriInvalid"),
            (format!("http://localhost:{port}%40{other}/"), "Invalid"),
        ] {
            let said = ask(&cluster, &format!("/fetch?url={url}")).await;
            assert!(said.contains(error), "{name} {url}: {said}");
        }
    }
}

/// A name for this machine that does not say so, from its own list of names: nobody else is asked.
fn name_of_loopback() -> Option<String> {
    let names = std::fs::read_to_string("/etc/hosts").ok()?;
    names.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        let other = |name: &&str| *name != "localhost" && !name.ends_with(".localhost");
        if address.is_loopback() { words.find(other).map(str::to_owned) } else { None }
    })
}

/// A name that leads to a special address, though it was granted, is refused after resolution.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granted_name_does_not_lead_inside() {
    let Some(own) = name_of_loopback() else {
        println!("skipped: /etc/hosts has no other name than localhost for a loopback address");
        return;
    };
    for name in GUESTS {
        let args = ["--allow-host", &format!("http://{own}")];
        let cluster = Setup::new(&guest(name)).workers(1).args(&args).start();
        let said = ask(&cluster, &format!("/fetch?url=http://{own}/")).await;
        assert!(said.contains("DestinationIpProhibited"), "{name}: {said}");
        let line = cluster.stderr.find("with the special address");
        assert!(line.contains("(loopback); grant the address too, with --allow-host http://"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_needs_a_certificate_that_is_trusted() {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], signing_key.serialize_der().try_into().unwrap())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            answer(rustls::StreamOwned::new(session, stream.unwrap()));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("trusted.pem");
    std::fs::write(&trusted, cert.pem()).unwrap();
    let url = format!("https://localhost:{}", address.port());
    for name in GUESTS {
        let start = || Setup::new(&guest(name)).workers(1).args(&["--allow-host", &url]);
        let trusting = start().env("SSL_CERT_FILE", trusted.to_str().unwrap()).start();
        let said = ask(&trusting, &format!("/fetch?url={url}/secret")).await;
        assert!(said.contains("GET /secret HTTP/1.1\r\n"), "{name}: {said}");
        let doubting = start().start();
        let said = ask(&doubting, &format!("/fetch?url={url}/secret")).await;
        assert!(said.contains("TlsCertificateError"), "{name}: {said}");
    }
}

/// However many a guest wants: so many at a time, for as long as it is given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outbound_requests_are_bounded() {
    let upstream = upstream();
    // Takes connections, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silence = silent.local_addr().unwrap();
    let grants = [format!("http://{upstream}"), format!("http://{silence}")];
    for name in GUESTS {
        let args = ["--allow-host", &grants[0], "--allow-host", &grants[1], "--request-timeout", "20s"];
        let cluster = Setup::new(&guest(name)).workers(1).args(&args).start();
        let said = ask(&cluster, &format!("/fetch-many?url=http://{upstream}/&n=100")).await;
        assert!(said.contains("32 succeeded, 68 failed") && said.contains("ConnectionLimitReached"), "{name}: {said}");
        // They are given back.
        let said = ask(&cluster, &format!("/fetch-many?url=http://{upstream}/&n=32")).await;
        assert!(said.contains("32 succeeded, 0 failed"), "{name}: {said}");
        let said = ask(&cluster, &format!("/fetch?url=http://{silence}/&first-byte-ms=50")).await;
        assert!(said.contains("Timeout"), "{name}: {said}");
        for option in ["connect-ms", "first-byte-ms", "between-ms"] {
            // Whatever comes of no time at all, it is an answer.
            ask(&cluster, &format!("/fetch?url=http://{upstream}/&{option}=0")).await;
        }
    }
}

/// A guest that may call its own cluster does not do so for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_does_not_go_round_for_ever() {
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(1).args(&["--allow-host", "http://127.0.0.1:*"]).start();
        let own = format!("http://{}", cluster.address());
        let said = ask(&cluster, &format!("/relay?url={own}/relay&times=100")).await;
        assert!(said.contains("508"), "{name}: {said}");
        cluster.stderr.find("it has passed through wasmcluster more than 8 times");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_are_open_as_granted_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, text) in [("open/file", "hello"), ("read/file", "read me"), ("secret", "secret")] {
        std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        std::fs::write(path(name), text).unwrap();
    }
    std::os::unix::fs::symlink("../secret", path("open/out")).unwrap();
    std::os::unix::fs::symlink(path("secret"), path("open/absolute")).unwrap();
    let (open, read) = (format!("{}::/data", path("open").display()), format!("{}::/read:ro", path("read").display()));
    for name in GUESTS {
        let cluster = Setup::new(&guest(name)).workers(1).args(&["--dir", &open, "--dir", &read]).start();
        let says = async |path: &str| ask(&cluster, path).await;
        assert_eq!(says("/read?path=/data/file").await, "hello", "{name}");
        assert_eq!(says("/read?path=/read/file").await, "read me");
        for denied in [
            "/read?path=/secret",
            "/read?path=/data/../secret",
            "/read?path=/data/../../secret",
            "/read?path=/data/out",
            "/read?path=/data/out/",
            "/read?path=/data/absolute",
            "/read?path=/data/./../read/../../secret",
            "/read?path=/etc/passwd",
            "/read?path=/proc/self/environ",
            "/write?path=/data/out&text=x",
            "/write?path=/read/new&text=x",
            "/write?path=/read/file&text=x",
            "/write?path=/data/../new&text=x",
            "/list?path=/",
            "/list?path=/data/..",
        ] {
            let said = says(denied).await;
            assert!(said.starts_with("error: "), "{name} {denied}: {said}");
        }
        assert!(!says("/write?path=/data/new&text=x").await.starts_with("error"), "{name}");
        assert_eq!(std::fs::read_to_string(path("open/new")).unwrap(), "x");
        // A link of its own making leads no further.
        says("/link?from=../secret&to=/data/link").await;
        assert!(says("/read?path=/data/link").await.starts_with("error: "), "{name}");
        let _ = std::fs::remove_file(path("open/link"));
        std::fs::remove_file(path("open/new")).unwrap();
        assert_eq!(std::fs::read_to_string(path("secret")).unwrap(), "secret");
        assert_eq!(std::fs::read_to_string(path("read/file")).unwrap(), "read me");
    }
    let none = Setup::new(&guest("hostile_p2")).workers(1).start();
    assert!(ask(&none, "/read?path=/data/file").await.starts_with("error: "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_are_inherited_by_name() {
    let args = ["--env-inherit", "INHERITED", "--env", "SAID=outright", "--env-inherit", "SAID"];
    let setup = Setup::new(&guest("scenarios")).args(&args);
    let cluster = setup.env("INHERITED", "yes").env("SAID", "inherited").env("HIDDEN", "yes").start();
    let mut connection = Connection::open(cluster.address()).await;
    assert_eq!(connection.get("/env?name=INHERITED").await.unwrap().text(), "yes");
    assert_eq!(connection.get("/env?name=SAID").await.unwrap().text(), "outright");
    assert_eq!(connection.get("/env?name=HIDDEN").await.unwrap().status, 404);
    let ended = Setup::new(&guest("scenarios")).args(&["--env-inherit", "NOT_THERE"]).run();
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--env-inherit NOT_THERE: "), "{}", ended.stderr);
}

#[test]
fn inspect_names_what_must_be_granted() {
    let inspect =
        |name: &str, args: &[&str]| Setup::bare(&[&["inspect", guest(name).to_str().unwrap()], args].concat()).run();
    for (name, version, world) in [("hostile_p2", "0.2", "wasi:http/proxy"), ("hostile_p3", "0.3", "wasi:http/service")]
    {
        let ended = inspect(name, &["--json", "--max-memory", "32MiB"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&report["wasi"], &report["world"]), (&version.into(), &world.into()));
        let grants = report["grants"].as_array().unwrap();
        for flag in ["--allow-connect", "--allow-host", "--dir", "--env", "--env-inherit"] {
            assert!(grants.contains(&flag.into()), "{flag}: {report}");
        }
        for import in report["imports"].as_array().unwrap() {
            let flags: &[&str] = match import["name"].as_str().unwrap().split_once('@').unwrap().0 {
                "wasi:cli/environment" => &["--env", "--env-inherit"],
                "wasi:filesystem/preopens" => &["--dir"],
                "wasi:http/outgoing-handler" | "wasi:http/client" => &["--allow-host"],
                "wasi:sockets/udp" | "wasi:sockets/udp-create-socket" => &[],
                name if name.starts_with("wasi:sockets/") => &["--allow-connect"],
                _ => &[],
            };
            assert_eq!((&import["flags"], import["access"] == "flag"), (&flags.into(), !flags.is_empty()), "{import}");
        }
        assert_eq!(report["limits"]["max-memory"], "32MiB");
        let text = inspect(name, &[]).stdout;
        for note in ["denied unless granted by --allow-host", "granted by --env, --env-inherit", "no flag grants it"] {
            assert!(text.contains(note), "{note}: {text}");
        }
    }
}
