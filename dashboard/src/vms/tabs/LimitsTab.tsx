/** What a machine may use at most; a running machine follows at once. */
import { Button, Group, NumberInput, Stack, Text, TextInput } from '@mantine/core';
import { useForm } from '@mantine/form';
import { notifications } from '@mantine/notifications';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { api, value } from '../../api/client';
import { keys } from '../../api/queries';
import type { Limits, Vm } from '../../api/types';
import { CommandLine } from '../../commands/CommandLine';
import { limitsCommand } from '../../commands/command';
import { refuse } from '../../operations/tasks';
import { useMay } from '../../session/SessionGate';
import { parseSize, size } from '../../units/format';

interface Wishes {
  weight: number | '';
  quota: number | '';
  balloon: string;
  hotplug: string;
}

const sizeProblem = (text: string) => (parseSize(text) === undefined ? 'a size, such as 512M' : null);

export default function LimitsTab({ vm }: { vm: Vm }) {
  const cache = useQueryClient();
  const limits = vm.spec.limits ?? {};
  const mayChange = useMay('admin');
  const form = useForm<Wishes>({
    initialValues: wishesOf(limits),
    validate: { balloon: sizeProblem, hotplug: sizeProblem },
  });
  const wished = limitsOf(limits, form.values);
  // Against what the machine has, not against what the form began with: that is old once it was applied.
  const isWished = !same(wished, limitsOf(limits, wishesOf(limits)));
  const change = useMutation({
    mutationFn: () =>
      value(api.PATCH('/v1/vms/{vm}', { params: { path: { vm: vm.id } }, body: { limits: wished } })),
    onSuccess: () => {
      notifications.show({ color: 'teal', title: 'Done', message: `${vm.name} follows its new limits.` });
      void cache.invalidateQueries({ queryKey: keys.vms });
    },
    onError: refuse,
  });
  const plug = vm.spec.memory_hotplug_bytes ?? 0;
  return (
    <form onSubmit={form.onSubmit(() => change.mutate())}>
      <Stack maw={520}>
        <NumberInput
          label="Share of the processors"
          description="Where they are short: 100 is usual, 200 is twice as much"
          min={1}
          max={10_000}
          allowDecimal={false}
          placeholder="100"
          {...form.getInputProps('weight')}
        />
        <NumberInput
          label="Most it may use, in percent of one processor"
          description="150 is one and a half; empty for no limit"
          min={1}
          allowDecimal={false}
          placeholder="no limit"
          {...form.getInputProps('quota')}
        />
        <TextInput
          label="Memory to give back"
          description="What the guest is asked to give up to the balloon"
          {...form.getInputProps('balloon')}
        />
        {plug > 0 && (
          <TextInput
            label="Memory to add"
            description={`Of ${size(plug)} that can be plugged in`}
            {...form.getInputProps('hotplug')}
          />
        )}
        <RateLimits limits={limits} />
        <CommandLine command={limitsCommand(vm.name, wished)} />
        {mayChange && (
          <Group>
            <Button type="submit" loading={change.isPending} disabled={!isWished}>
              Apply
            </Button>
          </Group>
        )}
      </Stack>
    </form>
  );
}

export function wishesOf(limits: Limits): Wishes {
  return {
    weight: limits.cpu?.weight ?? '',
    quota: limits.cpu?.quota_percent ?? '',
    balloon: size(limits.balloon_bytes ?? 0),
    hotplug: size(limits.hotplug_bytes ?? 0),
  };
}

export function same(one: Limits, other: Limits): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

/** Pins and rates are the command line's to change; they stay as they are. */
export function limitsOf(limits: Limits, { weight, quota, balloon, hotplug }: Wishes): Limits {
  return {
    ...limits,
    cpu: { ...limits.cpu, weight: weight === '' ? null : weight, quota_percent: quota === '' ? null : quota },
    balloon_bytes: parseSize(balloon) ?? 0,
    hotplug_bytes: parseSize(hotplug) ?? 0,
  };
}

function RateLimits({ limits }: { limits: Limits }) {
  const rates = Object.entries(limits.rates ?? {});
  if (rates.length === 0) return null;
  const words = rates.map(([device, { bytes, requests }]) => {
    const parts = [bytes && `${size(bytes.per_second)}/s`, requests && `${requests.per_second} requests/s`];
    return `${device}: ${parts.filter(Boolean).join(', ')}`;
  });
  return <Text size="sm">Device limits: {words.join('; ')}</Text>;
}
