//! Components in registries: pushed, pulled, served, deployed and watched, with Debian's docker-registry; and registries that
//! are away, silent, want to be shown something, or lie.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use harness::client::get;
use harness::tls::Authority;
use harness::tools::{Tool, address_of_its_own};
use harness::{Cluster, Ended, Follower, Setup, guest, root, until};

use super::reload::{AT_ONCE, another_version};

/// The line of an htpasswd file for the user `deploy` with [`PASSWORD`].
pub(super) const HTPASSWD: &str = "deploy:$2b$04$abcdefghijklmnopqrstuu.pRgs6SOPOaiNl89.1rRj7iKw6AhHf6\n";
pub(super) const PASSWORD: &str = "pass-word-1";

/// A real registry, with its files in a folder.
struct Registry {
    address: SocketAddr,
    process: Follower,
}

impl Registry {
    /// None, with a word, where there is none. `more` goes into its configuration.
    fn start(folder: &Path, address: SocketAddr, http: &str, more: &str) -> Option<Self> {
        let Some(program) = Tool::find("docker-registry") else {
            println!("skipped: docker-registry is not installed");
            return None;
        };
        let data = folder.join("registry");
        let config = folder.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http:\n  addr: {address}\n{http}\n{more}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let process = Follower::start(program.command().arg("serve").arg(&config)).unwrap();
        until("the registry listens", || TcpStream::connect(address).ok());
        Some(Self { address, process })
    }

    fn plain(folder: &Path) -> Option<Self> {
        Self::start(folder, address_of_its_own(), "", "")
    }

    fn name(&self, rest: &str) -> String {
        format!("oci://{}/{rest}", self.address)
    }
}

fn wasmcluster(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    variables.iter().fold(Setup::bare(args), |setup, (name, value)| setup.env(name, value)).run()
}

/// The digest of the manifest, and the name that pins it.
#[track_caller]
fn push(component: &Path, name: &str, more: &[&str], variables: &[(&str, &str)]) -> (String, String) {
    let args = [&["push", component.to_str().unwrap(), name, "--json"], more].concat();
    let pushed = wasmcluster(&args, variables);
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    let pushed: Value = serde_json::from_str(&pushed.stdout).unwrap();
    let text = |field: &str| pushed[field].as_str().unwrap().to_owned();
    assert_eq!(text("reference"), format!("{name}@{}", text("manifest")));
    (text("manifest"), text("reference"))
}

#[track_caller]
fn serves(cluster: &Cluster, generation: u64, source: &str, manifest: &str) {
    let status = cluster.status();
    let served = &status["generation"];
    assert_eq!(
        (&served["current"], &served["source"], &served["manifest"]),
        (&json!(generation), &json!(source), &json!(manifest))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_from_a_registry_is_served_deployed_and_brought_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::plain(folder.path()) else { return };
    let host = registry.address.to_string();
    let plain = ["--registry-plain-http", &host];
    let [one, two] = [registry.name("acme/whoami:1"), registry.name("acme/whoami:2")];
    let (first, pinned) = push(&guest("whoami"), &one, &plain, &[]);
    // The same has the same digest.
    assert_eq!(push(&guest("whoami"), &one, &plain, &[]).0, first);
    let (second, _) = push(&another_version("whoami", folder.path()), &two, &plain, &[]);
    assert_ne!(first, second);

    let cache = folder.path().join("cache");
    let serve = |app: &str, more: &[&str]| {
        Setup::new(Path::new(app)).args(&plain).args(&AT_ONCE).args(more).env("XDG_CACHE_HOME", cache.to_str().unwrap())
    };
    let cluster = serve(&one, &[]).start();
    serves(&cluster, 1, &one, &first);
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    cluster.stderr.find(&format!("serving {one}@{}", &first[..19]));
    let reloaded = cluster.reload(&[&two]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    assert!(reloaded.stderr.contains("pulling the component from its registry\ncompiling\n"), "{reloaded:?}");
    serves(&cluster, 2, &two, &second);
    // By its digest, whatever the tag names.
    let (moved, _) = push(&another_version("whoami", folder.path()), &one, &plain, &[]);
    assert_eq!(cluster.reload(&[&pinned]).code, Some(0));
    serves(&cluster, 3, &pinned, &first);
    // What the tag names by now, as no other is said.
    assert_eq!(cluster.reload(&[&one]).code, Some(0));
    serves(&cluster, 4, &one, &moved);
    push(&guest("whoami"), &one, &plain, &[]);
    assert_eq!(cluster.reload(&[]).code, Some(0));
    serves(&cluster, 5, &one, &first);
    let none = cluster.reload(&[&registry.name("acme/whoami:none")]);
    assert_eq!(none.code, Some(3), "{none:?}");
    assert!(none.stderr.contains("has no such repository, tag or digest"), "{none:?}");
    assert_eq!(cluster.command(&["rollback"]).code, Some(0));
    serves(&cluster, 6, &one, &moved);
    assert_eq!(cluster.command(&["rollback", "--to", "2"]).code, Some(0));
    serves(&cluster, 7, &two, &second);
    assert!(cluster.command(&["status"]).stdout.contains(&format!("{two}@{}\n", &second[..19])));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_resumed_without_the_registry_and_without_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::plain(folder.path()) else { return };
    let (host, name) = (registry.address.to_string(), registry.name("acme/whoami:1"));
    let plain = ["--registry-plain-http", &host];
    let (first, _) = push(&guest("whoami"), &name, &plain, &[]);
    let [cache, state] = ["cache", "state"].map(|name| folder.path().join(name));
    let serve = || {
        Setup::new(Path::new(&name))
            .args(&plain)
            .args(&["--resume", "--state-dir", state.to_str().unwrap()])
            .env("XDG_CACHE_HOME", cache.to_str().unwrap())
    };
    let served = |cluster: Cluster| {
        serves(&cluster, 1, &name, &first);
        assert_eq!(cluster.command(&["stop"]).code, Some(0));
    };
    served(serve().start());
    // Not what the tag names now.
    push(&another_version("whoami", folder.path()), &name, &plain, &[]);
    let Registry { address, process } = registry;
    drop(process);
    served(serve().start());
    fs::remove_dir_all(&cache).unwrap();
    let ended = serve().run();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains(&format!("cannot reach {address}")), "{ended:?}");
    let registry = Registry::start(folder.path(), address, "", "").unwrap();
    served(serve().start());
    // Another tag is another version; another repository may be anything.
    let other = registry.name("acme/whoami:2");
    let (second, _) = push(&another_version("whoami", folder.path()), &other, &plain, &[]);
    let serve = |name: &str| {
        let resume = ["--resume", "--state-dir", state.to_str().unwrap()];
        let cache = cache.to_str().unwrap();
        Setup::new(Path::new(name)).args(&plain).args(&AT_ONCE).args(&resume).env("XDG_CACHE_HOME", cache)
    };
    let cluster = serve(&other).start();
    serves(&cluster, 2, &other, &second);
    assert_eq!(cluster.command(&["rollback"]).code, Some(0));
    serves(&cluster, 3, &name, &first);
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    drop(cluster);
    let ended = serve(&registry.name("acme/other:1")).run();
    assert!(ended.code == Some(1) && ended.stderr.contains("cannot resume"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_is_deployed_by_watch() {
    let folder = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::plain(folder.path()) else { return };
    let (host, name) = (registry.address.to_string(), registry.name("whoami"));
    let plain = ["--registry-plain-http", &host];
    push(&guest("whoami"), &format!("{name}:latest"), &plain, &[]);
    let cluster = Setup::new(Path::new(&name)).args(&plain).args(&AT_ONCE).args(&["--watch"]).start();
    let (second, _) = push(&another_version("whoami", folder.path()), &format!("{name}:latest"), &plain, &[]);
    until("the new component is served", || {
        let status = cluster.status();
        (status["generation"]["current"] == 2 && status["generation"]["manifest"] == *second).then_some(())
    });
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
}

/// What could not be pulled is tried again, what was rolled back is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_rolled_back_does_not_come_back_by_watch() {
    let folder = tempfile::tempdir().unwrap();
    let versions = [guest("whoami"), another_version("whoami", folder.path())].map(|path| fs::read(path).unwrap());
    let (first, second) = (manifest("application/wasm", &versions[0]), manifest("application/wasm", &versions[1]));
    let (first_digest, second_digest) = (sha256(&first), sha256(&second));
    // Which version the tag names, and whether its component can be had.
    let state = Arc::new(Mutex::new((0, true)));
    let known = state.clone();
    let fake = Fake::start(move |head| {
        let ((version, is_there), is_look) = (*known.lock().unwrap(), head.starts_with("HEAD"));
        let manifest = [&first, &second][version];
        match head.split(' ').nth(1).unwrap() {
            "/v2/" => says("200 OK", "", b"{}"),
            path if path.contains("/manifests/") && is_look => {
                says("200 OK", &format!("docker-content-digest: {}\r\n", sha256(manifest)), b"")
            }
            path if path.contains("/manifests/") => says("200 OK", "", manifest),
            _ if !is_there => says("404 Not Found", "", b""),
            _ => says("200 OK", "", &versions[version]),
        }
    });
    let (host, name) = (fake.address.to_string(), format!("oci://{}/acme/whoami:1", fake.address));
    let cache = folder.path().join("cache");
    let cluster = Setup::new(Path::new(&name)).args(&["--watch", "--registry-plain-http", &host]).args(&AT_ONCE);
    let cluster = cluster.env("XDG_CACHE_HOME", cache.to_str().unwrap()).start();
    serves(&cluster, 1, &name, &first_digest);
    *state.lock().unwrap() = (1, false);
    until("the new version is refused", || (cluster.status()["last_reload"]["result"] == "refused").then_some(()));
    serves(&cluster, 1, &name, &first_digest);
    *state.lock().unwrap() = (1, true);
    until("it is served", || (cluster.status()["generation"]["current"] == 2).then_some(()));
    serves(&cluster, 2, &name, &second_digest);
    assert_eq!(cluster.command(&["rollback"]).code, Some(0));
    let looks = || fake.asked().iter().filter(|head| head.starts_with("HEAD")).count();
    let before = looks();
    until("the tag is looked at again, twice", || (looks() >= before + 2).then_some(()));
    serves(&cluster, 3, &name, &first_digest);
}

/// What `docker login` writes, in a folder for DOCKER_CONFIG.
fn docker_config(folder: &Path, config: &Value) -> String {
    let folder = folder.join(format!("docker-{}", fs::read_dir(folder).unwrap().count()));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

pub(super) fn basic(user: &str, password: &str) -> String {
    data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes())
}

#[test]
fn registries_are_shown_what_logins_left_and_trusted_by_their_authority() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("registries");
    let address = address_of_its_own();
    let [cert, key] = authority.issue(&[&address.ip().to_string()]).write(folder.path(), "registry");
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, &authority.pem).unwrap();
    fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
    let tls = format!("  tls: {{certificate: {}, key: {}}}", cert.display(), key.display());
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", folder.path().join("htpasswd").display());
    let Some(registry) = Registry::start(folder.path(), address, &tls, &auth) else { return };
    let name = registry.name("acme/shop:1");
    let trusted = ["--registry-ca", ca.to_str().unwrap()];
    let host = address.to_string();
    let login = |auth: String| docker_config(folder.path(), &json!({ "auths": { host.clone(): { "auth": auth } } }));
    let good = login(basic("deploy", PASSWORD));
    push(&guest("hello-p2"), &name, &trusted, &[("DOCKER_CONFIG", &good)]);

    let inspect = |more: &[&str], variable: &str, value: &str| {
        let ended = wasmcluster(&[&["inspect", &name], more].concat(), &[(variable, value)]);
        assert!(!ended.stderr.contains(PASSWORD), "{ended:?}");
        ended
    };
    assert_eq!(inspect(&trusted, "DOCKER_CONFIG", &good).code, Some(0));
    let file = format!("{good}/config.json");
    assert_eq!(inspect(&trusted, "REGISTRY_AUTH_FILE", &file).code, Some(0));
    let fails = |ended: Ended, part: &str| {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    };
    fails(inspect(&[], "DOCKER_CONFIG", &good), "name who signed it with --registry-ca");
    fails(
        inspect(&trusted, "DOCKER_CONFIG", "/nowhere"),
        &format!("{host} wants credentials: run `docker login {host}`"),
    );
    let wrong = login(basic("deploy", "no"));
    fails(
        inspect(&trusted, "DOCKER_CONFIG", &wrong),
        &format!("does not accept the credentials in {wrong}/config.json"),
    );
    let broken = docker_config(folder.path(), &json!({ "auths": { host.clone(): { "auth": "?" } } }));
    fails(inspect(&trusted, "DOCKER_CONFIG", &broken), &format!("credentials in {broken}/config.json"));
    let missing = inspect(&["--registry-ca", "/nowhere"], "DOCKER_CONFIG", &good);
    assert!(missing.code == Some(2) && missing.stderr.contains("--registry-ca /nowhere: No such file"), "{missing:?}");
    fails(
        inspect(&["--registry-ca", cert.with_extension("key").to_str().unwrap()], "DOCKER_CONFIG", &good),
        "no certificate",
    );

    // A helper, as of a keychain.
    let helper = folder.path().join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread server\n[ \"$server\" = {host} ] || {{ echo credentials not found; exit 1; }}\n\
                          echo '{{\"Username\":\"deploy\",\"Secret\":\"{PASSWORD}\"}}'\n"
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    for config in [json!({ "credsStore": "test" }), json!({ "credHelpers": { host.clone(): "test" } })] {
        let config = docker_config(folder.path(), &config);
        let ended = wasmcluster(
            &["inspect", &name, "--registry-ca", ca.to_str().unwrap()],
            &[("DOCKER_CONFIG", &config), ("PATH", &path)],
        );
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    let away = docker_config(folder.path(), &json!({ "credsStore": "no-such" }));
    fails(inspect(&trusted, "DOCKER_CONFIG", &away), &format!("the credential helper that {away}/config.json names"));

    // A primary has it done with its own environment.
    let cluster = Setup::new(Path::new(&name)).args(&trusted).workers(1).env("DOCKER_CONFIG", &good).start();
    assert_eq!(cluster.status()["generation"]["source"], *name);
}

/// What a registry that is none is asked for, and says.
struct Fake {
    address: SocketAddr,
    /// The heads of requests.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// `answers` is given the head of a request; no answer is silence.
    fn start(answers: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answers));
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, noted) = (answers.clone(), noted.clone());
                std::thread::spawn(move || answer(stream.unwrap(), &*answers, &noted));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn inspect(&self, variables: &[(&str, &str)]) -> Ended {
        let host = self.address.to_string();
        wasmcluster(&["inspect", &format!("oci://{host}/acme/shop:1"), "--registry-plain-http", &host], variables)
    }
}

fn answer(mut stream: TcpStream, answers: &dyn Fn(&str) -> Option<Vec<u8>>, asked: &Mutex<Vec<String>>) {
    let Some(head) = read_head(&mut stream) else { return };
    asked.lock().unwrap().push(head.clone());
    match answers(&head) {
        // One that left is no matter.
        Some(answer) => drop(stream.write_all(&answer)),
        // Until the other side gives up.
        None => drop(stream.read(&mut [0; 1])),
    }
}

/// The head of a request; None if whoever sent it has left.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut piece).ok().filter(|length| *length > 0)?;
        bytes.extend(&piece[..length]);
    }
    Some(String::from_utf8(bytes).unwrap())
}

fn says(status: &str, fields: &str, body: &[u8]) -> Option<Vec<u8>> {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{fields}\r\n", body.len());
    Some([head.as_bytes(), body].concat())
}

fn sha256(bytes: &[u8]) -> String {
    let digest = <sha2::Sha256 as sha2::Digest>::digest(bytes);
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&digest))
}

fn manifest(kind: &str, component: &[u8]) -> Vec<u8> {
    let layer = json!({ "mediaType": kind, "digest": sha256(component), "size": component.len() });
    let config = json!({ "mediaType": "application/vnd.wasm.config.v0+json", "digest": sha256(b"{}"), "size": 2 });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] }).to_string().into_bytes()
}

/// A registry that has one component under every name; `spoils` may say something else.
fn honest_but(spoils: impl Fn(&str) -> Option<Option<Vec<u8>>> + Send + Sync + 'static) -> Fake {
    let component = fs::read(guest("hello-p2")).unwrap();
    let manifest = manifest("application/wasm", &component);
    Fake::start(move |head| {
        let ok = |body: &[u8]| says("200 OK", "content-type: application/vnd.oci.image.manifest.v1+json\r\n", body);
        match (spoils(head), head.split(' ').nth(1).unwrap()) {
            (Some(answer), _) => answer,
            (None, "/v2/") => ok(b"{}"),
            (None, path) if path.contains("/manifests/") => ok(&manifest),
            (None, path) if path.contains("/blobs/") => ok(&component),
            _ => says("404 Not Found", "", b""),
        }
    })
}

#[test]
fn a_registry_that_lies_breaks_off_or_fails_is_told_from_one_that_does_not() {
    let honest = honest_but(|_| None);
    let ended = honest.inspect(&[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let component = fs::read(guest("hello-p2")).unwrap();
    let blob = |answer: Option<Vec<u8>>| honest_but(move |head| head.contains("/blobs/").then(|| answer.clone()));
    let of_manifest =
        |answer: Option<Vec<u8>>| honest_but(move |head| head.contains("/manifests/").then(|| answer.clone()));
    let fails = |fake: Fake, part: &str| {
        let ended = fake.inspect(&[]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(part), "expected {part:?}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    };
    let altered = {
        let mut altered = component.clone();
        altered[100] ^= 1;
        altered
    };
    fails(blob(says("200 OK", "", &altered)), "it was altered, or cut");
    let mut cut = says("200 OK", "", &component).unwrap();
    cut.truncate(cut.len() - 1000);
    fails(blob(Some(cut)), "broke off in the middle");
    fails(blob(says("200 OK", "", &component[..component.len() - 1])), "it was altered, or cut");
    fails(blob(says("200 OK", "", &[&component[..], b"more"].concat())), "sends more than the");
    fails(blob(says("404 Not Found", "", b"")), "has no such repository");
    fails(
        of_manifest(says("200 OK", "", &manifest("application/vnd.oci.image.layer.v1.tar+gzip", b"x"))),
        "it is not a component",
    );
    fails(of_manifest(says("200 OK", "", b"<html>\x1b[2J")), "is not a manifest");
    let huge =
        String::from_utf8(manifest("application/wasm", b"x")).unwrap().replace("\"size\":1", "\"size\":9000000000000");
    fails(of_manifest(says("200 OK", "", huge.as_bytes())), "the limit is 512");
    let text = br#"{"errors":[{"code":"ODD","message":"not \u001b[31m today"}]}"#;
    fails(of_manifest(says("400 Bad Request", "", text)), r"400 Bad Request: not \u{1b}[31m today");
    fails(
        of_manifest(says("503 Service Unavailable", "", b"later\nperhaps")),
        r"503 Service Unavailable: later\nperhaps",
    );
    let limited = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
    fails(of_manifest(says("429 Too Many Requests", "", limited)), "too many requests: slow down");
    fails(honest_but(|_| Some(says("404 Not Found", "", b""))), "does not answer as a registry does");
    let nowhere = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    fails(Fake { address: nowhere, asked: Arc::default() }, &format!("cannot reach {nowhere}: Connection refused"));
    // A digest that is asked for is what is had.
    let pinned = format!("oci://{}/acme/shop@sha256:{}", honest.address, "ab".repeat(32));
    let ended = wasmcluster(&["inspect", &pinned, "--registry-plain-http", &honest.address.to_string()], &[]);
    assert!(ended.code == Some(1) && ended.stderr.contains("it was altered"), "{ended:?}");
}

#[test]
fn what_may_go_well_next_time_is_tried_again() {
    let failures = Arc::new(Mutex::new(2));
    let fake = honest_but(move |head| {
        let mut left = failures.lock().unwrap();
        (head.contains("/manifests/") && *left > 0).then(|| {
            *left -= 1;
            says("502 Bad Gateway", "", b"")
        })
    });
    let ended = fake.inspect(&[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fake.asked().iter().filter(|head| head.contains("/manifests/")).count(), 3);
}

#[test]
fn tokens_are_fetched_as_registries_ask_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = Fake::start(|head| match () {
        () if head.contains(&format!("Basic {}", basic("deploy", PASSWORD))) => {
            says("200 OK", "", br#"{"token":"by-password"}"#)
        }
        () if head.starts_with("POST") => says("200 OK", "", br#"{"access_token":"by-refresh"}"#),
        () if head.contains("uthorization") => says("401 Unauthorized", "", b""),
        () => says("200 OK", "", br#"{"token":"by-nobody"}"#),
    });
    let realm = tokens.address;
    let wants = move |token: &'static str| {
        honest_but(move |head| {
            let fields =
                format!("www-authenticate: Bearer realm=\"http://{realm}/token?x=1\",service=\"registry\"\r\n");
            (!head.contains(&format!("Bearer {token}"))).then(|| says("401 Unauthorized", &fields, b""))
        })
    };
    let inspect = |fake: &Fake, config: &str| {
        let [host, realm] = [fake.address, realm].map(|address| address.to_string());
        let name = format!("oci://{host}/acme/shop:1");
        let args = ["inspect", &name, "--registry-plain-http", &host, "--registry-plain-http", &realm];
        wasmcluster(&args, &[("DOCKER_CONFIG", config)])
    };
    for (token, config) in [
        ("by-nobody", json!({})),
        ("by-password", json!({ "auth": basic("deploy", PASSWORD) })),
        ("by-refresh", json!({ "identitytoken": "refresh-1" })),
    ] {
        let fake = wants(token);
        let config = docker_config(folder.path(), &json!({ "auths": { fake.address.to_string(): config } }));
        // An entry without anything is none.
        let ended = inspect(&fake, if token == "by-nobody" { "/nowhere" } else { &config });
        assert_eq!(ended.code, Some(0), "{token}: {ended:?}");
    }
    let asked = tokens.asked();
    assert!(
        asked[0].starts_with("GET /token?x=1&service=registry&scope=repository%3Aacme%2Fshop%3Apull "),
        "{}",
        asked[0]
    );
    let fake = wants("by-password");
    let config =
        docker_config(folder.path(), &json!({ "auths": { fake.address.to_string(): { "auth": basic("x", "y") } } }));
    let ended = inspect(&fake, &config);
    assert!(ended.code == Some(1) && ended.stderr.contains("does not accept the credentials in"), "{ended:?}");
    // What no header can have.
    let broken = Fake::start(|_| says("200 OK", "", br#"{"token":"a\nb"}"#));
    let at = broken.address;
    let asks = honest_but(move |_| {
        Some(says("401 Unauthorized", &format!("www-authenticate: Bearer realm=\"http://{at}/\"\r\n"), b""))
    });
    let [host, other] = [asks.address, at].map(|address| address.to_string());
    let name = format!("oci://{host}/acme/shop:1");
    let ended = wasmcluster(&["inspect", &name, "--registry-plain-http", &host, "--registry-plain-http", &other], &[]);
    assert!(ended.code == Some(1) && ended.stderr.contains("no header can have"), "{ended:?}");
    // Nobody sends a password where it was not told to, in clear text.
    let before = tokens.asked().len();
    let ended = fake.inspect(&[("DOCKER_CONFIG", &config)]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("is to be spoken to in clear text, which is not done"), "{ended:?}");
    assert_eq!(tokens.asked().len(), before);
}

/// Wherever a registry points, credentials do not follow, nor does clear text.
#[test]
fn who_is_sent_on_takes_no_password_along() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = Fake::start(|_| says("200 OK", "", br#"{"token":"stolen"}"#));
    let there = elsewhere.address;
    let sends_on = move |path: &'static str| {
        honest_but(move |head| {
            let fields = format!("location: http://{there}/elsewhere\r\n");
            head.contains(path).then(|| says("307 Temporary Redirect", &fields, b""))
        })
    };
    // A token server that sends on whoever asks it, with what it was shown.
    let realm =
        Fake::start(move |_| says("307 Temporary Redirect", &format!("location: http://{there}/steal\r\n"), b""));
    let of_realm = realm.address;
    let asks = honest_but(move |head| {
        let fields = format!("www-authenticate: Bearer realm=\"http://{of_realm}/token\"\r\n");
        (!head.contains("uthorization")).then(|| says("401 Unauthorized", &fields, b""))
    });
    let inspect = |fake: &Fake, also: &[SocketAddr]| {
        let host = fake.address.to_string();
        let auth = json!({ "auths": { host.clone(): { "auth": basic("deploy", PASSWORD) } } });
        let config = docker_config(folder.path(), &auth);
        let mut args = vec!["inspect".to_owned(), format!("oci://{host}/acme/shop:1")];
        for plain in [fake.address].iter().chain(also) {
            args.extend(["--registry-plain-http".to_owned(), plain.to_string()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        wasmcluster(&args, &[("DOCKER_CONFIG", &config)])
    };
    for (fake, also) in [(sends_on("/manifests/"), vec![]), (sends_on("/blobs/"), vec![]), (asks, vec![of_realm])] {
        let ended = inspect(&fake, &also);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert_eq!(elsewhere.asked(), Vec::<String>::new(), "{ended:?}");
    }
    assert!(realm.asked()[0].contains("uthorization: Basic "));
    // Where clear text is allowed, what is asked for is asked for there, and nothing is shown.
    let wants = honest_but(move |head| match head {
        head if !head.contains("uthorization") => Some(says("401 Unauthorized", "www-authenticate: Basic\r\n", b"")),
        head if head.contains("/blobs/") => {
            Some(says("307 Temporary Redirect", &format!("location: http://{there}/blob\r\n"), b""))
        }
        _ => None,
    });
    let ended = inspect(&wants, &[there]);
    assert!(ended.stderr.contains("it was altered"), "{ended:?}");
    let asked = elsewhere.asked();
    assert!(asked.len() == 1 && !asked[0].contains("uthorization"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_holds_up_nobody() {
    let fake = Fake::start(|_| None);
    let host = fake.address.to_string();
    let name = format!("oci://{host}/acme/shop:1");
    let cluster = Setup::new(&guest("whoami")).args(&["--registry-plain-http", &host]).start();
    let reload = cluster.follow(&["reload", &name, "--timeout", "2s"]);
    until("the registry is asked", || (!fake.asked().is_empty()).then_some(()));
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    assert_eq!(reload.wait().code(), Some(5));
    // What asked it is gone.
    until("the puller is gone", || (cluster.children().len() == 2).then_some(()));
    // One that is to stop does not wait for it either.
    let starting = Setup::new(Path::new(&name)).args(&["--registry-plain-http", &host]).launch();
    let before = fake.asked().len();
    until("the registry is asked again", || (fake.asked().len() > before).then_some(()));
    assert!(starting.command(&["status"]).stdout.contains(&format!("pulling {name}")));
    assert_eq!(starting.command(&["stop"]).code, Some(0));
    assert!(starting.wait().success());
}

/// A registry that sends without end takes no more memory than a component would, and no version with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_registry_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let head = read_head(&mut stream).unwrap_or_default();
                if head.starts_with("GET /v2/ ") {
                    return drop(stream.write_all(&says("200 OK", "", b"{}").unwrap()));
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                while stream.write_all(&[b' '; 65536]).is_ok() {}
            });
        }
    });
    let name = format!("oci://{host}/acme/shop:1");
    let cluster = Setup::new(&guest("whoami")).workers(1).args(&["--registry-plain-http", &host]).start();
    let ended = cluster.reload(&[&name]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stderr.contains("sends more than 4194304 bytes"), "{ended:?}");
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
}

/// The other way round, too.
#[test]
fn other_tools_pull_what_we_push() {
    let folder = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::plain(folder.path()) else { return };
    let host = registry.address.to_string();
    let plain = ["--registry-plain-http", &host];
    let component = guest("hello-p2");
    push(&component, &registry.name("acme/shop:ours"), &plain, &[]);
    if let Some(skopeo) = Tool::find("skopeo") {
        let copy = format!("dir:{}", folder.path().join("copy").display());
        let [ours, theirs] = ["ours", "skopeo"].map(|tag| format!("docker://{host}/acme/shop:{tag}"));
        for args in [["--src-tls-verify=false", &ours, &copy], ["--dest-tls-verify=false", &copy, &theirs]] {
            let copied = skopeo.run(["copy", "--insecure-policy"].into_iter().chain(args));
            assert_eq!(copied.code, Some(0), "{copied:?}");
        }
        let name = registry.name("acme/shop:skopeo");
        assert_eq!(wasmcluster(&["inspect", &name, plain[0], plain[1]], &[]).code, Some(0));
    } else {
        println!("skipped: skopeo is not installed");
    }
    let run = |args: &[&str]| {
        let output = Command::new(root().join("scripts/oras-client")).args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        print!("{text}");
        !text.starts_with("skipped:")
    };
    let pulled: PathBuf = folder.path().join("pulled");
    let [ours, theirs] = ["ours", "oras"].map(|tag| format!("{host}/acme/shop:{tag}"));
    if run(&["pull", &ours, pulled.to_str().unwrap()]) {
        assert_eq!(fs::read(&pulled).unwrap(), fs::read(&component).unwrap());
        run(&["push", component.to_str().unwrap(), &theirs]);
        let ended = wasmcluster(&["inspect", &registry.name("acme/shop:oras"), plain[0], plain[1]], &[]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn what_cannot_be_pushed_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let module = folder.path().join("module.wat");
    fs::write(&module, "(module)").unwrap();
    let hello = guest("hello-p2");
    let hello = hello.to_str().unwrap();
    for (app, name, code, part) in [
        (hello, "shop:1", 2, "expected oci://"),
        (hello, "oci://shop:1", 2, "names no host"),
        (hello, "oci://localhost:1/shop", 1, "cannot reach localhost:1"),
        (module.to_str().unwrap(), "oci://localhost:1/shop", 3, "core module"),
        ("/nowhere.wasm", "oci://localhost:1/shop", 3, "no such file"),
    ] {
        let ended = wasmcluster(&["push", app, name], &[]);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    }
    let pinned = format!("oci://localhost:1/shop@sha256:{}", "ab".repeat(32));
    let ended = wasmcluster(&["push", hello, &pinned], &[]);
    assert!(ended.code == Some(2) && ended.stderr.contains("the digest follows from the component"), "{ended:?}");
}
