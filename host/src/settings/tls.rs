//! Where the certificates of https listeners come from. The files are read by the primary, at the start and again with
//! every reload.

use std::path::PathBuf;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::options::Options;
use crate::os::files;
use crate::os::listener::{ListenAddr, Security};

/// Certificates of one cluster. Each worker holds all of them.
const MAX_PAIRS: usize = 256;

/// `--tls-client-auth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClientAuth {
    /// A client without a certificate gets no connection.
    #[default]
    Required,
    /// A client may come without one. A wrong one is refused all the same.
    Optional,
}

/// A certificate's file and that of its key, as absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PairFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// What https listeners are served with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// At least one. The first is for clients that ask for a name that no certificate has.
    pub(crate) pairs: Vec<PairFiles>,
    /// Who signs the certificates of clients, if they are asked for any.
    pub(crate) client: Option<(PathBuf, ClientAuth)>,
}

impl TlsFiles {
    /// `None` if no listener speaks TLS.
    pub(super) fn new(options: &Options, listen: &[ListenAddr]) -> anyhow::Result<Option<Self>> {
        let (certs, keys) = (&options.tls_cert, &options.tls_key);
        let Some(https) = listen.iter().find(|address| address.entrance.security == Security::Tls) else {
            let given = [
                ("--tls-cert", !certs.is_empty()),
                ("--tls-key", !keys.is_empty()),
                ("--tls-client-ca", options.tls_client_ca.is_some()),
                ("--tls-client-auth", options.tls_client_auth.is_some()),
            ];
            if let Some((flag, _)) = given.iter().find(|(_, is_given)| *is_given) {
                bail!("{flag} has no effect without an https listener; write --listen https://HOST:PORT");
            }
            return Ok(None);
        };
        ensure!(
            !certs.is_empty() || !keys.is_empty(),
            "--listen {https} needs a certificate; add --tls-cert FILE and --tls-key FILE"
        );
        ensure!(
            certs.len() == keys.len(),
            "--tls-cert is given {} and --tls-key {}; give each certificate its key, in the same order",
            times(certs.len()),
            times(keys.len())
        );
        ensure!(certs.len() <= MAX_PAIRS, "--tls-cert is given {} times; the limit is {MAX_PAIRS}", certs.len());
        ensure!(
            options.tls_client_ca.is_some() || options.tls_client_auth.is_none(),
            "--tls-client-auth needs the certificates that sign those of clients; add --tls-client-ca FILE"
        );
        let pairs = certs.iter().zip(keys).map(|(cert, key)| {
            Ok::<_, anyhow::Error>(PairFiles { cert: files::absolute(cert)?, key: files::absolute(key)? })
        });
        let auth = options.tls_client_auth.unwrap_or_default();
        let client = options.tls_client_ca.as_deref().map(|ca| Ok::<_, anyhow::Error>((files::absolute(ca)?, auth)));
        Ok(Some(Self { pairs: pairs.collect::<anyhow::Result<_>>()?, client: client.transpose()? }))
    }
}

fn times(number: usize) -> String {
    match number {
        0 => "not at all".into(),
        1 => "once".into(),
        number => format!("{number} times"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(listen: &[&str], certs: &[&str], keys: &[&str]) -> Options {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect();
        let listen = listen.iter().map(|address| address.parse().unwrap()).collect();
        Options { listen, tls_cert: paths(certs), tls_key: paths(keys), ..Options::default() }
    }

    #[test]
    fn each_certificate_has_its_key_and_a_listener_that_uses_it() {
        let check = |options: &Options, message: &str| {
            let error = TlsFiles::new(options, &options.listen).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        let https = &["127.0.0.1:80", "https://127.0.0.1:443"][..];
        check(&settings(https, &[], &[]), "--listen https://127.0.0.1:443 needs a certificate; add --tls-cert FILE");
        check(&settings(https, &["a"], &[]), "--tls-cert is given once and --tls-key not at all; give each");
        check(&settings(https, &["a", "b"], &["a"]), "--tls-cert is given 2 times and --tls-key once");
        check(&settings(&["127.0.0.1:80"], &["a"], &["a"]), "--tls-cert has no effect without an https listener");
        check(&settings(&[], &[], &["a"]), "--tls-key has no effect without");
        let authorities = |options| Options { tls_client_ca: Some("ca".into()), ..options };
        check(&authorities(settings(&["unix:/a"], &[], &[])), "--tls-client-ca has no effect without");
        let optional = |options| Options { tls_client_auth: Some(ClientAuth::Optional), ..options };
        check(&optional(settings(https, &["a"], &["a"])), "add --tls-client-ca FILE");
        let given = authorities(settings(https, &["/a", "/b"], &["/c", "/d"]));
        let read = TlsFiles::new(&given, &given.listen).unwrap().unwrap();
        assert_eq!(read.pairs[1], PairFiles { cert: "/b".into(), key: "/d".into() });
        assert_eq!(read.client.unwrap().1, ClientAuth::Required);
        assert_eq!(TlsFiles::new(&Options::default(), &[]).unwrap(), None);
    }
}
