/** Starts a run of benchmarks. */
import { Checkbox, Modal, NumberInput, Stack, Text, TextInput } from '@mantine/core';
import { useForm } from '@mantine/form';
import { useQueryClient } from '@tanstack/react-query';
import { api, value } from '../api/client';
import { keys } from '../api/queries';
import type { BenchmarkSuite } from '../api/types';
import { command } from '../commands/command';
import { FormEnd } from '../commands/FormEnd';
import { useTask } from '../operations/tasks';

const SUITES: { suite: BenchmarkSuite; label: string }[] = [
  { suite: 'boot', label: 'Boot: a machine until its first output and until its agent answers' },
  { suite: 'clone', label: 'Clone: ten clones until all know who they are' },
  { suite: 'snapshot', label: 'Snapshot: how long the guest stands still, and until it is stored' },
  { suite: 'disk', label: 'Disk: reads and writes at the queue, without a guest' },
];

export function RunDialog({ onClose }: { onClose: () => void }) {
  const cache = useQueryClient();
  const task = useTask(() => {
    void cache.invalidateQueries({ queryKey: keys.benchmarks });
    onClose();
  });
  const form = useForm({
    initialValues: { suites: SUITES.map(({ suite }) => suite as string), rounds: 3, note: '' },
    validate: { suites: (suites) => (suites.length === 0 ? 'choose at least one' : null) },
  });
  const { suites, rounds, note } = form.values;
  const some = suites.length < SUITES.length ? suites : [];
  const line = command(
    'benchmark',
    'run',
    ...some.flatMap((suite) => ['--suite', suite]),
    ...(rounds !== 3 ? ['--rounds', rounds] : []),
    ...(note ? ['--note', note] : []),
  );
  const submit = () =>
    task.mutate({
      command: line,
      run: () =>
        value(api.POST('/v1/benchmarks', { body: { suites: some as BenchmarkSuite[], rounds, note } })),
    });
  return (
    <Modal opened onClose={onClose} title="Run benchmarks" closeButtonProps={{ 'aria-label': 'Close' }}>
      <form onSubmit={form.onSubmit(submit)}>
        <Stack>
          <Text size="sm">
            The daemon makes small machines and deletes them again. What else runs on the host is measured
            with them.
          </Text>
          <Checkbox.Group label="Suites" {...form.getInputProps('suites')}>
            <Stack gap="xs" mt="xs">
              {SUITES.map(({ suite, label }) => (
                <Checkbox key={suite} value={suite} label={label} />
              ))}
            </Stack>
          </Checkbox.Group>
          <NumberInput
            label="Rounds"
            description="Of each; the median counts"
            min={1}
            max={20}
            allowDecimal={false}
            {...form.getInputProps('rounds')}
          />
          <TextInput
            label="Note"
            placeholder="what is different this time"
            maxLength={200}
            {...form.getInputProps('note')}
          />
          <FormEnd command={line} action="Run" pending={task.isPending} onCancel={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}
