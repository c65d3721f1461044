//! The words in which the lists are written: a system call, and what its arguments must be.

use std::collections::BTreeMap;

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// A system call as a list names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub number: i64,
    /// All must hold; none for a call that is allowed whatever its arguments are.
    pub conditions: &'static [Condition],
}

/// What must hold for an argument. Arguments are compared as 32 bits: those that are looked at here are flags, numbers of
/// requests and process identifiers, which the kernel takes as such.
#[derive(Debug, Clone, Copy)]
pub(super) enum Condition {
    /// Argument, value.
    Is(u8, u32),
    /// Argument, mask, and the value under the mask.
    Bits(u8, u32, u32),
    /// The argument is the number of this process.
    OwnProcess(u8),
}

/// A call with any arguments.
pub(super) const fn call(number: i64) -> Allowed {
    Allowed { number, conditions: &[] }
}

/// A call whose arguments must be as told.
pub(super) const fn call_if(number: i64, conditions: &'static [Condition]) -> Allowed {
    Allowed { number, conditions }
}

/// The calls of several groups in the form of `seccompiler`. A call that one group allows whatever its arguments are
/// is so allowed, also where another group looks at them.
pub(super) fn gather(groups: &[&[Allowed]]) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut all: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let calls = || groups.iter().flat_map(|group| group.iter());
    for allowed in calls() {
        let rules = all.entry(allowed.number).or_default();
        let free = |other: &Allowed| other.number == allowed.number && other.conditions.is_empty();
        // No rules at all: any arguments.
        if !calls().any(free) {
            let conditions = allowed.conditions.iter().map(Condition::compile).collect::<Result<Vec<_>, _>>()?;
            rules.push(SeccompRule::new(conditions)?);
        }
    }
    Ok(all)
}

impl Condition {
    fn compile(&self) -> Result<SeccompCondition, BackendError> {
        let (argument, operator, value) = match *self {
            Condition::Is(argument, value) => (argument, SeccompCmpOp::Eq, value),
            Condition::Bits(argument, mask, value) => (argument, SeccompCmpOp::MaskedEq(mask.into()), value),
            Condition::OwnProcess(argument) => (argument, SeccompCmpOp::Eq, std::process::id()),
        };
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_allowed_without_conditions_stays_so() {
        let narrow: &[Allowed] = &[call_if(libc::SYS_socket, &[Condition::Is(0, libc::AF_UNIX as u32)])];
        let wide: &[Allowed] = &[call(libc::SYS_socket)];
        assert_eq!(gather(&[narrow]).unwrap()[&libc::SYS_socket].len(), 1);
        assert_eq!(gather(&[narrow, narrow]).unwrap()[&libc::SYS_socket].len(), 2);
        assert!(gather(&[narrow, wide]).unwrap()[&libc::SYS_socket].is_empty());
        assert!(gather(&[wide, narrow]).unwrap()[&libc::SYS_socket].is_empty());
    }
}
