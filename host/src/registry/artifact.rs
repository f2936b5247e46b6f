//! How a component lies in a registry: the layout that the CNCF's working group on WebAssembly agreed on. A manifest with a
//! configuration of type `application/vnd.wasm.config.v0+json` and one layer, the component.
//!
//! <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>

use std::collections::BTreeMap;

use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest, OciManifest};
use serde::Serialize;

use crate::component::surface::Surface;

const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const COMPONENT: &str = "application/wasm";
/// What tools wrote before that was agreed on.
const OLDER_COMPONENT: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// What may be answered when a manifest is asked for; an index is told from a component by name.
pub(super) const MANIFESTS: &[&str] = &[OCI_IMAGE_MEDIA_TYPE, oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE];

/// The layer that is a component.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// `sha256:` and 64 hexadecimal digits: of the component's bytes.
    pub(super) digest: String,
    /// In bytes.
    pub(super) size: u64,
}

/// Finds the component in a manifest. An error says what there is instead.
pub(super) fn component_of(manifest: &[u8]) -> Result<Layer, String> {
    let parsed: OciManifest =
        serde_json::from_slice(manifest).map_err(|error| format!("its manifest is none: {error}"))?;
    let manifest = match parsed {
        OciManifest::Image(manifest) => manifest,
        OciManifest::ImageIndex(_) => {
            return Err("it is an index of images for several platforms, not a component; name the image itself".into());
        }
    };
    let is_component = |layer: &&OciDescriptor| [COMPONENT, OLDER_COMPONENT].contains(&&*layer.media_type);
    let mut components = manifest.layers.iter().filter(is_component);
    let layer = match (components.next(), components.next()) {
        (Some(layer), None) => layer,
        (Some(_), Some(_)) => return Err("it has several components, and none is told from the others".into()),
        (None, _) => {
            let kind = manifest.artifact_type.as_ref().unwrap_or(&manifest.config.media_type);
            return Err(format!(
                "it is no component but {kind:?}; put components there with `wasmcluster push`, or with another tool as \
                 one layer of type {COMPONENT}"
            ));
        }
    };
    let size = u64::try_from(layer.size).map_err(|_| "its manifest says that the component has less than no bytes")?;
    Ok(Layer { digest: layer.digest.clone(), size })
}

/// What is put into a registry beside the component.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
}

/// The type of what [`pack`] makes.
pub(super) const MANIFEST: &str = OCI_IMAGE_MEDIA_TYPE;

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
    digest: impl Fn(&[u8]) -> String,
) -> serde_json::Result<Packed> {
    let config = serde_json::to_vec(&ArtifactConfig {
        created,
        architecture: "wasm",
        // The word for all components, whichever version of WASI they are for.
        os: "wasip2",
        layer_digests: [&layer.digest],
        component: ComponentEntry { exports: &surface.exports, imports: &surface.imports, target },
    })?;
    let describe = |media_type: &str, digest: String, size: u64| OciDescriptor {
        media_type: media_type.into(),
        digest,
        size: size.try_into().unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    };
    let manifest = OciImageManifest {
        schema_version: 2,
        media_type: Some(MANIFEST.into()),
        config: describe(CONFIG, digest(&config), config.len() as u64),
        layers: vec![describe(COMPONENT, layer.digest.clone(), layer.size)],
        artifact_type: None,
        annotations: Some(BTreeMap::from([("org.opencontainers.image.created".into(), created.into())])),
        ..OciImageManifest::default()
    };
    Ok(Packed { config, manifest: serde_json::to_vec(&manifest)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(config: &str, layers: &[&str]) -> Vec<u8> {
        let layer = |kind: &&str| serde_json::json!({ "mediaType": kind, "digest": "sha256:ab", "size": 7 });
        let layers: Vec<_> = layers.iter().map(layer).collect();
        let config = layer(&config);
        serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers })).unwrap()
    }

    #[test]
    fn the_component_is_found_in_what_tools_write() {
        let found = Ok(Layer { digest: "sha256:ab".into(), size: 7 });
        assert_eq!(component_of(&manifest(CONFIG, &[COMPONENT])), found);
        assert_eq!(component_of(&manifest(CONFIG, &["text/plain", COMPONENT])), found);
        assert_eq!(component_of(&manifest("application/vnd.wasm.config.v1+json", &[OLDER_COMPONENT])), found);
        assert_eq!(component_of(&manifest("application/vnd.oci.empty.v1+json", &[COMPONENT])), found);
    }

    #[test]
    fn what_is_no_component_is_named() {
        let check = |manifest: &[u8], part: &str| {
            let error = component_of(manifest).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        check(&manifest("application/vnd.oci.image.config.v1+json", &[tar]), "vnd.oci.image.config.v1+json");
        check(&manifest(CONFIG, &[]), "no component");
        check(&manifest(CONFIG, &[COMPONENT, COMPONENT]), "several");
        check(br#"{"schemaVersion":2,"manifests":[]}"#, "index");
        check(b"<html>", "its manifest is none");
        check(b"{}", "its manifest is none");
        let negative = String::from_utf8(manifest(CONFIG, &[COMPONENT])).unwrap().replace(":7", ":-7");
        check(negative.as_bytes(), "less than no bytes");
    }

    #[test]
    fn what_is_packed_is_found_and_always_the_same() {
        let layer = Layer { digest: "sha256:ab".into(), size: 7 };
        let surface = Surface { imports: vec!["a:b/c".into()], exports: vec!["d:e/f".into()], can_hold_back: false };
        let pack = || pack(&layer, &surface, Some("wasi:http/proxy"), "2026-01-01T00:00:00Z", |_| "sha256:cd".into());
        let Packed { config, manifest } = pack().unwrap();
        assert_eq!(component_of(&manifest).unwrap(), layer);
        assert_eq!(pack().unwrap().manifest, manifest);
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(
            config,
            serde_json::json!({
                "created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": ["sha256:ab"],
                "component": { "exports": ["d:e/f"], "imports": ["a:b/c"], "target": "wasi:http/proxy" },
            })
        );
    }
}
