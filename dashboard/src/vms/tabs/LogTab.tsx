/** What a machine's console has printed, and what its process had to say. */
import { Code, Group, SegmentedControl, Stack, Text, TextInput } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { useState } from 'react';
import { api, value } from '../../api/client';
import type { Vm } from '../../api/types';
import { Loaded } from '../../layout/Page';

const LOGS = [
  { value: 'console', label: 'Guest' },
  { value: 'process', label: 'Hypervisor' },
];

const LINES = 2_000;

export default function LogTab({ vm }: { vm: Vm }) {
  const [find, setFind] = useState('');
  const [of, setOf] = useState('console');
  const query = useQuery({
    queryKey: ['log', vm.id, of],
    queryFn: () =>
      value(
        api.GET('/v1/vms/{vm}/log', {
          params: { path: { vm: vm.id }, query: { tail: LINES, process: of === 'process' } },
          parseAs: 'text',
        }),
      ),
    refetchInterval: 5_000,
  });
  return (
    <Stack>
      <Group>
        <SegmentedControl aria-label="Which log" data={LOGS} value={of} onChange={setOf} />
        <TextInput
          aria-label="Find in the log"
          placeholder="Find in the log"
          value={find}
          onChange={({ currentTarget }) => setFind(currentTarget.value)}
        />
        <Text size="sm" c="dimmed">
          {of === 'console'
            ? `The last ${LINES.toLocaleString()} lines of the console; the terminal shows it live.`
            : 'What the machine’s process had to say of itself.'}
        </Text>
      </Group>
      <Loaded query={query}>
        {(log) => (
          <Code block mah="65vh" style={{ overflow: 'auto' }} tabIndex={0} aria-label="Log">
            {found(String(log), find) || 'Nothing yet.'}
          </Code>
        )}
      </Loaded>
    </Stack>
  );
}

/** The lines with some text in them, without the sequences that colour terminals. */
function found(log: string, find: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: terminals are told what to do by one.
  const plain = log.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, '').replaceAll('\r', '');
  if (!find) return plain;
  return plain
    .split('\n')
    .filter((line) => line.toLowerCase().includes(find.toLowerCase()))
    .join('\n');
}
