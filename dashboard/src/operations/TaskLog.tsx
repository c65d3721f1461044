/** What the daemon does and did, newest first: progress, abort, and why something failed. */
import { Badge, Button, Code, Group, Progress, Stack, Text } from '@mantine/core';
import { useMutation, useQuery } from '@tanstack/react-query';
import { api, value } from '../api/client';
import { operationsQuery, vmsQuery } from '../api/queries';
import type { Operation } from '../api/types';
import { useMay } from '../session/SessionGate';
import { ago, seconds } from '../units/format';
import { useNow } from '../units/useNow';
import { commandOf, refuse } from './tasks';
import { done, progressWords, title } from './words';

const COLOURS = { running: 'blue', succeeded: 'teal', failed: 'red', cancelled: 'gray' } as const;

export function TaskLog() {
  const { data: operations = [] } = useQuery(operationsQuery);
  const { data: vms = [] } = useQuery(vmsQuery);
  const names = new Map(vms.map((vm) => [vm.id, vm.name]));
  if (operations.length === 0) return <Text c="dimmed">Nothing has been done yet.</Text>;
  return (
    <Stack component="ul" gap="sm" p={0} m={0} style={{ listStyle: 'none' }} aria-label="Tasks">
      {operations.map((operation) => (
        <Task key={operation.id} operation={operation} title={title(operation, names)} />
      ))}
    </Stack>
  );
}

function Task({ operation, title }: { operation: Operation; title: string }) {
  const now = useNow(1_000);
  const mayCancel = useMay('operate');
  const cancel = useMutation({
    mutationFn: () =>
      value(api.DELETE('/v1/operations/{operation}', { params: { path: { operation: operation.id } } })),
    onError: refuse,
  });
  const running = operation.state === 'running';
  const end = operation.ended_at ? Date.parse(operation.ended_at) : now;
  const took = Math.max(0, (end - Date.parse(operation.created_at)) / 1000);
  const command = commandOf(operation.id);
  return (
    <li>
      <Group justify="space-between" wrap="nowrap" gap="xs">
        <Group gap="xs">
          <Badge color={COLOURS[operation.state]} variant="light">
            {operation.state}
          </Badge>
          <Text size="sm" fw={500}>
            {title}
          </Text>
          <Text size="sm" c="dimmed">
            {running
              ? progressWords(operation)
              : `${ago(operation.created_at, now)} ago, took ${seconds(took)}`}
          </Text>
        </Group>
        {running && operation.cancellable && mayCancel && (
          <Button
            size="compact-xs"
            variant="default"
            loading={cancel.isPending}
            onClick={() => cancel.mutate()}
          >
            Abort
          </Button>
        )}
      </Group>
      {running && (
        <Progress
          mt={4}
          size="sm"
          value={done(operation) ?? 100}
          animated={done(operation) === undefined}
          aria-label={title}
        />
      )}
      {operation.problem && (
        <Text size="sm" c="red" mt={4}>
          {operation.problem.detail}
        </Text>
      )}
      {command && <Code fz="xs">{command}</Code>}
    </li>
  );
}
