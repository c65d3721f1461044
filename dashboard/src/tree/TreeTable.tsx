/** The forest as a table with levels (WAI-ARIA treegrid): arrows walk, right and left open and close, Enter visits. */
import { Anchor, Table, Text } from '@mantine/core';
import { IconChevronDown, IconChevronRight } from '@tabler/icons-react';
import { Link, useNavigate } from '@tanstack/react-router';
import { type KeyboardEvent, useRef, useState } from 'react';
import type { Tracks, Usage } from '../live/rates';
import { bytes, percent } from '../units/format';
import { StateBadge } from '../vms/StateBadge';
import { type Line, lines, type Node } from './forest';

export function TreeTable({ roots, usage }: { roots: Node[]; usage: Tracks }) {
  const [closed, setClosed] = useState<ReadonlySet<string>>(new Set());
  const [current, setCurrent] = useState<string>();
  const body = useRef<HTMLTableSectionElement>(null);
  const navigate = useNavigate();
  const shown = lines(roots, closed);
  const focused = shown.some(({ node }) => node.vm.id === current) ? current : shown[0]?.node.vm.id;

  const setOpen = (id: string, open: boolean) => {
    const next = new Set(closed);
    if (open) next.delete(id);
    else next.add(id);
    setClosed(next);
  };
  const focus = (id: string | undefined) => {
    if (id === undefined) return;
    setCurrent(id);
    body.current?.querySelector<HTMLElement>(`[data-id="${id}"]`)?.focus();
  };
  const onKey = (event: KeyboardEvent, { node, parent }: Line) => {
    const at = shown.findIndex((line) => line.node === node);
    const isOpen = node.children.length > 0 && !closed.has(node.vm.id);
    const keys: Record<string, () => void> = {
      ArrowDown: () => focus(shown[at + 1]?.node.vm.id),
      ArrowUp: () => focus(shown[at - 1]?.node.vm.id),
      Home: () => focus(shown[0]?.node.vm.id),
      End: () => focus(shown.at(-1)?.node.vm.id),
      ArrowRight: () => (isOpen ? focus(node.children[0]?.vm.id) : setOpen(node.vm.id, true)),
      ArrowLeft: () => (isOpen ? setOpen(node.vm.id, false) : focus(parent)),
      Enter: () => void navigate({ to: `/vms/${node.vm.name}` }),
    };
    const act = event.target === event.currentTarget ? keys[event.key] : undefined;
    if (!act) return;
    event.preventDefault();
    act();
  };

  if (shown.length === 0) return <Text c="dimmed">There are no machines.</Text>;
  return (
    <Table role="treegrid" aria-label="Machines and their clones" verticalSpacing={4}>
      <Table.Thead>
        <Table.Tr>
          {['Machine', 'State', 'Processor', 'Memory', 'Cloned from'].map((label) => (
            <Table.Th key={label}>{label}</Table.Th>
          ))}
        </Table.Tr>
      </Table.Thead>
      <Table.Tbody ref={body}>
        {shown.map((line) => (
          <TreeRow
            key={line.node.vm.id}
            line={line}
            usage={usage.get(line.node.vm.id)?.usage}
            open={line.node.children.length > 0 ? !closed.has(line.node.vm.id) : undefined}
            focusable={line.node.vm.id === focused}
            onKey={(event) => onKey(event, line)}
            onToggle={() => setOpen(line.node.vm.id, closed.has(line.node.vm.id))}
          />
        ))}
      </Table.Tbody>
    </Table>
  );
}

interface RowProps {
  line: Line;
  usage: Usage | undefined;
  /** Nothing for a node without children. */
  open: boolean | undefined;
  focusable: boolean;
  onKey: (event: KeyboardEvent) => void;
  onToggle: () => void;
}

function TreeRow({ line, usage, open, focusable, onKey, onToggle }: RowProps) {
  const { vm } = line.node;
  const Chevron = open ? IconChevronDown : IconChevronRight;
  return (
    <Table.Tr
      role="row"
      aria-level={line.level}
      aria-posinset={line.place}
      aria-setsize={line.siblings}
      aria-expanded={open}
      tabIndex={focusable ? 0 : -1}
      data-id={vm.id}
      onKeyDown={onKey}
    >
      <Table.Td role="gridcell" pl={(line.level - 1) * 24 + 8}>
        {open === undefined ? (
          <span style={{ display: 'inline-block', width: 20 }} />
        ) : (
          <Chevron size={16} onClick={onToggle} style={{ cursor: 'pointer', marginRight: 4 }} aria-hidden />
        )}
        <Anchor component={Link} to={`/vms/${vm.name}`} c="inherit" tabIndex={-1}>
          {vm.name}
        </Anchor>
      </Table.Td>
      <Table.Td role="gridcell">
        <StateBadge state={vm.state} />
      </Table.Td>
      <Table.Td role="gridcell">{usage ? percent(usage.cpu) : '–'}</Table.Td>
      <Table.Td role="gridcell">{usage ? bytes(usage.resident) : '–'}</Table.Td>
      <Table.Td role="gridcell">{vm.origin ? (vm.origin.snapshot ?? 'the running machine') : '–'}</Table.Td>
    </Table.Tr>
  );
}
