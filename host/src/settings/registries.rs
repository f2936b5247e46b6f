//! How registries are spoken to: by HTTPS, but for those that a flag names.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::os::files;

/// How registries are spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registries {
    /// Certificates to trust besides those that the machine trusts, in PEM; an absolute path.
    pub(crate) ca: Option<PathBuf>,
    /// Hosts, with their ports if they have one, that are spoken to in clear text.
    pub(crate) plain_http: Vec<String>,
}

impl Registries {
    /// By the values of --registry-ca and --registry-plain-http.
    pub(crate) fn new(ca: Option<PathBuf>, plain_http: Vec<String>) -> anyhow::Result<Self> {
        for host in &plain_http {
            let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
            ensure!(
                !host.is_empty() && host.chars().all(is_host),
                "--registry-plain-http {host}: expected HOST or HOST:PORT, as the name of the component has it"
            );
        }
        let ca = ca.as_deref().map(files::absolute).transpose()?;
        if let Some(file) = &ca {
            // Now, and not at the first reload that needs it.
            File::open(file).with_context(|| format!("--registry-ca {}", file.display()))?;
        }
        Ok(Self { ca, plain_http: plain_http.iter().map(|host| host.to_ascii_lowercase()).collect() })
    }

    /// Whether it is spoken to in clear text.
    pub(crate) fn is_plain(&self, host: &str) -> bool {
        self.plain_http.iter().any(|plain| plain == host)
    }
}
