//! Gets the token that a registry asks for, as the distribution specification's token authentication has it.
//!
//! The library would do it too, but sends credentials wherever a registry points, also in clear text, and knows no refresh
//! tokens.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>

use anyhow::{Context, anyhow, bail, ensure};
use docker_credential::DockerCredential;
use http_auth::{ChallengeRef, parse_challenges};
use oci_client::secrets::RegistryAuth;
use reqwest::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::credentials::{self, FoundCredentials};
use super::words;
use crate::logging::one_line;
use crate::os::blocking::off_the_loop;
use crate::settings::{ImageName, Registries};

/// Largest answer that is read, in bytes: a token has some thousands.
const MAX_ANSWER: usize = 1024 * 1024;
/// Who asks, where OAuth 2 wants to know.
const CLIENT_ID: &str = "wasmcluster";

/// What one wants to do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    Pull,
    Push,
}

impl Permission {
    fn scope(self, image: &ImageName) -> String {
        let actions = match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        };
        format!("repository:{}:{actions}", image.reference().repository())
    }
}

/// What the registry is to be shown with each request, and where the credentials came from.
pub(super) struct Login {
    pub(super) auth: RegistryAuth,
    pub(super) from: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Asks the registry what it wants to be shown, and gets it.
pub(super) async fn login(
    client: &reqwest::Client,
    image: &ImageName,
    registries: &Registries,
    permission: Permission,
) -> anyhow::Result<Login> {
    let host = image.reference().resolve_registry();
    let scheme = if registries.is_plain(host) { "http" } else { "https" };
    let answer =
        client.get(format!("{scheme}://{host}/v2/")).send().await.map_err(|error| words::unreachable(host, &error))?;
    let status = answer.status();
    let challenges: Vec<String> = answer
        .headers()
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|it| it.to_str().ok())
        .map(str::to_owned)
        .collect();
    drop(answer);
    match status {
        StatusCode::UNAUTHORIZED => {}
        status if status.is_success() => return Ok(Login { auth: RegistryAuth::Anonymous, from: None }),
        StatusCode::NOT_FOUND => bail!("{host} is no registry: it has nothing at /v2/"),
        status => bail!("{host} answered {status}"),
    }
    let reference = image.reference().clone();
    let credentials = off_the_loop(move || credentials::find(&reference)).await?;
    let from = credentials.as_ref().map(|credentials| credentials.file.display().to_string());
    let challenges: Vec<ChallengeRef<'_>> =
        challenges.iter().filter_map(|it| parse_challenges(it).ok()).flatten().collect();
    let of_scheme = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
    let auth = match (of_scheme("Bearer"), of_scheme("Basic"), credentials) {
        (Some(challenge), _, credentials) => {
            let request = token_request(client, challenge, credentials.as_ref(), registries, &permission.scope(image))?;
            RegistryAuth::Bearer(token(request, from.as_deref()).await?)
        }
        (None, Some(_), Some(FoundCredentials { what: DockerCredential::UsernamePassword(user, password), .. })) => {
            RegistryAuth::Basic(user, password)
        }
        (None, Some(_), _) => bail!(words::wants_credentials(host, None)),
        (None, None, _) => {
            bail!("{host} wants to be shown something that it does not name (no WWW-Authenticate it knows)")
        }
    };
    Ok(Login { auth, from })
}

/// FoundCredentials go nowhere in clear text but to hosts that may be spoken to so.
fn token_request(
    client: &reqwest::Client,
    challenge: &ChallengeRef<'_>,
    credentials: Option<&FoundCredentials>,
    registries: &Registries,
    scope: &str,
) -> anyhow::Result<RequestBuilder> {
    let parameter = |name: &str| {
        challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
    };
    let realm = parameter("realm").context("the registry does not say who gives tokens")?;
    let mut realm: Url =
        realm.parse().map_err(|error| anyhow!("the registry's token server {}: {error}", one_line(&realm)))?;
    let host = realm.port().map_or_else(
        || realm.host_str().unwrap_or_default().to_owned(),
        |port| format!("{}:{port}", realm.host_str().unwrap_or_default()),
    );
    let is_allowed = realm.scheme() == "https" || (realm.scheme() == "http" && registries.is_plain(&host));
    ensure!(
        is_allowed,
        "the registry's token server is {}, and credentials are not sent in clear text; allow it with \
         --registry-plain-http {host} if the network is yours",
        one_line(realm.as_str())
    );
    let service = parameter("service");
    let asked = [("service", service.as_deref()), ("scope", Some(scope))];
    let asked = asked.into_iter().filter_map(|(name, value)| Some((name, value?)));
    match credentials.map(|credentials| &credentials.what) {
        Some(DockerCredential::IdentityToken(refresh)) => {
            let grant = [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", refresh)];
            // Written as a query is.
            let mut form = realm.clone();
            form.query_pairs_mut().clear().extend_pairs(grant.into_iter().chain(asked));
            let form = form.query().unwrap_or_default().to_owned();
            Ok(client.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form))
        }
        other => {
            realm.query_pairs_mut().extend_pairs(asked);
            let request = client.get(realm);
            Ok(match other {
                Some(DockerCredential::UsernamePassword(user, password)) => request.basic_auth(user, Some(password)),
                _ => request,
            })
        }
    }
}

async fn token(request: RequestBuilder, from: Option<&str>) -> anyhow::Result<String> {
    let answer = request.send().await.map_err(|error| words::unreachable("the registry's token server", &error))?;
    let host = answer.url().host_str().unwrap_or("the token server").to_owned();
    match answer.status() {
        status if status.is_success() => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(words::wants_credentials(&host, from)),
        status => bail!("{host}, which gives tokens for the registry, answered {status}"),
    }
    let bytes = read(answer).await.map_err(|error| words::unreachable(&host, &error))?;
    let answer = bytes.as_deref().and_then(|bytes| serde_json::from_slice::<Token>(bytes).ok());
    let token = answer.and_then(|answer| answer.token.or(answer.access_token)).filter(|token| !token.is_empty());
    token.with_context(|| format!("{host}, which gives tokens for the registry, gave none"))
}

/// None if it is too long.
async fn read(mut answer: Response) -> reqwest::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if bytes.len() + piece.len() > MAX_ANSWER {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes))
}
