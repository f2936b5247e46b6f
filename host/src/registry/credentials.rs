//! Finds what a registry is shown: in the files that `docker login` and `podman login` write, or from the helpers that these
//! name.

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};

use crate::logging::one_line;
use crate::settings::ImageName;

/// Docker Hub is known under this key.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What a registry is shown, and where it was found, for people.
pub(super) struct FoundCredentials {
    pub(super) what: DockerCredential,
    pub(super) file: PathBuf,
}

/// The credentials for a repository, if there are any. Those for a part of a host go before those for all of it.
pub(super) fn find(image: &ImageName) -> anyhow::Result<Option<FoundCredentials>> {
    for file in places() {
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(error).with_context(|| format!("credentials in {}", file.display())),
        };
        for key in keys(image, &text) {
            match get_credential_from_reader(text.as_bytes(), &key) {
                Ok(what) => return Ok(Some(FoundCredentials { what, file })),
                Err(CredentialRetrievalError::NoCredentialConfigured) => {}
                // What all of them say of a registry that they do not know.
                Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("not found") => {}
                Err(CredentialRetrievalError::HelperFailure { helper, stdout, stderr }) => {
                    let said = if stderr.is_empty() { stdout } else { stderr };
                    let said = one_line(said.trim());
                    return Err(anyhow!("{helper}, which {} names: {said}", file.display()));
                }
                Err(CredentialRetrievalError::HelperCommunicationError) => {
                    return Err(anyhow!(
                        "the credential helper that {} names for {key} cannot be run; is docker-credential-NAME on the PATH?",
                        file.display()
                    ));
                }
                Err(error) => return Err(anyhow!("credentials in {}: {error}", file.display())),
            }
        }
    }
    Ok(None)
}

/// Where podman, skopeo and docker look, in their order.
fn places() -> Vec<PathBuf> {
    let named = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = named("HOME");
    let below_home = |folder: &str| home.as_ref().map(|home| home.join(folder));
    let places = [
        named("REGISTRY_AUTH_FILE"),
        named("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        named("XDG_CONFIG_HOME").or_else(|| below_home(".config")).map(|folder| folder.join("containers/auth.json")),
        named("DOCKER_CONFIG").or_else(|| below_home(".docker")).map(|folder| folder.join("config.json")),
    ];
    places.into_iter().flatten().collect()
}

/// Under which keys a file may have them: parts of a host only if it names them, as each may start a helper.
fn keys(image: &ImageName, text: &str) -> Vec<String> {
    let host = image.host();
    let whole = format!("{host}/{}", image.repository());
    let parts = whole.match_indices('/').map(|(at, _)| &whole[..at]).skip(1).chain([&*whole]);
    let mut keys: Vec<String> = parts.filter(|part| text.contains(&format!("\"{part}\""))).map(str::to_owned).collect();
    keys.reverse();
    keys.push(host.to_owned());
    if host == "docker.io" {
        keys.push(DOCKER_HUB.into());
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_key_goes_first() {
        let image = |text: &str| format!("oci://{text}").parse::<ImageName>().unwrap();
        let text = r#"{"auths":{"ghcr.io/acme":{},"ghcr.io/acme/team/shop":{},"ghcr.io":{}}}"#;
        let all = ["ghcr.io/acme/team/shop", "ghcr.io/acme", "ghcr.io"];
        assert_eq!(keys(&image("ghcr.io/acme/team/shop:1"), text), all);
        assert_eq!(keys(&image("ghcr.io/other:1"), text), ["ghcr.io"]);
        assert_eq!(keys(&image("docker.io/acme/shop"), "{}"), ["docker.io", DOCKER_HUB]);
    }
}
