use std::cell::{Cell, RefCell};
use std::future::{pending, ready};
use std::time::Duration;

use futures_util::future::{Either, select};
use http::header;

use super::*;
use crate::testing::{self, WebSocket};
use crate::{Request, time};

/// Answers every message by itself, and does what some of them say.
async fn echo(request: Request) -> Upgrade {
    upgrade(request, async |mut socket| -> Result<()> {
        while let Some(message) = socket.receive().await {
            match message.as_text() {
                Some("fail") => return Err("broken on purpose".into()),
                Some("close") => socket.close(CloseCode(4000), "bye"),
                _ => socket.send(message).await?,
            }
        }
        Ok(())
    })
}

fn get(fields: &[(&str, &str)]) -> Request {
    let request = fields.iter().fold(Request::get("/"), |request, (name, value)| request.header(*name, *value));
    request.body(Body::empty()).expect("a valid head")
}

#[track_caller]
fn ended(client: &mut WebSocket) -> (u16, &str) {
    assert_eq!(client.receive(), None);
    let closed = client.closed().expect("it is closed");
    (closed.code.0, &closed.reason)
}

#[test]
fn messages_come_back() {
    let mut client = testing::websocket(echo, get(&[]));
    assert_eq!(client.answer().status(), 101);
    for message in ["text".into(), "".into(), Message::from(vec![0, 255])] {
        client.send(message.clone());
        assert_eq!(client.receive(), Some(message));
    }
    client.send("close");
    assert_eq!(ended(&mut client), (4000, "bye"));
}

#[test]
fn a_request_that_asks_for_no_socket_is_told_so() {
    let answer = testing::call(echo, get(&[]));
    assert_eq!((answer.status().as_u16(), answer.text()), (426, "this address speaks WebSocket\n"));
}

#[test]
fn pages_of_other_sites_are_refused_unless_they_are_allowed() {
    let status = |app: &dyn Fn(Upgrade) -> Upgrade, origin| {
        let app = async |request| app(upgrade(request, async |_| ()));
        testing::websocket(app, get(&[("host", "a.example"), ("origin", origin)])).answer().status().as_u16()
    };
    assert_eq!(status(&|upgrade| upgrade, "https://a.example"), 101);
    assert_eq!(status(&|upgrade| upgrade, "https://b.example"), 403);
    assert_eq!(status(&|upgrade| upgrade.allow_origin("https://b.example"), "https://b.example"), 101);
    assert_eq!(status(&|upgrade| upgrade.allow_origin("https://c.example"), "https://b.example"), 403);
    assert_eq!(status(&|upgrade| upgrade.allow_any_origin().allow_origin("https://c.example"), "null"), 101);
}

#[test]
fn the_best_protocol_that_the_client_offers_is_agreed_on() {
    let app = async |request| {
        let upgrade = upgrade(request, async |socket| {
            let protocol = socket.protocol().unwrap_or("none").to_owned();
            socket.send(protocol).await
        });
        upgrade.protocols(["chat.v2", "chat.v1"])
    };
    let check = |offered: &[(&str, &str)], expected: Option<&str>| {
        let mut client = testing::websocket(app, get(offered));
        let agreed = client.answer().headers().get("sec-websocket-protocol");
        assert_eq!(agreed.map(|name| name.to_str().expect("text")), expected);
        assert_eq!(client.receive(), Some(expected.unwrap_or("none").into()));
    };
    const NAME: &str = "sec-websocket-protocol";
    check(&[(NAME, "chat.v1, chat.v2")], Some("chat.v2"));
    check(&[(NAME, "x,chat.v1"), (NAME, "y")], Some("chat.v1"));
    check(&[(NAME, "x"), (NAME, "y ,chat.v2")], Some("chat.v2"));
    check(&[(NAME, "x, CHAT.V2")], None);
    check(&[], None);
}

#[test]
fn an_error_closes_the_socket_behind_what_was_sent() {
    let mut client = testing::websocket(echo, get(&[]));
    client.send("a");
    client.send("fail");
    assert_eq!(client.receive(), Some("a".into()));
    assert_eq!(ended(&mut client), (1011, ""));
}

#[test]
fn an_end_without_an_error_is_normal() {
    let mut client = testing::websocket(async |request| upgrade(request, async |_| ()), get(&[]));
    assert_eq!(ended(&mut client), (1000, ""));
}

#[test]
fn a_sender_that_is_kept_does_not_keep_the_socket_open() {
    thread_local! {
        static KEPT: RefCell<Vec<Sender>> = RefCell::default();
    }
    let app = async |request| upgrade(request, async |socket| KEPT.with_borrow_mut(|kept| kept.push(socket.sender())));
    assert_eq!(ended(&mut testing::websocket(app, get(&[]))), (1000, ""));
    let kept = KEPT.take();
    assert!(matches!(kept[0].try_send("never"), Err(TrySendError::Closed(_))));
}

/// The function may go on when it has dropped its socket.
#[test]
fn a_dropped_socket_is_closed_at_once() {
    let app = async |request| {
        upgrade(request, async |socket| {
            drop(socket);
            pending::<()>().await
        })
    };
    assert_eq!(ended(&mut testing::websocket(app, get(&[]))), (1000, ""));
}

#[test]
fn the_guest_learns_how_the_client_left() {
    thread_local! {
        static LEFT: RefCell<Vec<Closed>> = RefCell::default();
    }
    let app = async |request| {
        upgrade(request, async |mut socket| {
            assert_eq!(socket.receive().await, Some("last".into()));
            assert_eq!(socket.receive().await, None);
            assert_eq!(socket.receive().await, None);
            let closed = socket.closed().expect("it is closed").clone();
            assert_eq!(socket.send("never").await, Err(closed.clone()));
            assert_eq!(socket.sender().try_send("never"), Err(TrySendError::Closed(closed.clone())));
            LEFT.with_borrow_mut(|left| left.push(closed));
        })
    };
    let mut client = testing::websocket(app, get(&[]));
    client.send("last");
    client.close(CloseCode(3000), "enough");
    let mut lost = testing::websocket(app, get(&[]));
    lost.send("last");
    drop(lost);
    assert_eq!(ended(&mut client), (3000, "enough"));
    let left: Vec<_> = LEFT.take().into_iter().map(|closed| (closed.code.0, closed.reason)).collect();
    assert_eq!(left, [(3000, "enough".to_owned()), (1006, String::new())]);
}

#[test]
fn a_guest_says_goodbye_when_its_worker_shuts_down() {
    let app = async |request| {
        upgrade(request, async |mut socket| -> Result<(), Closed> {
            while socket.receive().await.is_some() {}
            assert_eq!(socket.closed().map(|closed| closed.code), Some(CloseCode::GOING_AWAY));
            socket.send("goodbye").await?;
            socket.close(CloseCode::GOING_AWAY, "");
            Ok(())
        })
    };
    let mut client = testing::websocket(app, get(&[]));
    client.shut_down();
    assert_eq!(client.receive(), Some("goodbye".into()));
    assert_eq!(ended(&mut client), (1001, ""));
}

#[test]
fn a_client_that_takes_nothing_holds_its_sender_back() {
    thread_local! {
        static SENT: Cell<usize> = const { Cell::new(0) };
    }
    let app = async |request| {
        upgrade(request, async |socket| -> Result<(), Closed> {
            while SENT.get() < 100 {
                socket.send("x").await?;
                SENT.set(SENT.get() + 1);
            }
            Ok(())
        })
    };
    let mut client = testing::websocket(app, get(&[]));
    let room = SENT.get();
    assert!(room < 100);
    client.receive();
    assert_eq!(SENT.get(), room + 1);
    while client.receive().is_some() {}
    assert_eq!(SENT.get(), 100);
}

#[test]
fn try_send_does_not_wait() {
    let app = async |request| {
        upgrade(request, async |socket| {
            let sender = socket.sender();
            let failed = (0..100).find_map(|_| sender.try_send("x").err());
            assert_eq!(failed, Some(TrySendError::Full));
            sender.close(CloseCode::TRY_AGAIN_LATER, "too slow");
        })
    };
    let mut client = testing::websocket(app, get(&[]));
    while client.receive().is_some() {}
    assert_eq!(client.closed().map(|closed| closed.code), Some(CloseCode::TRY_AGAIN_LATER));
}

/// The future that waits for a message is dropped each time that the other is first.
#[test]
fn waiting_for_a_message_and_for_time_loses_neither() {
    let app = async |request| {
        upgrade(request, async |mut socket| -> Result<()> {
            let sender = socket.sender();
            for tick in 1..=3 {
                let mut nap = Box::pin(time::sleep(Duration::from_secs(1)));
                while let Either::Left((message, _)) = select(Box::pin(socket.receive()), &mut nap).await {
                    sender.send(message.ok_or("the client has left")?).await?;
                }
                socket.send(format!("tick {tick}")).await?;
            }
            Ok(())
        })
    };
    let mut client = testing::websocket(app, get(&[]));
    client.send("a");
    assert_eq!(client.receive(), Some("a".into()));
    assert_eq!(client.receive(), Some("tick 1".into()));
    client.send("b");
    client.send("c");
    let rest: Vec<_> = std::iter::from_fn(|| client.receive()).collect();
    assert_eq!(rest, ["b", "c", "tick 2", "tick 3"].map(Message::from));
}

#[test]
fn another_answer_drops_the_function() {
    let check = |answer: fn(Response) -> Response, status| {
        let ran = Rc::new(Cell::new(false));
        let app = async |request| {
            let ran = ran.clone();
            answer(upgrade(request, async move |_| ran.set(true)).into_response())
        };
        assert_eq!(testing::websocket(app, get(&[])).answer().status().as_u16(), status);
        assert!(!ran.get());
        assert_eq!(Rc::strong_count(&ran), 1);
    };
    check(|_| "instead".into_response(), 200);
    check(
        |mut response| {
            *response.status_mut() = StatusCode::FORBIDDEN;
            response
        },
        403,
    );
    // A head alone is not a socket.
    check(|response| http::Response::builder().status(response.status()).body(().into()).expect("a head"), 500);
}

#[test]
fn a_ticket_is_good_once() {
    let app = async |request: Request| {
        let ticket = request.headers()[TICKET].to_str().expect("text").to_owned();
        assert!(accept(&ticket).is_some());
        upgrade(request, async |_| ())
    };
    assert_eq!(testing::websocket(app, get(&[])).answer().status(), 500);
}

#[test]
fn the_response_may_be_given_headers() {
    let app = async |request| ([(header::SET_COOKIE, "a=b")], upgrade(request, async |_| ()));
    let mut client = testing::websocket(app, get(&[]));
    assert_eq!(client.answer().headers()["set-cookie"], "a=b");
    assert_eq!(ended(&mut client), (1000, ""));
}

#[test]
#[should_panic(expected = "can never happen")]
fn waiting_for_what_no_guest_sends_is_an_error() {
    testing::websocket(echo, get(&[])).receive();
}

#[test]
#[should_panic(expected = "opened no WebSocket")]
fn without_a_socket_nothing_is_sent() {
    testing::websocket(async |_| ready("text").await, get(&[])).send("a");
}

#[cfg(feature = "axum")]
#[test]
fn a_router_upgrades_too() {
    use axum::routing::get;

    async fn handle(request: axum::extract::Request) -> Upgrade {
        upgrade(request, async |mut socket| -> Result<(), Closed> {
            while let Some(message) = socket.receive().await {
                socket.send(message).await?;
            }
            Ok(())
        })
    }
    async fn layer(response: axum::response::Response) -> axum::response::Response {
        ([("x-layer", "1")], response).into_response()
    }
    use axum::response::IntoResponse as _;
    let app = || axum::Router::new().route("/", get(handle)).layer(axum::middleware::map_response(layer));
    let mut client = testing::websocket(app, self::get(&[]));
    assert_eq!(client.answer().headers()["x-layer"], "1");
    client.send("hi");
    assert_eq!(client.receive(), Some("hi".into()));
}
