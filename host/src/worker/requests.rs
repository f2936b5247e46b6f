//! Requests in flight, as the stats page shows them: their number, and for how long they were.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use crate::ids::{RequestId, WorkerId};
use crate::stats::{Held, MAX_LISTED, Stats};

/// Numbers requests, and lists those in flight in the page.
#[derive(Debug)]
pub(super) struct Requests {
    worker: WorkerId,
    stats: &'static Stats,
    last: Cell<u64>,
    /// Places in the page's list that no request has.
    free: RefCell<Vec<usize>>,
}

/// One request, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) id: RequestId,
    requests: Rc<Requests>,
    place: Option<usize>,
    began: Instant,
    answered: Cell<bool>,
    _counted: Held,
}

impl InFlight {
    /// When its head was there.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Its answer has been handed over. Dropped without that, it counts as aborted.
    pub(super) fn answered(&self) {
        self.answered.set(true);
    }
}

impl Requests {
    pub(super) fn new(worker: WorkerId, stats: &'static Stats) -> Self {
        Self { worker, stats, last: Cell::new(0), free: RefCell::new((0..MAX_LISTED).rev().collect()) }
    }

    /// Counts and lists one more.
    pub(super) fn begin(self: &Rc<Self>) -> InFlight {
        let number = self.last.get() + 1;
        self.last.set(number);
        self.stats.requests.increment();
        let place = self.free.borrow_mut().pop();
        if let Some(place) = place {
            self.stats.requests_in_flight[place].set(number);
        }
        InFlight {
            id: RequestId { worker: self.worker, number },
            requests: self.clone(),
            place,
            began: Instant::now(),
            answered: Cell::new(false),
            _counted: self.stats.in_flight.hold(),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let requests = &*self.requests;
        requests.stats.latency.record(self.began.elapsed());
        if !self.answered.get() {
            requests.stats.aborted.increment();
        }
        if let Some(place) = self.place {
            requests.stats.requests_in_flight[place].set(0);
            requests.free.borrow_mut().push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Page;

    #[test]
    fn the_page_lists_what_is_in_flight() {
        let (page, fd) = Page::create().unwrap();
        let requests = Rc::new(Requests::new(WorkerId(7), Page::open(&fd).unwrap()));
        let listed = || {
            let mut numbers: Vec<u64> = page.requests_in_flight.iter().map(|number| number.get()).collect();
            numbers.retain(|&number| number > 0);
            numbers.sort_unstable();
            numbers
        };
        let (one, two, three) = (requests.begin(), requests.begin(), requests.begin());
        assert_eq!(two.id.to_string(), "7-2");
        two.answered();
        drop(two);
        assert_eq!((listed(), page.aborted.get()), (vec![1, 3], 0));
        let four = requests.begin();
        assert_eq!((listed(), page.in_flight.get(), page.requests.get()), (vec![1, 3, 4], 3, 4));
        drop((one, three, four));
        assert_eq!((listed(), page.in_flight.get(), page.aborted.get()), (vec![], 0, 3));
        assert!(page.snapshot().latency.quantile(1.0).is_some());
    }

    #[test]
    fn what_finds_no_place_is_still_counted() {
        let (page, fd) = Page::create().unwrap();
        let requests = Rc::new(Requests::new(WorkerId(1), Page::open(&fd).unwrap()));
        let many: Vec<InFlight> = (0..MAX_LISTED + 10).map(|_| requests.begin()).collect();
        assert_eq!(page.in_flight.get(), MAX_LISTED as u64 + 10);
        drop(many);
        assert_eq!(page.in_flight.get(), 0);
        assert_eq!(requests.free.borrow().len(), MAX_LISTED);
    }
}
