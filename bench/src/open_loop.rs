//! Requests at a fixed rate, whatever becomes of them, beside requests that never leave the server idle. A latency counts
//! from the moment a request was due, so a server that stalls cannot hide it by holding up the client.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::http;
use crate::stats::quantile;

/// As many as the server answers at the same time by default. With fewer, the client would be the queue.
const CONNECTIONS: usize = 256;
/// Requests from the first moments do not count.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the last answers are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct OpenLoop<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) path: &'a str,
    /// Requests per second.
    pub(crate) rate: f64,
    pub(crate) time: Duration,
    /// Requests for this path that are under way all the time.
    pub(crate) beside: (usize, &'a str),
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    received: Vec<u8>,
    /// When the request was due that is under way.
    due: Option<Instant>,
    is_beside: bool,
}

impl OpenLoop<'_> {
    /// The 99th percentile, in milliseconds.
    pub(crate) fn p99(&self) -> Result<f64> {
        let open = |path, is_beside| Connection::open(self.address, path, is_beside);
        let (count, beside) = self.beside;
        let mut connections = (0..CONNECTIONS)
            .map(|_| open(self.path, false))
            .chain((0..count).map(|_| open(beside, true)))
            .collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        for connection in connections.iter_mut().filter(|connection| connection.is_beside) {
            connection.send(start)?;
        }

        let total = ((WARM_UP + self.time).as_secs_f64() * self.rate) as usize;
        let due_at = |number: usize| start + Duration::from_secs_f64(number as f64 / self.rate);
        let end = due_at(total) + PATIENCE;
        let (mut scheduled, mut answered) = (0, 0);
        let mut waiting = VecDeque::new();
        let mut latencies = Vec::with_capacity(total);
        while answered < total {
            let now = Instant::now();
            ensure!(now < end, "{} of {total} requests were not answered in time", total - answered);
            while scheduled < total && due_at(scheduled) <= now {
                waiting.push_back(due_at(scheduled));
                scheduled += 1;
            }
            let mut idle = connections.iter_mut().filter(|connection| connection.due.is_none());
            while !waiting.is_empty()
                && let Some(connection) = idle.next()
            {
                connection.send(waiting.pop_front().expect("it is not empty"))?;
            }
            let next = if scheduled < total { due_at(scheduled) } else { end };
            for index in readable(&connections, next.saturating_duration_since(Instant::now()))? {
                let connection = &mut connections[index];
                let Some(due) = connection.receive()? else { continue };
                if connection.is_beside {
                    connection.send(Instant::now())?;
                    continue;
                }
                answered += 1;
                if due >= start + WARM_UP {
                    latencies.push(due.elapsed().as_secs_f64() * 1000.0);
                }
            }
        }
        latencies.sort_by(f64::total_cmp);
        quantile(&latencies, 0.99).context("no request was due")
    }
}

/// Which connections have something to read, or had to be waited for until then in vain.
fn readable(connections: &[Connection], time: Duration) -> Result<Vec<usize>> {
    let mut fds: Vec<PollFd> =
        connections.iter().map(|connection| PollFd::new(connection.stream.as_fd(), PollFlags::POLLIN)).collect();
    match ppoll(&mut fds, Some(TimeSpec::from_duration(time)), None) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error).context("waiting for answers"),
    }
    Ok(fds.iter().enumerate().filter(|(_, fd)| fd.any().unwrap_or(false)).map(|(index, _)| index).collect())
}

impl Connection {
    fn open(address: SocketAddr, path: &str, is_beside: bool) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, request: http::request(address, path), received: Vec::new(), due: None, is_beside })
    }

    /// A request is small: it fits into the buffer of a connection that has nothing else under way.
    fn send(&mut self, due: Instant) -> Result<()> {
        self.stream.write_all(&self.request).context("sending a request")?;
        self.due = Some(due);
        Ok(())
    }

    /// When the request was due whose answer is complete now.
    fn receive(&mut self) -> Result<Option<Instant>> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(count) => self.received.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(None),
            Err(error) => return Err(error).context("receiving an answer"),
        }
        let Some((answer, length)) = http::parse(&self.received)? else { return Ok(None) };
        ensure!(answer.status == 200, "a request was answered with status {}", answer.status);
        ensure!(length == self.received.len(), "more came than an answer");
        self.received.clear();
        Ok(self.due.take())
    }
}
