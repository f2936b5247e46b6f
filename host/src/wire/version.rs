//! What a component is to those who deploy it: its digest, its handler, where it came from.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::settings::App;

/// The version of wasi:http whose handler a component exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WasiHttp {
    /// `wasi:http/incoming-handler@0.2.x`
    #[serde(rename = "0.2")]
    V0_2,
    /// `wasi:http/handler@0.3.x`
    #[serde(rename = "0.3")]
    V0_3,
}

impl WasiHttp {
    /// The world whose handler it is.
    pub(crate) fn world(self) -> &'static str {
        match self {
            Self::V0_2 => "wasi:http/proxy",
            Self::V0_3 => "wasi:http/service",
        }
    }

    /// How many requests an instance serves unless a flag says otherwise; as many as with `wasmtime serve`. Only with 0.3
    /// must a guest expect more than one.
    pub(crate) fn usual_reuse(self) -> u32 {
        match self {
            Self::V0_2 => 1,
            Self::V0_3 => 128,
        }
    }
}

impl fmt::Display for WasiHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V0_2 => "0.2",
            Self::V0_3 => "0.3",
        })
    }
}

/// A component that was deployed, as far as it is needed to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) digest: String,
    pub(crate) http: WasiHttp,
    /// Where it was read from.
    pub(crate) source: App,
    /// Of a component from a registry, the digest of its manifest then.
    #[serde(default)]
    pub(crate) manifest: Option<String>,
}

/// What came of the attempt to have instances start from a snapshot, of a component that does something before its first
/// request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SnapshotStart {
    /// Its memories have as many bytes from the start.
    Taken { memory: u64 },
    /// They start as the component is; why.
    Refused(String),
}

/// What is known of a compiled component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compiled {
    /// `sha256:` and 64 hexadecimal digits of the component's bytes.
    pub(crate) digest: String,
    pub(crate) http: WasiHttp,
    /// An instance may take no more calls after one, and look as if it did.
    pub(crate) can_hold_back: bool,
    /// None if there was nothing to initialize, or if that was not wanted.
    pub(crate) snapshot: Option<SnapshotStart>,
    /// Whether the store had it already.
    pub(crate) cached: bool,
    /// Whether the store has it now.
    pub(crate) kept: bool,
}
