//! What was deployed: the generations that may still be needed.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use crate::primary::fleet::process::Deployment;
use crate::settings::{App, Changes, TlsFiles, short_digest};
use crate::wire::committed::Committed;
use crate::wire::ids::Generation;
use crate::wire::version::Version;

/// Versions that can be brought back, the one that is served included. Each keeps two descriptors open, and its native code
/// in memory.
const MAX_HISTORY: usize = 8;

/// The generations of a running cluster that have workers, may get some, or may be brought back.
#[derive(Debug)]
pub(crate) struct Generations {
    known: BTreeMap<Generation, KnownVersion>,
    current: Generation,
    /// What a primary before this one served before its last version.
    remembered: Option<Version>,
    last: Generation,
}

#[derive(Debug)]
struct KnownVersion {
    deployment: Rc<Deployment>,
    before: Before,
    is_committed: bool,
    /// A primary before this one served it.
    is_older: bool,
    /// When this version, under whatever number, was first committed by this primary, unless it is older.
    since: Option<Instant>,
}

/// What a rollback from a generation leads to. One that was brought back has the past that it had the first time, so
/// that the next rollback goes on backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Kept(Generation),
    Remembered,
    Nothing,
}

/// Where a candidate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provenance {
    /// It is new.
    Compiled,
    /// It is what this generation was.
    Kept(Generation),
    /// It was served by a primary before this one.
    Remembered,
}

impl Generations {
    pub(crate) fn new(current: Generation, deployment: Deployment, remembered: Option<Version>) -> Self {
        let before = if remembered.is_some() { Before::Remembered } else { Before::Nothing };
        // Of one that is resumed, nobody knows since when.
        let is_older = current != Generation(1);
        let since = (!is_older).then(Instant::now);
        let first = KnownVersion { deployment: Rc::new(deployment), before, is_committed: true, is_older, since };
        Self { known: BTreeMap::from([(current, first)]), current, remembered, last: current }
    }

    /// Takes in a candidate under a number that no generation had before.
    pub(crate) fn add(&mut self, deployment: Rc<Deployment>, origin: Provenance) -> Generation {
        let (before, is_older, since) = match origin {
            Provenance::Compiled => (Before::Kept(self.current), false, None),
            Provenance::Kept(kept) => match self.known.get(&kept) {
                Some(it) => (it.before, it.is_older, it.since),
                None => (Before::Nothing, true, None),
            },
            Provenance::Remembered => (Before::Nothing, true, None),
        };
        self.last = Generation(self.last.0 + 1);
        self.known.insert(self.last, KnownVersion { deployment, before, is_committed: false, is_older, since });
        self.last
    }

    /// The candidate is what is served from now on.
    pub(crate) fn commit(&mut self, candidate: Generation) {
        if let Some(known) = self.known.get_mut(&candidate) {
            known.is_committed = true;
            if !known.is_older {
                known.since.get_or_insert_with(Instant::now);
            }
            self.current = candidate;
        }
        self.forget_others();
        while self.known.len() > MAX_HISTORY {
            self.known.pop_first();
        }
    }

    /// Forgets candidates that were not committed.
    pub(crate) fn forget_others(&mut self) {
        self.known.retain(|_, known| known.is_committed);
    }

    pub(crate) fn get(&self, generation: Generation) -> Option<&Rc<Deployment>> {
        Some(&self.known.get(&generation)?.deployment)
    }

    /// Whether one of them has these certificates.
    pub(crate) fn have(&self, files: &TlsFiles) -> bool {
        self.known.values().any(|known| known.deployment.application.tls.as_ref() == Some(files))
    }

    pub(crate) fn current(&self) -> (Generation, &Rc<Deployment>) {
        (self.current, &self.known.get(&self.current).expect("the current generation is kept").deployment)
    }

    /// When what is served now was first served, if this primary knows.
    pub(crate) fn served_since(&self) -> Option<Instant> {
        self.known.get(&self.current)?.since
    }

    /// What a rollback brings back, if this primary served it.
    pub(crate) fn previous(&self) -> Option<(Generation, &Rc<Deployment>)> {
        match self.known.get(&self.current)?.before {
            Before::Kept(before) => Some((before, self.get(before)?)),
            Before::Remembered | Before::Nothing => None,
        }
    }

    /// What a rollback brings back, if it is only known from the primary before this one.
    pub(crate) fn remembered(&self) -> Option<&Version> {
        self.remembered
            .as_ref()
            .filter(|_| self.known.get(&self.current).is_some_and(|it| it.before == Before::Remembered))
    }

    /// What is to survive the primary; `app` is what `serve` was given, as an absolute path.
    pub(crate) fn to_keep(&self, app: App, config: Changes) -> Committed {
        let (generation, deployment) = self.current();
        let previous = self.previous().map(|(_, deployment)| deployment.version());
        let previous = previous.or_else(|| self.remembered().cloned());
        Committed::new(generation, app, deployment.version(), previous, config)
    }

    /// A generation to bring back, or why not.
    pub(crate) fn committed(&self, generation: Generation) -> Result<&Rc<Deployment>, String> {
        if generation == self.current {
            return Err(format!("generation {generation} is already being served"));
        }
        let found = self.known.get(&generation).filter(|known| known.is_committed).map(|known| &known.deployment);
        found.ok_or_else(|| match self.others() {
            Some(others) => format!("generation {generation} is not known; the known ones are {others}"),
            None => format!("generation {generation} is not known; the only one is the one being served"),
        })
    }

    /// Why there is nothing to go back to.
    pub(crate) fn no_previous(&self) -> String {
        match self.others() {
            Some(others) => format!("no version was served before this one; choose one with --to: {others}"),
            None => "no version was served before this one".into(),
        }
    }

    /// What can be brought back by number.
    fn others(&self) -> Option<String> {
        let others = self.known.iter().filter(|(number, known)| known.is_committed && **number != self.current);
        let others: Vec<String> = others
            .map(|(number, known)| {
                let Deployment { source, compiled, .. } = &*known.deployment;
                format!("{number} ({source}, {})", short_digest(&compiled.digest))
            })
            .collect();
        (!others.is_empty()).then(|| others.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::version::WasiHttp;

    fn deploy(generations: &mut Generations, origin: Provenance) -> Generation {
        let deployment = match origin {
            Provenance::Kept(kept) => generations.get(kept).unwrap().clone(),
            _ => Rc::new(Deployment::of_nothing("sha256:new")),
        };
        generations.add(deployment, origin)
    }

    fn commit(generations: &mut Generations, origin: Provenance) {
        let candidate = deploy(generations, origin);
        generations.commit(candidate);
    }

    fn previous(generations: &Generations) -> Option<u64> {
        generations.previous().map(|(previous, _)| previous.0)
    }

    #[test]
    fn what_was_brought_back_has_the_past_that_it_had() {
        let first = Deployment::of_nothing("sha256:1");
        let remembered =
            Version { digest: "sha256:0".into(), http: WasiHttp::V0_2, source: "/old.wasm".into(), manifest: None };
        let mut generations = Generations::new(Generation(1), first, Some(remembered));
        commit(&mut generations, Provenance::Compiled);
        commit(&mut generations, Provenance::Compiled);
        assert_eq!(previous(&generations), Some(2));
        // One that was not committed leaves no trace.
        deploy(&mut generations, Provenance::Compiled);
        generations.forget_others();
        assert!(generations.committed(Generation(4)).unwrap_err().contains("not known; the known ones are 1 ("));
        commit(&mut generations, Provenance::Kept(Generation(2)));
        assert_eq!((generations.current().0, previous(&generations)), (Generation(5), Some(1)));
        commit(&mut generations, Provenance::Kept(Generation(1)));
        assert!(previous(&generations).is_none() && generations.remembered().is_some());
        commit(&mut generations, Provenance::Remembered);
        assert!(previous(&generations).is_none() && generations.remembered().is_none());
        // A new version comes after what is served, and everything before it can be reached by name.
        commit(&mut generations, Provenance::Compiled);
        assert_eq!(previous(&generations), Some(7));
        assert!(generations.committed(Generation(3)).is_ok());
    }

    #[test]
    fn history_is_bounded() {
        let mut generations = Generations::new(Generation(1), Deployment::of_nothing("sha256:1"), None);
        for _ in 0..100 {
            commit(&mut generations, Provenance::Compiled);
            assert!(generations.known.len() <= MAX_HISTORY);
        }
        for _ in 0..100 {
            let Some(before) = previous(&generations) else { return };
            commit(&mut generations, Provenance::Kept(Generation(before)));
        }
        panic!("the history has an end");
    }
}
