//! Who is in the room. All sockets of the instance share it: guests have one thread.
//!
//! Nothing here waits, so no member can hold up another.

use std::cell::RefCell;
use std::collections::VecDeque;

use serde::Serialize;
use wasmcluster_guest::websocket::{CloseCode, Message, Sender, TrySendError};

const MAX_MEMBERS: usize = 500;

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// What a client is told.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Event {
    /// What a member says.
    Message { name: String, text: String },
    /// What the room says.
    Note { text: String },
}

impl Event {
    pub(crate) fn note(text: impl Into<String>) -> Self {
        Self::Note { text: text.into() }
    }
}

impl From<Event> for Message {
    fn from(event: Event) -> Self {
        Self::from_json(&event).expect("texts have a JSON")
    }
}

#[derive(Default)]
struct Room {
    members: Vec<Member>,
    last_number: u64,
}

struct Member {
    number: u64,
    name: String,
    sender: Sender,
}

impl Room {
    /// Sends it to all. A member that cannot take it is removed, and the others are told.
    fn broadcast(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let message = Message::from(event);
            self.members.retain(|member| {
                let sent = member.sender.try_send(message.clone());
                if let Err(error) = &sent {
                    events.push_back(left(&member.name));
                    if matches!(error, TrySendError::Full) {
                        member.sender.close(CloseCode::TRY_AGAIN_LATER, "too slow for this room");
                    }
                }
                sent.is_ok()
            });
        }
    }

    /// `None` if it is no longer there.
    fn remove(&mut self, number: u64) -> Option<Member> {
        let index = self.members.iter().position(|member| member.number == number)?;
        Some(self.members.remove(index))
    }
}

fn left(name: &str) -> Event {
    Event::note(format!("{name} has left"))
}

/// Lets a member in, unless the room is full.
pub(crate) fn join(name: String, sender: Sender) -> Option<Membership> {
    ROOM.with_borrow_mut(|room| {
        if room.members.len() >= MAX_MEMBERS {
            return None;
        }
        room.last_number += 1;
        let number = room.last_number;
        room.members.push(Member { number, name: name.clone(), sender: sender.clone() });
        room.broadcast(Event::note(format!("{name} has joined, {} here", room.members.len())));
        Some(Membership { number, name, sender })
    })
}

/// Being in the room. Dropping it leaves.
pub(crate) struct Membership {
    number: u64,
    name: String,
    sender: Sender,
}

impl Membership {
    /// Says it to all, the member itself included.
    pub(crate) fn say(&self, text: String) {
        ROOM.with_borrow_mut(|room| room.broadcast(Event::Message { name: self.name.clone(), text }));
    }

    /// Tells the member alone, if it can take it.
    pub(crate) fn tell(&self, text: String) {
        let _ = self.sender.try_send(Event::note(text));
    }

    /// The others are not told.
    pub(crate) fn leave_silently(&self) {
        ROOM.with_borrow_mut(|room| room.remove(self.number));
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        ROOM.with_borrow_mut(|room| {
            if room.remove(self.number).is_some() {
                room.broadcast(left(&self.name));
            }
        });
    }
}
