//! The primary process: binds, has the component compiled, and keeps a worker alive for every slot. It never accepts a
//! client's connection, never compiles and never maps guest code.

mod boot;
mod builder;
mod control;
mod driver;
mod events;
mod generations;
mod metrics;
mod name;
mod output;
mod process;
mod reload;
mod saver;
mod signals;
mod startup;
mod state;
mod status;
mod watch;

pub(crate) use boot::serve;
pub(crate) use control::{Client, CommandError, Scale, Scaled, Stop};
pub(crate) use name::Holder;
pub(crate) use reload::{ReloadRequest, ReloadResult};
pub(crate) use signals::hold_signals;
pub(crate) use state::{Policy, Recycle};
pub(crate) use status::{GenerationStatus, GuestMetric, MetricValue, ReloadStatus, Status, WorkerStatus};
