/** Takes a file of the host into the store. */
import { Modal, Stack, TextInput } from '@mantine/core';
import { useForm } from '@mantine/form';
import { api, value } from '../api/client';
import { command } from '../commands/command';
import { FormEnd } from '../commands/FormEnd';
import { useTask } from '../operations/tasks';
import { nameProblem } from '../vms/names';

export function ImportDialog({ onClose }: { onClose: () => void }) {
  const task = useTask(onClose);
  const form = useForm({
    initialValues: { path: '', name: '' },
    validate: {
      name: nameProblem,
      path: (path) => (path.startsWith('/') ? null : 'a path of the host, from /'),
    },
  });
  const { path, name } = form.values;
  const line = command('image', 'import', name || 'NAME', path || 'FILE');
  const submit = () =>
    task.mutate({ command: line, run: () => value(api.POST('/v1/images/import', { body: { name, path } })) });
  return (
    <Modal opened onClose={onClose} title="Import a file" closeButtonProps={{ 'aria-label': 'Close' }}>
      <form onSubmit={form.onSubmit(submit)}>
        <Stack>
          <TextInput
            label="File"
            description="On the daemon’s host: raw or qcow2"
            placeholder="/srv/debian.qcow2"
            required
            data-autofocus
            {...form.getInputProps('path')}
          />
          <TextInput label="Name" required {...form.getInputProps('name')} />
          <FormEnd command={line} action="Import" pending={task.isPending} onCancel={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}
