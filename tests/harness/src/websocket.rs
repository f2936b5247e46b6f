//! WebSocket for tests: a client that sends frames as the test has them, and shows each frame that comes (RFC 6455).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The first byte of a frame: whether it is the last of its message, and its opcode.
pub const FIN: u8 = 0x80;
/// Of a frame that goes on with a message.
pub const CONTINUATION: u8 = 0;
/// Of a frame that begins a text.
pub const TEXT: u8 = 1;
/// Of a frame that begins bytes.
pub const BINARY: u8 = 2;
/// Of a frame that closes the WebSocket.
pub const CLOSE: u8 = 8;
/// Of a frame that asks whether the other side is there.
pub const PING: u8 = 9;
/// Of the answer to that.
pub const PONG: u8 = 10;

/// The key of each handshake, and what the server must make of it (RFC 6455, section 1.3).
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// How long a frame may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection.
pub struct Socket<S = TcpStream> {
    stream: S,
    /// The head of the server's answer, in lower case.
    pub head: String,
}

/// What came from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A whole message.
    Text(String),
    /// Likewise.
    Binary(Vec<u8>),
    /// A ping or a pong: its opcode, and what it says.
    Control(u8, Vec<u8>),
    /// The server closes: its code, 1005 if it says none, and its reason.
    Close(u16, String),
}

/// A head that asks for a WebSocket at `path`. `fields` are further lines, each with its end.
pub fn handshake(path: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: \
         13\r\nsec-websocket-key: {KEY}\r\n{fields}\r\n"
    )
}

/// A frame as a client sends it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The head of an answer.
fn read_head(stream: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).to_lowercase())
}

impl Socket {
    /// Opens a WebSocket, which the server must accept.
    #[track_caller]
    pub fn open(address: SocketAddr, path: &str) -> Self {
        Self::try_open(address, path, "").unwrap_or_else(|answer| panic!("{path}: {answer}"))
    }

    /// Opens one, with further header lines. An error is what was answered instead.
    pub fn try_open(address: SocketAddr, path: &str, fields: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        Self::over(stream, path, fields)
    }

    /// The connection itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

impl<S: Read + Write> Socket<S> {
    /// Opens one over a stream that is there already. An error is what was answered instead.
    pub fn over(mut stream: S, path: &str, fields: &str) -> Result<Self, String> {
        stream.write_all(handshake(path, fields).as_bytes()).map_err(|error| error.to_string())?;
        let head = read_head(&mut stream).map_err(|error| error.to_string())?;
        if !head.starts_with("http/1.1 101 ") {
            return Err(head);
        }
        let accept = format!("sec-websocket-accept: {}\r\n", ACCEPT.to_lowercase());
        assert!(head.contains(&accept) && head.contains("upgrade: websocket\r\n"), "{head}");
        assert!(head.contains("connection: upgrade\r\n") && !head.contains("content-length"), "{head}");
        Ok(Self { stream, head })
    }

    /// Sends bytes as they are. Whether they were taken.
    pub fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a frame.
    #[track_caller]
    pub fn send(&mut self, first: u8, payload: &[u8]) {
        self.stream.write_all(&frame(first, payload)).expect("the connection is open");
    }

    /// Sends a text.
    #[track_caller]
    pub fn say(&mut self, text: &str) {
        self.send(FIN | TEXT, text.as_bytes());
    }

    /// The next text.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        match self.receive() {
            Some(Frame::Text(text)) => text,
            other => panic!("no text: {other:?}"),
        }
    }

    /// The code and the reason of the server's close, which is answered; what came before it is dropped. 1006 if the
    /// connection ends without one.
    pub fn closed(&mut self) -> (u16, String) {
        loop {
            match self.receive() {
                Some(Frame::Close(code, reason)) => {
                    let payload = if code == 1005 { Vec::new() } else { code.to_be_bytes().to_vec() };
                    let _ = self.stream.write_all(&frame(FIN | CLOSE, &payload));
                    return (code, reason);
                }
                Some(_) => {}
                None => return (1006, String::new()),
            }
        }
    }
}

impl<S: Read> Socket<S> {
    /// One that is open already.
    pub fn opened(stream: S) -> Self {
        Self { stream, head: String::new() }
    }

    /// The next frame; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Frame> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).ok()?;
        assert_eq!((head[0] & FIN, head[1] & 0x80), (FIN, 0), "whole messages, and no mask");
        let length = match head[1] {
            126 => u64::from(u16::from_be_bytes(self.bytes()?)),
            127 => u64::from_be_bytes(self.bytes()?),
            length => u64::from(length),
        };
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(match head[0] & !FIN {
            TEXT => Frame::Text(String::from_utf8(payload).expect("a text")),
            BINARY => Frame::Binary(payload),
            CLOSE => match payload.split_first_chunk() {
                Some((code, reason)) => {
                    Frame::Close(u16::from_be_bytes(*code), String::from_utf8(reason.to_vec()).expect("a text"))
                }
                None => Frame::Close(1005, String::new()),
            },
            opcode @ (PING | PONG) => Frame::Control(opcode, payload),
            opcode => panic!("a frame of an unknown kind: {opcode}"),
        })
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}
