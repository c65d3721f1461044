import { Button, Code, Stack, Text, TextInput } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import { IconPlus, IconSearch } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { useNavigate, useSearch } from '@tanstack/react-router';
import { useState } from 'react';
import { vmsQuery } from '../api/queries';
import type { Vm } from '../api/types';
import { Loaded, Page } from '../layout/Page';
import { useUsage } from '../live/usage';
import { useMay } from '../session/SessionGate';
import { type Order, rows } from './rows';
import { SpawnDialog } from './SpawnDialog';
import { VmTable } from './VmTable';

/** How many rows are drawn at first: more than anybody reads, fewer than a slow machine feels. */
const FIRST = 200;

export function VmsPage() {
  const vms = useQuery(vmsQuery);
  const [spawning, { open, close }] = useDisclosure(false);
  const mayCreate = useMay('admin');
  return (
    <Page
      title="Machines"
      actions={
        mayCreate && (
          <Button leftSection={<IconPlus size={16} aria-hidden />} onClick={open}>
            New machine
          </Button>
        )
      }
    >
      <Loaded query={vms}>{(list) => (list.length > 0 ? <Machines vms={list} /> : <NoMachines />)}</Loaded>
      {spawning && <SpawnDialog onClose={close} />}
    </Page>
  );
}

function Machines({ vms }: { vms: Vm[] }) {
  const usage = useUsage();
  const find = useSearch({ from: '/' }).find ?? '';
  const navigate = useNavigate({ from: '/' });
  const [order, setOrder] = useState<Order>({ column: 'name', descending: false });
  const [all, showAll] = useDisclosure(false);
  const shown = rows(vms, usage, find, order);
  return (
    <Stack gap="xs">
      <TextInput
        aria-label="Find machines"
        placeholder="Find by name, state or label"
        leftSection={<IconSearch size={16} aria-hidden />}
        value={find}
        onChange={({ currentTarget }) =>
          navigate({ search: { find: currentTarget.value || undefined }, replace: true })
        }
        maw={360}
      />
      <Text size="sm" c="dimmed" role="status">
        {shown.length === vms.length ? '' : `${shown.length} of `}
        {vms.length === 1 ? 'one machine' : `${vms.length} machines`}
      </Text>
      <VmTable rows={all ? shown : shown.slice(0, FIRST)} order={order} onOrder={setOrder} />
      {!all && shown.length > FIRST && (
        <Button variant="default" onClick={showAll.open}>
          Show all {shown.length}
        </Button>
      )}
    </Stack>
  );
}

function NoMachines() {
  return (
    <Text>
      There are no machines yet. <Code>queztl-hv spawn one</Code> makes the first, and so does the button
      above.
    </Text>
  );
}
