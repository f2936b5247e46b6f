//! Addresses to listen on: families, modes, several at once.
