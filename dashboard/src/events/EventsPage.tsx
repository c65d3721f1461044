/** What happened, newest first, and as it happens. */
import { Anchor, Badge, Group, Stack, Table, Text, TextInput } from '@mantine/core';
import { IconSearch } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { Link, useNavigate, useSearch } from '@tanstack/react-router';
import { eventsQuery } from '../api/queries';
import type { Event } from '../api/types';
import { CommandLine } from '../commands/CommandLine';
import { command } from '../commands/command';
import { Loaded, Page } from '../layout/Page';
import { clock } from '../units/format';
import { colour, matches } from './words';

const SHOWN = 300;

export function EventsPage() {
  const query = useQuery(eventsQuery);
  const find = useSearch({ from: '/events' }).find ?? '';
  const navigate = useNavigate({ from: '/events' });
  return (
    <Page title="Events">
      <Group align="flex-end" justify="space-between">
        <TextInput
          aria-label="Find events"
          placeholder="Find by machine, kind or words"
          leftSection={<IconSearch size={16} aria-hidden />}
          value={find}
          onChange={({ currentTarget }) =>
            navigate({ search: { find: currentTarget.value || undefined }, replace: true })
          }
          w={360}
        />
        <CommandLine command={command('events', '--follow')} />
      </Group>
      <Loaded query={query}>
        {(events) => <EventTable events={events.filter((event) => matches(event, find))} />}
      </Loaded>
    </Page>
  );
}

function EventTable({ events }: { events: Event[] }) {
  const newest = events.slice(-SHOWN).reverse();
  return (
    <Stack gap="xs">
      <Text size="sm" c="dimmed" role="status">
        {events.length > SHOWN
          ? `the last ${SHOWN} of ${events.length} events`
          : events.length === 1
            ? 'one event'
            : `${events.length} events`}
      </Text>
      <Table.ScrollContainer minWidth={640} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
        <Table aria-label="Events" verticalSpacing={4}>
          <Table.Thead>
            <Table.Tr>
              {['When', 'What', 'Machine', 'Words'].map((label) => (
                <Table.Th key={label}>{label}</Table.Th>
              ))}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {newest.map((event) => (
              <Table.Tr key={event.sequence}>
                <Table.Td style={{ whiteSpace: 'nowrap' }}>{clock(event.at)}</Table.Td>
                <Table.Td>
                  <Badge variant="dot" color={colour(event)} tt="none" fw={500}>
                    {event.event}
                  </Badge>
                </Table.Td>
                <Table.Td>
                  {'name' in event && (
                    <Anchor component={Link} to={`/vms/${event.name}`} c="inherit" size="sm">
                      {event.name}
                    </Anchor>
                  )}
                </Table.Td>
                <Table.Td>{event.message}</Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </Stack>
  );
}
