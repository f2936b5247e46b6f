#![expect(clippy::test_attr_in_doctest, reason = "the guide shows what a test looks like")]
#![doc = include_str!("../../../docs/guests.md")]
