/** What the daemon has to say, and who has changed what: to be read and searched. */
import { Badge, Group, SegmentedControl, Stack, Table, Text, TextInput } from '@mantine/core';
import { IconSearch } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { useNavigate, useSearch } from '@tanstack/react-router';
import { logQuery } from '../api/queries';
import type { LogRecord } from '../api/types';
import { Loaded, Page } from '../layout/Page';
import { useMay } from '../session/SessionGate';
import { clock } from '../units/format';
import { COLOURS, fieldWords, matches } from './words';

const SHOWN = 300;
const LOGS = [
  { value: 'log', label: 'Daemon' },
  { value: 'audit', label: 'Audit' },
];

export function LogsPage() {
  const { find = '', of } = useSearch({ from: '/logs' });
  const navigate = useNavigate({ from: '/logs' });
  const query = useQuery(logQuery(of ?? 'log'));
  const mayAudit = useMay('admin');
  return (
    <Page title="Logs">
      <Group>
        <SegmentedControl
          aria-label="Which log"
          data={mayAudit ? LOGS : LOGS.slice(0, 1)}
          value={of ?? 'log'}
          onChange={(value) =>
            navigate({ search: (search) => ({ ...search, of: value === 'audit' ? 'audit' : undefined }) })
          }
        />
        <TextInput
          aria-label="Find in the logs"
          placeholder="Find by part, caller or words"
          leftSection={<IconSearch size={16} aria-hidden />}
          value={find}
          onChange={({ currentTarget: { value } }) =>
            navigate({ search: (search) => ({ ...search, find: value || undefined }), replace: true })
          }
          w={360}
        />
      </Group>
      <Loaded query={query}>
        {(records) => <Records records={records.filter((record) => matches(record, find))} />}
      </Loaded>
    </Page>
  );
}

function Records({ records }: { records: LogRecord[] }) {
  return (
    <Stack gap="xs">
      <Text size="sm" c="dimmed" role="status">
        {records.length > SHOWN
          ? `the last ${SHOWN} of ${records.length} records`
          : records.length === 1
            ? 'one record'
            : `${records.length} records`}
        , since the daemon has started; a machine’s own logs are on its page
      </Text>
      <Table.ScrollContainer minWidth={720} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
        <Table aria-label="Records" verticalSpacing={4}>
          <Table.Thead>
            <Table.Tr>
              {['When', 'Level', 'Part', 'Words'].map((label) => (
                <Table.Th key={label}>{label}</Table.Th>
              ))}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {records.slice(0, SHOWN).map((record) => (
              <Table.Tr key={record.number}>
                <Table.Td style={{ whiteSpace: 'nowrap' }}>{clock(record.at)}</Table.Td>
                <Table.Td>
                  <Badge variant="light" color={COLOURS[record.level]} miw={64}>
                    {record.level}
                  </Badge>
                </Table.Td>
                <Table.Td>{record.target}</Table.Td>
                <Table.Td style={{ overflowWrap: 'anywhere' }}>
                  {record.message}{' '}
                  <Text span size="sm" c="dimmed">
                    {fieldWords(record)}
                  </Text>
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </Stack>
  );
}
