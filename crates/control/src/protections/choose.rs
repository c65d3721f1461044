//! What a request leaves to the cluster: which nodes keep the copies, and where they agree.

use queztl_api::{BackupAddress, Code, Problem, ProtectRequest};

use crate::manager::Core;

impl Core {
    /// The request with all that it leaves out. Whoever is named can be reached, as far as that is known.
    pub(crate) fn complete(&self, mut request: ProtectRequest) -> Result<ProtectRequest, Problem> {
        if request.backups.is_empty() {
            request.backups = self.choose_backups(request.backup_count)?;
        } else if request.backup_count.is_some() {
            return Err(Problem::invalid("backup_count", "is for a request that names no backups"));
        }
        // A copy that has taken the machine has nodes' names only, and asks the others by them.
        request.backups.iter().try_for_each(|backup| self.client_of(backup).map(drop))?;
        if request.register.is_empty() {
            request.register = self.default_register()?;
        }
        Ok(request)
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
