/** Takes a snapshot. */
import { Checkbox, Modal, Stack, TextInput } from '@mantine/core';
import { useForm } from '@mantine/form';
import { api, value } from '../api/client';
import type { Vm } from '../api/types';
import { command } from '../commands/command';
import { FormEnd } from '../commands/FormEnd';
import { useTask } from '../operations/tasks';
import { nameProblem } from './names';

export function SnapshotDialog({ vm, onClose }: { vm: Vm; onClose: () => void }) {
  const task = useTask(onClose);
  const form = useForm({
    initialValues: { name: '', description: '', incremental: false },
    validate: { name: (name) => (name ? nameProblem(name) : null) },
  });
  const { name, description, incremental } = form.values;
  const line = command(
    'snapshot',
    vm.name,
    ...(name ? ['--name', name] : []),
    ...(description ? ['--description', description] : []),
    incremental && '--incremental',
  );
  const submit = () =>
    task.mutate({
      command: line,
      run: () =>
        value(
          api.POST('/v1/vms/{vm}/snapshots', {
            params: { path: { vm: vm.id } },
            body: { name: name || null, description, incremental },
          }),
        ),
    });

  return (
    <Modal
      opened
      onClose={onClose}
      title={`Snapshot of ${vm.name}`}
      closeButtonProps={{ 'aria-label': 'Close' }}
    >
      <form onSubmit={form.onSubmit(submit)}>
        <Stack>
          <TextInput
            label="Name"
            placeholder="made from the time"
            data-autofocus
            {...form.getInputProps('name')}
          />
          <TextInput label="Description" {...form.getInputProps('description')} />
          <Checkbox
            label="Save only what has changed since the last one"
            {...form.getInputProps('incremental', { type: 'checkbox' })}
          />
          <FormEnd command={line} action="Take snapshot" pending={task.isPending} onCancel={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}
