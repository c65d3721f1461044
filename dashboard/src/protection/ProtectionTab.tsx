/** How a machine is protected, live: state, lag, interval, buffer, throttle, bytes, and what each copy has. */
import { Badge, Button, Group, Paper, Progress, SimpleGrid, Stack, Table, Text } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { useState } from 'react';
import { operationsQuery } from '../api/queries';
import type { Protection, Vm } from '../api/types';
import { Sparkline } from '../charts/Sparkline';
import { POINTS, type Usage } from '../live/rates';
import { useTrack } from '../live/usage';
import { useMay } from '../session/SessionGate';
import { bytes, count, percent, rate, seconds } from '../units/format';
import { LossDialog } from '../vms/LossDialog';
import { ProtectDialog } from './ProtectDialog';
import { unprotecting } from './unprotect';
import { behindWords, placeOf, roleOf, STATES } from './words';

export default function ProtectionTab({ vm }: { vm: Vm }) {
  const { data: operations = [] } = useQuery(operationsQuery);
  const track = useTrack(vm.id);
  const protection = track?.last.protection ?? undefined;
  const role = roleOf(vm, protection, operations);
  if (role === 'backup')
    return (
      <Text>
        This is a copy. {vm.name} runs at another daemon, and goes on here when that one is gone; until then
        it is <i>starting</i>.
      </Text>
    );
  if (!protection) return <Unprotected vm={vm} />;
  return <Protected vm={vm} protection={protection} past={track?.past ?? []} />;
}

function Unprotected({ vm }: { vm: Vm }) {
  const [asked, setAsked] = useState(false);
  const may = useMay('admin');
  return (
    <Stack align="flex-start">
      <Text>
        {vm.name} is not protected: if this host fails, what it has in memory is lost. Other daemons can keep
        copies of it, one of which goes on then.
      </Text>
      {may && vm.state === 'running' && <Button onClick={() => setAsked(true)}>Protect…</Button>}
      {asked && <ProtectDialog vm={vm} onClose={() => setAsked(false)} />}
    </Stack>
  );
}

function Protected({ vm, protection, past }: { vm: Vm; protection: Protection; past: Usage[] }) {
  const [asked, setAsked] = useState(false);
  const may = useMay('admin');
  const { word, colour, means } = STATES[protection.state];
  return (
    <Stack>
      <Group justify="space-between">
        <Group gap="sm">
          <Badge color={colour} variant="light" size="lg" tt="none">
            {word}
          </Badge>
          <Text size="sm">{protection.stalled ? 'It stands still: too much output waits.' : means}</Text>
        </Group>
        {may && (
          <Button variant="default" onClick={() => setAsked(true)}>
            Unprotect…
          </Button>
        )}
      </Group>
      <Figures protection={protection} past={past} />
      <Backups protection={protection} />
      {asked && <LossDialog {...unprotecting(vm, protection)} onClose={() => setAsked(false)} />}
    </Stack>
  );
}

function Figures({ protection, past }: { protection: Protection; past: Usage[] }) {
  const { acks, backups, mode, waiting_bytes, buffer_bytes, throttle_percent } = protection;
  const time = (ns: number) => seconds(ns / 1e9);
  const needed = acks === backups.length ? 'all copies' : `${acks} of ${backups.length} copies`;
  return (
    <SimpleGrid cols={{ base: 1, xs: 2, md: 4 }} component="section" aria-label="Figures of the protection">
      <Figure label="Role" figure="primary" more={`term ${protection.term}`} />
      <Figure
        label="When copies are out of reach"
        figure={mode === 'pause' ? 'output waits' : 'goes on without'}
        more={`output leaves when ${needed} ${acks === 1 && backups.length > 1 ? 'has' : 'have'} it`}
      />
      <Figure label="Lag" figure={time(protection.lag_ns)} more="from a cut to its acknowledgement">
        <Sparkline values={past.map(({ lag }) => lag ?? 0)} points={POINTS} atLeast={0.01} />
      </Figure>
      <Figure
        label="Interval"
        figure={time(protection.interval_ns)}
        more={`stood still for ${time(protection.pause_ns)} of the last`}
      />
      <Figure
        label="Buffer"
        figure={`${bytes(waiting_bytes)} of ${bytes(buffer_bytes)}`}
        more={`${count(protection.dropped_frames)} frames dropped`}
      >
        <Bar label="Fill of the buffer" part={(waiting_bytes / Math.max(1, buffer_bytes)) * 100} />
      </Figure>
      <Figure label="Throttle" figure={percent(throttle_percent)} more="of the vCPUs’ time">
        <Bar label="Throttle" part={throttle_percent} />
      </Figure>
      <Figure
        label="Copied"
        figure={rate(past.at(-1)?.copied ?? 0)}
        more={`${bytes(protection.data_bytes)} in all, ${bytes(protection.wire_bytes)} on the wire`}
      >
        <Sparkline values={past.map(({ copied }) => copied ?? 0)} points={POINTS} atLeast={2 ** 20} />
      </Figure>
      <Figure
        label="Epoch"
        figure={`${protection.epoch}`}
        more={`released up to ${protection.released}; ${bytes(protection.epoch_bytes)} in the last`}
      />
    </SimpleGrid>
  );
}

interface FigureProps {
  label: string;
  figure: string;
  more: string;
  children?: React.ReactNode;
}

function Figure({ label, figure, more, children }: FigureProps) {
  return (
    <Paper withBorder p="sm">
      <Text size="xs" c="dimmed">
        {label}
      </Text>
      <Group gap="xs" wrap="nowrap" justify="space-between">
        <Text fw={600} style={{ fontVariantNumeric: 'tabular-nums' }} data-figure={label}>
          {figure}
        </Text>
        {children}
      </Group>
      <Text size="xs" c="dimmed">
        {more}
      </Text>
    </Paper>
  );
}

function Bar({ label, part }: { label: string; part: number }) {
  return <Progress value={part} size="sm" w={64} aria-label={label} color={part > 75 ? 'red' : 'teal'} />;
}

function Backups({ protection: { backups, epoch } }: { protection: Protection }) {
  return (
    <Table.ScrollContainer minWidth={640} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
      <Table aria-label="Copies">
        <Table.Thead>
          <Table.Tr>
            {['Daemon', 'State', 'Has', 'How far', 'Round trip'].map((label) => (
              <Table.Th key={label}>{label}</Table.Th>
            ))}
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {backups.map((backup) => (
            <Table.Tr key={backup.to}>
              <Table.Td title={backup.to}>{placeOf(backup.to)}</Table.Td>
              <Table.Td>
                {backup.failed ? (
                  <Text size="sm" c="red">
                    out of reach: {backup.failed}
                  </Text>
                ) : backup.epoch == null ? (
                  'makes its first copy'
                ) : (
                  'whole'
                )}
              </Table.Td>
              <Table.Td>
                {backup.epoch == null
                  ? '–'
                  : `epoch ${backup.epoch}, ${Math.max(0, epoch - backup.epoch)} less`}
              </Table.Td>
              <Table.Td>{behindWords(backup.behind_ns)}</Table.Td>
              <Table.Td>{backup.round_trip_ns ? seconds(backup.round_trip_ns / 1e9) : '–'}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}
