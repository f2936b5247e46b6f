//! The primary process: binds, has the component compiled, and keeps a worker alive for every slot. It never accepts a
//! client's connection, never compiles and never maps guest code.

mod boot;
mod deploy;
mod desk;
mod driver;
mod fleet;
mod signals;
mod startup;
mod supervisor;

pub(crate) use boot::serve;

pub(crate) use desk::name::Holder;

pub(crate) use signals::hold_signals;
