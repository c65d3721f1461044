/** Has other daemons keep copies of a running machine, one of which goes on when this one is gone. */
import {
  Accordion,
  Group,
  Modal,
  NumberInput,
  PasswordInput,
  SegmentedControl,
  Select,
  Stack,
  Text,
  Textarea,
  TextInput,
} from '@mantine/core';
import { type UseFormReturnType, useForm } from '@mantine/form';
import { api, value } from '../api/client';
import type { Vm } from '../api/types';
import { FormEnd } from '../commands/FormEnd';
import { useTask } from '../operations/tasks';
import {
  addresses,
  backupsProblem,
  bufferProblem,
  isRemote,
  protectCommand,
  registerProblem,
  requestOf,
  USUAL,
  type Wishes,
} from './request';

// biome-ignore lint/suspicious/noExplicitAny: what the form checks is of no matter to its fields.
type Form = UseFormReturnType<Wishes, any, any>;

const MODES = [
  { value: 'pause', label: 'Wait' },
  { value: 'best-effort', label: 'Go on without' },
];

export function ProtectDialog({ vm, onClose }: { vm: Vm; onClose: () => void }) {
  const task = useTask(onClose);
  const form = useForm<Wishes>({
    initialValues: USUAL,
    validate: {
      backups: backupsProblem,
      register: registerProblem,
      buffer: bufferProblem,
      token: (token, { backups }) =>
        isRemote(backups) && !token ? 'a token of those daemons, with scope admin' : null,
      acks: (acks, { backups }) =>
        acks === '' || (acks >= 1 && acks <= addresses(backups).length)
          ? null
          : 'no more than there are copies',
    },
  });
  const line = protectCommand(vm.name, form.values);
  const submit = () =>
    task.mutate({
      command: line,
      run: () =>
        value(
          api.POST('/v1/vms/{vm}/protection', {
            params: { path: { vm: vm.id } },
            body: requestOf(form.values),
          }),
        ),
    });
  return (
    <Modal
      opened
      onClose={onClose}
      size="lg"
      title={`Protect ${vm.name}`}
      closeButtonProps={{ 'aria-label': 'Close' }}
    >
      <form onSubmit={form.onSubmit(submit)}>
        <Stack>
          <Text size="sm">
            Other daemons keep copies of it. When this one is gone, one of them goes on: same memory, same
            addresses, same connections.
          </Text>
          <Textarea
            label="Daemons that keep copies"
            description="One in each line"
            placeholder={'https://node-b:7443\nhttps://node-c:7443'}
            autosize
            minRows={2}
            data-autofocus
            {...form.getInputProps('backups')}
          />
          {isRemote(form.values.backups) && (
            <>
              <PasswordInput label="Token of those daemons" {...form.getInputProps('token')} />
              <Textarea
                label="Their certificates"
                description="PEM; empty for the usual authorities"
                autosize
                maxRows={6}
                {...form.getInputProps('authority')}
              />
            </>
          )}
          <TextInput
            label="Register"
            description="Where all of them agree on whose machine it is"
            placeholder="etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379"
            {...form.getInputProps('register')}
          />
          <div>
            <Text size="sm" fw={500} id="mode-of-protection">
              When copies are out of reach
            </Text>
            <SegmentedControl
              data={MODES}
              aria-labelledby="mode-of-protection"
              {...form.getInputProps('mode')}
            />
            <Text size="xs" c="dimmed">
              {form.values.mode === 'pause'
                ? 'What the guest sends waits, and it stands still when too much does. Nothing is lost.'
                : 'The guest goes on without protection, and is protected again when it can be.'}
            </Text>
          </div>
          <Accordion variant="contained">
            <Accordion.Item value="more">
              <Accordion.Control>How often, how much, how fast</Accordion.Control>
              <Accordion.Panel>
                <Details form={form} />
              </Accordion.Panel>
            </Accordion.Item>
          </Accordion>
          <FormEnd command={line} action="Protect" pending={task.isPending} onCancel={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}

function Details({ form }: { form: Form }) {
  const number = (field: keyof Wishes, label: string, min: number, max: number, description: string) => (
    <NumberInput
      label={label}
      description={description}
      min={min}
      max={max}
      allowDecimal={false}
      {...form.getInputProps(field)}
    />
  );
  return (
    <Stack>
      <Group grow align="flex-start">
        {number('acks', 'Copies that must have it', 1, 8, 'Before output leaves; empty for all')}
        {number('interval', 'Interval, ms', 1, 10_000, 'From one copy to the next; empty: chosen')}
      </Group>
      <Group grow align="flex-start">
        <TextInput label="Buffer" description="Output that may wait" {...form.getInputProps('buffer')} />
        {number('stripes', 'Connections', 1, 16, 'For memory, to each')}
      </Group>
      <Group grow align="flex-start">
        {number('silence', 'Silence, ms', 20, 60_000, 'Of this daemon, until another takes over')}
        {number('lease', 'Lease, ms', 100, 60_000, 'For which the register may stay as it is')}
      </Group>
      <Group grow align="flex-start">
        {number('threshold', 'Slow down from, %', 0, 99, 'Of the buffer')}
        {number('most', 'At most by, %', 0, 99, '0 for never')}
        <Select
          label="Curve"
          description="How it rises"
          data={[
            { value: 'linear', label: 'Linear' },
            { value: 'exponential', label: 'Exponential' },
            { value: 'custom', label: 'Points' },
          ]}
          allowDeselect={false}
          {...form.getInputProps('curve')}
        />
      </Group>
      {form.values.curve === 'exponential' && (
        <NumberInput label="Steepness" min={0.1} max={100} {...form.getInputProps('steepness')} />
      )}
      {form.values.curve === 'custom' && (
        <Textarea
          label="Points"
          description="Fill and throttle from 0 to 1, a line each"
          autosize
          {...form.getInputProps('points')}
        />
      )}
    </Stack>
  );
}
