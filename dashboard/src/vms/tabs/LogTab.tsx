/** What a machine's console has printed. */
import { Code, Group, Stack, Text, TextInput } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { useState } from 'react';
import { api, value } from '../../api/client';
import type { Vm } from '../../api/types';
import { Loaded } from '../../layout/Page';

const LINES = 2_000;

export default function LogTab({ vm }: { vm: Vm }) {
  const [find, setFind] = useState('');
  const query = useQuery({
    queryKey: ['log', vm.id],
    queryFn: () =>
      value(
        api.GET('/v1/vms/{vm}/log', {
          params: { path: { vm: vm.id }, query: { tail: LINES } },
          parseAs: 'text',
        }),
      ),
    refetchInterval: 5_000,
  });
  return (
    <Stack>
      <Group>
        <TextInput
          aria-label="Find in the log"
          placeholder="Find in the log"
          value={find}
          onChange={({ currentTarget }) => setFind(currentTarget.value)}
        />
        <Text size="sm" c="dimmed">
          The last {LINES.toLocaleString()} lines of the console; the terminal shows it live.
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
