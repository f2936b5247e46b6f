//! How a component lies in a registry: the layout that the CNCF's working group on WebAssembly agreed on. A manifest with a
//! configuration of type `application/vnd.wasm.config.v0+json` and one layer, the component.
//!
//! <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::component::store::sha256;
use crate::component::surface::Surface;
use crate::settings::is_sha256;

const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const COMPONENT: &str = "application/wasm";
/// What tools wrote before that was agreed on.
const OLDER_COMPONENT: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// The type of what [`pack`] makes.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What may be answered when a manifest is asked for. An index is no component, and is to be told from one.
pub(super) const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// What is in a registry, and is no component: what it is instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoComponent(String);

/// As much of a manifest as is gone by, of an image or of an index.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageManifest {
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(skip_serializing)]
    manifests: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: i64,
}

/// The layer that is a component.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// `sha256:` and 64 hexadecimal digits: of the component's bytes.
    pub(super) digest: String,
    /// In bytes.
    pub(super) size: u64,
}

/// Finds the component in a manifest.
pub(super) fn component_of(manifest: &[u8]) -> Result<Layer, NoComponent> {
    let manifest: ImageManifest = serde_json::from_slice(manifest)
        .map_err(|error| NoComponent(format!("what the registry has there is not a manifest: {error}")))?;
    if manifest.manifests.is_some() {
        let text = "it is an index of images for several platforms, not a component; name the image itself";
        return Err(NoComponent(text.into()));
    }
    let is_component = |layer: &&Descriptor| [COMPONENT, OLDER_COMPONENT].contains(&&*layer.media_type);
    let mut components = manifest.layers.iter().filter(is_component);
    let layer = match (components.next(), components.next()) {
        (Some(layer), None) => layer,
        (Some(_), Some(_)) => return Err(NoComponent("it has several components instead of one".into())),
        (None, _) => {
            let of_config = manifest.config.map(|config| config.media_type);
            let kind = manifest.artifact_type.or(of_config).unwrap_or_default();
            return Err(NoComponent(format!(
                "it is not a component but {kind:?}; put components there with `wasmcluster push`, or with another tool as one \
                 layer of type {COMPONENT}"
            )));
        }
    };
    let Ok(size) = u64::try_from(layer.size) else {
        return Err(NoComponent("its manifest says that the component has less than no bytes".into()));
    };
    // It becomes a part of a URL.
    if !is_sha256(&layer.digest) {
        return Err(NoComponent("its manifest names a component by a digest that is not SHA-256".into()));
    }
    Ok(Layer { digest: layer.digest.clone(), size })
}

/// What is put into a registry beside the component.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ArtifactConfig<'a> {
    created: &'a str,
    architecture: &'static str,
    os: &'static str,
    layer_digests: [&'a str; 1],
    component: ComponentEntry<'a>,
}

#[derive(Serialize)]
struct ComponentEntry<'a> {
    exports: &'a [String],
    imports: &'a [String],
    target: Option<&'static str>,
}

/// Describes a component with this surface, which was `created` then (RFC 3339). The same is always described in the same
/// way, so that it has one digest.
pub(super) fn pack(
    layer: &Layer,
    surface: &Surface,
    target: Option<&'static str>,
    created: &str,
) -> serde_json::Result<Packed> {
    let config = serde_json::to_vec(&ArtifactConfig {
        created,
        architecture: "wasm",
        // The word for all components, whichever version of WASI they are for.
        os: "wasip2",
        layer_digests: [&layer.digest],
        component: ComponentEntry { exports: &surface.exports, imports: &surface.imports, target },
    })?;
    let describe = |media_type: &str, digest: String, size: u64| Descriptor {
        media_type: media_type.into(),
        digest,
        size: size.try_into().unwrap_or(i64::MAX),
    };
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(MANIFEST.into()),
        config: Some(describe(CONFIG, sha256(&config), config.len() as u64)),
        layers: vec![describe(COMPONENT, layer.digest.clone(), layer.size)],
        artifact_type: None,
        annotations: BTreeMap::from([("org.opencontainers.image.created".into(), created.into())]),
        manifests: None,
    };
    Ok(Packed { config, manifest: serde_json::to_vec(&manifest)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> String {
        format!("sha256:{}", "ab".repeat(32))
    }

    fn manifest(config: &str, layers: &[&str]) -> Vec<u8> {
        let layer = |kind: &&str| serde_json::json!({ "mediaType": kind, "digest": digest(), "size": 7 });
        let layers: Vec<_> = layers.iter().map(layer).collect();
        let config = layer(&config);
        serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers })).unwrap()
    }

    #[test]
    fn the_component_is_found_in_what_tools_write() {
        let found = |manifest: &[u8]| {
            assert_eq!(component_of(manifest).unwrap(), Layer { digest: digest(), size: 7 });
        };
        found(&manifest(CONFIG, &[COMPONENT]));
        found(&manifest(CONFIG, &["text/plain", COMPONENT]));
        found(&manifest("application/vnd.wasm.config.v1+json", &[OLDER_COMPONENT]));
        found(&manifest("application/vnd.oci.empty.v1+json", &[COMPONENT]));
    }

    #[test]
    fn what_is_no_component_is_named() {
        let check = |manifest: &[u8], part: &str| {
            let error = component_of(manifest).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        check(&manifest("application/vnd.oci.image.config.v1+json", &[tar]), "vnd.oci.image.config.v1+json");
        check(&manifest(CONFIG, &[]), "not a component");
        check(&manifest(CONFIG, &[COMPONENT, COMPONENT]), "several");
        check(br#"{"schemaVersion":2,"manifests":[]}"#, "index");
        check(b"<html>", "not a manifest");
        check(b"{}", "not a manifest");
        let wrong = String::from_utf8(manifest(CONFIG, &[COMPONENT])).unwrap().replace("sha256:", "sha512:");
        check(wrong.as_bytes(), "not SHA-256");
        let path = String::from_utf8(manifest(CONFIG, &[COMPONENT])).unwrap().replace("sha256:ab", "../../x");
        check(path.as_bytes(), "not SHA-256");
        let negative = String::from_utf8(manifest(CONFIG, &[COMPONENT])).unwrap().replace(":7", ":-7");
        check(negative.as_bytes(), "less than no bytes");
    }

    #[test]
    fn what_is_packed_is_found_and_always_the_same() {
        let layer = Layer { digest: digest(), size: 7 };
        let surface = Surface { imports: vec!["a:b/c".into()], exports: vec!["d:e/f".into()], ..Surface::default() };
        let pack = || pack(&layer, &surface, Some("wasi:http/proxy"), "2026-01-01T00:00:00Z");
        let Packed { config, manifest } = pack().unwrap();
        assert_eq!(component_of(&manifest).unwrap(), layer);
        assert_eq!(pack().unwrap().manifest, manifest);
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(
            config,
            serde_json::json!({
                "created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": [digest()],
                "component": { "exports": ["d:e/f"], "imports": ["a:b/c"], "target": "wasi:http/proxy" },
            })
        );
    }
}
