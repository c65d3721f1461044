//! Landlock: to which files and networks this thread, and those that it starts, have a way.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Needs, SandboxError};

/// The version of Landlock that this is written for: Linux 6.12.
const VERSION: ABI = ABI::V6;

/// Puts the rules in force; gives what the kernel lacks, if it lacks something.
pub(super) fn keep_to(needs: &Needs) -> Result<Option<String>, SandboxError> {
    let failed = |error: RulesetError| SandboxError::Landlock(error.to_string());
    let all = AccessFs::from_all(VERSION);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let change = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    // Neither programs nor device files are made or used.
    let work = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);

    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(all).and_then(|rules| rules.handle_access(AccessNet::from_all(VERSION)));
    let ruleset = ruleset.and_then(|rules| rules.scope(Scope::AbstractUnixSocket)).and_then(Ruleset::create);
    let mut rules = ruleset.map_err(failed)?;
    for (paths, access) in [(&needs.read, read), (&needs.write, read | change), (&needs.work, work)] {
        for path in paths {
            rules = allow(rules, path, access)?;
        }
    }
    for path in &needs.perhaps {
        // Asking a block device for its size is a request of this kind.
        rules = allow_perhaps(rules, path, read | AccessFs::IoctlDev)?;
    }
    rules = allow_perhaps(rules, Path::new("/dev/kvm"), read | change)?;
    let status = rules.restrict_self().map_err(failed)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => None,
        RulesetStatus::PartiallyEnforced => Some("its Landlock is older than Linux 6.12".to_owned()),
        RulesetStatus::NotEnforced => Some("it has no Landlock".to_owned()),
    })
}

/// The same where the file is there: who opens one that is not will say so.
fn allow_perhaps(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    if path.exists() { allow(rules, path, access) } else { Ok(rules) }
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, SandboxError> {
    let fail = |source| SandboxError::Path { path: path.to_path_buf(), source };
    let file = PathFd::new(path).map_err(|error| fail(io::Error::other(error)))?;
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(VERSION) };
    let failed = |error: RulesetError| SandboxError::Landlock(error.to_string());
    let rules = rules.add_rule(PathBeneath::new(&file, access)).map_err(failed)?;
    // A rule is tied to what the path names now. Files of /proc are made anew when nobody holds them.
    std::mem::forget(file);
    Ok(rules)
}
