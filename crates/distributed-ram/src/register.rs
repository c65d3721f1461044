//! What the nodes of a group agree on.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Node, Term};

/// The group's one shared value. It changes by compare-and-swap only; each function gives the value to swap in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Register {
    pub term: Term,
    pub owner: Node,
    /// The members whose copies counted when the group was protected last.
    pub members: BTreeSet<Node>,
    /// How many of them must have an epoch before its output is let out.
    pub acks: usize,
    pub phase: Phase,
}

/// ```text
///            k members have a copy             owner taken for dead    
///  Alone ─────────────────────────> Protected ───────────────────────────> Claimed
///    ^                                  │ too few members left                │ n − k + 1 members answered
///    ├──────────────────────────────────┘                                     │ (or: claimed again, by another)
///    ├────────────────────────────────────────────────────────────────────────┘
///    └── Protected: the owner stands still, and hands over to a member that has all ([`Register::hand_over`])
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// The owner runs and lets out at once; if it dies, its memory is lost and nobody may go on from an older copy.
    Alone,
    /// The owner runs and lets out what `acks` members have.
    Protected,
    /// A candidate has the term and looks for the newest copy; nothing runs.
    Claimed,
}

/// Why a change of the register must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    #[error("node {0} is not the owner any more: term {1} has another")]
    NotOwner(Node, Term),
    #[error("{members} members cannot give {acks} acknowledgements: at least one, and no more than there are members")]
    Acks { acks: usize, members: usize },
    #[error("the owner ran without protection when it was last heard of: older copies lack what it has let out")]
    Unprotected,
    #[error("node {0} has no copy that counts")]
    NotAMember(Node),
    #[error("this cannot follow from the present phase")]
    Phase,
}

impl Register {
    /// A new group: its owner, and no members yet.
    pub fn new(owner: Node) -> Register {
        Register { term: 1, owner, members: BTreeSet::new(), acks: 0, phase: Phase::Alone }
    }

    /// The owner has brought copies to `members`: from now on, `acks` of them count before anything is let out. Also changes
    /// the members of a group that is protected.
    pub fn protect(
        &self,
        owner: Node,
        term: Term,
        members: BTreeSet<Node>,
        acks: usize,
    ) -> Result<Register, RegisterError> {
        self.check_owner(owner, term)?;
        if acks == 0 || acks > members.len() {
            return Err(RegisterError::Acks { acks, members: members.len() });
        }
        if self.phase == Phase::Claimed {
            return Err(RegisterError::Phase);
        }
        Ok(Register { members, acks, phase: Phase::Protected, ..self.clone() })
    }

    /// The owner goes on without protection. Must be in the register before anything is let out without acknowledgements.
    pub fn expose(&self, owner: Node, term: Term) -> Result<Register, RegisterError> {
        self.check_owner(owner, term)?;
        if self.phase == Phase::Claimed {
            return Err(RegisterError::Phase);
        }
        Ok(Register { phase: Phase::Alone, ..self.clone() })
    }

    /// A member takes the next term, because it takes the owner for dead: see [`crate::Detector`].
    pub fn claim(&self, candidate: Node) -> Result<Register, RegisterError> {
        if self.phase == Phase::Alone {
            return Err(RegisterError::Unprotected);
        }
        if !self.members.contains(&candidate) {
            return Err(RegisterError::NotAMember(candidate));
        }
        Ok(Register { term: self.term + 1, owner: candidate, phase: Phase::Claimed, ..self.clone() })
    }

    /// The candidate has found the newest copy to be its own and runs, without protection at first.
    pub fn take_over(&self, candidate: Node, term: Term) -> Result<Register, RegisterError> {
        self.check_owner(candidate, term)?;
        if self.phase != Phase::Claimed {
            return Err(RegisterError::Phase);
        }
        Ok(Register { phase: Phase::Alone, ..self.clone() })
    }

    /// The owner stands still, and `member` has all that there is ([`crate::Owner::may_hand_over`]): it goes on, without protection
    /// at first. The owner consents to this one change of the value that it names; with any other change of it, its own included,
    /// the consent is gone. So the owner may go on as soon as it has changed the value itself, and not before.
    pub fn hand_over(&self, owner: Node, term: Term, member: Node) -> Result<Register, RegisterError> {
        self.check_owner(owner, term)?;
        if self.phase != Phase::Protected {
            return Err(RegisterError::Phase);
        }
        if !self.members.contains(&member) {
            return Err(RegisterError::NotAMember(member));
        }
        Ok(Register { term: self.term + 1, owner: member, phase: Phase::Alone, ..self.clone() })
    }

    /// How many members a candidate must hear of, itself included: so many that one of any `acks` is among them.
    pub fn answers_needed(&self) -> usize {
        self.members.len().saturating_sub(self.acks) + 1
    }

    fn check_owner(&self, owner: Node, term: Term) -> Result<(), RegisterError> {
        let same = self.owner == owner && self.term == term;
        if same { Ok(()) } else { Err(RegisterError::NotOwner(owner, self.term)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(nodes: &[Node]) -> BTreeSet<Node> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn an_unprotected_group_is_never_taken_over() {
        let alone = Register::new(0);
        assert_eq!(alone.claim(1), Err(RegisterError::Unprotected));
        let protected = alone.protect(0, 1, members(&[1, 2]), 1).unwrap();
        assert_eq!(protected.claim(3), Err(RegisterError::NotAMember(3)));
        let claimed = protected.claim(1).unwrap();
        assert_eq!((claimed.term, claimed.owner, claimed.phase), (2, 1, Phase::Claimed));
        let taken = claimed.take_over(1, 2).unwrap();
        assert_eq!(taken.claim(2), Err(RegisterError::Unprotected));
    }

    #[test]
    fn a_claim_can_be_claimed_again_and_old_owners_change_nothing() {
        let protected = Register::new(0).protect(0, 1, members(&[1, 2]), 2).unwrap();
        let second = protected.claim(1).unwrap().claim(2).unwrap();
        assert_eq!(second.term, 3);
        assert_eq!(second.take_over(1, 2), Err(RegisterError::NotOwner(1, 3)));
        assert_eq!(second.expose(0, 1), Err(RegisterError::NotOwner(0, 3)));
    }

    #[test]
    fn an_owner_hands_over_to_a_member_of_a_protected_group_only() {
        let alone = Register::new(0);
        assert_eq!(alone.hand_over(0, 1, 1), Err(RegisterError::Phase));
        let protected = alone.protect(0, 1, members(&[1, 2]), 1).unwrap();
        assert_eq!(protected.hand_over(0, 1, 3), Err(RegisterError::NotAMember(3)));
        assert_eq!(protected.hand_over(1, 1, 2), Err(RegisterError::NotOwner(1, 1)));
        let handed = protected.hand_over(0, 1, 2).unwrap();
        assert_eq!((handed.term, handed.owner, handed.phase), (2, 2, Phase::Alone));
        assert_eq!(handed.expose(0, 1), Err(RegisterError::NotOwner(0, 2)), "the owner before changes nothing more");
    }

    #[test]
    fn answers_needed_meet_any_acknowledgements() {
        for n in 1..6_u32 {
            for acks in 1..=n as usize {
                let all: BTreeSet<Node> = (1..=n).collect();
                let register = Register::new(0).protect(0, 1, all, acks).unwrap();
                assert_eq!(register.answers_needed() + acks, n as usize + 1);
            }
        }
        assert!(Register::new(0).protect(0, 1, members(&[1]), 2).is_err());
        assert!(Register::new(0).protect(0, 1, members(&[1]), 0).is_err());
    }
}
