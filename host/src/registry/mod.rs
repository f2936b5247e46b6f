//! Components in registries of container images (OCI): pulled, looked up and pushed, by the library that the OCI Registry As
//! Storage project keeps.
//!
//! A primary has this done by a *puller*, a process that answers one request and ends. Commands do it themselves.

mod artifact;
mod credentials;
mod login;
mod puller;
mod words;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::TryStreamExt;
use oci_client::Client;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::manifest::OciDescriptor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::component::snapshot::MAX_COMPONENT;
use crate::component::store::sha256;
use crate::component::surface::Surface;
use crate::settings::{ImageName, Registries};
use artifact::{Layer, Packed};
use login::{Login, Permission, login};
pub(crate) use puller::{puller_main, speak_tls};

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a registry may send nothing.
const READ_PATIENCE: Duration = Duration::from_secs(30);
/// Between tries of what may go well next time.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
const USER_AGENT: &str = concat!("wasmcluster/", env!("CARGO_PKG_VERSION"));

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
    persistently(async || {
        let session = Session::open(image, registries, Permission::Pull).await?;
        let digest = session.client.fetch_manifest_digest(image.reference(), &session.login.auth).await;
        digest.map_err(|error| session.explain(error))
    })
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
    let Packed { config, manifest } = artifact::pack(&layer, surface, target, created, sha256)?;
    let (component, config, manifest) = (Bytes::from(bytes), Bytes::from(config), Bytes::from(manifest));
    persistently(async || {
        let session = Session::open(image, registries, Permission::Push).await?;
        session.blob(&component, &layer.digest).await?;
        session.blob(&config, &sha256(&config)).await?;
        let kind = http::HeaderValue::from_static(artifact::MANIFEST);
        let pushed = session.client.push_manifest_raw(image.reference(), manifest.clone(), kind).await;
        pushed.map_err(|error| session.explain(error))?;
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

/// A registry that we have logged in to.
struct Session<'a> {
    image: &'a ImageName,
    client: Client,
    login: Login,
}

impl<'a> Session<'a> {
    async fn open(image: &'a ImageName, registries: &Registries, permission: Permission) -> anyhow::Result<Self> {
        let authorities = registries.ca.as_deref().map(authorities).transpose()?.unwrap_or_default();
        let client = client(registries, &authorities)?;
        let asks = login_client(image, registries, &authorities)?;
        let login = login(&asks, image, registries, permission).await?;
        client.store_auth_if_needed(image.reference().resolve_registry(), &login.auth).await;
        Ok(Self { image, client, login })
    }

    fn explain(&self, error: oci_client::errors::OciDistributionError) -> anyhow::Error {
        words::explain(self.image, self.login.from.as_deref(), error)
    }

    /// The digest of the manifest, and what it says of the component.
    async fn manifest(&self) -> anyhow::Result<(String, Layer)> {
        let reference = self.image.reference();
        let pulled = self.client.pull_manifest_raw(reference, &self.login.auth, artifact::MANIFESTS).await;
        let (bytes, digest) = pulled.map_err(|error| self.explain(error))?;
        let layer = artifact::component_of(&bytes).map_err(anyhow::Error::msg)?;
        let [length, limit] = [layer.size, MAX_COMPONENT].map(|bytes| ByteSize(bytes).display().iec());
        ensure!(layer.size <= MAX_COMPONENT, "the component's size is {length}; the limit is {limit}");
        Ok((digest, layer))
    }

    /// Whose digest is checked.
    async fn component(&self, layer: &Layer) -> anyhow::Result<Vec<u8>> {
        let host = self.image.host();
        let wanted = OciDescriptor { digest: layer.digest.clone(), ..OciDescriptor::default() };
        let opened = self.client.pull_blob_stream(self.image.reference(), &wanted).await;
        let mut pieces = opened.map_err(|error| self.explain(error))?.stream;
        let mut bytes = Vec::new();
        // At once, as memory is short: what grows takes it twice.
        bytes.try_reserve_exact(layer.size as usize)?;
        while let Some(piece) = pieces.try_next().await.map_err(|error| words::broken(host, error))? {
            let piece: Bytes = piece;
            bytes.extend_from_slice(&piece);
            let length = bytes.len() as u64;
            ensure!(length <= layer.size, "{host} sends more than the {} bytes that the manifest tells of", layer.size);
        }
        // The digest is right then, and only the manifest wrong.
        ensure!(
            bytes.len() as u64 == layer.size,
            "the component has {} bytes, not the {} of its manifest",
            bytes.len(),
            layer.size
        );
        Ok(bytes)
    }

    /// Uploads what is not there yet.
    async fn blob(&self, bytes: &Bytes, digest: &str) -> anyhow::Result<()> {
        let reference = self.image.reference();
        // Who may write and not look gets an error here, and goes on.
        if self.client.blob_exists(reference, digest).await.is_ok_and(|exists| exists) {
            return Ok(());
        }
        let pushed = self.client.push_blob(reference, bytes.clone(), digest).await;
        pushed.map(drop).map_err(|error| self.explain(error))
    }
}

/// The certificates in a file, which has some.
fn authorities(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let of = || format!("--registry-ca {}", file.display());
    let pem = fs::read(file).with_context(of)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().with_context(of)?;
    ensure!(!found.is_empty(), "{}: there is no certificate in it; expected PEM", of());
    Ok(found)
}

fn client(registries: &Registries, authorities: &[CertificateDer<'_>]) -> anyhow::Result<Client> {
    let certificate = |der: &CertificateDer<'_>| Certificate { encoding: CertificateEncoding::Der, data: der.to_vec() };
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(registries.plain_http.clone()),
        extra_root_certificates: authorities.iter().map(certificate).collect(),
        connect_timeout: Some(CONNECT_PATIENCE),
        read_timeout: Some(READ_PATIENCE),
        user_agent: USER_AGENT,
        use_monolithic_push: true,
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| anyhow!("cannot speak to registries: {error}"))
}

/// Speaks clear text to nobody, unless the registry may be spoken to so.
fn login_client(
    image: &ImageName,
    registries: &Registries,
    authorities: &[CertificateDer<'_>],
) -> anyhow::Result<reqwest::Client> {
    let certificates = authorities.iter().map(|der| reqwest::Certificate::from_der(der));
    let certificates = certificates.collect::<Result<Vec<_>, _>>().context("--registry-ca")?;
    let client = reqwest::Client::builder()
        .https_only(!registries.is_plain(image.host()))
        .tls_certs_merge(certificates)
        .connect_timeout(CONNECT_PATIENCE)
        .read_timeout(READ_PATIENCE)
        .user_agent(USER_AGENT);
    client.build().map_err(|error| anyhow!("cannot speak to registries: {error}"))
}
