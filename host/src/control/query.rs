//! What stands behind the `?` of `GET /events` and `GET /logs`: how commands write it, and how a primary reads it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::settings::Span;

/// The header of an answer to `GET /events` by a primary that keeps events. Older ones ignore the query.
pub(crate) const KEPT: &str = "wasmcluster-kept";

/// From when on something is told that has happened already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// All that is kept.
    All,
    /// So long ago.
    Ago(Duration),
    At(SystemTime),
}

impl Since {
    /// The moment, which must not be in the future.
    pub(crate) fn moment(self, now: SystemTime) -> Result<SystemTime, String> {
        match self {
            Self::All => Ok(SystemTime::UNIX_EPOCH),
            Self::Ago(time) => Ok(now.checked_sub(time).unwrap_or(SystemTime::UNIX_EPOCH)),
            Self::At(moment) if moment > now => Err(format!("`since` {self} is in the future")),
            Self::At(moment) => Ok(moment),
        }
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ago = || text.parse::<Span>().ok().map(Duration::from).filter(|time| !time.is_zero());
        match text {
            "all" => Ok(Self::All),
            _ => ago().map(Self::Ago).or_else(|| rfc3339(text).map(Self::At)).ok_or_else(|| {
                "expected how long ago, or when, in RFC 3339; write 10m, 2026-11-30T12:00:00Z, or all".into()
            }),
        }
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Ago(time) => humantime::format_duration(*time).fmt(f),
            Self::At(moment) => humantime::format_rfc3339(*moment).fmt(f),
        }
    }
}

/// A moment as RFC 3339 writes it, with `Z` or an offset. The library reads `Z` alone.
fn rfc3339(text: &str) -> Option<SystemTime> {
    if let Ok(moment) = humantime::parse_rfc3339(text) {
        return Some(moment);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    let (sign, offset) = offset.split_at_checked(1)?;
    let (hours, minutes) = offset.split_once(':')?;
    let number = |digits: &str, below: u64| {
        let is_number = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|&number| is_number && number < below)
    };
    let offset = Duration::from_secs(number(hours, 24)? * 3600 + number(minutes, 60)? * 60);
    match sign {
        "+" => local.checked_sub(offset),
        "-" => local.checked_add(offset),
        _ => None,
    }
}

/// The query of `GET /events`. Without any, what happens from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventsRequest {
    /// Also those that have happened since; none if there is none.
    pub(crate) since: Option<Since>,
    /// Those to come as well.
    pub(crate) follow: bool,
}

impl EventsRequest {
    pub(crate) const TO_COME: Self = Self { since: None, follow: true };

    pub(crate) fn read(query: Option<&str>) -> Result<Self, String> {
        let mut request = Self::TO_COME;
        for pair in pairs(query) {
            let (name, value) = pair?;
            match name {
                "since" => request.since = Some(told(name, &value)?),
                "follow" => request.follow = told(name, &value)?,
                _ => return Err(format!("unknown parameter `{name}`; there are `since` and `follow`")),
            }
        }
        if !request.follow && request.since.is_none() {
            request.since = Some(Since::All);
        }
        Ok(request)
    }

    /// The path with the query.
    pub(crate) fn path(&self) -> String {
        let since = self.since.map(|since| ("since", since.to_string()));
        let follow = (!self.follow).then(|| ("follow", "false".into()));
        path("/events", since.into_iter().chain(follow))
    }

    /// Whether it is for what has happened already.
    pub(crate) fn looks_back(&self) -> bool {
        self.since.is_some() || !self.follow
    }
}

/// The query of `GET /logs`. Without any, all lines that are kept, as they went out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogsRequest {
    /// Those to come as well.
    pub(crate) follow: bool,
    /// Only those that this worker says, or that are about it.
    pub(crate) worker: Option<u64>,
    /// Only those about the request that the log, or its client, calls so.
    pub(crate) request: Option<String>,
    pub(crate) form: LogForm,
}

/// How lines are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogForm {
    /// As they went out.
    #[default]
    Text,
    /// Each is an object.
    Json,
}

impl FromStr for LogForm {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json"),
        }
    }
}

impl LogsRequest {
    pub(crate) fn read(query: Option<&str>) -> Result<Self, String> {
        let mut request = Self::default();
        for pair in pairs(query) {
            let (name, value) = pair?;
            match name {
                "follow" => request.follow = told(name, &value)?,
                "worker" => request.worker = Some(told(name, &value)?),
                "request" => request.request = Some(value),
                "format" => request.form = told(name, &value)?,
                _ => {
                    let known = "`follow`, `worker`, `request` and `format`";
                    return Err(format!("unknown parameter `{name}`; there are {known}"));
                }
            }
        }
        Ok(request)
    }

    /// The path with the query.
    pub(crate) fn path(&self) -> String {
        let follow = self.follow.then(|| ("follow", "true".into()));
        let worker = self.worker.map(|worker| ("worker", worker.to_string()));
        let request = self.request.clone().map(|request| ("request", request));
        let form = (self.form == LogForm::Json).then(|| ("format", "json".into()));
        path("/logs", [follow, worker, request, form].into_iter().flatten())
    }
}

fn told<T: FromStr<Err: fmt::Display>>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("`{name}={value}`: {error}"))
}

fn path(path: &str, pairs: impl Iterator<Item = (&'static str, String)>) -> String {
    let pairs: Vec<String> =
        pairs.map(|(name, value)| format!("{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

fn pairs(query: Option<&str>) -> impl Iterator<Item = Result<(&str, String), String>> {
    query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("`{name}` is not UTF-8"))?;
        Ok((name, value.into_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_as_people_write_them() {
        let at = |text| Since::At(humantime::parse_rfc3339(text).unwrap());
        for (text, since) in [
            ("all", Since::All),
            ("10m", Since::Ago(Duration::from_secs(600))),
            ("1h 30m", Since::Ago(Duration::from_secs(5400))),
            ("2026-11-30T12:00:00Z", at("2026-11-30T12:00:00Z")),
            ("2026-11-30T12:00:00.5Z", at("2026-11-30T12:00:00.5Z")),
            ("2026-11-30T12:00:00+02:00", at("2026-11-30T10:00:00Z")),
            ("2026-11-30T22:30:00.25-05:30", at("2026-12-01T04:00:00.25Z")),
        ] {
            assert_eq!(text.parse(), Ok(since), "{text}");
            assert_eq!(since.to_string().parse(), Ok(since), "{since}");
        }
        for text in
            ["", "0", "0s", "10", "-10m", "yesterday", "2026-11-30", "12:00", "2026-11-30T12:00:00+2:00", "é+02:00"]
        {
            assert!(text.parse::<Since>().is_err(), "{text}");
        }
        let now = humantime::parse_rfc3339("2026-11-30T12:00:00Z").unwrap();
        assert!(at("2026-11-30T12:00:01Z").moment(now).is_err());
        assert_eq!(Since::Ago(Duration::MAX).moment(now), Ok(SystemTime::UNIX_EPOCH));
    }

    #[test]
    fn queries_for_events_are_read_as_they_were_written() {
        for (since, follow, path) in [
            (None, true, "/events"),
            (Some(Since::All), true, "/events?since=all"),
            (Some(Since::All), false, "/events?since=all&follow=false"),
            (Some(Since::Ago(Duration::from_secs(5400))), true, "/events?since=1h%2030m"),
        ] {
            let request = EventsRequest { since, follow };
            assert_eq!(request.path(), path);
            assert_eq!(EventsRequest::read(path.split_once('?').map(|(_, query)| query)), Ok(request));
        }
        // As somebody types it who knows of no encoding.
        let request = EventsRequest::read(Some("since=2026-11-30T12:00:00+02:00&")).unwrap();
        assert_eq!(request.since, Some("2026-11-30T10:00:00Z".parse().unwrap()));
        assert_eq!(EventsRequest::read(Some("follow=false")).unwrap().since, Some(Since::All));
        for (query, said) in [
            ("since=soon", "`since=soon`: expected how long ago"),
            ("since=%ff", "`since` is not UTF-8"),
            ("follow=maybe", "`follow=maybe`: provided string was not `true` or `false`"),
            ("from=1h", "unknown parameter `from`"),
        ] {
            let error = EventsRequest::read(Some(query)).unwrap_err();
            assert!(error.starts_with(said), "{query}: {error}");
        }
    }

    #[test]
    fn queries_for_lines_are_read_as_they_were_written() {
        let request = Some("Root=1-6;Self=1/2+3|4 5&6%".to_owned());
        for (asked, path) in [
            (LogsRequest::default(), Some("/logs")),
            (LogsRequest { follow: true, worker: Some(3), ..Default::default() }, Some("/logs?follow=true&worker=3")),
            (LogsRequest { request, form: LogForm::Json, ..Default::default() }, None),
        ] {
            let written = asked.path();
            assert!(path.is_none_or(|path| written == path), "{written}");
            assert!(written.parse::<http::Uri>().is_ok(), "{written}");
            assert_eq!(LogsRequest::read(written.split_once('?').map(|(_, query)| query)), Ok(asked));
        }
        for (query, said) in [
            ("worker=first", "`worker=first`: invalid digit"),
            ("format=xml", "`format=xml`: expected text or json"),
            ("lines=3", "unknown parameter `lines`"),
        ] {
            let error = LogsRequest::read(Some(query)).unwrap_err();
            assert!(error.starts_with(said), "{query}: {error}");
        }
    }
}
