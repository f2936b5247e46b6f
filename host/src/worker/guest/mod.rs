//! Guests: what they see of the world, and how a request becomes a call of one.

mod concurrent;
pub(crate) mod epoch;
mod handles;
pub(crate) mod instance;
mod metrics;
mod notices;
pub(crate) mod outbound;
pub(crate) mod quota;
pub(crate) mod reuse;
mod stdio;
pub(crate) mod trap;
mod turns;
pub(crate) mod world;
