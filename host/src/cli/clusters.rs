//! `wasmcluster status --all`: lists the clusters of this user, found by their control sockets.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use super::output::{self, align, duration};
use crate::control::client::Client;
use crate::control::protocol::Status;
use crate::primary::Holder;
use crate::settings::paths;

/// Far more clusters than one user runs on a machine.
const MAX_CLUSTERS: usize = 256;
/// How long a cluster may take to answer before it is listed as `no answer`.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest name in the list, in characters, and what a line of 80 leaves for the addresses.
const MAX_NAME: usize = 18;
const MAX_LISTEN: usize = 22;

/// Prints one line for each cluster, or the status of all of them as JSON.
pub(super) async fn print(json: bool) -> anyhow::Result<()> {
    let mut asked = JoinSet::new();
    for socket in sockets() {
        asked.spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, Client(socket.clone()).status()).await;
            // A socket that refuses is not a cluster of ours, or a leftover that no process listens on.
            match answer {
                Ok(Ok(status)) => Some((socket, Some(status))),
                Ok(Err(_)) => None,
                Err(_) => Some((socket, None)),
            }
        });
    }
    let mut found: Vec<Found> = asked.join_all().await.into_iter().flatten().collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    let text = if json { as_json(&found) } else { table(&found) };
    Ok(output::print(text.as_bytes())?)
}

/// A control socket, and the status of its cluster if that answered in time.
type Found = (PathBuf, Option<Status>);

/// All sockets in the runtime folders, and those elsewhere that the locks in the state folder name.
fn sockets() -> Vec<PathBuf> {
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let having = |end: &'static str| move |path: &PathBuf| path.extension().is_some_and(|extension| extension == end);
    let beside = paths::runtime_folders().into_iter().flat_map(|folder| entries(folder).filter(having("sock")));
    let locks = paths::default_state().into_iter().flat_map(|folder| entries(folder).filter(having("lock")));
    let elsewhere = locks.filter_map(|lock| Some(Holder::read(&lock)?.control));
    // Keyed by real path: the same socket may be found both ways.
    let sockets = beside.chain(elsewhere).filter_map(|socket| Some((socket.canonicalize().ok()?, socket)));
    sockets.take(MAX_CLUSTERS).collect::<BTreeMap<_, _>>().into_values().collect()
}

fn as_json(found: &[Found]) -> String {
    let clusters: Vec<_> =
        found.iter().map(|(control, status)| json!({ "control": control, "status": status })).collect();
    format!("{}\n", json!(clusters))
}

fn table(found: &[Found]) -> String {
    if found.is_empty() {
        return "no cluster of yours is running\n".into();
    }
    let mut rows = vec![["NAME", "STATE", "PID", "UPTIME", "WORKERS", "LISTEN"].map(String::from)];
    rows.extend(found.iter().map(|(control, status)| match status {
        Some(status) => {
            let ready = status.workers.iter().filter(|worker| worker.state == "ready").count();
            [
                short(&status.name, MAX_NAME),
                short(&status.state, MAX_NAME),
                status.pid.to_string(),
                duration(status.uptime_ms),
                format!("{ready}/{}", status.workers.len()),
                listen(&status.listen),
            ]
        }
        None => {
            let name = control.file_stem().unwrap_or_default().to_string_lossy();
            let unknown = || String::from("-");
            [short(&name, MAX_NAME), "no answer".into(), unknown(), unknown(), unknown(), unknown()]
        }
    }));
    let mut text = String::new();
    align(&mut text, &rows);
    text
}

/// The first address, and how many more there are.
fn listen(urls: &[String]) -> String {
    let first = urls.first().map_or("-", |url| url.trim_start_matches("http://"));
    match urls.len() {
        0 | 1 => short(first, MAX_LISTEN),
        more => {
            let rest = format!(" +{}", more - 1);
            short(first, MAX_LISTEN - rest.len()) + &rest
        }
    }
}

/// At most `most` characters, without control characters: root sees text from other users' processes.
fn short(text: &str, most: usize) -> String {
    let plain: Vec<char> = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if plain.len() <= most {
        return plain.into_iter().collect();
    }
    plain[..most - 1].iter().chain(&['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_for_the_list_is_cut() {
        assert_eq!(short("shop", 4), "shop");
        assert_eq!(short("a shop\x1b[2J", 6), "a sho…");
        assert_eq!(short("\x1b[2J", 6), "?[2J");
        assert_eq!(listen(&["http://127.0.0.1:8080".into()]), "127.0.0.1:8080");
        let many = ["http://[2001:db8::1234:5678]:8080".into(), "unix:/run/app.sock".into()];
        assert_eq!(listen(&many), "[2001:db8::1234:56… +1");
        assert_eq!(listen(&many).chars().count(), MAX_LISTEN);
    }
}
