//! Folders that are built and watched: what is looked at, what it costs, what is said.
