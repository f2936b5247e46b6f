//! Pages: whatever bytes are in one, the primary reads series that keep every rule, and can show their sums.

use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use super::*;
use crate::fuzz;
use crate::wire::stats::{Page, Stats};

#[test]
fn pages() {
    fuzz::bytes("metrics", |bytes| {
        let (page, fd) = Page::create().unwrap();
        let bytes = &bytes[..bytes.len().min(size_of::<Table>())];
        std::fs::File::from(fd).write_all_at(bytes, offset_of!(Stats, metrics) as u64).unwrap();
        let series: Vec<Series> = page.metrics.read().collect();
        assert!(series.len() <= MAX_SERIES);
        for series in series {
            check(series);
        }
    });
}

fn check(Series { name, labels, value }: Series) {
    let mut key = Vec::new();
    let count = labels.len();
    write_key(&name, &mut labels.clone().into_iter().collect(), &mut key).unwrap();
    assert_eq!(read_key(&key), Some((name, labels)));
    assert!(count <= MAX_LABELS && key.len() <= MAX_KEY);
    let mut sum = value.clone();
    sum.add(&value);
    match sum {
        Value::Counter(_) => {}
        Value::Gauge(value) | Value::Histogram(Histogram { sum: value, .. }) => assert!(value.is_finite()),
    }
}
