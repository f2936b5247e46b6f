//! The commands' end of a control socket.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixStream;

use super::protocol::{ReloadRequest, Scale, Scaled, Status, Stop};
use super::query::{EventsRequest, KEPT, LogsRequest};
use crate::settings::Changes;

/// How long a command waits for an answer: well beyond what the primary takes for its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer that a command reads, in bytes.
pub(crate) const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// How it begins that a primary cannot do what this command can ask for.
const OLDER: &str = "the primary of this cluster is older than this command";

/// Whether the other end is the same user's, or root's.
pub(crate) fn is_permitted(peer: &UnixStream) -> bool {
    peer.peer_cred().is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw() || peer.uid() == 0)
}

/// Why a command got no answer that it can use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(
        "no cluster is running with the control socket {0}; start one with `wasmcluster serve`, or name another with \
         --name or --control: `wasmcluster status --all` lists yours"
    )]
    NoServer(PathBuf),
    /// Why the cluster does not do it.
    #[error("{0}")]
    Refused(String),
    /// Why the cluster does not do it yet.
    #[error("{0}")]
    Busy(String),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// A process, as distinct from a later one with the same number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    /// When it began, in ticks since the machine did.
    began: u64,
}

impl Process {
    fn find(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind its name, which can be anything: the state, and 18 fields later when it began (proc(5)).
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        // One that nobody has waited for yet has ended all the same.
        let lives = !matches!(fields.next()?, "Z" | "X");
        let began = fields.nth(18)?.parse().ok()?;
        lives.then_some(Self { pid, began })
    }

    pub(crate) fn is_gone(&self) -> bool {
        Self::find(self.pid).as_ref() != Some(self)
    }
}

/// The commands' end of a control socket.
#[derive(Debug)]
pub(crate) struct Client(pub(crate) PathBuf);

impl Client {
    pub(crate) async fn status(&self) -> Result<Status, CommandError> {
        let body = self.request(Method::GET, "/status", Bytes::new()).await?;
        Ok(serde_json::from_slice(&body).context("the primary's answer does not parse")?)
    }

    pub(crate) async fn scale(&self, scale: Scale) -> Result<Scaled, CommandError> {
        let body = self.request(Method::POST, "/scale", json!(scale).to_string().into()).await?;
        Ok(serde_json::from_slice(&body).context("the primary's answer does not parse")?)
    }

    /// Says which process it is that stops, where that can be known.
    pub(crate) async fn stop(&self, stop: Stop) -> Result<Option<Process>, CommandError> {
        let stream = self.connect().await?;
        // As long as it answers, the number is that of no other.
        let primary = stream.peer_cred().ok().and_then(|peer| Process::find(peer.pid()?));
        self.request_over(stream, Method::POST, "/stop", json!(stop).to_string().into()).await?;
        Ok(primary)
    }

    pub(crate) async fn configure(&self, changes: &Changes) -> Result<(), CommandError> {
        self.request(Method::POST, "/config", json!(changes).to_string().into()).await.map(drop)
    }

    /// Every key with its value.
    pub(crate) async fn config(&self) -> Result<BTreeMap<String, String>, CommandError> {
        let body = self.request(Method::GET, "/config", Bytes::new()).await?;
        Ok(serde_json::from_slice(&body).context("the primary's answer does not parse")?)
    }

    /// The events as they come, lines of JSON, until the primary ends, and perhaps those before.
    pub(crate) async fn events(&self, request: &EventsRequest) -> Result<Incoming, CommandError> {
        let response = self.open(Method::GET, &request.path(), Bytes::new()).await?;
        if request.looks_back() && !response.headers().contains_key(KEPT) {
            // It would follow what comes, for ever.
            return Err(anyhow!("{OLDER} and keeps no events; leave out --since and --no-follow").into());
        }
        Ok(response.into_body())
    }

    /// The lines of the log that are asked for.
    pub(crate) async fn logs(&self, request: &LogsRequest) -> Result<Incoming, CommandError> {
        let response = in_time(exchange(self.connect().await?, Method::GET, &request.path(), Bytes::new())).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            StatusCode::NOT_FOUND => Err(anyhow!("{OLDER} and keeps no lines; they are where its output goes").into()),
            _ => Err(refusal(response).await?),
        }
    }

    /// How a reload goes, lines of JSON as among the events, until it is over.
    pub(crate) async fn reload(&self, request: &ReloadRequest) -> Result<Incoming, CommandError> {
        self.stream(Method::POST, "/reload", body_of(request)?).await
    }

    /// Likewise.
    pub(crate) async fn rollback(&self, request: &ReloadRequest) -> Result<Incoming, CommandError> {
        self.stream(Method::POST, "/rollback", body_of(request)?).await
    }

    /// Has the primary read its certificates again, and waits until every worker has them.
    pub(crate) async fn read_certificates(&self) -> Result<(), CommandError> {
        self.request(Method::POST, "/certificates", json!({}).to_string().into()).await.map(drop)
    }

    async fn stream(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, CommandError> {
        Ok(self.open(method, path, body).await?.into_body())
    }

    async fn open(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, CommandError> {
        let response = in_time(exchange(self.connect().await?, method, path, body)).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            _ => Err(refusal(response).await?),
        }
    }

    async fn connect(&self) -> Result<UnixStream, CommandError> {
        let stream = match UnixStream::connect(&self.0).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Err(CommandError::NoServer(self.0.clone()));
            }
            Err(error) => return Err(anyhow!("cannot connect to {}: {error}", self.0.display()).into()),
        };
        // Root may use everybody's clusters.
        if !nix::unistd::geteuid().is_root() && !is_permitted(&stream) {
            return Err(anyhow!("the process behind {} belongs to another user", self.0.display()).into());
        }
        Ok(stream)
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, CommandError> {
        let stream = self.connect().await?;
        self.request_over(stream, method, path, body).await
    }

    async fn request_over(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, CommandError> {
        in_time(async {
            let response = exchange(stream, method, path, body).await?;
            if response.status().is_success() { Ok(whole(response).await?) } else { Err(refusal(response).await?) }
        })
        .await
    }
}

/// Fails for paths that are not UTF-8, which JSON cannot express.
fn body_of(request: &ReloadRequest) -> anyhow::Result<Bytes> {
    Ok(serde_json::to_vec(request).context("the path is not UTF-8")?.into())
}

async fn in_time<T, E: Into<CommandError>>(answer: impl Future<Output = Result<T, E>>) -> Result<T, CommandError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(anyhow!("the primary did not answer within {PATIENCE:?}").into()),
    }
}

async fn exchange(stream: UnixStream, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header(http::header::HOST, "localhost").body(Full::new(body))?;
    Ok(sender.send_request(request).await?)
}

async fn whole(response: Response<Incoming>) -> anyhow::Result<Bytes> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    Ok(body.map_err(|error| anyhow!("reading the primary's answer: {error}"))?.to_bytes())
}

async fn refusal(response: Response<Incoming>) -> anyhow::Result<CommandError> {
    let status = response.status();
    let said: serde_json::Value = serde_json::from_slice(&whole(response).await?).unwrap_or_default();
    let reason = said["error"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    Ok(if said["busy"] == true { CommandError::Busy(reason) } else { CommandError::Refused(reason) })
}
