//! HTTP/2 for tests, in clear text and with prior knowledge: a [`Client`] of the library h2, which shows each stream as it
//! is, and a [`Wire`] that carries frames as the test has them.

use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::client::{Answer, soon};

/// One connection. Clones share it.
#[derive(Clone)]
pub struct Client {
    sender: SendRequest<Bytes>,
    ended: watch::Receiver<bool>,
}

/// A request whose head was sent.
pub struct Stream {
    /// Takes the body; see [`send_all`].
    pub body: SendStream<Bytes>,
    /// The answer, as soon as its head is there.
    pub answer: ResponseFuture,
}

/// A request for `path` without further headers.
pub fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://test{path}")).body(()).expect("a request")
}

impl Client {
    /// Connects to `address`.
    pub async fn open(address: SocketAddr) -> Self {
        Self::with(address, &Builder::new()).await
    }

    /// Connects with windows and limits of the test's own.
    pub async fn with(address: SocketAddr, builder: &Builder) -> Self {
        Self::over_with(soon(TcpStream::connect(address)).await.expect("a connection"), builder).await
    }

    /// Speaks HTTP/2 over a stream that is there already.
    pub async fn over(stream: TcpStream) -> Self {
        Self::over_with(stream, &Builder::new()).await
    }

    async fn over_with(stream: TcpStream, builder: &Builder) -> Self {
        let (sender, connection) = soon(builder.handshake(stream)).await.expect("HTTP/2");
        let (end, ended) = watch::channel(false);
        tokio::spawn(async move {
            // Its streams tell how it ended.
            let _ = connection.await;
            let _ = end.send(true);
        });
        Self { sender, ended }
    }

    /// Waits until another stream may be opened. Fails when the connection is ending.
    pub async fn ready(&mut self) -> Result<(), h2::Error> {
        soon(poll_fn(|context| self.sender.poll_ready(context))).await
    }

    /// Sends the head of a request, whose body is still to come.
    pub async fn begin(&mut self, request: Request<()>) -> Result<Stream, h2::Error> {
        self.ready().await?;
        let (answer, body) = self.sender.send_request(request, false)?;
        Ok(Stream { body, answer })
    }

    /// Sends a request without a body; the answer is still to come.
    pub async fn ask(&mut self, request: Request<()>) -> Result<Stream, h2::Error> {
        self.ready().await?;
        let (answer, body) = self.sender.send_request(request, true)?;
        Ok(Stream { body, answer })
    }

    /// Gets `path`, and reads the whole answer.
    pub async fn get(&mut self, path: &str) -> Result<Answer, h2::Error> {
        self.ask(request(Method::GET, path)).await?.whole().await
    }

    /// Posts `body` to `path`, and reads the whole answer.
    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Result<Answer, h2::Error> {
        let mut stream = self.begin(request(Method::POST, path)).await?;
        send_all(&mut stream.body, body.into(), true).await;
        stream.whole().await
    }

    /// Whether the server has said that it knows other protocols in a stream (RFC 8441).
    pub fn may_connect(&self) -> bool {
        self.sender.is_extended_connect_protocol_enabled()
    }

    /// Waits until the connection has ended.
    pub async fn ended(&mut self) {
        // It fails only when the connection's task is gone, too.
        let _ = soon(self.ended.wait_for(|&ended| ended)).await;
    }
}

impl Stream {
    /// The answer's head; its body is still to come.
    pub async fn head(self) -> Result<Response<RecvStream>, h2::Error> {
        soon(self.answer).await
    }

    /// Reads the answer to its end.
    pub async fn whole(self) -> Result<Answer, h2::Error> {
        whole(self.head().await?).await
    }
}

/// Reads an answer to its end.
pub async fn whole(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut rest) = response.into_parts();
    let mut body = Vec::new();
    while let Some(piece) = piece(&mut rest).await {
        body.extend_from_slice(&piece?);
    }
    let trailers = soon(rest.trailers()).await?;
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.into(), trailers })
}

/// The next piece of a body, whose sender may then send as much more.
pub async fn piece(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = soon(body.data()).await?;
    if let Ok(piece) = &piece {
        body.flow_control().release_capacity(piece.len()).expect("it was taken once");
    }
    Some(piece)
}

/// Sends `bytes` as fast as the server takes them, and the end of the body behind them if that is wanted. Whether all of
/// it was taken: a server need not want it.
pub async fn send_all(body: &mut SendStream<Bytes>, mut bytes: Bytes, is_end: bool) -> bool {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let capacity = match body.capacity() {
            0 => match soon(poll_fn(|context| body.poll_capacity(context))).await {
                Some(Ok(capacity)) => capacity,
                Some(Err(_)) | None => return false,
            },
            capacity => capacity,
        };
        let part = bytes.split_to(capacity.min(bytes.len()));
        if body.send_data(part, is_end && bytes.is_empty()).is_err() {
            return false;
        }
    }
    true
}

/// Whether the server has said that it did not begin with a request, so that it may be sent again (RFC 9113, section 8.7).
pub fn was_not_begun(error: &h2::Error) -> bool {
    error.reason() == Some(Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote())
}

/// What a connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Types of frames (RFC 9113, section 6).
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PING: u8 = 6;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// Flags of frames.
pub const ACK: u8 = 1;
/// See [`ACK`].
pub const END_STREAM: u8 = 1;
/// See [`ACK`].
pub const END_HEADERS: u8 = 4;
/// SETTINGS_INITIAL_WINDOW_SIZE, as [`Wire::open`] takes it.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 if it is about the connection.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The four bytes at `at`: GOAWAY has its last stream at 0 and its error at 4, RST_STREAM its error at 0.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The bytes of a frame that opens a stream with a request for `path`, in a header block without compression.
pub fn head(stream: u32, flags: u8, method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|&length| length < 127).expect("a short field"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS | flags, stream, &block)
}

/// A connection that carries frames as the test has them. It says and answers nothing by itself, but for the
/// acknowledgement of the server's settings.
pub struct Wire {
    stream: TcpStream,
    came: Vec<u8>,
    /// The server's settings are acknowledged.
    is_polite: bool,
}

impl Wire {
    /// Connects to `address`, and sends the preface and `settings`, which are pairs of identifier and value.
    pub async fn open(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut wire = Self::silent(address).await;
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| name.to_be_bytes().into_iter().chain(value.to_be_bytes()))
            .collect();
        wire.is_polite = true;
        wire.send(PREFACE).await;
        wire.send(&frame(SETTINGS, 0, 0, &settings)).await;
        wire
    }

    /// Connects to `address`, and sends nothing, nor acknowledges the server's settings.
    pub async fn silent(address: SocketAddr) -> Self {
        let stream = soon(TcpStream::connect(address)).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket of TCP");
        Self { stream, came: Vec::new(), is_polite: false }
    }

    /// Sends bytes. The server may have closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = soon(self.stream.write_all(bytes)).await;
    }

    /// Sends a request without a body for `path`.
    pub async fn get(&mut self, stream: u32, path: &str) {
        self.send(&head(stream, END_STREAM, "GET", path)).await;
    }

    /// Closes our side.
    pub async fn half_close(&mut self) {
        // It may be closed already.
        let _ = self.stream.shutdown().await;
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        while self.came.len() < 9 || self.came.len() < 9 + self.length() {
            if !matches!(soon(self.stream.read_buf(&mut self.came)).await, Ok(1..)) {
                return None;
            }
        }
        let rest = self.came.split_off(9 + self.length());
        let bytes = std::mem::replace(&mut self.came, rest);
        let stream = u32::from_be_bytes(bytes[5..9].try_into().expect("four bytes"));
        let frame = Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() };
        if self.is_polite && frame.kind == SETTINGS && frame.flags & ACK == 0 {
            self.send(&self::frame(SETTINGS, ACK, 0, &[])).await;
        }
        Some(frame)
    }

    /// Of the frame that comes first.
    fn length(&self) -> usize {
        u32::from_be_bytes([0, self.came[0], self.came[1], self.came[2]]) as usize
    }

    /// The next frame of a type; `None` at the end of the connection.
    pub async fn find(&mut self, kind: u8) -> Option<Frame> {
        while let Some(frame) = self.next().await {
            if frame.kind == kind {
                return Some(frame);
            }
        }
        None
    }

    /// All that comes to the end of the connection, as bytes.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.came);
        // It may be reset behind its last byte.
        let _ = soon(self.stream.read_to_end(&mut bytes)).await;
        bytes
    }
}
