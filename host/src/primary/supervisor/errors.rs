//! Whether the answers of a new version are worse than those of the old one.
//!
//! The two are compared at the same time: each answer of the candidate with the share of errors that the old generation's
//! workers, which serve beside the candidate's, have in their latest answers. An attack, or a database that fails, makes
//! both shares rise, and neither version is blamed. Once the old workers drain, their latest answers stay the measure.
//!
//! Counted is what guests did with the requests that they got: 5xx, traps, answers that were cut or not in time. What the
//! server refuses by itself, under too much load above all, is no version's fault.

use std::collections::VecDeque;
use std::time::Duration;

use super::Time;

/// Answers of the candidate before their errors say anything.
pub(super) const FEW_ANSWERS: u64 = 20;
/// So many of the old version's latest answers are its share of errors: enough to tell five points from chance, few enough
/// to follow at once when errors rise under load.
const RECENT_ANSWERS: u64 = 100;
/// The oldest of these, where there is little traffic.
pub(super) const RECENT: Duration = Duration::from_secs(60);
/// Readings that are kept. There are four a second at least, and two workers' readings make one.
const MAX_READINGS: usize = 1024;
/// A difference that is due to chance is within so many standard errors, in all but about one of a thousand cases.
const STANDARD_ERRORS: f64 = 3.0;

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    pub(crate) all: u64,
    /// Of these, those that went wrong.
    pub(crate) errors: u64,
}

impl Answers {
    /// What has come on top since `before`. The numbers are a worker's own: they may be any.
    pub(super) fn since(self, before: Self) -> Self {
        let all = self.all.saturating_sub(before.all);
        // An answer can be both 5xx and cut.
        Self { all, errors: self.errors.saturating_sub(before.errors).min(all) }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { all: self.all.saturating_add(other.all), errors: self.errors.saturating_add(other.errors) }
    }

    /// The part that went wrong. A version that has answered next to nothing is taken to be well.
    fn share(self) -> f64 {
        self.errors as f64 / self.all.max(FEW_ANSWERS) as f64
    }
}

/// The latest answers of a version: the last [`RECENT_ANSWERS`], or those of the last minute if it had not so many.
#[derive(Debug, Default)]
pub(super) struct Recent {
    readings: VecDeque<(Time, Answers)>,
}

impl Recent {
    pub(super) fn add(&mut self, now: Time, answers: Answers) {
        if answers.all > 0 {
            self.readings.push_back((now, answers));
        }
        let mut sum = self.sum();
        while let Some(&(at, oldest)) = self.readings.front() {
            let rest = sum.since(oldest);
            let is_old = at + RECENT <= now || self.readings.len() > MAX_READINGS;
            if !is_old && rest.all < RECENT_ANSWERS {
                return;
            }
            self.readings.pop_front();
            sum = rest;
        }
    }

    fn sum(&self) -> Answers {
        self.readings.iter().fold(Answers::default(), |sum, (_, answers)| sum.plus(*answers))
    }
}

/// What the candidate has answered so far, and what the old version would have made of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trial {
    answers: Answers,
    /// Errors that the old version would have had among as many answers at the same times.
    expected: f64,
}

impl Trial {
    pub(super) fn add(&mut self, answers: Answers, old: &Recent) {
        self.expected += answers.all as f64 * old.sum().share();
        self.answers = self.answers.plus(answers);
    }

    /// The answers as what is known of a version that is committed at `now`.
    pub(super) fn recent(&self, now: Time) -> Recent {
        Recent { readings: VecDeque::from([(now, self.answers)]) }
    }

    pub(super) fn answered(&self) -> u64 {
        self.answers.all
    }

    /// Why the candidate is worse, if it is by more than `increase`, in thousandths, and not by chance.
    pub(super) fn verdict(&self, old: &Recent, increase: u32) -> Option<String> {
        if self.answers.all < FEW_ANSWERS {
            return None;
        }
        let (before, after) = (self.expected / self.answers.all as f64, self.answers.share());
        let of_both = 1.0 / self.answers.all as f64 + 1.0 / old.sum().all.max(FEW_ANSWERS) as f64;
        // How far two versions that are as bad are apart by chance. Of an old version without errors it is nothing.
        let chance = STANDARD_ERRORS * (before * (1.0 - before) * of_both).max(0.0).sqrt();
        let percent = |share: f64| 100.0 * share;
        (after > before + (f64::from(increase) / 1000.0).max(chance)).then(|| {
            format!(
                "{:.1} % of its {} answers were errors, against {:.1} % of the old version's; --max-error-increase \
                 allows {} points more, and `reload --force` ignores errors",
                percent(after),
                self.answers.all,
                percent(before),
                f64::from(increase) / 10.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(all: u64, errors: u64) -> Answers {
        Answers { all, errors }
    }

    /// Whether a candidate is worse than an old version that answered so at the same time.
    fn is_worse(old: Answers, candidate: Answers) -> bool {
        let (mut recent, mut trial) = (Recent::default(), Trial::default());
        recent.add(Time::ZERO, old);
        trial.add(candidate, &recent);
        trial.verdict(&recent, 50).is_some()
    }

    #[test]
    fn five_points_more_than_the_old_version_are_too_many() {
        for (old, candidate, expected) in [
            (answers(1000, 0), answers(19, 19), false),
            (answers(1000, 0), answers(20, 1), false),
            (answers(1000, 0), answers(20, 2), true),
            (answers(1000, 0), answers(1000, 50), false),
            (answers(1000, 0), answers(1000, 51), true),
            // One that is just as bad, be it a little worse by chance.
            (answers(1000, 100), answers(1000, 100), false),
            (answers(1000, 100), answers(20, 5), false),
            (answers(1000, 100), answers(1000, 160), true),
            (answers(1000, 1000), answers(1000, 1000), false),
            (answers(100, 50), answers(100, 56), false),
            // Nothing is known of the old one.
            (answers(0, 0), answers(20, 20), true),
            (answers(0, 0), answers(200, 10), false),
            (answers(3, 1), answers(20, 2), false),
        ] {
            assert_eq!(is_worse(old, candidate), expected, "{old:?}, {candidate:?}");
        }
    }

    #[test]
    fn the_latest_answers_are_what_counts() {
        let mut recent = Recent::default();
        recent.add(Time::ZERO, answers(1000, 1000));
        assert_eq!(recent.sum(), answers(1000, 1000));
        recent.add(Duration::from_secs(1), answers(99, 0));
        assert_eq!(recent.sum(), answers(1099, 1000));
        recent.add(Duration::from_secs(2), answers(1, 0));
        assert_eq!(recent.sum(), answers(100, 0));
        // Where there is little traffic, a minute.
        recent.add(Duration::from_secs(61), answers(5, 0));
        assert_eq!(recent.sum(), answers(6, 0));
        recent.add(Duration::from_secs(121), answers(0, 0));
        assert_eq!(recent.sum(), answers(0, 0));
        for reading in 0..10_000 {
            recent.add(Duration::from_secs(200) + Duration::from_micros(reading), answers(1, 0));
        }
        assert!(recent.readings.len() <= RECENT_ANSWERS as usize);
    }

    /// Two versions that are equally bad, with every traffic: next to never is one of them blamed.
    #[test]
    fn chance_is_nobody_s_fault() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut blamed, mut caught) = (0, 0);
        const RUNS: u32 = 1000;
        for run in 0..RUNS {
            let (share, per_reading) = (random.f64() * 0.3, random.u64(1..200));
            let mut draw =
                |share: f64| answers(per_reading, (0..per_reading).filter(|_| random.f64() < share).count() as u64);
            let (mut recent, mut same, mut worse) = (Recent::default(), Trial::default(), Trial::default());
            let (mut is_blamed, mut is_caught) = (false, false);
            for reading in 0..80_u64 {
                // For ten seconds beside the old version, and ten without.
                if reading < 40 {
                    recent.add(Duration::from_millis(250) * (run * 100 + reading as u32), draw(share));
                }
                same.add(draw(share), &recent);
                worse.add(draw(share + 0.4), &recent);
                is_blamed |= same.verdict(&recent, 50).is_some();
                is_caught |= worse.verdict(&recent, 50).is_some();
            }
            blamed += u32::from(is_blamed);
            caught += u32::from(is_caught);
        }
        assert!(blamed <= RUNS / 20, "{blamed} of {RUNS} were blamed for what was as bad before");
        assert!(caught >= RUNS - RUNS / 100, "{caught} of {RUNS} bad versions were caught");
    }
}
