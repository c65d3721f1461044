/** Makes a machine. */
import { Checkbox, Group, Modal, NumberInput, Select, Stack, TextInput } from '@mantine/core';
import { useForm } from '@mantine/form';
import { useQuery } from '@tanstack/react-query';
import { api, value } from '../api/client';
import { imagesQuery } from '../api/queries';
import type { CreateVm } from '../api/types';
import { spawnCommand } from '../commands/command';
import { FormEnd } from '../commands/FormEnd';
import { useTask } from '../operations/tasks';
import { parseSize } from '../units/format';
import { nameProblem } from './names';

interface Wishes {
  name: string;
  vcpus: number;
  ram: string;
  image: string;
  network: boolean;
  start: boolean;
}

const sizeProblem = (text: string) => (parseSize(text) ? null : 'a size, such as 512M or 2GB');

export function SpawnDialog({ onClose }: { onClose: () => void }) {
  const { data: images = [] } = useQuery(imagesQuery);
  const task = useTask(onClose);
  const form = useForm<Wishes>({
    initialValues: { name: '', vcpus: 1, ram: '512M', image: '', network: false, start: true },
    validate: {
      name: nameProblem,
      ram: sizeProblem,
      vcpus: (count) => (Number.isInteger(count) && count >= 1 && count <= 256 ? null : 'from 1 to 256'),
    },
  });
  const request = requestOf(form.values);
  const command = spawnCommand({ ...request, name: request.name || 'NAME' });
  const submit = () => task.mutate({ command, run: () => value(api.POST('/v1/vms', { body: request })) });

  return (
    <Modal opened onClose={onClose} title="New machine" closeButtonProps={{ 'aria-label': 'Close' }}>
      <form onSubmit={form.onSubmit(submit)}>
        <Stack>
          <TextInput label="Name" required data-autofocus {...form.getInputProps('name')} />
          <Group grow align="flex-start">
            <NumberInput
              label="vCPUs"
              min={1}
              max={256}
              allowDecimal={false}
              {...form.getInputProps('vcpus')}
            />
            <TextInput label="RAM" {...form.getInputProps('ram')} />
          </Group>
          <Select
            label="Disk"
            data={[
              { value: '', label: 'None: the small root file system' },
              ...images.map(({ name }) => ({ value: name, label: `Overlay on ${name}` })),
            ]}
            allowDeselect={false}
            {...form.getInputProps('image')}
          />
          <Checkbox
            label="A network device, through the host’s network"
            {...form.getInputProps('network', { type: 'checkbox' })}
          />
          <Checkbox label="Start it at once" {...form.getInputProps('start', { type: 'checkbox' })} />
          <FormEnd command={command} action="Make it" pending={task.isPending} onCancel={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}

function requestOf({ name, vcpus, ram, image, network, start }: Wishes): CreateVm {
  return {
    name,
    start,
    spec: {
      vcpus,
      ram_bytes: parseSize(ram),
      disks: image ? [{ image }] : [],
      nets: network ? [{ kind: 'user' }] : [],
    },
  };
}
