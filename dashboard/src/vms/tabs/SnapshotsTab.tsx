/** A machine's snapshots: restore, clone from, delete. */
import { Button, Group, Table, Text } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { useState } from 'react';
import { api, value } from '../../api/client';
import { snapshotsQuery } from '../../api/queries';
import type { Snapshot, Vm } from '../../api/types';
import { command } from '../../commands/command';
import { Loaded } from '../../layout/Page';
import { useMay } from '../../session/SessionGate';
import { bytes, clock, seconds } from '../../units/format';
import { isLive } from '../actions';
import { CloneDialog } from '../CloneDialog';
import { LossDialog } from '../LossDialog';
import { SnapshotDialog } from '../SnapshotDialog';

type Dialog = { what: 'take' } | { what: 'clone' | 'restore' | 'delete'; snapshot: Snapshot } | undefined;

export default function SnapshotsTab({ vm }: { vm: Vm }) {
  const query = useQuery(snapshotsQuery(vm.id));
  const [dialog, setDialog] = useState<Dialog>();
  const may = useMay('operate');
  return (
    <>
      {may && (vm.state === 'running' || vm.state === 'paused') && (
        <Button mb="md" onClick={() => setDialog({ what: 'take' })}>
          Take a snapshot
        </Button>
      )}
      <Loaded query={query}>
        {(snapshots) =>
          snapshots.length === 0 ? (
            <Text c="dimmed">There are no snapshots of {vm.name}.</Text>
          ) : (
            <SnapshotTable snapshots={snapshots} onAct={may ? setDialog : undefined} />
          )
        }
      </Loaded>
      <SnapshotDialogs vm={vm} dialog={dialog} onClose={() => setDialog(undefined)} />
    </>
  );
}

function SnapshotTable({
  snapshots,
  onAct,
}: {
  snapshots: Snapshot[];
  onAct: ((dialog: Dialog) => void) | undefined;
}) {
  return (
    <Table.ScrollContainer minWidth={720} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
      <Table aria-label="Snapshots">
        <Table.Thead>
          <Table.Tr>
            {['Name', 'Taken', 'Kind', 'Size', 'Stood still', 'Description', 'Actions'].map((label) => (
              <Table.Th key={label}>{label}</Table.Th>
            ))}
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {snapshots.map((snapshot) => (
            <Table.Tr key={snapshot.name}>
              <Table.Td fw={500}>{snapshot.name}</Table.Td>
              <Table.Td>{clock(snapshot.created_at)}</Table.Td>
              <Table.Td>{snapshot.base ? `changes since ${snapshot.base}` : snapshot.kind}</Table.Td>
              <Table.Td>{bytes(snapshot.size_bytes)}</Table.Td>
              <Table.Td>{seconds(snapshot.pause_ns / 1e9)}</Table.Td>
              <Table.Td>{snapshot.description}</Table.Td>
              <Table.Td>{onAct && <SnapshotActions snapshot={snapshot} onAct={onAct} />}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}

function SnapshotActions({ snapshot, onAct }: { snapshot: Snapshot; onAct: (dialog: Dialog) => void }) {
  const button = (what: 'clone' | 'restore' | 'delete', label: string) => (
    <Button
      size="compact-xs"
      variant="default"
      onClick={() => onAct({ what, snapshot })}
      aria-label={`${label} ${snapshot.name}`}
    >
      {label}
    </Button>
  );
  return (
    <Group gap={4} wrap="nowrap">
      {button('restore', 'Restore')}
      {button('clone', 'Clone')}
      {button('delete', 'Delete')}
    </Group>
  );
}

function SnapshotDialogs({ vm, dialog, onClose }: { vm: Vm; dialog: Dialog; onClose: () => void }) {
  if (!dialog) return null;
  if (dialog.what === 'take') return <SnapshotDialog vm={vm} onClose={onClose} />;
  const { name } = dialog.snapshot;
  if (dialog.what === 'clone') return <CloneDialog vm={vm} snapshot={name} onClose={onClose} />;
  const of = { params: { path: { vm: vm.id, snapshot: name } } };
  if (dialog.what === 'restore') {
    const since = `Whatever has happened in ${vm.name} since ${clock(dialog.snapshot.created_at)} is lost`;
    return (
      <LossDialog
        title={`Restore ${name}?`}
        loss={`${since}${isLive(vm) ? ', in memory and on its disks' : ''}.`}
        confirm="Restore"
        work={{
          command: command('restore', vm.name, name),
          run: () => value(api.POST('/v1/vms/{vm}/snapshots/{snapshot}/restore', of)),
        }}
        onClose={onClose}
      />
    );
  }
  return (
    <LossDialog
      title={`Delete ${name}?`}
      loss={`The snapshot ${name} of ${vm.name}, ${bytes(dialog.snapshot.size_bytes)}, is lost for good. The machine stays as it is.`}
      confirm="Delete"
      work={{
        command: command('snapshot', 'delete', vm.name, name),
        run: () => value(api.DELETE('/v1/vms/{vm}/snapshots/{snapshot}', of)),
      }}
      onClose={onClose}
    />
  );
}
