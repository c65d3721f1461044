/** What is not as it should be, the worst first, and what was. */
import { Anchor, Badge, Group, Stack, Table, Text, Title } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { Link } from '@tanstack/react-router';
import { alertsQuery } from '../api/queries';
import type { Alert } from '../api/types';
import { CommandLine } from '../commands/CommandLine';
import { command } from '../commands/command';
import { Loaded, Page } from '../layout/Page';
import { clock, seconds } from '../units/format';
import { useNow } from '../units/useNow';
import { colour, firing, title } from './words';

/** Of those that are over. */
const SHOWN = 100;

export function AlertsPage() {
  const query = useQuery(alertsQuery);
  return (
    <Page title="Alerts">
      <Group justify="flex-end">
        <CommandLine command={command('alerts', '--all')} />
      </Group>
      <Loaded query={query}>{(alerts) => <Alerts alerts={alerts} />}</Loaded>
    </Page>
  );
}

export function Alerts({ alerts }: { alerts: Alert[] }) {
  const now = firing(alerts);
  const over = alerts.filter((alert) => alert.state === 'resolved').slice(0, SHOWN);
  return (
    <Stack gap="lg">
      {now.length > 0 ? (
        <AlertTable label="Firing" alerts={now} />
      ) : (
        <Text role="status">All is as it should be.</Text>
      )}
      {over.length > 0 && (
        <Stack gap="xs">
          <Title order={2} size="h4">
            Over
          </Title>
          <AlertTable label="Over" alerts={over} />
        </Stack>
      )}
    </Stack>
  );
}

function AlertTable({ label, alerts }: { label: string; alerts: Alert[] }) {
  return (
    <Table.ScrollContainer minWidth={640} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
      <Table aria-label={label} verticalSpacing={4}>
        <Table.Thead>
          <Table.Tr>
            {['How bad', 'What', 'Machine', 'Since', 'For', 'Words'].map((head) => (
              <Table.Th key={head}>{head}</Table.Th>
            ))}
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {alerts.map((alert) => (
            <AlertRow key={alert.id} alert={alert} />
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}

function AlertRow({ alert }: { alert: Alert }) {
  const now = useNow(10_000);
  const end = alert.resolved_at ? Date.parse(alert.resolved_at) : now;
  return (
    <Table.Tr>
      <Table.Td>
        <Badge variant="dot" color={colour(alert)} tt="none" fw={500}>
          {alert.severity}
        </Badge>
      </Table.Td>
      <Table.Td>{title(alert)}</Table.Td>
      <Table.Td>
        {alert.name && (
          <Anchor component={Link} to={`/vms/${alert.name}`} c="inherit" size="sm">
            {alert.name}
          </Anchor>
        )}
      </Table.Td>
      <Table.Td style={{ whiteSpace: 'nowrap' }}>{clock(alert.started_at)}</Table.Td>
      <Table.Td style={{ whiteSpace: 'nowrap' }}>
        {seconds((end - Date.parse(alert.started_at)) / 1000)}
      </Table.Td>
      <Table.Td>{alert.message}</Table.Td>
    </Table.Tr>
  );
}
