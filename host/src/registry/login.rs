//! Gets what a registry wants to be shown: a token, as the specification of token authentication has it, or a password.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>

use anyhow::{Context, anyhow, bail};
use docker_credential::DockerCredential;
use http_auth::{ChallengeRef, parse_challenges};
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use super::credentials::{self, FoundCredentials};
use super::http::{PATIENCE, permit, read};
use super::words::{self, host_of};
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
        format!("repository:{}:{actions}", image.repository())
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// What is shown with each request, and where it is from.
type ShownToRegistry = (Option<HeaderValue>, Option<String>);

/// Asks the registry what it wants to be shown, and gets it.
pub(super) async fn login(
    client: &Client,
    root: &Url,
    image: &ImageName,
    registries: &Registries,
    permission: Permission,
) -> anyhow::Result<ShownToRegistry> {
    let host = image.host();
    let asked = client.get(root.clone()).timeout(PATIENCE).send().await;
    let answer = asked.map_err(|error| words::unreachable(&error))?;
    let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|it| it.to_str().ok());
    let challenges: Vec<String> = challenges.map(str::to_owned).collect();
    match answer.status() {
        StatusCode::UNAUTHORIZED => {}
        status if status.is_success() => return Ok((None, None)),
        StatusCode::NOT_FOUND => bail!("{host} does not answer as a registry does: there is nothing at /v2/"),
        status => return Err(words::refused(host, None, status, b"")),
    }
    let wanted = image.clone();
    let credentials = off_the_loop(move || credentials::find(&wanted)).await?;
    let from = credentials.as_ref().map(|credentials| credentials.file.display().to_string());
    let challenges: Vec<ChallengeRef<'_>> =
        challenges.iter().filter_map(|it| parse_challenges(it).ok()).flatten().collect();
    let of_scheme = |scheme: &str| challenges.iter().find(|it| it.scheme.eq_ignore_ascii_case(scheme));
    let text = match (of_scheme("Bearer"), of_scheme("Basic"), credentials) {
        (Some(challenge), _, credentials) => {
            let request = token_request(client, challenge, credentials.as_ref(), registries, &permission.scope(image))?;
            format!("Bearer {}", token(request, from.as_deref()).await?)
        }
        (None, Some(_), Some(FoundCredentials { what: DockerCredential::UsernamePassword(user, password), .. })) => {
            format!("Basic {}", data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes()))
        }
        (None, Some(_), _) => bail!(words::wants_credentials(host, None)),
        (None, None, _) => bail!("{host} wants a kind of credentials that is not known here: neither Bearer nor Basic"),
    };
    let mut shown =
        HeaderValue::from_str(&text).map_err(|_| anyhow!("{host} wants a token that no header can have"))?;
    shown.set_sensitive(true);
    Ok((Some(shown), from))
}

/// Asks whoever gives tokens for the registry. Only there is a password shown, and nowhere that it points to.
fn token_request(
    client: &Client,
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
    permit(&realm, registries).context("the registry's token server")?;
    let service = parameter("service");
    let asked = [("service", service.as_deref()), ("scope", Some(scope))];
    let asked = asked.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let request = match credentials.map(|credentials| &credentials.what) {
        Some(DockerCredential::IdentityToken(refresh)) => {
            let grant = [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", refresh)];
            // Written as a query is.
            let mut form = realm.clone();
            form.query_pairs_mut().clear().extend_pairs(grant.into_iter().chain(asked));
            let form = form.query().unwrap_or_default().to_owned();
            client.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
        }
        other => {
            realm.query_pairs_mut().extend_pairs(asked);
            let request = client.get(realm);
            match other {
                Some(DockerCredential::UsernamePassword(user, password)) => request.basic_auth(user, Some(password)),
                _ => request,
            }
        }
    };
    Ok(request.timeout(PATIENCE))
}

async fn token(request: RequestBuilder, from: Option<&str>) -> anyhow::Result<String> {
    let answer = request.send().await.map_err(|error| words::unreachable(&error))?;
    let host = host_of(answer.url());
    match answer.status() {
        status if status.is_success() => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(words::wants_credentials(&host, from)),
        status => return Err(words::refused(&host, from, status, b"").context("the registry's token server")),
    }
    let answer = serde_json::from_slice::<Token>(&read(answer, MAX_ANSWER).await?).ok();
    let token = answer.and_then(|answer| answer.token.or(answer.access_token)).filter(|token| !token.is_empty());
    token.with_context(|| format!("{host}, which gives tokens for the registry, gave none"))
}
