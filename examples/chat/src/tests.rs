use wasmcluster_guest::testing::{self, WebSocket};
use wasmcluster_guest::websocket::{CloseCode, Message};

use super::*;

fn get(path: &str) -> Request {
    Request::get(path).body(().into()).expect("a request")
}

fn join(name: &str) -> WebSocket {
    testing::websocket(handle, get(&format!("/chat?name={name}")))
}

#[track_caller]
fn hears(client: &mut WebSocket, expected: Event) {
    assert_eq!(client.receive(), Some(Message::from(expected)));
}

fn said(name: &str, text: &str) -> Event {
    Event::Message { name: name.into(), text: text.into() }
}

#[track_caller]
fn closed_with(client: &mut WebSocket, code: CloseCode) {
    assert_eq!(client.receive(), None);
    assert_eq!(client.closed().map(|closed| closed.code), Some(code));
}

#[test]
fn two_members_talk() {
    let mut ada = join("Ada");
    hears(&mut ada, Event::note("Ada has joined, 1 here"));
    let mut eve = join("Eve");
    for client in [&mut ada, &mut eve] {
        hears(client, Event::note("Eve has joined, 2 here"));
    }
    ada.send(" hi\nEve <b> ");
    for client in [&mut ada, &mut eve] {
        hears(client, said("Ada", "hi Eve <b>"));
    }
    eve.close(CloseCode::NORMAL, "");
    hears(&mut ada, Event::note("Eve has left"));
}

#[test]
fn a_member_whose_connection_is_lost_leaves() {
    let mut ada = join("Ada");
    let eve = join("Eve");
    ada.receive();
    ada.receive();
    drop(eve);
    hears(&mut ada, Event::note("Eve has left"));
}

#[test]
fn names_and_messages_have_a_limit() {
    for name in ["", "%20", &"x".repeat(25)] {
        let answer = join(name);
        let answer = answer.answer();
        assert_eq!((answer.status().as_u16(), answer.text()), (400, "a name has 1 to 24 characters\n"));
    }
    let mut ada = join(&"%C3%A4".repeat(24));
    ada.receive();
    for text in ["", " ", &"x".repeat(501)] {
        ada.send(text);
        hears(&mut ada, Event::note("a message has 1 to 500 characters"));
    }
    ada.send(vec![1]);
    closed_with(&mut ada, CloseCode::UNSUPPORTED);
}

#[test]
fn a_slow_member_holds_up_nobody() {
    let mut ada = join("Ada");
    let mut slow = join("Slow");
    ada.receive();
    ada.receive();
    // Until the slow one, who takes nothing, has had its fill.
    let left = Some(Message::from(Event::note("Slow has left")));
    assert!((0..1000).any(|_| {
        ada.send("hi");
        ada.receive() == left
    }));
    while slow.receive().is_some() {}
    assert_eq!(slow.closed().map(|closed| closed.code), Some(CloseCode::TRY_AGAIN_LATER));
}

#[test]
fn a_shutdown_is_the_last_thing_that_members_hear_of() {
    let mut clients = ["Ada", "Eve"].map(join);
    for client in &mut clients {
        client.shut_down();
    }
    let [ada, eve] = &mut clients;
    hears(ada, Event::note("Ada has joined, 1 here"));
    for client in [ada, eve] {
        hears(client, Event::note("Eve has joined, 2 here"));
        hears(client, Event::note(RESTARTS));
        closed_with(client, CloseCode::GOING_AWAY);
    }
}

#[test]
fn the_page_is_served() {
    let answer = testing::call(handle, get("/"));
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    for limit in [MAX_NAME, MAX_TEXT] {
        assert!(answer.text().contains(&format!("maxlength=\"{limit}\"")), "{limit}");
    }
    assert!(!answer.text().contains("innerHTML"));
    assert_eq!(testing::call(handle, get("/chat?name=a")).status(), 426);
    assert_eq!(testing::call(handle, get("/other")).status(), 404);
}
