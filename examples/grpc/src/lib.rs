//! A gRPC service with tonic: a unary method, and one for each kind of streaming.

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Result, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use wasmcluster_guest::{Body, time};

/// Generated from `greeter.proto`: see `tests/generated.rs`.
#[rustfmt::skip]
#[allow(unreachable_pub, clippy::allow_attributes_without_reason, reason = "no person writes it")]
mod greeter;

use greeter::greeter_server::{Greeter, GreeterServer};
use greeter::{HelloReply, HelloRequest, RepeatedHelloRequest};

/// How many people `SayHelloToAll` greets in one call.
const MAX_NAMES: usize = 1000;

/// A tonic service takes HTTP requests as they are. Unknown methods and services get the status `UNIMPLEMENTED`.
#[wasmcluster_guest::main]
async fn handle(request: wasmcluster_guest::Request) -> wasmcluster_guest::Response {
    let answered = GreeterServer::new(MyGreeter).call(request).await;
    answered.unwrap_or_else(|never| match never {}).map(Body::new)
}

struct MyGreeter;

type Replies = Pin<Box<dyn Stream<Item = Result<HelloReply>> + Send>>;

#[tonic::async_trait]
impl Greeter for MyGreeter {
    async fn say_hello(&self, request: tonic::Request<HelloRequest>) -> Result<Response<HelloReply>> {
        let mut response = Response::new(HelloReply::default());
        copy_metadata(request.metadata(), response.metadata_mut());
        *response.get_mut() = hello(&request.into_inner().name)?;
        Ok(response)
    }

    async fn say_hello_to_all(&self, request: tonic::Request<Streaming<HelloRequest>>) -> Result<Response<HelloReply>> {
        let mut requests = request.into_inner();
        let mut names = Vec::new();
        while let Some(HelloRequest { name }) = requests.message().await? {
            if names.len() == MAX_NAMES {
                return Err(Status::resource_exhausted(format!("at most {MAX_NAMES} names")));
            }
            names.push(name);
        }
        hello(&names.join(", ")).map(Response::new)
    }

    type KeepSayingHelloStream = Replies;

    async fn keep_saying_hello(&self, request: tonic::Request<RepeatedHelloRequest>) -> Result<Response<Replies>> {
        let RepeatedHelloRequest { name, times, pause_ms } = request.into_inner();
        // A reply is made only when the client has taken those before it.
        let replies = stream::iter(0..times).then(move |number| {
            let reply = hello(&name);
            async move {
                if number > 0 && pause_ms > 0 {
                    time::sleep(Duration::from_millis(pause_ms.into())).await;
                }
                reply
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }

    type ChatStream = Replies;

    async fn chat(&self, request: tonic::Request<Streaming<HelloRequest>>) -> Result<Response<Replies>> {
        let (metadata, _, requests) = request.into_parts();
        // An error ends the stream: its status and metadata are sent as trailers.
        let replies = requests.and_then(async |HelloRequest { name }| hello(&name)).map_err(move |mut status| {
            copy_metadata(&metadata, status.metadata_mut());
            status
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

fn hello(name: &str) -> Result<HelloReply> {
    if name.is_empty() {
        let details = ErrorDetails::with_bad_request_violation("name", "must not be empty");
        return Err(Status::with_error_details(Code::InvalidArgument, "who is there?", details));
    }
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(HelloReply { message: format!("Hello, {name}!"), written_at: since_1970.as_micros() as u64 })
}

/// Sends back the client's `trace` (text) and `trace-bin` (bytes; such names end in `-bin`).
fn copy_metadata(from: &MetadataMap, to: &mut MetadataMap) {
    if let Some(text) = from.get("trace") {
        to.insert("trace", text.clone());
    }
    if let Some(bytes) = from.get_bin("trace-bin") {
        to.insert_bin("trace-bin", bytes.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::task::Poll;

    use prost::Message;
    use tonic::codegen::Bytes;
    use wasmcluster_guest::testing::{self, Answer, block_on};

    use super::*;

    /// As a message is sent: after its length.
    fn framed(message: &impl Message) -> Bytes {
        let length = message.encoded_len() as u32;
        [&[0][..], &length.to_be_bytes(), &message.encode_to_vec()].concat().into()
    }

    /// The messages in a body.
    fn replies(mut body: &[u8]) -> Vec<String> {
        let mut replies = Vec::new();
        while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
            let [0, length @ ..] = *prefix else { panic!("it is compressed") };
            let (reply, rest) = rest.split_at(u32::from_be_bytes(length) as usize);
            replies.push(HelloReply::decode(reply).expect("a reply").message);
            body = rest;
        }
        replies
    }

    fn named(name: &str) -> Bytes {
        framed(&HelloRequest { name: name.into() })
    }

    fn request(method: &str, body: impl Into<Body>) -> wasmcluster_guest::Request {
        let request = wasmcluster_guest::Request::post(format!("/greeter.Greeter/{method}"));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        request.header("trace", "7").header("trace-bin", "AQI").body(body.into()).expect("a request")
    }

    fn call(method: &str, body: impl Into<Body>) -> Answer {
        testing::call(handle, request(method, body))
    }

    #[track_caller]
    fn check(answer: &Answer, expected: &[&str]) {
        assert_eq!((answer.status().as_u16(), answer.is_whole()), (200, true));
        assert_eq!(replies(answer.body()), expected);
        assert_eq!(answer.trailers().expect("trailers")["grpc-status"], "0");
    }

    #[test]
    fn one_request_has_one_reply_and_its_metadata() {
        let answer = call("SayHello", named("Ada"));
        check(&answer, &["Hello, Ada!"]);
        assert_eq!(
            (&answer.headers()["trace"], &answer.headers()["trace-bin"]),
            (&"7".parse().unwrap(), &"AQI".parse().unwrap())
        );
    }

    /// Without a reply, the error is in the head.
    #[test]
    fn an_error_has_details() {
        let answer = call("SayHello", named(""));
        assert_eq!((answer.status().as_u16(), answer.body().len(), answer.trailers()), (200, 0, None));
        let status = Status::from_header_map(answer.headers()).expect("a status");
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "who is there?"));
        let request = status.get_details_bad_request().expect("details");
        assert_eq!(request.field_violations[0].field, "name");
        assert_eq!(call("SayGoodbye", named("Ada")).headers()["grpc-status"], "12");
    }

    #[test]
    fn streams_go_in_and_come_out() {
        let names = ["Ada", "Grace"].map(named);
        check(&call("SayHelloToAll", names.concat()), &["Hello, Ada, Grace!"]);
        // Time is virtual.
        let repeated = RepeatedHelloRequest { name: "Ada".into(), times: 3, pause_ms: 3_600_000 };
        check(&call("KeepSayingHello", framed(&repeated)), &["Hello, Ada!"; 3]);
        check(&call("Chat", names.concat()), &["Hello, Ada!", "Hello, Grace!"]);
    }

    #[test]
    fn an_error_in_a_chat_follows_the_replies_before_it() {
        let answer = call("Chat", [named("Ada"), named("")].concat());
        assert_eq!(replies(answer.body()), ["Hello, Ada!"]);
        let trailers = answer.trailers().expect("trailers");
        assert_eq!((&trailers["grpc-status"], &trailers["trace"]), (&"3".parse().unwrap(), &"7".parse().unwrap()));
    }

    /// Even if the client could send more.
    #[test]
    fn an_error_ends_a_chat() {
        let requests = stream::once(async { Ok::<_, wasmcluster_guest::Error>(named("")) }).chain(stream::pending());
        let answer = call("Chat", Body::from_stream(requests));
        assert_eq!(answer.trailers().expect("trailers")["grpc-status"], "3");
    }

    #[test]
    fn a_chat_replies_before_the_next_request() {
        let asked = Rc::new(Cell::new(1));
        let mut sent = 0;
        let requests = stream::poll_fn({
            let asked = asked.clone();
            move |_| {
                if sent == asked.get() {
                    return Poll::Pending;
                }
                sent += 1;
                Poll::Ready(Some(Ok::<_, wasmcluster_guest::Error>(named(&sent.to_string()))))
            }
        });
        block_on(async {
            let mut answer = handle(request("Chat", Body::from_stream(requests))).await.into_body();
            for number in 1..=3 {
                asked.set(number);
                let reply = answer.chunk().await.expect("readable").expect("a chunk");
                assert_eq!(replies(&reply), [format!("Hello, {number}!")]);
            }
        });
    }
}
