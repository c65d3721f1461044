/** One machine: its figures, terminal, snapshots, devices, limits and log, each under an address of its own. */
import { Group, Tabs, Text } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { useNavigate, useParams, useSearch } from '@tanstack/react-router';
import { lazy, Suspense } from 'react';
import { failure } from '../api/client';
import { vmQuery } from '../api/queries';
import type { Protection, Vm } from '../api/types';
import { NotFound } from '../layout/NotFound';
import { Loaded, Page } from '../layout/Page';
import { useTrack } from '../live/usage';
import { ProtectionBadge } from '../protection/ProtectionBadge';
import type { VmTab } from '../router';
import { ago } from '../units/format';
import { useNow } from '../units/useNow';
import { ActionMenu } from './ActionMenu';
import { Moving } from './Moving';
import { StateBadge } from './StateBadge';

const TABS: { tab: VmTab; label: string; content: React.ComponentType<{ vm: Vm }> }[] = [
  { tab: 'metrics', label: 'Metrics', content: lazy(() => import('./tabs/MetricsTab')) },
  { tab: 'terminal', label: 'Terminal', content: lazy(() => import('../terminal/TerminalTab')) },
  { tab: 'snapshots', label: 'Snapshots', content: lazy(() => import('./tabs/SnapshotsTab')) },
  { tab: 'protection', label: 'Protection', content: lazy(() => import('../protection/ProtectionTab')) },
  { tab: 'devices', label: 'Devices', content: lazy(() => import('./tabs/DevicesTab')) },
  { tab: 'limits', label: 'Limits', content: lazy(() => import('./tabs/LimitsTab')) },
  { tab: 'log', label: 'Log', content: lazy(() => import('./tabs/LogTab')) },
];

export function VmPage() {
  const name = useParams({ from: '/vms/$vm' }).vm;
  const query = useQuery(vmQuery(name));
  if (query.error && failure(query.error).code === 'not-found') {
    return <NotFound what={`There is no machine ${name}, or not any more.`} />;
  }
  return <Loaded query={query}>{(vm) => <Machine vm={vm} />}</Loaded>;
}

function Machine({ vm }: { vm: Vm }) {
  const { tab = 'metrics' } = useSearch({ from: '/vms/$vm' });
  const navigate = useNavigate({ from: '/vms/$vm' });
  const protection = useTrack(vm.id)?.last.protection ?? undefined;
  const show = (value: string | null) =>
    navigate({ search: (search) => ({ ...search, tab: TABS.find((one) => one.tab === value)?.tab }) });
  return (
    <Page title={vm.name} actions={<ActionMenu vm={vm} protection={protection} />}>
      <Summary vm={vm} protection={protection} />
      <Tabs value={tab} onChange={show} keepMounted={false}>
        <Tabs.List>
          {TABS.map(({ tab, label }) => (
            <Tabs.Tab key={tab} value={tab}>
              {label}
            </Tabs.Tab>
          ))}
        </Tabs.List>
        {TABS.map(({ tab, content: Content }) => (
          <Tabs.Panel key={tab} value={tab} pt="md">
            <Suspense>
              <Content vm={vm} />
            </Suspense>
          </Tabs.Panel>
        ))}
      </Tabs>
    </Page>
  );
}

function Summary({ vm, protection }: { vm: Vm; protection: Protection | undefined }) {
  const now = useNow(10_000);
  const { runtime, ended, origin } = vm;
  const facts = [
    runtime && `${runtime.accelerator}, runs for ${ago(runtime.started_at, now)}, process ${runtime.pid}`,
    runtime && runtime.restarts > 0 && `restarted ${runtime.restarts} times`,
    !runtime && ended && `ended ${ago(ended.at, now)} ago: ${ended.message}`,
    origin && `cloned from ${origin.snapshot ? `snapshot ${origin.snapshot} of ` : ''}${origin.vm}`,
  ].filter(Boolean);
  return (
    <Group gap="sm">
      <StateBadge state={vm.state} />
      <Moving vm={vm} />
      <ProtectionBadge vm={vm} protection={protection} />
      <Text size="sm" c="dimmed">
        {facts.join(' · ')}
      </Text>
    </Group>
  );
}
