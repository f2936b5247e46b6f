//! Whatever clients send: the verdict does not depend on how it is cut into pieces, and hyper reads the same messages in
//! what is passed on to it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::iter;

use http::header::TRANSFER_ENCODING;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::fuzz;

const MAX_HEAD: usize = 8 * 1024;
const MAX_FIELDS: usize = 100;
/// More than the answers to any input.
const PIPE: usize = 4 * 1024 * 1024;

#[test]
fn framing() {
    fuzz::bytes("smuggling", |stream| {
        let (whole, _) = follow(stream, [stream.len()]);
        let (in_bytes, messages) = follow(stream, iter::repeat_n(1, stream.len()));
        is_same(&whole, &in_bytes);
        // Pieces that no two inputs share, but each has again.
        let mut rng =
            fastrand::Rng::with_seed(stream.iter().fold(0_u64, |sum, &byte| sum.rotate_left(5) ^ u64::from(byte)));
        let (in_pieces, _) = follow(stream, iter::repeat_with(|| rng.usize(..40)));
        is_same(&whole, &in_pieces);

        let passed_on = in_bytes.map_or_else(|bad| bad.good, |_| stream.len());
        hyper_reads_the_same(&stream[..passed_on], &messages);
    });
}

/// Where a message's head begins and ends, and where its body ends, if it does.
struct Message {
    start: usize,
    head: usize,
    end: Option<usize>,
}

/// Follows a stream in pieces of these lengths; the messages are right if each is 1.
fn follow(stream: &[u8], pieces: impl IntoIterator<Item = usize>) -> (Result<Option<MessagePart>, Bad>, Vec<Message>) {
    let mut framing = Framing::new(MAX_HEAD, MAX_FIELDS);
    let mut messages: Vec<Message> = Vec::new();
    let (mut at, mut start) = (0, 0);
    for piece in pieces {
        let end = at + piece.min(stream.len() - at);
        if let Err(bad) = framing.follow(&stream[at..end]) {
            assert!(bad.good <= end - at);
            assert_eq!(framing.follow(b"G"), Err(Bad { good: 0, ..bad }), "there is no way back");
            return (Err(Bad { good: at + bad.good, ..bad }), messages);
        }
        at = end;
        if framing.heads() > messages.len() as u64 {
            messages.push(Message { start, head: at, end: None });
        }
        if framing.inside() != Some(MessagePart::Body)
            && let Some(message) = messages.last_mut()
            && message.end.is_none()
        {
            message.end = Some(at);
            start = at;
        }
        if at == stream.len() {
            break;
        }
    }
    (Ok(framing.inside()), messages)
}

fn is_same(whole: &Result<Option<MessagePart>, Bad>, in_pieces: &Result<Option<MessagePart>, Bad>) {
    match (whole, in_pieces) {
        (Err(whole), Err(in_pieces)) => {
            assert_eq!((whole.part, whole.violation), (in_pieces.part, in_pieces.violation));
            // The beginning of a head may have been passed on when its end was not there.
            let is_head = whole.part == MessagePart::Head && whole.good < in_pieces.good;
            assert!(whole.good == in_pieces.good || is_head, "{whole:?} {in_pieces:?}");
        }
        _ => assert_eq!(whole, in_pieces),
    }
}

/// Hyper may refuse what was passed on, or stop reading; but what it reads are these messages.
fn hyper_reads_the_same(stream: &[u8], messages: &[Message]) {
    for (index, (head, body)) in hyper_reads(stream).into_iter().enumerate() {
        let message = messages.get(index).expect("hyper has read a message more");
        let text = &stream[message.start..message.head];
        let line = text.trim_ascii_start();
        assert!(line.starts_with(format!("{} ", head.method).as_bytes()), "another message: {head:?}");
        // Of another URI, hyper has another spelling.
        if head.uri.authority().is_none() {
            let target = line[head.method.as_str().len() + 1..].split(|&byte| byte == b' ').next().unwrap();
            assert_eq!(head.uri.to_string().as_bytes(), target);
        }
        let Some(body) = body else { continue };
        let end = message.end.expect("hyper has read a body to its end");
        let raw = &stream[message.head..end];
        match head.headers.contains_key(TRANSFER_ENCODING) {
            true => assert_eq!(body, joined(raw)),
            false => assert_eq!(body, raw),
        }
    }
}

/// The data of the chunks of a body that was accepted.
fn joined(mut body: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let digits = body.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = usize::from_str_radix(str::from_utf8(&body[..digits]).unwrap(), 16).unwrap();
        if size == 0 {
            return data;
        }
        let start = body.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        data.extend_from_slice(&body[start..start + size]);
        body = &body[start + size + 2..];
    }
}

/// The requests that hyper finds, with their bodies where it finds their ends.
fn hyper_reads(stream: &[u8]) -> Vec<(http::request::Parts, Option<Bytes>)> {
    let requests = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let body = body.collect().await.ok().map(|body| body.to_bytes());
        requests.borrow_mut().push((head, body));
        // No tunnel, no upgrade.
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::NOT_FOUND;
        Ok::<_, Infallible>(response)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(PIPE);
        client.write_all(stream).await.unwrap();
        client.shutdown().await.unwrap();
        let mut http = http1::Builder::new();
        http.max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS).half_close(true);
        // What it refuses is an error.
        let _ = http.serve_connection(TokioIo::new(server), service).await;
    });
    requests.into_inner()
}
