//! What a real Prometheus makes of the metrics, and of the alerts and the dashboard in `deploy/` that are made of them.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use serde_json::Value;

use harness::client::get;
use harness::tls::{Authority, TlsClient};
use harness::tools::{Tool, address_of_its_own};
use harness::{Cluster, Follower, Setup, fixture, guest, root, until};

use super::admin::{admin, ask, says, serve};

/// Columns of a dashboard of Grafana.
const COLUMNS: u64 = 24;

/// A Prometheus that scrapes some clusters every second.
struct Prometheus {
    address: SocketAddr,
    _process: Follower,
}

impl Prometheus {
    fn start(program: &Tool, folder: &Path, targets: &[SocketAddr]) -> Self {
        let targets: Vec<String> = targets.iter().map(|address| format!("'{address}'")).collect();
        let config = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: test\n    static_configs:\n      - targets: [{}]\n",
            targets.join(", ")
        );
        std::fs::write(folder.join("prometheus.yml"), config).unwrap();
        let address = address_of_its_own();
        let mut command = program.command();
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address={address}")).arg("--log.level=error");
        let process = Follower::start(&mut command).unwrap();
        let is_up = || {
            TcpStream::connect(address).ok()?;
            (ask(address, "/-/ready").status == 200).then_some(())
        };
        until("Prometheus is ready", is_up);
        Self { address, _process: process }
    }

    /// The values of the series that an expression has now. It must be one that Prometheus understands.
    #[track_caller]
    fn values(&self, expression: &str) -> Vec<f64> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (status, text) = says(self.address, &format!("/api/v1/query?query={encoded}"));
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &answer["status"]), (200, &"success".into()), "{expression}: {text}");
        let series = answer["data"]["result"].as_array().unwrap();
        series.iter().map(|series| series["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }
}

/// Checks that the reference has all metrics that a text names, and returns how many times it names one.
#[track_caller]
fn documented(text: &str) -> usize {
    let reference = std::fs::read_to_string(root().join("docs/reference.md")).unwrap();
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    let names: Vec<&str> = text.split(|c| !is_part(c)).filter(|word| word.starts_with("wasmcluster_")).collect();
    let has = |name: &str| reference.contains(&format!("`{name}`"));
    for name in &names {
        // The series of a histogram.
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        assert!(has(name) || base.is_some_and(has), "{name}");
    }
    names.len()
}

/// The alerts that come along are about metrics that there are.
#[test]
fn alerts_name_what_the_reference_has() {
    let rules = root().join("deploy/prometheus/alerts.yml");
    assert!(documented(&std::fs::read_to_string(&rules).unwrap()) >= 9);
    let Some(promtool) = Tool::find("promtool") else { return println!("skipped: there is no promtool") };
    let checked = promtool.run(["check", "rules", rules.to_str().unwrap()]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

/// What the rule for Kubernetes's autoscaler asks Prometheus for, of a cluster that stands for a pod.
#[test]
fn the_rule_for_autoscaling_has_a_value_for_each_pod() {
    let rule = std::fs::read_to_string(root().join("deploy/kubernetes/components/in-flight/prometheus-adapter.yaml"));
    let rule = rule.unwrap();
    let (_, query) = rule.split_once("metricsQuery: >-").unwrap();
    assert_eq!(documented(query), 2, "{rule}");
    let Some(prometheus) = Tool::find("prometheus") else { return println!("skipped: there is no prometheus") };
    let query = query.replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", "job=\"test\"");
    let [(cluster, first), (_other, second)] = [serve("hello", &[]), serve("hello", &[])];
    let prometheus = Prometheus::start(&prometheus, cluster.folder.path(), &[first, second]);
    until("each pod has a value", || (prometheus.values(query.trim()) == [0.0, 0.0]).then_some(()));
}

/// Its own tools have nothing to say against it.
#[test]
fn prometheus_takes_the_metrics() {
    let (Some(promtool), Some(prometheus)) = (Tool::find("promtool"), Tool::find("prometheus")) else {
        return println!("skipped: there is no prometheus");
    };
    let (cluster, address) = serve("sdk", &[]);
    for path in ["/count", "/", "/count"] {
        says(cluster.address(), path);
    }
    until("they are counted", || says(address, "/metrics").1.contains("code=\"2xx\"").then_some(()));
    let folder = cluster.folder.path();
    std::fs::write(folder.join("metrics"), says(address, "/metrics").1).unwrap();
    let script = format!("exec \"$0\" check metrics < {}", folder.join("metrics").display());
    let checked = std::process::Command::new("sh").args(["-c", &script]).arg(promtool.path()).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && said.trim().is_empty(), "{said}");

    let prometheus = Prometheus::start(&prometheus, folder, &[address]);
    until("it has scraped", || {
        prometheus.values("wasmcluster_requests_total{code=\"2xx\"}").first().is_some_and(|it| *it >= 2.0).then_some(())
    });
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(root().join("deploy/grafana/wasmcluster.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What panels, or annotations, ask Prometheus for, each with its title. Variables have values, as Grafana gives them.
fn expressions<'a>(those: &'a [Value], title: &str) -> Vec<(&'a str, String)> {
    let asked = those.iter().flat_map(|it| {
        let targets = it["targets"].as_array().into_iter().flatten().chain([it]);
        targets.filter_map(|target| Some((it[title].as_str().unwrap(), target["expr"].as_str()?)))
    });
    let asked = asked.map(|(title, expression)| {
        let expression = expression.replace("$__rate_interval", "1m").replace("$instance", ".*");
        assert!(!expression.contains('$'), "{title}: {expression}");
        (title, expression)
    });
    asked.collect()
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().unwrap()
}

/// Those of its own; the first is Grafana's.
fn annotations(dashboard: &Value) -> &[Value] {
    &dashboard["annotations"]["list"].as_array().unwrap()[1..]
}

/// Grafana imports it: a panel with another's number, or in another's place, would be lost or moved.
#[test]
fn panels_of_the_dashboard_have_numbers_and_places_of_their_own() {
    let dashboard = dashboard();
    assert!(dashboard["uid"].is_string() && dashboard.get("id").is_none());
    let mut numbers = std::collections::BTreeSet::new();
    let mut taken = std::collections::BTreeMap::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "the number of {title} is another's");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= COLUMNS, "{title}");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            let other = taken.insert(place, title);
            assert_eq!(other, None, "{title} has the place of another");
        }
        assert!(panel["type"] == "row" || panel["datasource"]["uid"] == "${datasource}", "{title}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

/// With or without a Prometheus: names, and its grammar.
#[test]
fn the_dashboard_asks_for_what_the_reference_has() {
    let dashboard = dashboard();
    let all = [expressions(panels(&dashboard), "title"), expressions(annotations(&dashboard), "name")].concat();
    for (title, expression) in &all {
        assert!(documented(expression) > 0, "{title}: {expression}");
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        documented(&variable["query"].to_string());
    }
    let Some(promtool) = Tool::find("promtool") else { return println!("skipped: there is no promtool") };
    // A rule for each: promtool checks expressions only as part of one.
    let rules = all.iter().enumerate().map(|(number, (_, expression))| {
        serde_json::json!({"record": format!("dashboard:expression_{number}"), "expr": expression})
    });
    let rules = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    let folder = tempfile::tempdir().unwrap();
    // JSON is YAML.
    let file = folder.path().join("rules.yml");
    std::fs::write(&file, rules.to_string()).unwrap();
    let checked = promtool.run(["check", "rules", file.to_str().unwrap()]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stdout.contains(&format!("SUCCESS: {} rules found", all.len())), "{checked:?}");
}

/// Two clusters that have, between them, all that there are metrics of: certificates, outbound requests and a collector of
/// traces, and stores with a keeper. The second is the first one's upstream.
fn sites() -> [(Cluster, SocketAddr); 2] {
    let stores = serve("stores", &[]);
    let upstream = format!("http://{}", stores.0.address());
    let setup = Setup::new(&guest("sdk")).args(&["--listen", "https://127.0.0.1:0"]);
    let authority = Authority::new("test");
    let [cert, key] = authority.issue(&["localhost"]).write(setup.folder.path(), "site");
    let setup = setup.args(&["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]);
    let gates = ["--min-ready", "0s", "--soak", "0s"];
    let setup = setup.args(&["--admin", "127.0.0.1:0", "--otlp", "http://127.0.0.1:9", "--allow-host", &upstream]);
    let cluster = setup.args(&gates).start();
    handshake(&cluster, &authority);
    let address = admin(&cluster);
    [(cluster, address), stores]
}

#[tokio::main(flavor = "current_thread")]
async fn handshake(cluster: &Cluster, authority: &Authority) {
    let client = TlsClient::new(authority);
    client.connect(cluster.address_of(1), "localhost").await.unwrap();
}

/// Requests of each kind that is counted for itself.
#[tokio::main(flavor = "current_thread")]
async fn some_load(site: SocketAddr, upstream: SocketAddr) {
    for (address, path) in
        [(upstream, "/default/key?increment=1"), (site, "/count"), (site, &format!("/fetch?url=http://{upstream}/"))]
    {
        assert_eq!(get(address, path).await.unwrap().status, 200, "{path}");
    }
}

/// A real Prometheus has an answer for each panel, and sees a new version and one that failed.
#[test]
fn each_panel_of_the_dashboard_shows_something() {
    let Some(prometheus) = Tool::find("prometheus") else { return println!("skipped: there is no prometheus") };
    let [(site, first), (stores, second)] = sites();
    let prometheus = Prometheus::start(&prometheus, site.folder.path(), &[first, second]);
    let dashboard = dashboard();
    let finds = |expression: &str| prometheus.values(expression).iter().any(|value| value.is_finite());
    let asked = expressions(panels(&dashboard), "title");
    assert!(asked.len() > 40, "{}", asked.len());
    for (title, expression) in asked {
        until(&format!("{title} shows something: {expression}"), || {
            some_load(site.address(), stores.address());
            finds(&expression).then_some(())
        });
    }

    let failed = site.reload(&[fixture("traps-at-start.wat").to_str().unwrap()]);
    assert_ne!(failed.code, Some(0), "{failed:?}");
    assert_eq!(site.reload(&[]).code, Some(0));
    for (name, expression) in expressions(annotations(&dashboard), "name") {
        // Prometheus knows nothing yet of what was a minute ago. What was true at any second is found, however long it takes.
        let ever = format!("max_over_time(({})[10m:1s])", expression.replace("offset 1m", "offset 3s"));
        until(&format!("{name} are marked: {ever}"), || finds(&ever).then_some(()));
    }
}
