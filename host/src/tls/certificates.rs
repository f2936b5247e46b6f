//! Reads the files of certificates and keys, and checks them before a worker sees them. The primary does it, at the start
//! and with every reload, on a thread that may wait for a file system.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};

use super::credentials::server_config;
use super::material::{MAX_MATERIAL, Material};
use super::pair::{self, Pair};
use crate::os::files;
use crate::settings::{PairFiles, TlsFiles};

/// Bytes of one file.
const MAX_FILE: u64 = 1024 * 1024;
/// One that ends within this is warned of.
pub(crate) const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// What was read, checked.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) material: Material,
    /// In the order of the flags.
    pub(crate) shown: Vec<Leaf>,
    /// What is allowed and hardly meant, a line each, to be logged.
    pub(crate) doubts: Vec<String>,
}

/// What a certificate says of itself, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) file: PathBuf,
    pub(crate) names: Vec<String>,
    pub(crate) not_after: SystemTime,
}

impl Leaf {
    /// What is to be said of a certificate that has ended, or ends soon.
    pub(crate) fn doubt(&self, now: SystemTime) -> Option<String> {
        let (names, file) = (self.names.join(", "), self.file.display());
        let how = match self.not_after.duration_since(now) {
            Ok(left) if left > EXPIRES_SOON => return None,
            Ok(left) => format!("expires in {} on {}", days(left), day(self.not_after)),
            Err(_) => format!("expired on {}", day(self.not_after)),
        };
        Some(format!("the certificate for {names} {how}; renew {file}, then run `wasmcluster reload`"))
    }
}

fn days(time: Duration) -> String {
    match time.as_secs() / (24 * 60 * 60) {
        0 => "less than a day".into(),
        1 => "1 day".into(),
        days => format!("{days} days"),
    }
}

/// As in `2027-01-31`.
pub(crate) fn day(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().chars().take_while(|&c| c != 'T').collect()
}

/// Reads all of them anew. An error is one line that says which file is wrong and why.
pub(crate) fn read(tls: &TlsFiles, now: SystemTime) -> anyhow::Result<Certificates> {
    let (mut material, mut shown, mut doubts) = (Material::default(), Vec::new(), Vec::new());
    for pair in &tls.pairs {
        let (cert, key) = (contents(&pair.cert, "certificate")?, contents(&pair.key, "key")?);
        shown.push(check(pair, &cert, &key, now)?);
        doubts.extend(files::exposed(&pair.key, "key"));
        material.pairs.push((text(&cert), text(&key)));
    }
    if let Some((ca, auth)) = &tls.client {
        let certs = contents(ca, "client CA")?;
        pair::chain(&certs).with_context(|| format!("cannot use the client CA {}", ca.display()))?;
        material.client = Some((text(&certs), *auth));
    }
    ensure!(
        (material.size() as u64) < MAX_MATERIAL / 2,
        "the certificates and keys take more than {MAX_MATERIAL} bytes; leave some out"
    );
    // As a worker will, so that none of them finds a fault.
    server_config(&material).with_context(|| match &tls.client {
        Some((ca, _)) => format!("cannot use the client CA {}", ca.display()),
        None => "cannot use the certificates".into(),
    })?;
    doubts.extend(shown.iter().filter_map(|shown| shown.doubt(now)));
    Ok(Certificates { material, shown, doubts })
}

/// Whether a certificate and a key belong together and are good now.
fn check(PairFiles { cert, key }: &PairFiles, chain: &[u8], secret: &[u8], now: SystemTime) -> anyhow::Result<Leaf> {
    let file = cert.display();
    let chain = pair::chain(chain).with_context(|| format!("cannot use the certificate {file}"))?;
    let secret = pair::key(secret).with_context(|| format!("cannot use the key {}", key.display()))?;
    let pair = Pair::new(chain, secret)
        .with_context(|| format!("cannot use the certificate {file} with the key {}", key.display()))?;
    if pair.not_after <= now {
        bail!("the certificate {file} expired on {}; renew it", day(pair.not_after));
    }
    if pair.not_before > now {
        let from = humantime::format_rfc3339_seconds(pair.not_before);
        bail!("the certificate {file} is not valid before {from}; check this machine's clock");
    }
    Ok(Leaf { file: cert.clone(), names: pair.names, not_after: pair.not_after })
}

fn contents(path: &Path, what: &str) -> anyhow::Result<Vec<u8>> {
    files::contents(path, MAX_FILE).with_context(|| format!("cannot read the {what} {}", path.display()))
}

/// PEM is ASCII; what stands between its sections may be anything.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::settings::ClientAuth;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// A certificate of the year 2030, with its key, for these names.
    fn issue(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2030, 1, 1), date_time_ymd(2031, 1, 1));
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn at(date: &str) -> SystemTime {
        humantime::parse_rfc3339(&format!("{date}T00:00:01Z")).unwrap()
    }

    #[test]
    fn pairs_that_cannot_serve_are_refused_in_one_line_with_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (cert, key) = issue(&["Shop.test", "*.shop.test", "127.0.0.1"]);
        for (name, contents) in
            [("a.pem", &cert), ("a.key", &key), ("b.key", &issue(&["b.test"]).1), ("empty", &"".into())]
        {
            fs::write(path(name), contents).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let files = |cert: &str, key: &str, ca: Option<&str>| TlsFiles {
            pairs: vec![PairFiles { cert: path(cert), key: path(key) }],
            client: ca.map(|ca| (path(ca), ClientAuth::Required)),
        };
        let good = read(&files("a.pem", "a.key", None), at("2030-06-01")).unwrap();
        assert_eq!(good.shown[0].names, ["shop.test", "*.shop.test", "127.0.0.1"]);
        assert_eq!((day(good.shown[0].not_after), good.doubts.len()), ("2031-01-01".into(), 0));
        read(&files("a.pem", "a.key", Some("a.pem")), at("2030-06-01")).unwrap();
        for (files, date, message) in [
            (files("none", "a.key", None), "2030-06-01", "cannot read the certificate"),
            (files("a.pem", "none", None), "2030-06-01", "cannot read the key"),
            (files("a.pem", ".", None), "2030-06-01", "it is not a file"),
            (files("empty", "a.key", None), "2030-06-01", "it has no certificate"),
            (files("a.pem", "a.pem", None), "2030-06-01", "it has no private key"),
            (files("a.pem", "b.key", None), "2030-06-01", "b.key: the key does not belong to the certificate"),
            (files("a.pem", "a.key", None), "2031-01-01", "a.pem expired on 2031-01-01; renew it"),
            (files("a.pem", "a.key", None), "2029-12-31", "not valid before 2030-01-01T00:00:00Z"),
            (files("a.pem", "a.key", Some("empty")), "2030-06-01", "client CA"),
        ] {
            let error = format!("{:#}", read(&files, at(date)).unwrap_err());
            assert!(error.contains(message) && !error.contains('\n'), "{message}: {error}");
        }
        fs::set_permissions(path("a.key"), fs::Permissions::from_mode(0o640)).unwrap();
        let doubts = read(&files("a.pem", "a.key", None), at("2030-06-01")).unwrap().doubts;
        assert!(doubts.len() == 1 && doubts[0].contains("(mode 640); run `chmod go= "), "{doubts:?}");
    }

    #[test]
    fn certificates_are_warned_of_before_they_end() {
        let not_after = at("2031-01-01");
        let shown = Leaf { file: "/a.pem".into(), names: vec!["a.test".into(), "b.test".into()], not_after };
        assert_eq!(shown.doubt(not_after - 15 * DAY), None);
        let check = |now, how: &str| {
            let expected =
                format!("the certificate for a.test, b.test {how}; renew /a.pem, then run `wasmcluster reload`");
            assert_eq!(shown.doubt(now), Some(expected));
        };
        check(not_after - 14 * DAY, "expires in 14 days on 2031-01-01");
        check(not_after - DAY, "expires in 1 day on 2031-01-01");
        check(not_after - DAY / 2, "expires in less than a day on 2031-01-01");
        check(not_after + DAY, "expired on 2031-01-01");
    }
}
