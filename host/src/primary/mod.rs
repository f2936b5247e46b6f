//! The primary process: binds, has the component compiled, and keeps a worker alive for every slot. It never accepts a
//! client's connection, never compiles and never maps guest code.

mod control;
mod driver;
mod output;
mod process;
mod state;

pub(crate) use control::{Client, CommandError, Scale, Status, Stop};
pub(crate) use driver::serve;
pub(crate) use state::Policy;
