//! What is said to a registry once we are let in: manifests and blobs are fetched and uploaded. Credentials go to the registry
//! alone, wherever that points.

use std::time::Duration;

use anyhow::{bail, ensure};
use bytes::Bytes;
use bytesize::ByteSize;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::artifact::{self, Layer};
use super::http::{PATIENCE, client, location, permit, read};
use super::login::{Permission, login};
use super::words::{self, host_of};
use crate::component::file::MAX_COMPONENT;
use crate::component::store::sha256;
use crate::settings::{ImageName, Registries, is_sha256};

/// How long a blob may take.
const BLOB_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Bytes of a manifest; the specification has registries accept so many.
const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// Bytes of an error that are read.
const MAX_ERROR: usize = 64 * 1024;
/// From place to place, until whoever asks has had enough.
const MAX_REDIRECTS: usize = 5;
/// What says which manifest was answered with, where none is sent.
const DIGEST: &str = "docker-content-digest";

/// A registry that has let us in.
pub(super) struct Session<'a> {
    image: &'a ImageName,
    registries: &'a Registries,
    client: Client,
    /// Where the repository is.
    base: Url,
    /// What the registry is shown with each request.
    shown: Option<HeaderValue>,
    /// Where that came from.
    from: Option<String>,
}

impl<'a> Session<'a> {
    pub(super) async fn open(
        image: &'a ImageName,
        registries: &'a Registries,
        permission: Permission,
    ) -> anyhow::Result<Self> {
        let client = client(registries.ca.as_deref())?;
        let root = root(image, registries)?;
        let (shown, from) = login(&client, &root, image, registries, permission).await?;
        let base = root.join(&format!("{}/", image.repository()))?;
        Ok(Self { image, registries, client, base, shown, from })
    }

    /// The digest of the manifest that the name stands for.
    pub(super) async fn digest(&self) -> anyhow::Result<String> {
        let answer = self.get(Method::HEAD, self.manifest_url()?).await?;
        let told = answer.headers().get(DIGEST).and_then(|digest| digest.to_str().ok());
        match told.filter(|digest| is_sha256(digest)) {
            Some(digest) => Ok(digest.to_owned()),
            // Not all registries tell it.
            None => Ok(self.manifest().await?.0),
        }
    }

    /// The digest of the manifest, and what it says of the component.
    pub(super) async fn manifest(&self) -> anyhow::Result<(String, Layer)> {
        let answer = self.get(Method::GET, self.manifest_url()?).await?;
        let bytes = read(answer, MAX_MANIFEST).await?;
        let digest = sha256(&bytes);
        if self.image.digest().is_some_and(|wanted| wanted != digest) {
            bail!(words::altered(self.image.host()));
        }
        let layer = artifact::component_of(&bytes)?;
        let [length, limit] = [layer.size, MAX_COMPONENT].map(|bytes| ByteSize(bytes).display().iec());
        ensure!(layer.size <= MAX_COMPONENT, "the component's size is {length}; the limit is {limit}");
        Ok((digest, layer))
    }

    /// Whose bytes are those that the digest says.
    pub(super) async fn component(&self, layer: &Layer) -> anyhow::Result<Vec<u8>> {
        let host = self.image.host();
        let mut answer = self.get(Method::GET, self.base.join(&format!("blobs/{}", layer.digest))?).await?;
        let mut bytes = Vec::new();
        // At once, as memory is short: what grows takes it twice.
        bytes.try_reserve_exact(layer.size as usize)?;
        while let Some(piece) = answer.chunk().await.map_err(|error| words::broken(&error))? {
            let length = (bytes.len() + piece.len()) as u64;
            ensure!(length <= layer.size, "{host} sends more than the {} bytes that the manifest tells of", layer.size);
            bytes.extend_from_slice(&piece);
        }
        ensure!(sha256(&bytes) == layer.digest, words::altered(host));
        // The digest is right, and only the manifest wrong.
        let length = bytes.len() as u64;
        ensure!(length == layer.size, "the component has {length} bytes, and its manifest says {}", layer.size);
        Ok(bytes)
    }

    /// Uploads what is not there yet.
    pub(super) async fn upload(&self, bytes: &Bytes, digest: &str) -> anyhow::Result<()> {
        // Who may write and not look gets an error here, and goes on.
        if self.get(Method::HEAD, self.base.join(&format!("blobs/{digest}"))?).await.is_ok() {
            return Ok(());
        }
        let begins = self.client.post(self.base.join("blobs/uploads/")?).header(CONTENT_LENGTH, 0).timeout(PATIENCE);
        let begun = self.send(begins, StatusCode::ACCEPTED).await?;
        let mut place = location(&begun)?;
        place.query_pairs_mut().append_pair("digest", digest);
        let puts = self.client.put(place).header(CONTENT_TYPE, "application/octet-stream");
        self.send(puts.timeout(BLOB_PATIENCE).body(bytes.clone()), StatusCode::CREATED).await.map(drop)
    }

    /// Puts the manifest under the name.
    pub(super) async fn tag(&self, manifest: &Bytes) -> anyhow::Result<()> {
        let puts = self.client.put(self.manifest_url()?).header(CONTENT_TYPE, artifact::MANIFEST);
        self.send(puts.timeout(PATIENCE).body(manifest.clone()), StatusCode::CREATED).await.map(drop)
    }

    fn manifest_url(&self) -> anyhow::Result<Url> {
        let reference = self.image.digest().unwrap_or(self.image.tag());
        Ok(self.base.join(&format!("manifests/{reference}"))?)
    }

    /// Follows redirects, and succeeds with a 200.
    async fn get(&self, method: Method, mut url: Url) -> anyhow::Result<Response> {
        let patience = if url.path().contains("/blobs/") { BLOB_PATIENCE } else { PATIENCE };
        for _ in 0..=MAX_REDIRECTS {
            let request = self.client.request(method.clone(), url).timeout(patience);
            let answer = self.exchange(request.header(ACCEPT, artifact::MANIFESTS)).await?;
            if !answer.status().is_redirection() {
                return self.expect(answer, StatusCode::OK).await;
            }
            url = location(&answer)?;
        }
        bail!("{} sends us from place to place without end", self.image.host())
    }

    async fn send(&self, request: RequestBuilder, wanted: StatusCode) -> anyhow::Result<Response> {
        let answer = self.exchange(request).await?;
        self.expect(answer, wanted).await
    }

    async fn exchange(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let mut request = request.build()?;
        permit(request.url(), self.registries)?;
        // Other places are not to know.
        if let Some(shown) = self.shown.as_ref().filter(|_| request.url().origin() == self.base.origin()) {
            request.headers_mut().insert(AUTHORIZATION, shown.clone());
        }
        self.client.execute(request).await.map_err(|error| words::unreachable(&error))
    }

    async fn expect(&self, answer: Response, wanted: StatusCode) -> anyhow::Result<Response> {
        if answer.status() == wanted {
            return Ok(answer);
        }
        let (status, host) = (answer.status(), host_of(answer.url()));
        // What cannot be read says nothing.
        let text = read(answer, MAX_ERROR).await.unwrap_or_default();
        Err(words::refused(&host, self.from.as_deref(), status, &text))
    }
}

/// Where a registry begins.
fn root(image: &ImageName, registries: &Registries) -> anyhow::Result<Url> {
    let scheme = if registries.is_plain(image.host()) { "http" } else { "https" };
    Ok(format!("{scheme}://{}/v2/", image.real_host()).parse()?)
}
