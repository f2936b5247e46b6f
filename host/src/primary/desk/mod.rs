//! What the primary tells and takes orders from: the control socket, and what is shown there.

pub(crate) mod admin;
pub(crate) mod events;
pub(crate) mod exporter;
pub(crate) mod guest_metrics;
pub(crate) mod ledger;
pub(crate) mod manager;
pub(crate) mod name;
pub(crate) mod socket;
pub(crate) mod status;
