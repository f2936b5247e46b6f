//! Components in registries of container images, by the distribution specification of the OCI: pulled, looked up and pushed.
//!
//! A primary has this done by a *puller*, a process that answers one request and ends. Commands do it themselves.
//!
//! The protocol is ours: the library for it (oci-client 0.18) sends passwords and refresh tokens wherever a registry points,
//! follows redirects into clear text, and reads manifests without a bound.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>

mod artifact;
mod credentials;
mod http;
mod login;
mod puller;
mod session;
mod words;

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;

use crate::component::store::sha256;
use crate::component::surface::Surface;
use crate::settings::{ImageName, Registries};
pub(crate) use artifact::NoComponent;
use artifact::{Layer, Packed};
use login::Permission;
pub(crate) use puller::puller_main;
use session::Session;

/// Between tries of what may go well next time.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// A component that was in a registry.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub(crate) bytes: Vec<u8>,
    /// The digest of its manifest, which pins it.
    pub(crate) manifest: String,
}

/// Fetches a component, unless `kept` has the one with this digest.
pub(crate) async fn pull(
    image: &ImageName,
    registries: &Registries,
    kept: impl Fn(&str) -> Option<Vec<u8>>,
) -> anyhow::Result<Pulled> {
    persistently(async || {
        let session = Session::open(image, registries, Permission::Pull).await?;
        let (manifest, layer) = session.manifest().await?;
        let bytes = match kept(&layer.digest) {
            Some(bytes) => bytes,
            None => session.component(&layer).await?,
        };
        Ok(Pulled { bytes, manifest })
    })
    .await
    .with_context(|| format!("cannot pull {image}"))
}

/// The digest of the manifest that a name stands for now.
pub(crate) async fn resolve(image: &ImageName, registries: &Registries) -> anyhow::Result<String> {
    persistently(async || Session::open(image, registries, Permission::Pull).await?.digest().await)
        .await
        .with_context(|| format!("cannot look up {image}"))
}

/// What was put into a registry.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// The digest of its manifest.
    pub(crate) manifest: String,
    /// The digest of the component.
    pub(crate) component: String,
}

/// Puts a component there, which was `created` then (RFC 3339).
pub(crate) async fn push(
    image: &ImageName,
    registries: &Registries,
    (bytes, surface, target): (Vec<u8>, &Surface, Option<&'static str>),
    created: &str,
) -> anyhow::Result<Pushed> {
    let layer = Layer { digest: sha256(&bytes), size: bytes.len() as u64 };
    let Packed { config, manifest } = artifact::pack(&layer, surface, target, created)?;
    let (component, config, manifest) = (Bytes::from(bytes), Bytes::from(config), Bytes::from(manifest));
    persistently(async || {
        let session = Session::open(image, registries, Permission::Push).await?;
        session.upload(&component, &layer.digest).await?;
        session.upload(&config, &sha256(&config)).await?;
        session.tag(&manifest).await?;
        Ok(Pushed { manifest: sha256(&manifest), component: layer.digest.clone() })
    })
    .await
    .with_context(|| format!("cannot push {image}"))
}

/// Tries a few times what may go well next time.
async fn persistently<T>(mut work: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for pause in PAUSES {
        match work().await {
            Err(error) if words::is_passing(&error) => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
    }
    work().await
}
