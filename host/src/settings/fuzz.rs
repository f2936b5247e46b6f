//! The file, and the values of flags.

use std::path::Path;
use std::time::Instant;

use super::cluster::check_name;
use super::policy::DRAIN_RESERVE;
use super::values::{MAX_SPAN, Size, parse_variable};
use super::*;
use crate::fuzz;
use crate::logging::LogLevel;
use crate::os::listener::{ListenAddr, MAX_LISTENERS};
use crate::wire::version::{Compiled, WasiHttp};
use crate::wire::worker_settings::WorkerSettings;

#[test]
fn file() {
    // Or else the corpus leads nowhere.
    let everything = include_str!("../../../tests/corpora/config/everything.toml");
    check(&Settings::new("app.wasm".into(), &toml::from_str(everything).unwrap()).unwrap());

    fuzz::text("config", |text| {
        let Ok(options) = file::parse(text) else { return };
        // Nothing is lost or made up where nothing else is said.
        assert_eq!(options.clone().or(Options::default()), options);
        assert_eq!(Options::default().or(options.clone()), options);
        assert_eq!(options.clone().or(options.clone()), options);
        if let Ok(settings) = Settings::new("app.wasm".into(), &options) {
            check(&settings);
        }
    });
}

/// Accepted means within all limits, and in a form that workers get.
fn check(settings: &Settings) {
    let Settings { cluster, application, .. } = settings;
    let (policy, limits) = (&application.policy, &application.limits);
    limits.check().unwrap();
    check_name(&cluster.name).unwrap();
    assert!((1..=MAX_WORKERS).contains(&cluster.workers) && cluster.backlog >= 1);
    assert!((1..=MAX_LISTENERS).contains(&cluster.listen.len()));
    let times = [
        limits.request_timeout,
        limits.stream_timeout,
        limits.header_timeout,
        limits.keep_alive_timeout,
        limits.max_connection_age,
        application.drain_idle_grace,
        policy.drain_timeout,
        policy.shutdown_delay,
        policy.shutdown_timeout,
        policy.hang_timeout,
        policy.min_ready,
        policy.soak,
        policy.recycle.max_lifetime.unwrap_or_default(),
    ];
    assert!(times.iter().all(|&time| time <= MAX_SPAN + DRAIN_RESERVE));
    assert!(Instant::now().checked_add(times.iter().sum()).is_some());

    let in_force = limits.in_force();
    for (flag, value) in &in_force.by_flag {
        let is_value = value.parse::<Span>().is_ok() || value.parse::<Size>().is_ok() || value.parse::<u32>().is_ok();
        assert!(is_value, "--{flag} {value}");
    }

    let component = Compiled {
        digest: String::new(),
        http: WasiHttp::V0_2,
        can_hold_back: false,
        snapshot: None,
        cached: false,
        kept: true,
    };
    let for_workers = WorkerSettings::new(cluster, application, &component);
    let json = serde_json::to_value(&for_workers).unwrap();
    let read: WorkerSettings = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), json);
    assert_eq!((read.granted, read.health_path), (for_workers.granted, for_workers.health_path));
}

#[test]
fn time() {
    fuzz::text("time", |text| {
        let Ok(span) = text.parse::<Span>() else { return };
        assert!(span.0 <= MAX_SPAN && u128::from(span.as_millis()) == span.0.as_millis());
        assert_eq!(humantime::format_duration(span.0).to_string().parse(), Ok(span));
    });
}

#[test]
fn size() {
    fuzz::text("size", |text| {
        let Ok(size) = text.parse::<Size>() else { return };
        // Rounded, but never another order.
        let shown = bytesize::ByteSize(size.0).display().iec().to_string();
        let again: Size = shown.parse().unwrap();
        assert!(again.0.abs_diff(size.0) <= size.0 / 16, "{size:?} is shown as {shown}");
        // In bytes it is exact.
        assert_eq!(size.0.to_string().parse(), Ok(size));
    });
}

/// What has no limits of its own: the text is tried as each.
#[test]
fn values() {
    fuzz::text("values", |text| {
        if let Ok(path) = text.parse::<HealthPath>() {
            let uri = path.as_uri();
            assert!(uri.path().starts_with('/') && uri.scheme().is_none() && uri.authority().is_none());
            assert_eq!(String::from(path.clone()).parse(), Ok(path));
        }
        if let Ok(address) = text.parse::<ListenAddr>() {
            assert_eq!(address.to_string(), text);
        }
        if let Ok((name, value)) = parse_variable(text) {
            assert_eq!(format!("{name}={value}"), text);
            assert!(!name.is_empty() && !text.contains('\0'));
        }
        if let Ok(level) = text.parse::<LogLevel>() {
            assert_eq!(level.to_string(), text);
        }
        if check_name(text).is_ok() {
            // It is part of a file's name.
            assert_eq!(Path::new(text).file_name(), Some(text.as_ref()));
        }
    });
}
