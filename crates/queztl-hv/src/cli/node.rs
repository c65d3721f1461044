//! Arguments of the verbs about nodes of a cluster.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use queztl_api::Name;

use super::output::OutputArg;
use crate::values::machine;
use crate::verbs::names;

pub const NODE_EXAMPLES: &str = "\
Examples:
  queztl-hv node init                          at the first host
  queztl-hv node token                         there, once for each other host
  queztl-hv node join qzj1_…                   at the other host
  queztl-hv node list
  queztl-hv migrate web --to node-b
  queztl-hv node drain node-b                  its machines move to the others";

#[derive(Debug, Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// Where a node listens, and what it is called.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// Its name: lower-case letters, digits and hyphens [default: the host's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// Where it listens for other nodes [default: 0.0.0.0:7444]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,

    /// Where other nodes reach it [default: this host's address towards the others]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make a cluster; this daemon is its first node, and admits the others
    Init {
        #[command(flatten)]
        place: PlaceArgs,

        /// Where the nodes agree: etcd://host:port,host:port [default: this daemon's own store]
        #[arg(long, value_name = "ADDRESS")]
        coordinator: Option<String>,
    },

    /// Make a token that admits one new node, at the cluster's first node
    Token {
        /// When it ends
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = machine::seconds)]
        ttl: u64,

        #[command(flatten)]
        output: OutputArg,
    },

    /// Make this daemon a node of a cluster, with a token from there
    Join {
        /// What `node token` has printed; - reads it from standard input
        #[arg(value_name = "TOKEN")]
        token: String,

        #[command(flatten)]
        place: PlaceArgs,
    },

    /// List the nodes, and how each is
    List {
        #[command(flatten)]
        output: OutputArg,
    },

    /// Move a node's machines to the others; it takes no new ones
    Drain {
        /// The node [default: this one]
        #[arg(value_name = "NODE", add = ArgValueCandidates::new(names::nodes))]
        node: Option<String>,

        /// It takes machines again, as by `node ready`
        #[arg(long)]
        undo: bool,

        #[command(flatten)]
        output: OutputArg,
    },

    /// Have a node that was drained take machines again
    Ready {
        /// The node [default: this one]
        #[arg(value_name = "NODE", add = ArgValueCandidates::new(names::nodes))]
        node: Option<String>,
    },

    /// Leave the cluster with this node
    Leave {
        /// Also if machines, copies or what the nodes agree on are here
        #[arg(long)]
        force: bool,
    },

    /// Remove a node that is gone for good
    Remove {
        #[arg(value_name = "NODE", add = ArgValueCandidates::new(names::nodes))]
        node: String,
    },
}
