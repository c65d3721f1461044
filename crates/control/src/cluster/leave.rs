//! A node leaves, or is removed by the others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use queztl_api::{Code, EventKind, Problem};

use super::Joined;
use super::folder::Folder;
use super::members::Member;
use crate::manager::Core;

impl Core {
    /// This daemon is no node any more. Without `force` only once nothing depends on it here.
    pub(crate) fn leave_cluster(self: &Arc<Self>, force: bool) -> Result<(), Problem> {
        let _changing = self.cluster.changing();
        let joined = self.cluster.need()?;
        if !force {
            self.check_unneeded(&joined)?;
        }
        let own = joined.with(self, |members| members.all());
        let own = own.map(|all| all.into_iter().find(|member| member.certificate == joined.own));
        let told = match own {
            Ok(Some(own)) => joined.with(self, |members| members.change(&own, None)),
            // It was removed.
            Ok(None) => Ok(()),
            Err(error) => Err(super::members::out_of_reach(error)),
        };
        match told {
            // The others find out, or are told by `node remove`.
            Err(problem) if force && problem.code != Code::Busy => tracing::warn!(%problem, "left without a word"),
            other => other?,
        }
        joined.over.store(true, Ordering::Release);
        self.cluster.port.send_replace(None);
        self.cluster.set(None);
        Folder::new(&self.config.home).remove()?;
        let name = joined.settings.name.to_string();
        self.store.write(|change| {
            let message = format!("this daemon has left its cluster, where it was {name}");
            Ok(change.event(EventKind::NodeLeft { node: name.clone() }, message)?)
        })
    }

    /// What would be lost, or harder to reach, without this node.
    fn check_unneeded(&self, joined: &Joined) -> Result<(), Problem> {
        let refused = |text: String| Err(Problem::new(Code::State, text));
        if self.cluster.joined().is_some_and(|joined| joined.authority.is_some())
            && joined.view().members.iter().any(|member| member.certificate != joined.own)
        {
            let what = match joined.etcd {
                Some(_) => "the key that admits nodes is here",
                None => "what the nodes agree on is kept here",
            };
            return refused(format!("{what}, and the cluster has other nodes: they leave first, or --force"));
        }
        let machines = self.machines.all();
        let named = |copies: bool| {
            let names = machines.iter().filter_map(|machine| {
                let inner = machine.lock();
                (inner.signs.is_some() == copies).then(|| inner.record.name.to_string())
            });
            names.collect::<Vec<_>>().join(", ")
        };
        let (copies, own) = (named(true), named(false));
        if !copies.is_empty() {
            return refused(format!(
                "copies of other nodes' machines are kept here: {copies}: unprotect them there first, or --force"
            ));
        }
        if !own.is_empty() {
            return refused(format!("machines are here: {own}: `queztl-hv node drain` moves them away; or --force"));
        }
        Ok(())
    }

    /// Removes a node that is gone for good. Its certificate is worth nothing from now on.
    pub(crate) fn remove_node(&self, name: &str) -> Result<(), Problem> {
        let joined = self.cluster.need()?;
        let member = self.fresh_member(&joined, name)?;
        if member.certificate == joined.own {
            return Err(Problem::new(Code::State, format!("{name} is this node itself: `queztl-hv node leave`")));
        }
        if member.name == joined.settings.founder && joined.etcd.is_none() {
            let text = format!(
                "{name} keeps what the nodes agree on, without which nobody can be removed: each leaves by \
                 `queztl-hv node leave --force`"
            );
            return Err(Problem::new(Code::State, text));
        }
        joined.with(self, |members| members.change(&member, None))?;
        self.refresh(&joined)
    }

    /// A member, as the coordinator has it now.
    pub(super) fn fresh_member(&self, joined: &Joined, name: &str) -> Result<Member, Problem> {
        let all = joined.with(self, |members| members.all()).map_err(super::members::out_of_reach)?;
        let found = all.into_iter().find(|member| member.name.as_str() == name);
        found.ok_or_else(|| Problem::not_found("node", name))
    }
}
