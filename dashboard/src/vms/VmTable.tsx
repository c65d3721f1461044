/** All machines: what they do and what they use, the hungriest first if one wishes. */
import { Anchor, Group, Table, Text, UnstyledButton } from '@mantine/core';
import { IconArrowDown, IconArrowUp } from '@tabler/icons-react';
import { Link } from '@tanstack/react-router';
import { memo } from 'react';
import { Sparkline } from '../charts/Sparkline';
import { POINTS, type Usage } from '../live/rates';
import { ProtectionBadge } from '../protection/ProtectionBadge';
import { bytes, count, percent, rate, seconds } from '../units/format';
import { ActionMenu } from './ActionMenu';
import { Moving } from './Moving';
import { type Column, diskRate, netRate, type Order, type Row } from './rows';
import { StateBadge } from './StateBadge';

const COLUMNS: { column: Column; label: string }[] = [
  { column: 'name', label: 'Name' },
  { column: 'state', label: 'State' },
  { column: 'cpu', label: 'Processor' },
  { column: 'memory', label: 'Memory' },
  { column: 'disk', label: 'Disks' },
  { column: 'iops', label: 'Requests' },
  { column: 'network', label: 'Network' },
];

interface Props {
  rows: Row[];
  order: Order;
  onOrder: (order: Order) => void;
}

export function VmTable({ rows, order, onOrder }: Props) {
  return (
    <Table.ScrollContainer minWidth={1000} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
      <Table highlightOnHover verticalSpacing={6} aria-label="Machines">
        <Table.Thead>
          <Table.Tr>
            {COLUMNS.map(({ column, label }) => (
              <Heading key={column} column={column} label={label} order={order} onOrder={onOrder} />
            ))}
            <Table.Th>
              <Text span size="sm" fw={700}>
                Actions
              </Text>
            </Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {rows.map((row) => (
            <VmRow key={row.vm.id} {...row} />
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}

interface HeadingProps {
  column: Column;
  label: string;
  order: Order;
  onOrder: (order: Order) => void;
}

function Heading({ column, label, order, onOrder }: HeadingProps) {
  const sorted = order.column === column;
  const Arrow = order.descending ? IconArrowDown : IconArrowUp;
  // Figures are looked at from the highest, names from the first.
  const first = column !== 'name' && column !== 'state';
  const turn = () => onOrder({ column, descending: sorted ? !order.descending : first });
  return (
    <Table.Th aria-sort={sorted ? (order.descending ? 'descending' : 'ascending') : 'none'}>
      <UnstyledButton onClick={turn} fz="sm" fw={700}>
        <Group gap={4} wrap="nowrap">
          {label}
          {sorted && <Arrow size={14} aria-hidden />}
        </Group>
      </UnstyledButton>
    </Table.Th>
  );
}

const VmRow = memo(function VmRow({ vm, usage, past, protection }: Row) {
  const cell = (of: (usage: Usage) => number, show: (value: number) => string, atLeast: number) => (
    <Table.Td>
      {usage && (
        <Group gap="xs" wrap="nowrap">
          <Sparkline values={past.map(of)} points={POINTS} atLeast={atLeast} />
          <Text size="sm" style={{ fontVariantNumeric: 'tabular-nums', whiteSpace: 'nowrap' }}>
            {show(of(usage))}
          </Text>
        </Group>
      )}
    </Table.Td>
  );
  return (
    <Table.Tr>
      <Table.Td>
        <Anchor component={Link} to={`/vms/${vm.name}`} fw={500} c="inherit" size="sm">
          {vm.name}
        </Anchor>
      </Table.Td>
      <Table.Td>
        <StateBadge state={vm.state} /> <Moving vm={vm} /> <ProtectionBadge vm={vm} protection={protection} />
      </Table.Td>
      {cell((one) => one.cpu, percent, 100)}
      {cell(
        (one) => one.resident,
        (value) => `${bytes(value)} of ${bytes(vm.spec.ram_bytes ?? 0)}`,
        vm.spec.ram_bytes ?? 1,
      )}
      {cell((one) => diskRate(one) ?? 0, rate, 2 ** 20)}
      {cell((one) => one.iops, requests(usage), 10)}
      {cell((one) => netRate(one) ?? 0, rate, 2 ** 20)}
      <Table.Td>
        <ActionMenu vm={vm} protection={protection} compact />
      </Table.Td>
    </Table.Tr>
  );
});

/** `120/s, 0.4 ms`: how many, and how long each took. */
function requests(usage: Usage | undefined) {
  return (iops: number) =>
    usage?.latency === undefined ? `${count(iops)}/s` : `${count(iops)}/s, ${seconds(usage.latency)}`;
}
