//! A member: a copy that is never changed in place.

use crate::{Epoch, Term, Version};

/// A node's copy, and the highest term it has promised to serve.
///
/// An epoch is *staged* (received beside the copy, verified against its digest), then *flipped* to: one pointer, written to
/// disk before the acknowledgement where the copy is to survive the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Member {
    promised: Term,
    copy: Option<Version>,
}

/// What an owner is told of an epoch it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The member has it.
    Acknowledged(Version),
    /// There is a higher term.
    Fenced(Term),
    /// It does not follow from the member's copy: all of the memory is needed.
    NeedsAll,
}

/// What a candidate is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Promise {
    pub term: Term,
    pub copy: Option<Version>,
}

impl Member {
    /// A member without a copy: a new one, or one that has lost its copy and with it what it promised. `term` was read from the
    /// register since then; each promise that was lost was for a term that the register had before.
    pub fn fresh(term: Term) -> Member {
        Member { promised: term, copy: None }
    }

    pub fn copy(&self) -> Option<Version> {
        self.copy
    }

    pub fn promised(&self) -> Term {
        self.promised
    }

    /// An epoch has been staged whole. `base` is the epoch of the same term that it is the difference to, `None` if it is all of
    /// the memory. On [`Answer::Acknowledged`] the caller flips to it, then sends the answer.
    pub fn staged(&mut self, version: Version, base: Option<Epoch>) -> Answer {
        if version.term < self.promised {
            return Answer::Fenced(self.promised);
        }
        let fits = match (base, self.copy) {
            (None, Some(copy)) => version > copy,
            (None, None) => true,
            (Some(base), Some(copy)) => copy == Version { term: version.term, epoch: base } && version.epoch > base,
            (Some(_), None) => false,
        };
        // One that comes twice is there already.
        if self.copy == Some(version) {
            return Answer::Acknowledged(version);
        }
        if !fits {
            return Answer::NeedsAll;
        }
        self.promised = version.term;
        self.copy = Some(version);
        Answer::Acknowledged(version)
    }

    /// A candidate of a term asks: from now on, no lower term is served. `None` if a higher one was promised already. The
    /// promise must be on disk before it is given, where the copy is.
    pub fn promise(&mut self, term: Term) -> Option<Promise> {
        if term < self.promised {
            return None;
        }
        self.promised = term;
        Some(Promise { term, copy: self.copy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(term: Term, epoch: Epoch) -> Version {
        Version { term, epoch }
    }

    #[test]
    fn epochs_follow_each_other_or_begin_anew() {
        let mut member = Member::default();
        assert_eq!(member.staged(version(1, 2), Some(1)), Answer::NeedsAll);
        assert_eq!(member.staged(version(1, 1), None), Answer::Acknowledged(version(1, 1)));
        assert_eq!(member.staged(version(1, 2), Some(1)), Answer::Acknowledged(version(1, 2)));
        assert_eq!(member.staged(version(1, 2), Some(1)), Answer::Acknowledged(version(1, 2)), "twice");
        assert_eq!(member.staged(version(1, 4), Some(3)), Answer::NeedsAll);
        assert_eq!(member.staged(version(1, 1), None), Answer::NeedsAll, "never back");
        assert_eq!(member.copy(), Some(version(1, 2)));
    }

    #[test]
    fn one_that_has_forgotten_its_promise_keeps_it() {
        let mut member = Member::fresh(2);
        assert_eq!(member.staged(version(1, 5), None), Answer::Fenced(2));
        assert_eq!(member.staged(version(2, 5), None), Answer::Acknowledged(version(2, 5)));
    }

    #[test]
    fn a_promise_shuts_out_lower_terms() {
        let mut member = Member::default();
        member.staged(version(1, 1), None);
        assert_eq!(member.promise(2), Some(Promise { term: 2, copy: Some(version(1, 1)) }));
        assert_eq!(member.staged(version(1, 2), Some(1)), Answer::Fenced(2));
        assert_eq!(member.promise(1), None);
        assert_eq!(member.staged(version(2, 2), None), Answer::Acknowledged(version(2, 2)));
    }
}
