/** Brings a running machine to another daemon. */
import { Modal, NumberInput, PasswordInput, Stack, Text, Textarea, TextInput } from '@mantine/core';
import { useForm } from '@mantine/form';
import { api, value } from '../api/client';
import type { Vm } from '../api/types';
import { command } from '../commands/command';
import { FormEnd } from '../commands/FormEnd';
import { useTask } from '../operations/tasks';

const isRemote = (to: string) => to.startsWith('https://');

export function addressProblem(to: string): string | null {
  return /^https:\/\/[^/\s]+:\d+$/.test(to) || /^unix:\/\S+$/.test(to)
    ? null
    : 'https://host:port, or unix:/path of a daemon on this host';
}

export function MigrateDialog({ vm, onClose }: { vm: Vm; onClose: () => void }) {
  const task = useTask(onClose);
  const form = useForm({
    initialValues: { to: '', token: '', authority: '', stripes: 2 },
    validate: {
      to: addressProblem,
      token: (token, { to }) => (isRemote(to) && !token ? 'a token of that daemon, with scope admin' : null),
    },
  });
  const { to, token, authority, stripes } = form.values;
  const line = command(
    'migrate',
    vm.name,
    '--to',
    to || 'https://host:port',
    token && '--to-token-file',
    token && 'FILE',
    authority && '--to-ca',
    authority && 'FILE',
    ...(stripes !== 2 ? ['--stripes', stripes] : []),
  );
  const submit = () =>
    task.mutate({
      command: line,
      run: () =>
        value(
          api.POST('/v1/vms/{vm}/migrate', {
            params: { path: { vm: vm.id } },
            body: { to, token: token || null, authority: authority || null, stripes, max_rounds: 8 },
          }),
        ),
    });
  return (
    <Modal opened onClose={onClose} title={`Move ${vm.name}`} closeButtonProps={{ 'aria-label': 'Close' }}>
      <form onSubmit={form.onSubmit(submit)}>
        <Stack>
          <Text size="sm">
            It goes on running until its memory is there, and stands still for the last of it only. Tasks can
            abort it; then it stays here.
          </Text>
          <TextInput
            label="To"
            placeholder="https://host:7443"
            data-autofocus
            {...form.getInputProps('to')}
          />
          {isRemote(to) && (
            <>
              <PasswordInput label="Token of that daemon" {...form.getInputProps('token')} />
              <Textarea
                label="Its certificate"
                description="PEM; empty for the usual authorities"
                autosize
                maxRows={6}
                {...form.getInputProps('authority')}
              />
            </>
          )}
          <NumberInput
            label="Connections"
            min={1}
            max={16}
            allowDecimal={false}
            {...form.getInputProps('stripes')}
          />
          <FormEnd command={line} action="Move" pending={task.isPending} onCancel={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}
