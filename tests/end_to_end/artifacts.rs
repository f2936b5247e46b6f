//! Compiled components: who can touch them, and what survives another wasmtime.
