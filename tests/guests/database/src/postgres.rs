//! As much of a client of PostgreSQL as a test needs: a login with a password, and queries without parameters.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorFields, Message};
use postgres_protocol::message::frontend;
use serde::Deserialize;

/// What is read at once.
const PIECE: usize = 16 * 1024;

#[derive(Deserialize, PartialEq)]
pub(crate) struct Login {
    at: String,
    user: String,
    password: String,
}

pub(crate) struct Postgres {
    stream: TcpStream,
    login: Login,
    /// What came and was not looked at yet.
    unread: BytesMut,
    process: i32,
}

impl Postgres {
    pub(crate) fn connect(login: Login, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect(&login.at)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let mut it = Self { stream, login, unread: BytesMut::new(), process: 0 };
        let (user, password) = (it.login.user.clone(), it.login.password.clone());
        it.send(|buffer| frontend::startup_message([("user", user.as_str()), ("database", "postgres")], buffer))?;
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            match it.receive()? {
                Message::AuthenticationSasl(_) => {
                    it.send(|buffer| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), buffer))?;
                }
                Message::AuthenticationSaslContinue(body) => {
                    scram.update(body.data())?;
                    it.send(|buffer| frontend::sasl_response(scram.message(), buffer))?;
                }
                Message::AuthenticationSaslFinal(body) => scram.finish(body.data())?,
                Message::BackendKeyData(body) => it.process = body.process_id(),
                Message::ReadyForQuery(_) => return Ok(it),
                Message::ErrorResponse(body) => return Err(told(body.fields())),
                _ => {}
            }
        }
    }

    pub(crate) fn login(&self) -> &Login {
        &self.login
    }

    /// The process that serves this connection.
    pub(crate) fn process(&self) -> i32 {
        self.process
    }

    /// The rows, with commas between their columns.
    pub(crate) fn query(&mut self, sql: &str) -> io::Result<Vec<String>> {
        self.send(|buffer| frontend::query(sql, buffer))?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match self.receive()? {
                Message::DataRow(row) => {
                    let columns = row.ranges().map(|range| {
                        Ok(range.map_or("NULL".into(), |range| String::from_utf8_lossy(&row.buffer()[range])))
                    });
                    rows.push(columns.collect::<Vec<_>>()?.join(","));
                }
                Message::ErrorResponse(body) => failed = Some(told(body.fields())),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    fn send(&mut self, message: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        message(&mut buffer)?;
        self.stream.write_all(&buffer)
    }

    fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = Message::parse(&mut self.unread)? {
                return Ok(message);
            }
            let mut piece = [0; PIECE];
            let length = self.stream.read(&mut piece)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.unread.extend_from_slice(&piece[..length]);
        }
    }
}

fn told(fields: ErrorFields<'_>) -> io::Error {
    let message = fields
        .filter(|field| Ok(field.type_() == b'M'))
        .map(|field| Ok(String::from_utf8_lossy(field.value_bytes()).into_owned()));
    let messages: io::Result<Vec<String>> = message.collect();
    messages.map_or_else(|error| error, |messages| io::Error::other(messages.join(", ")))
}
