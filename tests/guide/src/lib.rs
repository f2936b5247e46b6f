#![doc = include_str!("../../../docs/guests.md")]
