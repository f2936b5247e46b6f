//! What `status` says of a cluster that has no worker yet; the driver puts in what comes later.

use std::time::Instant;

use crate::control::protocol::{ConfigStatus, GenerationStatus, Starting, Status, Totals};
use crate::settings::Settings;

/// The status of a cluster that began at `since`, has these addresses, and deploys nothing yet.
pub(crate) fn of_start(settings: &Settings, listen: &[String], since: Instant, starting: Option<Starting>) -> Status {
    Status {
        schema: 1,
        name: settings.cluster.name.clone(),
        pid: std::process::id(),
        state: "starting".into(),
        starting,
        degraded: false,
        uptime_ms: since.elapsed().as_millis() as u64,
        listen: listen.to_owned(),
        // No number is 0: there is none yet.
        generation: GenerationStatus {
            current: 0,
            candidate: None,
            previous: None,
            digest: String::new(),
            source: settings.app.clone(),
            manifest: None,
            first_served_ms: None,
            folder: settings.folder.clone(),
        },
        reload: None,
        last_reload: None,
        workers: Vec::new(),
        totals: Totals::default(),
        certificates: Vec::new(),
        config: ConfigStatus::default(),
        keeper: None,
        exporter: None,
        problems: Vec::new(),
        guest_metrics: Vec::new(),
        limits: settings.application.limits.in_force(),
    }
}
