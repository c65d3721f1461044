/** The forest as a table with levels (WAI-ARIA treegrid): arrows walk, right and left open and close, Enter visits. */
import { Anchor, Table, Text } from '@mantine/core';
import { IconChevronDown, IconChevronRight } from '@tabler/icons-react';
import { Link, useNavigate } from '@tanstack/react-router';
import { type KeyboardEvent, memo, useEffect, useMemo, useRef, useState } from 'react';
import type { Tracks, Usage } from '../live/rates';
import { bytes, percent } from '../units/format';
import { StateBadge } from '../vms/StateBadge';
import { type Line, lines, type Node } from './forest';
import { step } from './keys';

interface TreeTableProps {
  roots: Node[];
  usage: Tracks;
  /** What flows between a machine and other daemons. */
  flows: ReadonlyMap<string, string>;
}

/** With many machines, figures of some change every two seconds: only their rows are drawn again. */
export const TreeTable = memo(function TreeTable({ roots, usage, flows }: TreeTableProps) {
  const [closed, setClosed] = useState<ReadonlySet<string>>(new Set());
  const [current, setCurrent] = useState<string>();
  const body = useRef<HTMLTableSectionElement>(null);
  const navigate = useNavigate();
  const shown = useMemo(() => lines(roots, closed), [roots, closed]);
  const focused = shown.some(({ node }) => node.vm.id === current) ? current : shown[0]?.node.vm.id;

  const setOpen = (id: string, open: boolean) => {
    const next = new Set(closed);
    if (open) next.delete(id);
    else next.add(id);
    setClosed(next);
  };
  const focus = (id: string) => {
    setCurrent(id);
    body.current?.querySelector<HTMLElement>(`[data-id="${id}"]`)?.focus();
  };
  const onKey = (event: KeyboardEvent, line: Line) => {
    const wish = event.target === event.currentTarget ? step(event.key, line, shown, closed) : undefined;
    if (!wish) return;
    event.preventDefault();
    if (wish.do === 'focus') focus(wish.id);
    else if (wish.do === 'visit') void navigate({ to: `/vms/${line.node.vm.name}` });
    else setOpen(wish.id, wish.do === 'open');
  };

  const toggle = ({ node }: Line) => setOpen(node.vm.id, closed.has(node.vm.id));
  // What rows are given stays the same, whatever it does meanwhile.
  const latest = useRef({ onKey, toggle });
  useEffect(() => {
    latest.current = { onKey, toggle };
  });
  const handlers = useMemo<Handlers>(
    () => ({
      onKey: (event, line) => latest.current.onKey(event, line),
      onToggle: (line) => latest.current.toggle(line),
    }),
    [],
  );

  if (shown.length === 0) return <Text c="dimmed">There are no machines.</Text>;
  return (
    <Table role="treegrid" aria-label="Machines and their clones" verticalSpacing={4}>
      <Table.Thead>
        <Table.Tr>
          {['Machine', 'State', 'Processor', 'Memory', 'Copies and moves', 'Cloned from'].map((label) => (
            <Table.Th key={label}>{label}</Table.Th>
          ))}
        </Table.Tr>
      </Table.Thead>
      <Table.Tbody ref={body}>
        {shown.map((line) => (
          <TreeRow
            key={line.node.vm.id}
            line={line}
            {...wordsOf(usage.get(line.node.vm.id)?.usage)}
            flow={flows.get(line.node.vm.id) ?? '–'}
            open={line.node.children.length > 0 ? !closed.has(line.node.vm.id) : undefined}
            focusable={line.node.vm.id === focused}
            handlers={handlers}
          />
        ))}
      </Table.Tbody>
    </Table>
  );
});

interface Handlers {
  onKey: (event: KeyboardEvent, line: Line) => void;
  onToggle: (line: Line) => void;
}

/** As words, so that a row knows whether anybody would see a difference. */
function wordsOf(usage: Usage | undefined) {
  return { cpu: usage ? percent(usage.cpu) : '–', resident: usage ? bytes(usage.resident) : '–' };
}

interface RowProps {
  line: Line;
  cpu: string;
  resident: string;
  flow: string;
  /** Nothing for a node without children. */
  open: boolean | undefined;
  focusable: boolean;
  handlers: Handlers;
}

const TreeRow = memo(function TreeRow({ line, cpu, resident, flow, open, focusable, handlers }: RowProps) {
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
      onKeyDown={(event) => handlers.onKey(event, line)}
    >
      <Table.Td role="gridcell" pl={(line.level - 1) * 24 + 8}>
        {open === undefined ? (
          <span style={{ display: 'inline-block', width: 20 }} />
        ) : (
          <Chevron
            size={16}
            onClick={() => handlers.onToggle(line)}
            style={{ cursor: 'pointer', marginRight: 4 }}
            aria-hidden
          />
        )}
        <Anchor component={Link} to={`/vms/${vm.name}`} c="inherit" size="sm" tabIndex={-1}>
          {vm.name}
        </Anchor>
      </Table.Td>
      <Table.Td role="gridcell">
        <StateBadge state={vm.state} />
      </Table.Td>
      <Table.Td role="gridcell">{cpu}</Table.Td>
      <Table.Td role="gridcell">{resident}</Table.Td>
      <Table.Td role="gridcell">{flow}</Table.Td>
      <Table.Td role="gridcell">{vm.origin ? (vm.origin.snapshot ?? 'the running machine') : '–'}</Table.Td>
    </Table.Tr>
  );
});
