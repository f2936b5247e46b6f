//! The puller: a disposable process that answers one request of the primary. Answers of registries are parsed here, and
//! helpers that know passwords are started from here.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::{Pulled, pull, resolve};
use crate::component::store::kept_component;
use crate::os::memfd;
use crate::os::resources::{self, BoundedMemory};
use crate::settings::{ImageName, Registries};
use crate::wire::channel::{Channel, Received, Wait, bounded, end_with};
use crate::wire::messages::{FromPuller, ToPuller};

/// The puller process: answers one request on its standard input, an IPC channel, and ends.
pub(crate) fn puller_main() -> anyhow::Result<()> {
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    let primary = Arc::new(Channel::<FromPuller, ToPuller>::from(fd));
    let request = primary.receive(Wait::Yes).context("this command is started by wasmcluster itself")?;
    let Received::Message(request, _) = request else {
        return Ok(());
    };
    end_with(primary.clone());
    let _bounded = BoundedMemory::for_registry();
    // It has passwords.
    resources::forbid_core_dumps();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    let answer = runtime.block_on(answer(request));
    // A look-up of a name, or a helper, may hang in a thread.
    runtime.shutdown_background();
    match answer {
        Ok((answer, component)) => {
            let descriptors: Vec<_> = component.iter().map(AsFd::as_fd).collect();
            primary.send(&answer, &descriptors)?;
        }
        Err(error) => primary.send(&FromPuller::Refused { reason: bounded(format!("{error:#}")) }, &[])?,
    }
    Ok(())
}

type PullerAnswer = (FromPuller, Option<std::os::fd::OwnedFd>);

async fn answer(request: ToPuller) -> anyhow::Result<PullerAnswer> {
    match request {
        ToPuller::Pull { image, registries, store } => fetch(&image, &registries, &store).await,
        ToPuller::Resolve { image, registries } => {
            Ok((FromPuller::Resolved { manifest: resolve(&image, &registries).await? }, None))
        }
    }
}

async fn fetch(image: &ImageName, registries: &Registries, store: &Path) -> anyhow::Result<PullerAnswer> {
    let Pulled { bytes, manifest } = pull(image, registries, |digest| kept_component(store, digest)).await?;
    let component = memfd::constant(c"wasmcluster-component", &*bytes).context("cannot pass the component on")?;
    Ok((FromPuller::Pulled { manifest }, Some(component)))
}
