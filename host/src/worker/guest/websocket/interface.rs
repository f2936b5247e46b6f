//! The interface `wasmcluster:worker/websocket` in both versions: that for WASI 0.2, which waits by pollables, and that for 0.3.

use std::sync::Arc;

use async_trait::async_trait;
use wasmtime::component::{Accessor, HasSelf, Resource, ResourceTable};
use wasmtime_wasi_io::IoView;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::super::world::{Guest, websocket, websocket_async};
use super::{Closed, Socket, SocketLink, SocketMessage};

/// What a pollable waits for.
struct Ready(Arc<SocketLink>, Direction);

enum Direction {
    Receive,
    Send,
}

#[async_trait]
impl Pollable for Ready {
    async fn ready(&mut self) {
        let Self(link, direction) = self;
        match direction {
            Direction::Receive => link.wait(&link.came, SocketLink::can_receive).await,
            Direction::Send => link.wait(&link.went, SocketLink::can_send).await,
        }
    }
}

fn link<'a>(table: &'a ResourceTable, socket: &Resource<Socket>) -> wasmtime::Result<&'a Arc<SocketLink>> {
    Ok(&table.get(socket)?.0)
}

impl Guest {
    fn ready(&mut self, socket: &Resource<Socket>, direction: Direction) -> wasmtime::Result<Resource<DynPollable>> {
        let table = self.table();
        let ready = Ready(link(table, socket)?.clone(), direction);
        let ready = table.push(ready)?;
        subscribe(table, ready)
    }

    fn accept(&mut self, ticket: &str) -> wasmtime::Result<Option<Resource<Socket>>> {
        let socket = self.offer(ticket).and_then(Socket::accept);
        Ok(socket.map(|socket| self.table().push(socket)).transpose()?)
    }

    fn close(&mut self, socket: &Resource<Socket>, code: u16, reason: &str) -> wasmtime::Result<()> {
        link(self.table(), socket)?.close_with(code, reason);
        Ok(())
    }

    fn release(&mut self, socket: Resource<Socket>) -> wasmtime::Result<()> {
        self.table().delete(socket)?;
        Ok(())
    }
}

impl websocket::Host for Guest {
    fn accept(&mut self, ticket: String) -> wasmtime::Result<Option<Resource<Socket>>> {
        self.accept(&ticket)
    }
}

impl websocket::HostSocket for Guest {
    fn receive(
        &mut self,
        socket: Resource<Socket>,
    ) -> wasmtime::Result<Result<Option<websocket::Message>, websocket::Closed>> {
        let received = link(self.table(), &socket)?.try_receive().transpose();
        Ok(received.map(|message| message.map(Into::into)).map_err(Into::into))
    }

    fn subscribe_receive(&mut self, socket: Resource<Socket>) -> wasmtime::Result<Resource<DynPollable>> {
        self.ready(&socket, Direction::Receive)
    }

    fn send(
        &mut self,
        socket: Resource<Socket>,
        message: websocket::Message,
    ) -> wasmtime::Result<Result<bool, websocket::Closed>> {
        let message = SocketMessage::from(message);
        self.holds(message.cost());
        let sent = link(self.table(), &socket)?.try_send(message);
        Ok(sent.map(|refused| refused.is_none()).map_err(Into::into))
    }

    fn subscribe_send(&mut self, socket: Resource<Socket>) -> wasmtime::Result<Resource<DynPollable>> {
        self.ready(&socket, Direction::Send)
    }

    fn close(&mut self, socket: Resource<Socket>, code: u16, reason: String) -> wasmtime::Result<()> {
        self.close(&socket, code, &reason)
    }

    fn drop(&mut self, socket: Resource<Socket>) -> wasmtime::Result<()> {
        self.release(socket)
    }
}

impl websocket_async::Host for Guest {
    fn accept(&mut self, ticket: String) -> wasmtime::Result<Option<Resource<Socket>>> {
        self.accept(&ticket)
    }
}

impl websocket_async::HostSocket for Guest {
    fn close(&mut self, socket: Resource<Socket>, code: u16, reason: String) -> wasmtime::Result<()> {
        self.close(&socket, code, &reason)
    }

    fn drop(&mut self, socket: Resource<Socket>) -> wasmtime::Result<()> {
        self.release(socket)
    }
}

/// The link behind `socket`, for as long as a call waits.
fn link_of<T>(accessor: &Accessor<T, HasSelf<Guest>>, socket: &Resource<Socket>) -> wasmtime::Result<Arc<SocketLink>> {
    accessor.with(|mut access| link(access.get().table(), socket).cloned())
}

impl<T: 'static> websocket_async::HostSocketWithStore<T> for HasSelf<Guest> {
    async fn receive(
        accessor: &Accessor<T, Self>,
        socket: Resource<Socket>,
    ) -> wasmtime::Result<Result<websocket_async::Message, websocket_async::Closed>> {
        let received = link_of(accessor, &socket)?.receive().await;
        Ok(received.map(Into::into).map_err(Into::into))
    }

    async fn send(
        accessor: &Accessor<T, Self>,
        socket: Resource<Socket>,
        message: websocket_async::Message,
    ) -> wasmtime::Result<Result<(), websocket_async::Closed>> {
        let message = SocketMessage::from(message);
        accessor.with(|mut access| access.get().holds(message.cost()));
        let sent = link_of(accessor, &socket)?.send(message).await;
        Ok(sent.map_err(Into::into))
    }
}

/// Both versions have types of the same shape.
macro_rules! same {
    ($interface:ident) => {
        impl From<SocketMessage> for $interface::Message {
            fn from(message: SocketMessage) -> Self {
                match message {
                    SocketMessage::Text(text) => Self::Text(text),
                    SocketMessage::Binary(bytes) => Self::Binary(bytes),
                }
            }
        }

        impl From<$interface::Message> for SocketMessage {
            fn from(message: $interface::Message) -> Self {
                match message {
                    $interface::Message::Text(text) => Self::Text(text),
                    $interface::Message::Binary(bytes) => Self::Binary(bytes),
                }
            }
        }

        impl From<Closed> for $interface::Closed {
            fn from(Closed { code, reason }: Closed) -> Self {
                Self { code, reason }
            }
        }
    };
}

same!(websocket);
same!(websocket_async);
