/** The host: what it has, and who has what of it. */
import { Alert, Anchor, Group, Paper, Progress, SimpleGrid, Stack, Table, Text, Title } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { Link } from '@tanstack/react-router';
import { infoQuery, vmsQuery } from '../api/queries';
import type { Info } from '../api/types';
import { Loaded, Page } from '../layout/Page';
import { useUsage } from '../live/usage';
import { bytes, percent } from '../units/format';
import { type Allocation, allocation, type Share } from './allocation';

export function HostPage() {
  const info = useQuery(infoQuery);
  const { data: vms = [] } = useQuery(vmsQuery);
  const usage = useUsage();
  return (
    <Page title="Host">
      <Loaded query={info}>
        {(info) => {
          const given = allocation(info, vms, usage);
          return (
            <Stack>
              <Facts info={info} />
              <SimpleGrid cols={{ base: 1, md: 2 }}>
                <Processors info={info} given={given} />
                <Memory info={info} given={given} />
              </SimpleGrid>
              <Shares shares={given.shares} />
            </Stack>
          );
        }}
      </Loaded>
    </Page>
  );
}

function Facts({ info }: { info: Info }) {
  return (
    <Stack gap={4}>
      <Text>
        {info.host.name}, Linux {info.host.kernel}, Queztl {info.version}
      </Text>
      {info.accelerators.map(({ name, usable, detail }) => (
        <Text key={name} size="sm" c="dimmed">
          {name}: {detail}
          {usable ? '' : ' (not used)'}
        </Text>
      ))}
    </Stack>
  );
}

interface Props {
  info: Info;
  given: Allocation;
}

function Processors({ info, given }: Props) {
  const all = info.host.cpus * 100;
  return (
    <Resource
      title="Processors"
      used={`${percent(given.cpu)} of ${percent(all)} in use`}
      promised={`${given.vcpus} vCPUs on ${info.host.cpus} processors`}
      over={given.cpuCommitment}
      parts={given.shares.map(({ name, cpu }) => ({ name, part: (cpu / all) * 100, words: percent(cpu) }))}
    />
  );
}

function Memory({ info, given }: Props) {
  const all = info.host.memory_bytes;
  return (
    <Resource
      title="Memory"
      used={`${bytes(given.resident)} of ${bytes(all)} held for machines, ${bytes(info.host.memory_available_bytes)} free`}
      promised={`${bytes(given.ram)} promised`}
      over={given.ramCommitment}
      parts={given.shares.map(({ name, resident }) => ({
        name,
        part: (resident / all) * 100,
        words: bytes(resident),
      }))}
    />
  );
}

interface ResourceProps {
  title: string;
  used: string;
  promised: string;
  /** More than one is more than there is. */
  over: number;
  parts: { name: string; part: number; words: string }[];
}

/** The largest have a colour each; the rest is too thin to be told apart. */
const COLOURS = ['teal.8', 'blue.8', 'grape.8', 'orange.9', 'cyan.9', 'indigo.8'];

function Resource({ title, used, promised, over, parts }: ResourceProps) {
  const largest = [...parts].sort((a, b) => b.part - a.part);
  return (
    <Paper withBorder p="md" component="section" aria-label={title}>
      <Title order={2} size="h4">
        {title}
      </Title>
      <Text size="sm">{used}</Text>
      <Progress.Root size={22} my="xs">
        {largest.map(({ name, part, words }, index) => (
          <Progress.Section
            key={name}
            value={part}
            color={COLOURS[index] ?? 'gray.7'}
            aria-label={`${name}: ${words}`}
            title={`${name}: ${words}`}
          />
        ))}
      </Progress.Root>
      <Group gap="xs">
        <Text size="sm" c="dimmed">
          {promised}, {Math.round(over * 100)} % of what there is
        </Text>
      </Group>
      {over > 1 && (
        <Alert color="orange" mt="xs" p="xs" title="Over-committed">
          If all machines want theirs at once, there is not enough.
        </Alert>
      )}
    </Paper>
  );
}

const HEAD = ['Machine', 'vCPUs', 'Weight', 'Guaranteed', 'At most', 'Uses', 'RAM', 'Held by the host'];

function Shares({ shares }: { shares: Share[] }) {
  if (shares.length === 0) return <Text c="dimmed">No machine runs.</Text>;
  return (
    <Table.ScrollContainer minWidth={760} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
      <Table aria-label="Who has what">
        <Table.Thead>
          <Table.Tr>
            {HEAD.map((label) => (
              <Table.Th key={label}>{label}</Table.Th>
            ))}
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {shares.map((share) => (
            <Table.Tr key={share.name}>
              <Table.Td>
                <Anchor component={Link} to={`/vms/${share.name}`} c="inherit" size="sm">
                  {share.name}
                </Anchor>
              </Table.Td>
              <Table.Td>{share.vcpus}</Table.Td>
              <Table.Td>{share.weight}</Table.Td>
              <Table.Td>{percent(share.guaranteed)}</Table.Td>
              <Table.Td>{percent(share.quota)}</Table.Td>
              <Table.Td>{percent(share.cpu)}</Table.Td>
              <Table.Td>{bytes(share.ram)}</Table.Td>
              <Table.Td>{bytes(share.resident)}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}
