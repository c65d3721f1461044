//! The owner: which output may leave.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Epoch, Node, Phase, Register, Term, Version};

/// The owner's state in one term.
///
/// Between two cuts the machine runs, and its output belongs to the epoch of the cut that will follow. Cut `n` is sent to all
/// nodes that are or shall be members; output of epoch `n` leaves when [`Owner::release`] says so.
///
/// A change of the group goes in three steps, because nobody can write the register and act on it at the same moment:
/// [`Owner::propose`] holds back what the new rule would hold back; once enough new members have all that ever left
/// ([`Owner::may_write`]) the register is written; [`Owner::adopt`] ends the old rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    term: Term,
    /// What this term began from.
    base: Epoch,
    cut: Epoch,
    /// What each node is known to have.
    copies: BTreeMap<Node, Epoch>,
    in_force: Force,
    proposed: Option<Rule>,
    /// The newest epoch of which something may have left.
    left: Epoch,
    /// A higher term exists: nothing leaves any more, ever.
    fenced: bool,
}

/// Whose acknowledgements count, and how many of them are needed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pub members: BTreeSet<Node>,
    pub acks: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Force {
    Nothing,
    All,
    Rule(Rule),
}

/// What may leave now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Everything at once: the group is not protected.
    All,
    /// What belongs to epochs up to this one.
    UpTo(Epoch),
    /// Nothing.
    Nothing,
}

impl Owner {
    /// The owner of a register's term, going on from epoch `base`.
    pub fn new(register: &Register, base: Epoch) -> Owner {
        let mut owner = Owner {
            term: register.term,
            base,
            cut: base,
            copies: BTreeMap::new(),
            in_force: Force::Nothing,
            proposed: None,
            left: base,
            fenced: false,
        };
        owner.adopt(register);
        owner
    }

    pub fn term(&self) -> Term {
        self.term
    }

    /// The last cut.
    pub fn version(&self) -> Version {
        Version { term: self.term, epoch: self.cut }
    }

    /// The register was read, or written: its rule is in force from now on. Another term fences.
    pub fn adopt(&mut self, register: &Register) {
        if register.term != self.term {
            return self.saw_term(register.term);
        }
        self.in_force = match register.phase {
            Phase::Alone => Force::All,
            Phase::Claimed => Force::Nothing,
            Phase::Protected => Force::Rule(Rule { members: register.members.clone(), acks: register.acks }),
        };
        if matches!((&self.in_force, &self.proposed), (Force::Rule(rule), Some(proposed)) if rule == proposed) {
            self.proposed = None;
        }
    }

    /// Begins a change of the group. Holds until it is in force, or [`Owner::withdraw`]n.
    pub fn propose(&mut self, rule: Rule) {
        self.proposed = Some(rule);
    }

    pub fn proposed(&self) -> Option<&Rule> {
        self.proposed.as_ref()
    }

    /// Whether the proposed rule may be written: enough of its members have all that ever left.
    pub fn may_write(&self) -> bool {
        self.proposed.as_ref().is_some_and(|rule| self.acknowledged(rule).is_some_and(|epoch| epoch >= self.left))
    }

    /// The register was read and has not taken the proposal, and never will: nobody is writing it.
    pub fn withdraw(&mut self) {
        self.proposed = None;
    }

    /// The memory was cut; the epoch's number.
    pub fn cut(&mut self) -> Epoch {
        self.cut += 1;
        self.cut
    }

    /// A node has a whole copy of a version.
    pub fn acknowledge(&mut self, node: Node, version: Version) {
        if version.term == self.term && version.epoch <= self.cut {
            let known = self.copies.entry(node).or_insert(version.epoch);
            *known = version.epoch.max(*known);
        }
    }

    /// Somebody has seen this term.
    pub fn saw_term(&mut self, term: Term) {
        self.fenced |= term > self.term;
    }

    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Whether a member can go on from here: it has the last cut, and nothing that came after it has left. The machine stands
    /// still, and goes on here only when the register has changed ([`Register::hand_over`]).
    pub fn may_hand_over(&self, member: Node) -> bool {
        let in_force = matches!(&self.in_force, Force::Rule(rule) if rule.members.contains(&member));
        let has_all = self.copies.get(&member) == Some(&self.cut) && self.left <= self.cut;
        !self.fenced && in_force && has_all && self.proposed.is_none()
    }

    /// What may leave. What it says counts as having left.
    pub fn release(&mut self) -> Release {
        let release = self.releasable();
        match release {
            // Of the epoch that is being made.
            Release::All => self.left = self.cut + 1,
            Release::UpTo(epoch) => self.left = self.left.max(epoch),
            Release::Nothing => {}
        }
        release
    }

    /// As [`Owner::release`], to look only.
    pub fn releasable(&self) -> Release {
        if self.fenced {
            return Release::Nothing;
        }
        let of = |rule: &Rule| Release::UpTo(self.acknowledged(rule).unwrap_or(self.base));
        let now = match &self.in_force {
            Force::Nothing => return Release::Nothing,
            Force::All => Release::All,
            Force::Rule(rule) => of(rule),
        };
        match (now, self.proposed.as_ref().map(of)) {
            (Release::UpTo(now), Some(Release::UpTo(then))) => Release::UpTo(now.min(then)),
            (Release::All, Some(then)) => then,
            (now, _) => now,
        }
    }

    /// The newest epoch that enough of a rule's members have.
    fn acknowledged(&self, rule: &Rule) -> Option<Epoch> {
        let mut epochs: Vec<Epoch> = rule.members.iter().filter_map(|node| self.copies.get(node)).copied().collect();
        epochs.sort_unstable_by(|a, b| b.cmp(a));
        rule.acks.checked_sub(1).and_then(|last| epochs.get(last)).copied()
    }

    /// What a node has, if it has a copy of this term.
    pub fn copy_of(&self, node: Node) -> Option<Epoch> {
        self.copies.get(&node).copied()
    }

    /// A node is gone, or has lost its copy: it needs all of the memory again.
    pub fn forget(&mut self, node: Node) {
        self.copies.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(members: &[Node], acks: usize) -> Rule {
        Rule { members: members.iter().copied().collect(), acks }
    }

    fn protected(members: &[Node], acks: usize) -> (Owner, Register) {
        let alone = Register::new(0);
        let mut owner = Owner::new(&alone, 0);
        owner.propose(rule(members, acks));
        let epoch = owner.cut();
        members.iter().for_each(|node| owner.acknowledge(*node, Version { term: 1, epoch }));
        assert!(owner.may_write());
        let register = alone.protect(0, 1, rule(members, acks).members, acks).unwrap();
        owner.adopt(&register);
        (owner, register)
    }

    #[test]
    fn output_waits_for_enough_acknowledgements() {
        let (mut owner, _) = protected(&[1, 2, 3], 2);
        let epoch = owner.cut();
        assert_eq!(owner.release(), Release::UpTo(1));
        owner.acknowledge(3, Version { term: 1, epoch });
        assert_eq!(owner.release(), Release::UpTo(1));
        owner.acknowledge(1, Version { term: 1, epoch });
        assert_eq!(owner.release(), Release::UpTo(2));
    }

    #[test]
    fn what_left_before_protection_must_be_in_the_copies_that_protect() {
        let mut owner = Owner::new(&Register::new(0), 0);
        owner.cut();
        assert_eq!(owner.release(), Release::All);
        owner.propose(rule(&[1], 1));
        owner.acknowledge(1, Version { term: 1, epoch: 1 });
        assert!(!owner.may_write(), "something of epoch 2 has left");
        assert_eq!(owner.release(), Release::UpTo(1));
        owner.cut();
        owner.acknowledge(1, Version { term: 1, epoch: 2 });
        assert!(owner.may_write());
    }

    #[test]
    fn between_two_rules_both_hold() {
        let (mut owner, _) = protected(&[1, 2], 1);
        owner.cut();
        owner.acknowledge(1, Version { term: 1, epoch: 2 });
        owner.propose(rule(&[2], 1));
        assert_eq!(owner.release(), Release::UpTo(1));
        owner.acknowledge(2, Version { term: 1, epoch: 2 });
        assert_eq!(owner.release(), Release::UpTo(2));
        assert!(owner.may_write());
    }

    #[test]
    fn it_hands_over_to_who_has_the_last_cut() {
        let (mut owner, register) = protected(&[1, 2], 1);
        assert!(owner.may_hand_over(1) && !owner.may_hand_over(3));
        owner.cut();
        assert!(!owner.may_hand_over(1));
        owner.acknowledge(2, Version { term: 1, epoch: 2 });
        assert!(owner.may_hand_over(2) && !owner.may_hand_over(1));
        owner.propose(rule(&[1], 1));
        assert!(!owner.may_hand_over(2), "a change is under way");
        owner.withdraw();
        owner.adopt(&register.hand_over(0, 1, 2).unwrap());
        assert!(owner.is_fenced() && !owner.may_hand_over(2));
    }

    #[test]
    fn a_higher_term_ends_it() {
        let (mut owner, register) = protected(&[1], 1);
        owner.adopt(&register.claim(1).unwrap());
        assert!(owner.is_fenced());
        assert_eq!(owner.release(), Release::Nothing);
        owner.adopt(&register);
        assert_eq!(owner.release(), Release::Nothing, "for ever");
    }
}
