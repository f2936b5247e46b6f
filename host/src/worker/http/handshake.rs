//! Connections of https listeners: from the first byte to the end of the handshake, and then HTTP over TLS.
//!
//! Until its handshake is done a connection counts as an idle one: a deadline is over all of it, it makes room for others,
//! and when its worker drains it has the grace of those whose request may be on its way.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::accept::Admission;
use super::connection::Connection;
use super::drain::{ConnectionEvent, Duty, Timeouts};
use super::outcome::{Outcome, Verdict};
use super::peer::Peer;
use super::server::{Listed, Server};
use super::timer::Timer;
use super::tls::{Handshakes, NoHandshake, SecureStream, negotiate};
use crate::tls::credentials::{PROTOCOLS, Protocol};
use crate::worker::Phase;

/// How long a client that is to come again may take for what comes before its request.
const REFUSAL: Duration = Duration::from_secs(1);
/// How long a client is heard out that was told to use https: closed with bytes unread, the connection would be reset, and
/// the answer lost.
const HEARD_OUT: Duration = Duration::from_secs(1);
/// For clients that speak HTTP in clear text.
const NOT_HTTPS: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 48\r\nconnection: close\r\n\r\n\
                         this is an https port: use a URL with https://\r\n";

impl Server {
    /// Serves a connection of an https listener to its end.
    pub(super) async fn serve_tls(
        self: Rc<Self>,
        stream: TcpStream,
        peer: Peer,
        handshakes: &Handshakes,
        admission: Admission,
        alive: mpsc::Sender<()>,
    ) {
        let (stream, protocol) = match self.encrypted(stream, peer.clone(), handshakes, admission).await {
            Ok(encrypted) => encrypted,
            Err(NoHandshake::Silence) => return,
            Err(NoHandshake::ClearText(stream)) => return self.send_to_https(stream).await,
            Err(NoHandshake::Failed(error)) => {
                tracing::debug!("a TLS handshake failed: {error}");
                return self.stats.handshakes_failed.increment();
            }
        };
        let peer = peer.verified(stream.session().peer_certificates());
        self.serve_stream(stream, protocol, peer, admission, alive).await;
    }

    /// Ends with the handshake, or when it is due to end, or the connection has to make room.
    async fn encrypted(
        &self,
        stream: TcpStream,
        peer: Peer,
        handshakes: &Handshakes,
        admission: Admission,
    ) -> Result<(SecureStream, Protocol), NoHandshake> {
        let has_begun = Cell::new(false);
        let negotiated = negotiate(stream, handshakes, &has_begun);
        let stream = match self.before_requests(self.limits.tls_handshake_timeout, admission, peer, negotiated).await {
            Some(negotiated) => negotiated?,
            None if !has_begun.get() && *self.phases.borrow() == Phase::Draining => return Err(NoHandshake::Silence),
            None => return Err(NoHandshake::Failed(io::Error::new(io::ErrorKind::TimedOut, "it took too long"))),
        };
        let session = stream.session();
        self.stats.handshakes.increment();
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.stats.handshakes_resumed.increment();
        }
        let chosen = PROTOCOLS.iter().find(|(name, _)| session.alpn_protocol() == Some(name));
        let protocol = chosen.map_or(Protocol::Http1, |(_, protocol)| *protocol);
        Ok((stream, protocol))
    }

    /// What comes of `work`, with which a connection begins before its first request. `None` if it is not done `within` that
    /// time, or the connection has to make room, or has had the grace of a drain.
    pub(super) async fn before_requests<T>(
        &self,
        within: Duration,
        admission: Admission,
        peer: Peer,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let within = match admission {
            Admission::Serve => within,
            Admission::Refuse => REFUSAL,
        };
        // Idle to its end, so that one deadline is over all of it; in a drain it has the grace of an idle connection.
        let timeouts = Timeouts { keep_alive: within, header: within, ..self.timeouts };
        let connection = Rc::new(Connection::new(self.started, timeouts, 1, self.buffers.clone(), peer));
        let _listed = (admission == Admission::Serve).then(|| Listed::new(self, connection.clone()));
        self.make_room();
        let (mut work, mut phases) = (pin!(work), self.phases.clone());
        // The sender lives as long as the process, so waiting cannot fail.
        let mut drain_begins = pin!(phases.wait_for(|&phase| phase == Phase::Draining));
        let mut timer = Timer::default();
        poll_fn(|context| {
            connection.polled(context);
            if !connection.is_draining() && drain_begins.as_mut().poll(context).is_ready() {
                connection.step(ConnectionEvent::DrainBegan);
            }
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            while let Some(deadline) = connection.next_deadline().filter(|_| connection.duty() == Duty::Serve) {
                ready!(timer.poll(deadline, context));
                connection.step(ConnectionEvent::DeadlinePassed);
            }
            Poll::Ready(None)
        })
        .await
    }

    /// Tells a client that speaks clear text that this is an https port.
    async fn send_to_https(&self, mut stream: TcpStream) {
        tracing::debug!("refused a connection: it spoke clear text to an https port");
        Outcome::of_no_request(Verdict::Refused).count(self.stats);
        // What the kernel does not take at once is not sent.
        if stream.try_write(NOT_HTTPS.as_bytes()).is_err() || stream.shutdown().await.is_err() {
            return;
        }
        let mut discarded = [0; 1024];
        let hear_out = async { while matches!(stream.read(&mut discarded).await, Ok(1..)) {} };
        let _ = tokio::time::timeout(HEARD_OUT, hear_out).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_clear_text_has_the_length_that_it_says() {
        let (head, body) = NOT_HTTPS.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
}
