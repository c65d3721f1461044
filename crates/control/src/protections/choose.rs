//! What a request leaves to the cluster: which nodes keep the copies, and where they agree.

use queztl_api::{BackupAddress, Code, Problem, ProtectRequest};

use crate::cluster::is_name;
use crate::manager::Core;

impl Core {
    /// The request with all that it leaves out, and those who stand in for backups that stay away. Whoever is named can be reached,
    /// as far as that is known.
    pub(crate) fn complete(
        &self,
        mut request: ProtectRequest,
    ) -> Result<(ProtectRequest, Vec<BackupAddress>), Problem> {
        let named = request.backups.len();
        let count = request.backup_count.map_or(named, |count| count as usize);
        if request.backups.is_empty() {
            request.backups = self.choose_backups(request.backup_count)?;
        } else if !(1..=named).contains(&count) {
            return Err(Problem::invalid("backup_count", "is at least 1, and no more than there are backups"));
        }
        // A copy that has taken the machine has nodes' names only, and asks the others by them.
        request.backups.iter().try_for_each(|backup| self.client_of(backup).map(drop))?;
        if request.register.is_empty() {
            request.register = self.default_register()?;
        }
        let spares = if named == 0 { Vec::new() } else { request.backups.split_off(count) };
        request.backup_count = Some(u32::try_from(request.backups.len()).unwrap_or(u32::MAX));
        Ok((request, spares))
    }

    /// Who could keep a copy, the best first: of nodes those that are ready, and any of them; of others only those that are known.
    pub(super) fn candidates(&self, known: &[BackupAddress]) -> Vec<BackupAddress> {
        if !self.cluster.is_node() || !known.iter().all(|one| is_name(&one.to)) {
            return known.to_vec();
        }
        let ready: Vec<String> = self.ready_nodes().into_iter().map(|(name, _)| name.to_string()).collect();
        known_first(known, &ready)
    }

    /// The ready nodes with the most free memory, other than this one.
    fn choose_backups(&self, count: Option<u32>) -> Result<Vec<BackupAddress>, Problem> {
        let wished = count.unwrap_or(1) as usize;
        if !self.cluster.is_node() {
            let text = "name the daemons that keep copies: this one is in no cluster from which some could be chosen";
            return Err(Problem::invalid("backups", text));
        }
        let ready = self.ready_nodes();
        if ready.len() < wished {
            let text = format!(
                "{wished} other nodes are to keep copies, and {} are ready: see queztl-hv node list",
                ready.len()
            );
            return Err(Problem::new(Code::State, text));
        }
        Ok(ready.into_iter().take(wished).map(|(name, _)| BackupAddress::to(name.as_str())).collect())
    }
}

/// The ready nodes, those first that are known.
fn known_first(known: &[BackupAddress], ready: &[String]) -> Vec<BackupAddress> {
    let (mut first, then): (Vec<&String>, Vec<&String>) =
        ready.iter().partition(|name| known.iter().any(|one| one.to == **name));
    first.sort_by_key(|name| known.iter().position(|one| one.to == **name));
    first.into_iter().chain(then).map(|name| BackupAddress::to(name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_nodes_come_first_and_those_that_are_not_ready_not_at_all() {
        let known = ["c", "a", "b"].map(BackupAddress::to);
        let ready = ["d", "a", "c"].map(String::from);
        let chosen: Vec<String> = known_first(&known, &ready).into_iter().map(|one| one.to).collect();
        assert_eq!(chosen, ["c", "a", "d"]);
    }
}
