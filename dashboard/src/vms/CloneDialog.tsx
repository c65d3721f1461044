/** Makes running copies of a machine. */
import { Modal, NumberInput, Select, Stack, TextInput } from '@mantine/core';
import { useForm } from '@mantine/form';
import { useQuery } from '@tanstack/react-query';
import { api, value } from '../api/client';
import { snapshotsQuery } from '../api/queries';
import type { CloneRequest, Vm } from '../api/types';
import { cloneCommand } from '../commands/command';
import { FormEnd } from '../commands/FormEnd';
import { useTask } from '../operations/tasks';
import { nameProblem } from './names';

interface Props {
  vm: Vm;
  snapshot?: string;
  onClose: () => void;
}

export function CloneDialog({ vm, snapshot, onClose }: Props) {
  const { data: snapshots = [] } = useQuery(snapshotsQuery(vm.id));
  const task = useTask(onClose);
  const form = useForm({
    initialValues: { count: 1, name: '', snapshot: snapshot ?? '' },
    validate: {
      name: (name) => (name ? nameProblem(name) : null),
      count: (count) => (Number.isInteger(count) && count >= 1 && count <= 1000 ? null : 'from 1 to 1,000'),
    },
  });
  const request: CloneRequest = {
    count: form.values.count,
    name: form.values.name || null,
    snapshot: form.values.snapshot || null,
  };
  const command = cloneCommand(vm.name, request);
  const submit = () =>
    task.mutate({
      command,
      run: () => value(api.POST('/v1/vms/{vm}/clones', { params: { path: { vm: vm.id } }, body: request })),
    });

  return (
    <Modal opened onClose={onClose} title={`Clone ${vm.name}`} closeButtonProps={{ 'aria-label': 'Close' }}>
      <form onSubmit={form.onSubmit(submit)}>
        <Stack>
          <NumberInput
            label="How many"
            min={1}
            max={1000}
            allowDecimal={false}
            data-autofocus
            {...form.getInputProps('count')}
          />
          <TextInput
            label="Called"
            description="A number is put behind it"
            placeholder={vm.name}
            {...form.getInputProps('name')}
          />
          <Select
            label="From"
            data={[
              { value: '', label: 'The machine as it is now' },
              ...snapshots.map(({ name }) => ({ value: name, label: `Snapshot ${name}` })),
            ]}
            allowDeselect={false}
            {...form.getInputProps('snapshot')}
          />
          <FormEnd command={command} action="Clone" pending={task.isPending} onCancel={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}
