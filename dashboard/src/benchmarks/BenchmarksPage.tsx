/** Runs of benchmarks: one is started here, and two are compared. Which two is in the address. */
import { Badge, Button, Group, MultiSelect, Progress, Radio, Stack, Table, Text, Title } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import { useQuery } from '@tanstack/react-query';
import { useNavigate, useSearch } from '@tanstack/react-router';
import { useState } from 'react';
import { benchmarksQuery, operationsQuery } from '../api/queries';
import type { BenchmarkRun } from '../api/types';
import { CommandLine } from '../commands/CommandLine';
import { command } from '../commands/command';
import { Loaded, Page } from '../layout/Page';
import { done, progressWords } from '../operations/words';
import { useMay } from '../session/SessionGate';
import { clock } from '../units/format';
import { colour, compare, figure, words } from './compare';
import { DeleteRunButton } from './DeleteRunButton';
import { RunDialog } from './RunDialog';

const COLOURS = { running: 'blue', succeeded: 'teal', failed: 'red', cancelled: 'gray' } as const;

export function BenchmarksPage() {
  const query = useQuery(benchmarksQuery);
  const [dialog, { open, close }] = useDisclosure(false);
  const mayRun = useMay('admin');
  const goesOn = query.data?.some((run) => run.state === 'running');
  return (
    <Page
      title="Benchmarks"
      actions={
        mayRun && (
          <Button onClick={open} disabled={goesOn}>
            Run benchmarks
          </Button>
        )
      }
    >
      <Loaded query={query}>
        {(runs) => (runs.length > 0 ? <Runs runs={runs} /> : <Text>Nothing has been measured yet.</Text>)}
      </Loaded>
      {dialog && <RunDialog onClose={close} />}
    </Page>
  );
}

function Runs({ runs }: { runs: BenchmarkRun[] }) {
  const { before, after } = useSearch({ from: '/benchmarks' });
  const navigate = useNavigate({ from: '/benchmarks' });
  const over = runs.filter((run) => run.figures.length > 0);
  // Without a choice: the last two.
  const chosen = {
    before: runs.find((run) => run.id === before) ?? over[1],
    after: runs.find((run) => run.id === after) ?? over[0],
  };
  const choose = (side: 'before' | 'after', id: string) =>
    navigate({ search: (search) => ({ ...search, [side]: id }), replace: true });
  return (
    <Stack gap="lg">
      <Table.ScrollContainer minWidth={640} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
        <Table aria-label="Runs" verticalSpacing={4}>
          <Table.Thead>
            <Table.Tr>
              {['Before', 'After', 'When', 'State', 'Note', 'Version', 'Host', 'Machines beside it', ''].map(
                (head) => (
                  <Table.Th key={head}>{head}</Table.Th>
                ),
              )}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {runs.map((run) => (
              <Table.Tr key={run.id}>
                {(['before', 'after'] as const).map((side) => (
                  <Table.Td key={side}>
                    <Radio
                      size="xs"
                      name={side}
                      aria-label={`${clock(run.started_at)} ${side}`}
                      checked={chosen[side]?.id === run.id}
                      disabled={run.figures.length === 0}
                      onChange={() => choose(side, run.id)}
                    />
                  </Table.Td>
                ))}
                <Table.Td style={{ whiteSpace: 'nowrap' }}>{clock(run.started_at)}</Table.Td>
                <Table.Td>
                  <RunState run={run} />
                </Table.Td>
                <Table.Td>{run.note}</Table.Td>
                <Table.Td>{run.version}</Table.Td>
                <Table.Td>{`${run.host}, ${run.cpus} processors, Linux ${run.kernel}`}</Table.Td>
                <Table.Td>{run.machines}</Table.Td>
                <Table.Td>
                  <DeleteRunButton run={run} />
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
      <Comparison before={chosen.before} after={chosen.after} />
    </Stack>
  );
}

function RunState({ run }: { run: BenchmarkRun }) {
  const { data: operations = [] } = useQuery(operationsQuery);
  const operation = operations.find((one) => one.target === run.id);
  return (
    <Stack gap={2}>
      <Badge color={COLOURS[run.state]} variant="light">
        {run.state}
      </Badge>
      {run.state === 'running' && operation && (
        <>
          <Progress value={done(operation) ?? 0} size="sm" aria-label="How far it is" />
          <Text size="xs">{progressWords(operation)}; Tasks can abort it</Text>
        </>
      )}
      {run.problem && (
        <Text size="xs" c="red">
          {run.problem}
        </Text>
      )}
    </Stack>
  );
}

const COLUMNS = ['Before', 'After', 'Difference'] as const;

function Comparison({ before, after }: { before?: BenchmarkRun; after?: BenchmarkRun }) {
  const [columns, setColumns] = useState<string[]>([...COLUMNS]);
  const rows = compare(before, after);
  if (rows.length === 0) return null;
  return (
    <Stack gap="xs">
      <Group justify="space-between" align="flex-end">
        <Title order={2} size="h4">
          Figures
        </Title>
        <MultiSelect label="Columns" size="xs" data={COLUMNS} value={columns} onChange={setColumns} />
      </Group>
      <Table.ScrollContainer minWidth={520} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
        <Table aria-label="Figures" verticalSpacing={4}>
          <Table.Thead>
            <Table.Tr>
              {['Suite', 'Figure', ...COLUMNS.filter((one) => columns.includes(one))].map((head) => (
                <Table.Th key={head}>{head}</Table.Th>
              ))}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {rows.map((row) => (
              <Table.Tr key={`${row.suite} ${row.name}`}>
                <Table.Td>{row.suite}</Table.Td>
                <Table.Td>{row.name}</Table.Td>
                {columns.includes('Before') && <Table.Td>{figure(row.before, row.unit)}</Table.Td>}
                {columns.includes('After') && <Table.Td>{figure(row.after, row.unit)}</Table.Td>}
                {columns.includes('Difference') && (
                  <Table.Td>
                    <Text size="sm" c={colour(row.better)}>
                      {words(row.better)}
                    </Text>
                  </Table.Td>
                )}
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
      {before && after && <CommandLine command={command('benchmark', 'compare', before.id, after.id)} />}
    </Stack>
  );
}
