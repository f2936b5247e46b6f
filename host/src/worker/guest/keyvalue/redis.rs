//! A store in a Redis or Valkey: one connection of the worker, which all its requests share, and another when that is lost.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Arg, AsyncConnectionConfig, Cmd, ProtocolVersion, RedisConnectionInfo, RedisError, Value, cmd};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::outbound::dialer::Dialer;
use super::StoreError;
use crate::grants::{RedisPlace, RedisServer};
use crate::keyvalue::file::{KeyPage, too_much};
use crate::keyvalue::{Write, WriteFailure, Written};
use crate::settings::{MAX_HOSTCALL, MAX_KEY, MAX_PAGE};

/// How long a connection may take to come about, if that is less than an answer may.
const MAX_CONNECT: Duration = Duration::from_secs(2);
/// After how long it is tried again, at first; doubles.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// Bytes that an answer has beside a value.
const OVERHEAD: u64 = 4096;
/// Bytes of an answer with values or keys: others may have put longer ones there than guests may.
const MAX_ANSWER: u64 = MAX_HOSTCALL as u64 + OVERHEAD * MAX_PAGE as u64;
/// Bytes of commands that are under way, those included whose guests are gone; and in what shares they are counted.
const MAX_UNDER_WAY: u64 = 64 << 20;
const SHARE: u64 = 1024;
/// What a server says that has become a replica: by its name or address there may be another by now.
const DEMOTED: [&str; 2] = ["READONLY", "MASTERDOWN"];

/// Sets the value if it is still the one that is expected, on the server: nobody comes between.
const SWAP: &str = "local value = redis.call('GET', KEYS[1]) \
                    if ARGV[1] == '1' then if value ~= ARGV[2] then return 0 end elseif value then return 0 end \
                    redis.call('SET', KEYS[1], ARGV[3]) return 1";

/// A store in a Redis.
pub(super) struct RedisStore {
    place: RedisPlace,
    dialer: Arc<Dialer>,
    line: Mutex<RedisLine>,
    /// Bytes of commands that are under way, in [`SHARE`]s.
    room: Arc<Semaphore>,
    max_value: u64,
    timeout: Duration,
}

/// The way to the server.
enum RedisLine {
    /// There is none.
    Down {
        /// Tries in a row that have failed, when the next is due, and why the last one failed.
        failures: u32,
        due: Option<Instant>,
        reason: String,
    },
    /// One is about to come, or not; all who want it wait for that.
    Connecting(watch::Receiver<Option<Result<RedisConnection, String>>>),
    Connected(RedisConnection),
}

impl Default for RedisLine {
    fn default() -> Self {
        Self::Down { failures: 0, due: None, reason: String::new() }
    }
}

#[derive(Clone)]
struct RedisConnection {
    redis: MultiplexedConnection,
    allowance: Arc<AnswerBudget>,
    driver: Arc<RedisDriver>,
}

impl RedisConnection {
    /// Whether nothing has shown that it is closed.
    fn is_open(&self) -> bool {
        !self.driver.0.is_finished()
    }
}

/// What reads and writes. Left alone, it would keep the connection of a server that takes nothing for ever, with all that
/// is to be sent.
struct RedisDriver(JoinHandle<()>);

impl Drop for RedisDriver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why there was no answer of the server's.
enum NoAnswer {
    /// It was asked for nothing.
    Unreached(String),
    /// It was asked, and may have done it.
    Lost(String),
    /// It has refused.
    Refused(String),
}

impl From<NoAnswer> for StoreError {
    /// Of what changes nothing.
    fn from(none: NoAnswer) -> Self {
        match none {
            NoAnswer::Unreached(reason) | NoAnswer::Lost(reason) | NoAnswer::Refused(reason) => Self::Other(reason),
        }
    }
}

impl From<NoAnswer> for WriteFailure {
    fn from(none: NoAnswer) -> Self {
        match none {
            NoAnswer::Lost(reason) => Self::Unknown(reason),
            NoAnswer::Unreached(reason) => Self::Refused(format!("{reason}; nothing was written")),
            NoAnswer::Refused(reason) => Self::Refused(reason),
        }
    }
}

impl RedisStore {
    pub(super) fn new(place: RedisPlace, dialer: Arc<Dialer>, max_value: u64, timeout: Duration) -> Arc<Self> {
        let room = Arc::new(Semaphore::new((MAX_UNDER_WAY / SHARE) as usize));
        Arc::new(Self { place, dialer, line: Mutex::default(), room, max_value, timeout })
    }

    pub(super) async fn get(self: &Arc<Self>, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        bytes(self.ask(cmd("GET").arg(self.key(key)).take(), MAX_ANSWER).await?)
    }

    pub(super) async fn has(self: &Arc<Self>, key: &str) -> Result<bool, StoreError> {
        match self.ask(cmd("EXISTS").arg(self.key(key)).take(), OVERHEAD).await? {
            Value::Int(number) => Ok(number > 0),
            _ => Err(nonsense()),
        }
    }

    /// As many at once as an answer may have.
    pub(super) async fn get_all(self: &Arc<Self>, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let at_once = (MAX_HOSTCALL as u64 / self.max_value).clamp(1, MAX_PAGE as u64);
        let (mut found, mut left, deadline) = (Vec::new(), MAX_HOSTCALL, Instant::now() + self.timeout);
        for keys in keys.chunks(at_once as usize) {
            let mut get = cmd("MGET");
            get.arg(keys.iter().map(|key| self.key(key)).collect::<Vec<_>>());
            let Value::Array(values) = self.ask_until(deadline, get, MAX_ANSWER).await? else {
                return Err(nonsense());
            };
            if values.len() != keys.len() {
                return Err(nonsense());
            }
            for value in values {
                let value = bytes(value)?;
                left = left.checked_sub(value.as_ref().map_or(0, Vec::len)).ok_or_else(|| too_much(MAX_HOSTCALL))?;
                found.push(value);
            }
        }
        Ok(found)
    }

    /// A page of the server's own, in which a key may come twice.
    pub(super) async fn keys(self: &Arc<Self>, cursor: Option<&str>) -> Result<KeyPage, StoreError> {
        let cursor = cursor.map_or(Ok(0), str::parse::<u64>);
        let cursor = cursor.map_err(|_| StoreError::Other("the cursor is none of this store's".into()))?;
        let mut scan = cmd("SCAN");
        scan.arg(cursor);
        if !self.place.prefix.is_empty() {
            scan.arg("MATCH").arg(format!("{}*", escaped(&self.place.prefix)));
        }
        scan.arg("COUNT").arg(MAX_PAGE);
        let Value::Array(answer) = self.ask(scan, MAX_ANSWER).await? else { return Err(nonsense()) };
        let [next, Value::Array(keys)] = &answer[..] else { return Err(nonsense()) };
        let next = bytes(next.clone())?.and_then(|next| str::from_utf8(&next).ok()?.parse::<u64>().ok());
        let next = next.ok_or_else(nonsense)?;
        // What no guest could have set is not there for guests.
        let of_guests = |key: &Value| match key {
            Value::BulkString(key) => Some(str::from_utf8(key).ok()?.strip_prefix(&self.place.prefix)?.to_owned()),
            _ => None,
        };
        let keys = keys.iter().filter_map(of_guests).filter(|key| (1..=MAX_KEY).contains(&key.len())).collect();
        Ok((keys, Some(next).filter(|&next| next != 0).map(|next| next.to_string())))
    }

    pub(super) async fn write(self: &Arc<Self>, write: Write) -> Result<Written, WriteFailure> {
        let command = match &write {
            Write::Set(pairs) if pairs.is_empty() => return Ok(Written::Done),
            Write::Delete(keys) if keys.is_empty() => return Ok(Written::Done),
            Write::Set(pairs) => {
                let mut set = cmd("MSET");
                for (key, value) in pairs {
                    set.arg(self.key(key)).arg(value);
                }
                set
            }
            Write::Delete(keys) => {
                let mut delete = cmd("DEL");
                delete.arg(keys.iter().map(|key| self.key(key)).collect::<Vec<_>>());
                delete
            }
            Write::Increment { key, by } => cmd("INCRBY").arg(self.key(key)).arg(*by).take(),
            Write::Swap { key, from, to } => {
                let is_there = if from.is_some() { "1" } else { "0" };
                let from = from.as_deref().unwrap_or_default();
                cmd("EVAL").arg(SWAP).arg(1).arg(self.key(key)).arg(is_there).arg(from).arg(to).take()
            }
        };
        let answer = self.ask(command, OVERHEAD).await?;
        match (write, answer) {
            (Write::Set(_), Value::Okay) | (Write::Delete(_), Value::Int(_)) => Ok(Written::Done),
            (Write::Increment { .. }, Value::Int(sum)) => Ok(Written::Sum(sum)),
            (Write::Swap { .. }, Value::Int(swapped @ (0 | 1))) => Ok(Written::Swapped(swapped == 1)),
            _ => Err(WriteFailure::Unknown("the server's answer makes no sense".into())),
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.place.prefix)
    }

    /// Asks the server, whose answer has at most so many bytes.
    async fn ask(self: &Arc<Self>, command: Cmd, most: u64) -> Result<Value, NoAnswer> {
        self.ask_until(Instant::now() + self.timeout, command, most).await
    }

    async fn ask_until(self: &Arc<Self>, deadline: Instant, command: Cmd, most: u64) -> Result<Value, NoAnswer> {
        // Whoever is cancelled leaves this behind, until its time is over.
        let shares = size_of_command(&command).div_ceil(SHARE);
        let Ok(room) = self.room.clone().try_acquire_many_owned(u32::try_from(shares).unwrap_or(u32::MAX)) else {
            return Err(NoAnswer::Unreached(format!("too much waits for {}", self.place)));
        };
        let store = self.clone();
        // To its end, though its guest may be cancelled: the answer comes nevertheless.
        let asking = tokio::spawn(async move {
            let answer = store.exchange(deadline, command, most).await;
            drop(room);
            answer
        });
        asking.await.unwrap_or_else(|_| Err(NoAnswer::Lost("the worker is about to end".into())))
    }

    async fn exchange(self: Arc<Self>, deadline: Instant, command: Cmd, most: u64) -> Result<Value, NoAnswer> {
        let connected = match timeout_at(deadline, self.connected()).await {
            Ok(connected) => connected.map_err(NoAnswer::Unreached)?,
            Err(_) => return Err(NoAnswer::Unreached(self.late())),
        };
        let RedisConnection { mut redis, allowance, .. } = connected.clone();
        let expected = allowance.allow(most);
        match timeout_at(deadline, redis.send_packed_command(&command)).await {
            Ok(Ok(Value::ServerError(error))) => {
                if DEMOTED.contains(&error.code()) {
                    self.lose(&connected);
                }
                let (code, details) = (error.code(), error.details().unwrap_or_default());
                Err(NoAnswer::Refused(format!("{} says: {code} {details}", self.place)))
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if is_of_the_server(&error) => {
                if error.code().is_some_and(|code| DEMOTED.contains(&code)) {
                    self.lose(&connected);
                }
                Err(NoAnswer::Refused(format!("{} says: {error}", self.place)))
            }
            Ok(Err(error)) => {
                self.lose(&connected);
                Err(NoAnswer::Lost(format!("the connection to {} was lost: {error}", self.place)))
            }
            Err(_) => {
                // It may be dead without a word. If not, its answer is not at the cost of those who wait behind.
                expected.may_still_come();
                self.lose(&connected);
                Err(NoAnswer::Lost(self.late()))
            }
        }
    }

    fn late(&self) -> String {
        format!("{} did not answer within --kv-timeout {}", self.place, humantime::format_duration(self.timeout))
    }

    fn line(&self) -> std::sync::MutexGuard<'_, RedisLine> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, or a new one; or why there is none.
    async fn connected(self: &Arc<Self>) -> Result<RedisConnection, String> {
        let mut coming = {
            let mut line = self.line();
            let failures = match &*line {
                RedisLine::Connected(connected) if connected.is_open() => return Ok(connected.clone()),
                RedisLine::Down { due: Some(due), reason, .. } if Instant::now() < *due => return Err(reason.clone()),
                RedisLine::Down { failures, .. } => Some(*failures),
                RedisLine::Connected(_) => Some(0),
                RedisLine::Connecting(_) => None,
            };
            if let Some(failures) = failures {
                let (tell, told) = watch::channel(None);
                // For all who wait, whoever of them gives up.
                tokio::spawn(self.clone().try_to_connect(failures, tell));
                *line = RedisLine::Connecting(told);
            }
            let RedisLine::Connecting(told) = &*line else { return Err("it is not tried".into()) };
            told.clone()
        };
        let come = coming.wait_for(Option::is_some).await;
        come.ok().and_then(|come| come.clone()).unwrap_or_else(|| Err("the worker is about to end".into()))
    }

    async fn try_to_connect(
        self: Arc<Self>,
        failures: u32,
        tell: watch::Sender<Option<Result<RedisConnection, String>>>,
    ) {
        let patience = MAX_CONNECT.min(self.timeout);
        let tried = timeout(patience, self.connect()).await;
        let tried = tried.unwrap_or_else(|_| Err(format!("it took longer than {patience:?}")));
        let tried = tried.map_err(|reason| format!("cannot connect to {}: {reason}", self.place));
        *self.line() = match &tried {
            Ok(connected) => RedisLine::Connected(connected.clone()),
            Err(reason) => {
                tracing::debug!("{reason}");
                let wait = FIRST_BACKOFF.saturating_mul(1 << failures.min(8)).min(MAX_BACKOFF);
                let due = Some(Instant::now() + wait);
                RedisLine::Down { failures: failures.saturating_add(1), due, reason: reason.clone() }
            }
        };
        let _ = tell.send(Some(tried));
    }

    /// The next request gets another connection, unless somebody has one already.
    fn lose(&self, lost: &RedisConnection) {
        let mut line = self.line();
        if matches!(&*line, RedisLine::Connected(now) if Arc::ptr_eq(&now.driver, &lost.driver)) {
            *line = RedisLine::default();
        }
    }

    async fn connect(&self) -> Result<RedisConnection, String> {
        let allowance = Arc::new(AnswerBudget::default());
        // What the server says to a greeting.
        let _allowed = allowance.allow(OVERHEAD);
        match &self.place.server {
            RedisServer::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
                self.greet(stream, allowance.clone()).await
            }
            RedisServer::Tcp { host, port, tls } => {
                let stream = self.dialer.connect(host, *port).await?;
                if *tls {
                    let stream = self.dialer.encrypt(host, stream).await?;
                    self.greet(stream, allowance.clone()).await
                } else {
                    self.greet(stream, allowance.clone()).await
                }
            }
        }
    }

    async fn greet<S>(&self, stream: S, allowance: Arc<AnswerBudget>) -> Result<RedisConnection, String>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let RedisPlace { user, password, db, .. } = &self.place;
        let mut info = RedisConnectionInfo::default().set_db(i64::from(*db)).set_protocol(ProtocolVersion::RESP2);
        info = info.set_skip_set_lib_name();
        if let Some(user) = user {
            info = info.set_username(user);
        }
        if let Some(password) = password {
            info = info.set_password(password);
        }
        // Time is kept for each request, from its beginning.
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let stream = Rationed { stream, allowance: allowance.clone() };
        let connected = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (mut redis, driver) = connected.map_err(|error| error.to_string())?;
        let driver = Arc::new(RedisDriver(tokio::spawn(driver)));
        // A server that is full, or has nothing behind it, is one that accepts too. Who may not ask this has been heard.
        match redis.send_packed_command(&cmd("PING")).await {
            Ok(Value::ServerError(error)) if error.code() != "NOPERM" => {
                return Err(format!("{} {}", error.code(), error.details().unwrap_or_default()));
            }
            Err(error) if error.code() != Some("NOPERM") => return Err(error.to_string()),
            Ok(_) | Err(_) => {}
        }
        Ok(RedisConnection { redis, allowance, driver })
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.place.fmt(f)
    }
}

/// Roughly, in bytes.
fn size_of_command(command: &Cmd) -> u64 {
    let sizes = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes.len() as u64,
        _ => 0,
    });
    sizes.sum::<u64>() + SHARE
}

/// Whether the server has said so, and not what is between.
fn is_of_the_server(error: &RedisError) -> bool {
    matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension)
}

fn nonsense() -> StoreError {
    StoreError::Other("the server's answer makes no sense".into())
}

fn bytes(value: Value) -> Result<Option<Vec<u8>>, StoreError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes)),
        _ => Err(nonsense()),
    }
}

/// A text as a pattern of `MATCH` that means just that.
fn escaped(text: &str) -> String {
    let special = |c: char| matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-');
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// How many bytes may come: those of the answers that are waited for. A server that sends more is cut.
#[derive(Default)]
struct AnswerBudget(Mutex<Allowed>);

#[derive(Default)]
struct Allowed {
    /// Of all that is waited for.
    outstanding: u64,
    /// Of these, what may come yet.
    left: u64,
}

impl AnswerBudget {
    fn allow(self: &Arc<Self>, bytes: u64) -> Expected {
        let mut allowed = self.lock();
        allowed.outstanding += bytes;
        allowed.left += bytes;
        Expected(self.clone(), bytes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Allowed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, bytes: u64) -> io::Result<()> {
        let mut allowed = self.lock();
        let left = allowed.left.checked_sub(bytes);
        allowed.left =
            left.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it sends more than was asked for"))?;
        Ok(())
    }
}

/// An answer that is waited for.
struct Expected(Arc<AnswerBudget>, u64);

impl Expected {
    /// Nobody waits for it any more, but what was allowed for it stays allowed.
    fn may_still_come(mut self) {
        self.1 = 0;
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut allowed = self.0.lock();
        allowed.outstanding -= self.1;
        // What this one has not used is not for others.
        allowed.left = allowed.outstanding;
    }
}

/// A stream of which no more is read than is allowed.
struct Rationed<S> {
    stream: S,
    allowance: Arc<AnswerBudget>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rationed<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        std::task::ready!(Pin::new(&mut this.stream).poll_read(context, into))?;
        let read = into.filled().len() - before;
        Poll::Ready(if read > 0 { this.allowance.take(read as u64) } else { Ok(()) })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rationed<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_comes_than_is_waited_for() {
        let allowance = Arc::new(AnswerBudget::default());
        assert!(allowance.take(1).is_err());
        let (one, other) = (allowance.allow(100), allowance.allow(10));
        assert!(allowance.take(60).is_ok() && allowance.take(51).is_err());
        drop(one);
        assert!(allowance.take(10).is_ok() && allowance.take(1).is_err());
        drop(other);
        assert!(allowance.take(1).is_err());
        // One that is late is not at the cost of those who wait.
        let (late, other) = (allowance.allow(100), allowance.allow(10));
        late.may_still_come();
        assert!(allowance.take(100).is_ok() && allowance.take(10).is_ok() && allowance.take(1).is_err());
        drop(other);
    }

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(escaped("app:*[a-z]?\\"), "app:\\*\\[a\\-z\\]\\?\\\\");
    }
}
