//! Bodies of commands: understood or refused, and the same when they are said again.

use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use super::*;
use crate::fuzz;
use crate::settings::{GuestValues, LiveConfig, Percent};

#[test]
fn bodies() {
    fuzz::bytes("control", |body| {
        again::<Scale>(body);
        again::<Stop>(body);
        if let Some(request) = again::<ReloadRequest>(body) {
            assert!(request.gates(Percent::default()).max_error_increase <= 1000);
            // A moment that can be told.
            let _ = Instant::now() + request.patience(Duration::MAX);
        }
        if let Some(entries) = again::<Changes>(body)
            && let Ok(config) = LiveConfig::default().with(&GuestValues::default(), &entries)
        {
            let all =
                config.entries(&GuestValues::default()).into_iter().map(|(key, value)| (key, Some(value))).collect();
            assert_eq!(LiveConfig::default().with(&GuestValues::default(), &all), Ok(config));
        }
    });
}

fn again<B: DeserializeOwned + Serialize>(body: &[u8]) -> Option<B> {
    let request: B = serde_json::from_slice(body).ok()?;
    let value: Value = json!(request);
    let same: B = serde_json::from_value(value.clone()).expect("what was understood can be said again");
    assert_eq!(json!(same), value);
    Some(request)
}
