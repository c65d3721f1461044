//! A candidate: a member that has claimed a term and looks for the newest copy.

use std::collections::BTreeMap;

use crate::{Node, Promise, Register, Term, Version};

/// The search of one term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    node: Node,
    term: Term,
    needed: usize,
    answers: BTreeMap<Node, Version>,
    members: Vec<Node>,
}

/// What is known so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not enough members have answered: ask again.
    Waiting,
    /// The candidate's own copy is the newest: write the register ([`Register::take_over`]), then run.
    TakeOver(Version),
    /// This member has the newest copy: it should claim the next term.
    YieldTo(Node),
}

impl Candidate {
    /// The search of the term that `register`, as it was written, gave to `node`, whose own promise comes first.
    pub fn new(node: Node, register: &Register, own: Promise) -> Candidate {
        let members = register.members.iter().copied().collect();
        let (term, needed) = (register.term, register.answers_needed());
        let mut candidate = Candidate { node, term, needed, answers: BTreeMap::new(), members };
        candidate.promised(node, own);
        candidate
    }

    pub fn term(&self) -> Term {
        self.term
    }

    /// The members that have not answered.
    pub fn missing(&self) -> impl Iterator<Item = Node> + '_ {
        self.members.iter().copied().filter(|node| !self.answers.contains_key(node))
    }

    /// A member has promised. What is of another term or of a stranger does not count, nor does the word of one without a copy:
    /// each member had one, so this one has lost it, and does not know what it acknowledged.
    pub fn promised(&mut self, node: Node, promise: Promise) {
        if let Some(copy) = promise.copy.filter(|_| promise.term == self.term && self.members.contains(&node)) {
            self.answers.insert(node, copy);
        }
    }

    pub fn outcome(&self) -> Outcome {
        if self.answers.len() < self.needed {
            return Outcome::Waiting;
        }
        let own = self.answers.get(&self.node).copied();
        let newest = self.answers.iter().max_by_key(|(_, copy)| **copy).map(|(node, copy)| (*node, *copy));
        match (own, newest) {
            (Some(own), Some((_, newest))) if own >= newest => Outcome::TakeOver(own),
            (_, Some((node, _))) => Outcome::YieldTo(node),
            (_, None) => Outcome::Waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn promise(term: Term, epoch: u64) -> Promise {
        Promise { term, copy: Some(Version { term: 1, epoch }) }
    }

    fn claimed(acks: usize) -> Register {
        let members: BTreeSet<Node> = [1, 2, 3].into();
        Register::new(0).protect(0, 1, members, acks).unwrap().claim(1).unwrap()
    }

    #[test]
    fn the_newest_copy_of_enough_members_goes_on() {
        let mut candidate = Candidate::new(1, &claimed(2), promise(2, 5));
        assert_eq!(candidate.outcome(), Outcome::Waiting);
        candidate.promised(2, promise(7, 9));
        candidate.promised(9, promise(2, 9));
        assert_eq!(candidate.outcome(), Outcome::Waiting, "another term, a stranger");
        candidate.promised(3, promise(2, 4));
        assert_eq!(candidate.outcome(), Outcome::TakeOver(Version { term: 1, epoch: 5 }));
        candidate.promised(2, promise(2, 6));
        assert_eq!(candidate.outcome(), Outcome::YieldTo(2));
    }

    #[test]
    fn a_member_without_a_copy_is_asked_again() {
        let mut candidate = Candidate::new(1, &claimed(2), promise(2, 5));
        candidate.promised(2, Promise { term: 2, copy: None });
        assert_eq!((candidate.outcome(), candidate.missing().collect::<Vec<_>>()), (Outcome::Waiting, vec![2, 3]));
    }

    #[test]
    fn where_all_acknowledge_one_answer_is_enough() {
        let candidate = Candidate::new(1, &claimed(3), promise(2, 5));
        assert_eq!(candidate.outcome(), Outcome::TakeOver(Version { term: 1, epoch: 5 }));
        assert_eq!(candidate.missing().collect::<Vec<_>>(), [2, 3]);
    }
}
