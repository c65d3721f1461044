//! The tables, and what they hold.

use std::marker::PhantomData;

use queztl_api::{Alert, BenchmarkRun, Timestamp};
use redb::{TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::Result;
use crate::cluster::Invitation;
use crate::images::ImageRecord;
use crate::operations::OperationRecord;
use crate::snapshots::{LayerRecord, SnapshotRecord};
use crate::tokens::TokenRecord;
use crate::vms::VmRecord;

/// A table of JSON values by words.
pub(crate) struct Table<V> {
    name: &'static str,
    value: PhantomData<fn() -> V>,
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Table<V> {
        *self
    }
}

impl<V> Copy for Table<V> {}

impl<V> Table<V> {
    const fn new(name: &'static str) -> Table<V> {
        Table { name, value: PhantomData }
    }

    pub(super) const fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.name)
    }
}

/// Machines by identifier.
pub(crate) const VMS: Table<VmRecord> = Table::new("vms");
/// Identifiers of machines by name.
pub(crate) const VM_NAMES: Table<String> = Table::new("vm-names");
/// Operations by identifier, which grows with time.
pub(crate) const OPERATIONS: Table<OperationRecord> = Table::new("operations");
/// Snapshots by `MACHINE/NAME`.
pub(crate) const SNAPSHOTS: Table<SnapshotRecord> = Table::new("snapshots");
/// Files of machines' disks by identifier.
pub(crate) const LAYERS: Table<LayerRecord> = Table::new("layers");
/// Images by name.
pub(crate) const IMAGES: Table<ImageRecord> = Table::new("images");
/// Tokens by name.
pub(crate) const TOKENS: Table<TokenRecord> = Table::new("tokens");
/// Alerts that fire and the last that were resolved, by identifier, which grows with time.
pub(crate) const ALERTS: Table<Alert> = Table::new("alerts");
/// Runs of benchmarks by identifier, which grows with time.
pub(crate) const BENCHMARKS: Table<BenchmarkRun> = Table::new("benchmarks");
/// What the nodes of this daemon's cluster have agreed on, where it is kept here.
pub(crate) const AGREED: Table<String> = Table::new("agreed");
/// Tokens for new nodes, by the hash of their secret.
pub(crate) const INVITATIONS: Table<Invitation> = Table::new("invitations");
/// Answers by idempotency key.
pub(crate) const IDEMPOTENCY: Table<Answered> = Table::new("idempotency");

/// What was answered to an idempotency key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub at: Timestamp,
    #[serde(with = "hex::serde")]
    pub request: [u8; 32],
    pub status: u16,
    #[serde(with = "hex::serde")]
    pub body: Vec<u8>,
}

/// Makes every table, so that readers find them.
pub(super) fn make(transaction: &WriteTransaction) -> Result<()> {
    let names = [
        VMS.name,
        VM_NAMES.name,
        OPERATIONS.name,
        SNAPSHOTS.name,
        LAYERS.name,
        IMAGES.name,
        TOKENS.name,
        ALERTS.name,
        BENCHMARKS.name,
        AGREED.name,
        INVITATIONS.name,
        IDEMPOTENCY.name,
    ];
    for name in names {
        transaction.open_table(TableDefinition::<&str, &[u8]>::new(name))?;
    }
    Ok(())
}
