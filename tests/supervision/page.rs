//! The page at the admin address, in a real browser.

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use harness::browser::Browser;
use harness::client::get;
use harness::tools::Tool;
use harness::{Setup, guest, until};

use super::admin::{admin, serve};

/// The texts of a column's cells, from the top.
fn column(page: &mut Browser, name: &str) -> Value {
    page.value(&format!(
        "(() => {{ const heading = document.querySelector('[data-column={name}]').parentElement; \
         return [...document.querySelectorAll('#workers tr')].map((row) => row.cells[heading.cellIndex].textContent); }})()"
    ))
}

#[track_caller]
fn shows(page: &mut Browser, name: &str, expected: Value) {
    until(&format!("{name} is {expected}"), || (column(page, name) == expected).then_some(()));
}

fn sorts(page: &mut Browser) -> Value {
    page.value("[...document.querySelectorAll('[aria-sort]')].map((it) => [it.innerText.trim(), it.ariaSort])")
}

/// What people see.
#[test]
fn chromium_shows_the_cluster() {
    let Some(chromium) = Tool::find("chromium") else { return println!("skipped: there is no chromium") };
    let (cluster, address) = serve("hello", &[]);
    let mut page = Browser::open(&chromium, &format!("http://{address}/"));
    let worker = cluster.worker(0).unwrap().to_string();
    // The browser may look before the page has heard of anything.
    until("the page shows it", || {
        let text = page.value("document.body.innerText");
        let is_shown = ["running", "1, served now", &worker, "hello.wasm"]
            .iter()
            .all(|it| text.as_str().unwrap_or_default().contains(it));
        (is_shown && page.value("state.className") == "state good").then_some(())
    });
}

/// By mouse and by keyboard; the address keeps the order.
#[test]
fn workers_are_sorted_by_what_is_clicked() {
    let Some(chromium) = Tool::find("chromium") else { return println!("skipped: there is no chromium") };
    let setup = Setup::new(&guest("scenarios")).workers(3).args(&["--admin", "127.0.0.1:0", "--min-ready", "0s"]);
    let cluster = setup.start();
    let killed = cluster.worker(1).unwrap();
    kill(killed, Signal::SIGKILL).unwrap();
    cluster.replaced(1, killed);
    let mut page = Browser::open(&chromium, &format!("http://{}/", admin(&cluster)));
    shows(&mut page, "restarts", json!(["0", "1", "0"]));
    assert_eq!(sorts(&mut page), json!([["Slot", "ascending"]]));

    page.click("[data-column=restarts]");
    shows(&mut page, "slot", json!(["1", "0", "2"]));
    assert_eq!(sorts(&mut page), json!([["Restarts", "descending"]]));
    // The focus is where it was clicked, and stays there while rows come and go.
    page.press("Enter");
    shows(&mut page, "slot", json!(["0", "2", "1"]));
    assert_eq!(sorts(&mut page), json!([["Restarts", "ascending"]]));
    assert_eq!(page.value("location.hash"), "#sort=restarts,ascending");
    page.reload();
    shows(&mut page, "slot", json!(["0", "2", "1"]));

    // Back to the first heading, and with the next key to the second.
    page.value("document.querySelector('[data-column=rate]').focus()");
    page.press("Tab");
    page.press("Enter");
    assert_eq!(page.value("location.hash"), "#sort=cpu,descending");
    until("the worker whose guest computed is first", || {
        spin(cluster.address());
        let shares = column(&mut page, "cpu");
        let shares: Vec<f64> =
            shares.as_array()?.iter().map(|it| it.as_str()?.strip_suffix(" %")?.parse().ok()).collect::<Option<_>>()?;
        (shares[0] > 0.0 && shares.is_sorted_by(|a, b| a >= b)).then_some(())
    });
    // What is no order is the usual one.
    page.value("location.hash = '#sort=toString,ascending'");
    shows(&mut page, "slot", json!(["0", "1", "2"]));
    assert_eq!(page.value("document.cookie + localStorage.length"), "0");
}

#[tokio::main(flavor = "current_thread")]
async fn spin(address: std::net::SocketAddr) {
    assert_eq!(get(address, "/spin?ms=50").await.unwrap().status, 200);
}
