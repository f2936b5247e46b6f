//! The interfaces `wasi:sockets` for TCP and look-ups, in the place of wasmtime-wasi's: of both versions, which have the same
//! functions by and large under other names.

use std::future::poll_fn;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use tokio::sync::oneshot;
use wasmtime::component::{
    ComponentType, FutureReader, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType, StreamReader,
};
use wasmtime_wasi::p2::Network;
use wasmtime_wasi::p2::bindings::sockets::network::{self as p2, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::tcp::ShutdownType;
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup, types as p3};
use wasmtime_wasi::sockets::ErrorCode;
use wasmtime_wasi_io::IoView;
use wasmtime_wasi_io::poll::{Pollable, subscribe};
use wasmtime_wasi_io::streams::{DynInputStream, DynOutputStream};

use super::socket::{GuestSocket, SocketFamily};
use super::streams::{SocketConsumer, SocketInput, SocketOutput, SocketProducer};
use super::{LookupFailure, NoSocket};
use crate::wire::version::WasiHttp;
use crate::worker::guest::world::Guest;

/// The versions that wasmtime-wasi defines: others would stand beside them, and only tests would notice.
const P2: &str = "0.2.12";
const P3: &str = "0.3.0";

type Tcp = Resource<GuestSocket>;
type P3Error = p3::ErrorCode;

/// Takes the place of what is linked. Nothing of it is of use before a guest is granted something.
pub(in crate::worker::guest) fn add_to_linker(linker: &mut Linker<Guest>, http: WasiHttp) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    add_p2(linker)?;
    if http == WasiHttp::V0_3 {
        add_p3(linker)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

impl Guest {
    fn socket(&mut self, socket: &Tcp) -> wasmtime::Result<&mut GuestSocket> {
        Ok(self.table().get_mut(socket)?)
    }

    fn connect(&mut self, socket: &Tcp, to: SocketAddr) -> wasmtime::Result<Result<(), ErrorCode>> {
        if let Err(error) = self.socket(socket)?.fits(to) {
            return Ok(Err(error));
        }
        if !self.may_connect(to) {
            return Ok(Err(ErrorCode::AccessDenied));
        }
        Ok(self.socket(socket)?.connect(to))
    }
}

/// A function of a socket, and nothing else.
fn method<P, R>(
    interface: &mut LinkerInstance<'_, Guest>,
    name: &str,
    call: impl Fn(&mut GuestSocket, P) -> R + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    P: ComponentType + Lift + Send + Sync + 'static,
    R: ComponentType + Lower + Send + Sync + 'static,
{
    interface.func_wrap(&format!("[method]tcp-socket.{name}"), move |mut store, (socket, value): (Tcp, P)| {
        Ok((call(store.data_mut().socket(&socket)?, value),))
    })
}

/// The same without a parameter.
fn getter<R>(
    interface: &mut LinkerInstance<'_, Guest>,
    name: &str,
    call: impl Fn(&mut GuestSocket) -> R + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    R: ComponentType + Lower + Send + Sync + 'static,
{
    interface.func_wrap(&format!("[method]tcp-socket.{name}"), move |mut store, (socket,): (Tcp,)| {
        Ok((call(store.data_mut().socket(&socket)?),))
    })
}

fn add_resource(interface: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    interface.resource("tcp-socket", ResourceType::host::<GuestSocket>(), |mut store, rep| {
        store.data_mut().table().delete(Tcp::new_own(rep))?;
        Ok(())
    })
}

/// What both versions have, with the error and the address of each.
fn add_common<E, A>(interface: &mut LinkerInstance<'_, Guest>, get: &str) -> wasmtime::Result<()>
where
    E: From<ErrorCode> + ComponentType + Lower + Send + Sync + 'static,
    A: From<SocketAddr> + ComponentType + Lower + Send + Sync + 'static,
{
    let name = |option: &str| format!("{get}{option}");
    let address = |address: Result<SocketAddr, ErrorCode>| address.map(A::from).map_err(E::from);
    getter(interface, &name("local-address"), move |it| address(it.local_address()))?;
    getter(interface, &name("remote-address"), move |it| address(it.remote_address()))?;
    getter(interface, &name("is-listening"), |_| false)?;
    // Nobody listens.
    method(interface, "set-listen-backlog-size", |_, _: u64| Err::<(), _>(E::from(ErrorCode::AccessDenied)))?;
    getter(interface, &name("keep-alive-enabled"), |it| it.keep_alive().map_err(E::from))?;
    method(interface, "set-keep-alive-enabled", |it, to| it.set_keep_alive(to).map_err(E::from))?;
    getter(interface, &name("keep-alive-idle-time"), |it| it.keep_alive_idle().map_err(E::from))?;
    method(interface, "set-keep-alive-idle-time", |it, to| it.set_keep_alive_idle(to).map_err(E::from))?;
    getter(interface, &name("keep-alive-interval"), |it| it.keep_alive_interval().map_err(E::from))?;
    method(interface, "set-keep-alive-interval", |it, to| it.set_keep_alive_interval(to).map_err(E::from))?;
    getter(interface, &name("keep-alive-count"), |it| it.keep_alive_count().map_err(E::from))?;
    method(interface, "set-keep-alive-count", |it, to| it.set_keep_alive_count(to).map_err(E::from))?;
    getter(interface, &name("hop-limit"), |it| it.hop_limit().map_err(E::from))?;
    method(interface, "set-hop-limit", |it, to| it.set_hop_limit(to).map_err(E::from))?;
    getter(interface, &name("receive-buffer-size"), |it| it.receive_buffer().map_err(E::from))?;
    method(interface, "set-receive-buffer-size", |it, to| it.set_receive_buffer(to).map_err(E::from))?;
    getter(interface, &name("send-buffer-size"), |it| it.send_buffer().map_err(E::from))?;
    method(interface, "set-send-buffer-size", |it, to| it.set_send_buffer(to).map_err(E::from))
}

fn add_p2(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut create = linker.instance(&format!("wasi:sockets/tcp-create-socket@{P2}"))?;
    create.func_wrap("create-tcp-socket", |mut store, (family,): (IpAddressFamily,)| {
        let guest = store.data_mut();
        let family = if family == IpAddressFamily::Ipv4 { SocketFamily::V4 } else { SocketFamily::V6 };
        Ok((match guest.create_socket(family) {
            Ok(socket) => Ok(guest.table().push(socket)?),
            Err(NoSocket::Denied) => Err(p2::ErrorCode::AccessDenied),
            Err(NoSocket::TooMany) => Err(p2::ErrorCode::NewSocketLimit),
            Err(NoSocket::Failed(error)) => Err(error.into()),
        },))
    })?;

    let mut tcp = linker.instance(&format!("wasi:sockets/tcp@{P2}"))?;
    add_resource(&mut tcp)?;
    add_common::<p2::ErrorCode, p2::IpSocketAddress>(&mut tcp, "")?;
    getter(&mut tcp, "address-family", |it| match it.family() {
        SocketFamily::V4 => IpAddressFamily::Ipv4,
        SocketFamily::V6 => IpAddressFamily::Ipv6,
    })?;
    type To = (Tcp, Resource<Network>, p2::IpSocketAddress);
    tcp.func_wrap("[method]tcp-socket.start-bind", |_, (_, _, _): To| {
        Ok((Err::<(), _>(p2::ErrorCode::AccessDenied),))
    })?;
    tcp.func_wrap("[method]tcp-socket.start-connect", |mut store, (socket, _, to): To| {
        let guest = store.data_mut();
        if *guest.socket(&socket)?.is_started() {
            return Ok((Err(p2::ErrorCode::ConcurrencyConflict),));
        }
        let begun = guest.connect(&socket, to.into())?;
        *guest.socket(&socket)?.is_started() = begun.is_ok();
        Ok((begun.map_err(p2::ErrorCode::from),))
    })?;
    tcp.func_wrap("[method]tcp-socket.finish-connect", |mut store, (socket,): (Tcp,)| {
        let guest = store.data_mut();
        Ok((match guest.socket(&socket)?.finish_connect() {
            Err(error) => Err(error),
            Ok((input, output)) => {
                let (input, output): (DynInputStream, DynOutputStream) = (Box::new(input), Box::new(output));
                Ok((guest.table().push_child(input, &socket)?, guest.table().push_child(output, &socket)?))
            }
        },))
    })?;
    getter(&mut tcp, "finish-bind", |_| Err::<(), _>(p2::ErrorCode::NotInProgress))?;
    getter(&mut tcp, "start-listen", |_| Err::<(), _>(p2::ErrorCode::AccessDenied))?;
    getter(&mut tcp, "finish-listen", |_| Err::<(), _>(p2::ErrorCode::NotInProgress))?;
    type Accepted = (Tcp, Resource<DynInputStream>, Resource<DynOutputStream>);
    getter(&mut tcp, "accept", |_| Err::<Accepted, _>(p2::ErrorCode::InvalidState))?;
    tcp.func_wrap("[method]tcp-socket.subscribe", |mut store, (socket,): (Tcp,)| {
        Ok((subscribe(store.data_mut().table(), socket)?,))
    })?;
    method(&mut tcp, "shutdown", |it, how: ShutdownType| {
        it.shut_down(how != ShutdownType::Send, how != ShutdownType::Receive).map_err(p2::ErrorCode::from)
    })?;

    let mut names = linker.instance(&format!("wasi:sockets/ip-name-lookup@{P2}"))?;
    names.resource("resolve-address-stream", ResourceType::host::<NameLookup>(), |mut store, rep| {
        store.data_mut().table().delete(Resource::<NameLookup>::new_own(rep))?;
        Ok(())
    })?;
    names.func_wrap("resolve-addresses", |mut store, (_, name): (Resource<Network>, String)| {
        let guest = store.data_mut();
        let mut lookup = NameLookup::Sought(Box::pin(guest.look_up(&name)));
        // What can be said at once is.
        match lookup.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(failure)) => Ok((Err(p2::ErrorCode::from(failure)),)),
            Poll::Ready(Ok(_)) | Poll::Pending => Ok((Ok(guest.table().push(lookup)?),)),
        }
    })?;
    names.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store, (lookup,): (Resource<NameLookup>,)| {
            let lookup = store.data_mut().table().get_mut(&lookup)?;
            Ok((match lookup.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => Err(p2::ErrorCode::WouldBlock),
                Poll::Ready(Err(failure)) => Err(failure.into()),
                Poll::Ready(Ok(addresses)) => Ok(addresses.next().map(p2::IpAddress::from)),
            },))
        },
    )?;
    names.func_wrap("[method]resolve-address-stream.subscribe", |mut store, (lookup,): (Resource<NameLookup>,)| {
        Ok((subscribe(store.data_mut().table(), lookup)?,))
    })
}

impl GuestSocket {
    /// By WASI 0.2: what it comes to, if that is known.
    fn finish_connect(&mut self) -> Result<(SocketInput, SocketOutput), p2::ErrorCode> {
        if !*self.is_started() {
            return Err(p2::ErrorCode::NotInProgress);
        }
        let Poll::Ready(connected) = self.poll_connected(&mut Context::from_waker(Waker::noop())) else {
            return Err(p2::ErrorCode::WouldBlock);
        };
        *self.is_started() = false;
        connected?;
        Ok((SocketInput(self.receive()?), self.output()?))
    }
}

/// A look-up by WASI 0.2, and then the addresses that the guest has not taken yet.
enum NameLookup {
    Sought(Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, LookupFailure>> + Send>>),
    Found(Result<std::vec::IntoIter<IpAddr>, LookupFailure>),
}

impl NameLookup {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<&mut std::vec::IntoIter<IpAddr>, LookupFailure>> {
        if let Self::Sought(sought) = self {
            let Poll::Ready(found) = sought.as_mut().poll(context) else { return Poll::Pending };
            *self = Self::Found(found.map(Vec::into_iter));
        }
        match self {
            Self::Found(Ok(addresses)) => Poll::Ready(Ok(addresses)),
            Self::Found(Err(failure)) => Poll::Ready(Err(*failure)),
            Self::Sought(_) => Poll::Pending,
        }
    }
}

#[async_trait]
impl Pollable for NameLookup {
    async fn ready(&mut self) {
        poll_fn(|context| self.poll(context).map(|_| ())).await;
    }
}

impl From<LookupFailure> for p2::ErrorCode {
    fn from(failure: LookupFailure) -> Self {
        match failure {
            LookupFailure::Closed => Self::PermanentResolverFailure,
            LookupFailure::Denied => Self::AccessDenied,
            LookupFailure::NotAName => Self::InvalidArgument,
            LookupFailure::Failed => Self::NameUnresolvable,
            LookupFailure::Silent => Self::TemporaryResolverFailure,
        }
    }
}

impl From<LookupFailure> for ip_name_lookup::ErrorCode {
    fn from(failure: LookupFailure) -> Self {
        match failure {
            LookupFailure::Closed => Self::PermanentResolverFailure,
            LookupFailure::Denied => Self::AccessDenied,
            LookupFailure::NotAName => Self::InvalidArgument,
            LookupFailure::Failed => Self::NameUnresolvable,
            LookupFailure::Silent => Self::TemporaryResolverFailure,
        }
    }
}

/// How a side of a connection ended.
type SideEnd = FutureReader<Result<(), P3Error>>;

fn add_p3(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut tcp = linker.instance(&format!("wasi:sockets/types@{P3}"))?;
    add_resource(&mut tcp)?;
    add_common::<P3Error, p3::IpSocketAddress>(&mut tcp, "get-")?;
    getter(&mut tcp, "get-address-family", |it| match it.family() {
        SocketFamily::V4 => p3::IpAddressFamily::Ipv4,
        SocketFamily::V6 => p3::IpAddressFamily::Ipv6,
    })?;
    tcp.func_wrap("[static]tcp-socket.create", |mut store, (family,): (p3::IpAddressFamily,)| {
        let guest = store.data_mut();
        let family = if family == p3::IpAddressFamily::Ipv4 { SocketFamily::V4 } else { SocketFamily::V6 };
        Ok((match guest.create_socket(family) {
            Ok(socket) => Ok(guest.table().push(socket)?),
            Err(NoSocket::Denied) => Err(P3Error::AccessDenied),
            Err(NoSocket::TooMany) => Err(P3Error::Other(Some("new-socket-limit".into()))),
            Err(NoSocket::Failed(error)) => Err(error.into()),
        },))
    })?;
    method(&mut tcp, "bind", |_, _: p3::IpSocketAddress| Err::<(), _>(P3Error::AccessDenied))?;
    getter(&mut tcp, "listen", |_| Err::<StreamReader<Tcp>, _>(P3Error::AccessDenied))?;
    tcp.func_wrap_concurrent("[method]tcp-socket.connect", |accessor, (socket, to): (Tcp, p3::IpSocketAddress)| {
        Box::pin(async move {
            if let Err(error) = accessor.with(|mut access| access.get().connect(&socket, to.into()))? {
                return Ok((Err(P3Error::from(error)),));
            }
            let connected = poll_fn(|context| {
                accessor.with(|mut access| match access.get().socket(&socket) {
                    Ok(socket) => socket.poll_connected(context).map(Ok),
                    Err(error) => Poll::Ready(Err(error)),
                })
            });
            Ok((connected.await?.map_err(P3Error::from),))
        })
    })?;
    tcp.func_wrap("[method]tcp-socket.send", |mut store, (socket, mut data): (Tcp, StreamReader<u8>)| {
        let (tell, told) = oneshot::channel();
        match store.data_mut().socket(&socket)?.send() {
            Ok(stream) => data.pipe(&mut store, SocketConsumer::new(stream, tell))?,
            Err(error) => {
                data.close(&mut store)?;
                let _ = tell.send(Err(error));
            }
        }
        Ok((ending(&mut store, told)?,))
    })?;
    tcp.func_wrap("[method]tcp-socket.receive", |mut store, (socket,): (Tcp,)| {
        let (tell, told) = oneshot::channel();
        let data: StreamReader<u8> = match store.data_mut().socket(&socket)?.receive() {
            Ok(stream) => StreamReader::new(&mut store, SocketProducer::new(stream, tell))?,
            Err(error) => {
                let _ = tell.send(Err(error));
                StreamReader::new(&mut store, iter::empty())?
            }
        };
        Ok(((data, ending(&mut store, told)?),))
    })?;

    let mut names = linker.instance(&format!("wasi:sockets/ip-name-lookup@{P3}"))?;
    names.func_wrap_concurrent("resolve-addresses", |accessor, (name,): (String,)| {
        Box::pin(async move {
            let found = accessor.with(|mut access| access.get().look_up(&name)).await;
            let addresses = found.map(|found| found.into_iter().map(p3::IpAddress::from).collect::<Vec<_>>());
            Ok((addresses.map_err(ip_name_lookup::ErrorCode::from),))
        })
    })
}

fn ending(
    store: impl wasmtime::AsContextMut<Data = Guest>,
    told: oneshot::Receiver<Result<(), ErrorCode>>,
) -> wasmtime::Result<SideEnd> {
    FutureReader::new(store, async move {
        // Who was to tell is gone without a word only with the instance.
        wasmtime::error::Ok(told.await.unwrap_or(Ok(())).map_err(P3Error::from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::engine;

    /// Under another version they would stand beside those of wasmtime-wasi, and guests would get either.
    #[test]
    fn what_is_replaced_is_there_under_the_same_version() {
        let http = WasiHttp::V0_3;
        let mut linker = Linker::<Guest>::new(&engine::for_compiler(http).unwrap());
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
        wasmtime_wasi::p3::add_to_linker(&mut linker).unwrap();
        for (interface, version, function) in [
            ("ip-name-lookup", P2, "resolve-addresses"),
            ("ip-name-lookup", P3, "resolve-addresses"),
            ("tcp", P2, "[method]tcp-socket.start-connect"),
            ("tcp-create-socket", P2, "create-tcp-socket"),
            ("types", P3, "[method]tcp-socket.connect"),
        ] {
            let mut interface = linker.instance(&format!("wasi:sockets/{interface}@{version}")).unwrap();
            assert!(interface.func_wrap(function, |_, (): ()| Ok(())).is_err(), "{version} {function}");
        }
        add_to_linker(&mut linker, http).unwrap();
    }
}
