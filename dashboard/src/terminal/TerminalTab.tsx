/** A terminal into a machine: its console, or a shell of its agent. */
import { Code, Group, SegmentedControl, Stack, Text } from '@mantine/core';
import { useNavigate, useSearch } from '@tanstack/react-router';
import { useMemo } from 'react';
import type { Vm } from '../api/types';
import { command } from '../commands/command';
import { useMay } from '../session/SessionGate';
import { isLive } from '../vms/actions';
import { type LinkKind, openConsole, openShell, type Sink, type Size } from './links';
import { TerminalView } from './TerminalView';

export default function TerminalTab({ vm }: { vm: Vm }) {
  const { terminal } = useSearch({ from: '/vms/$vm' });
  const navigate = useNavigate({ from: '/vms/$vm' });
  const may = useMay('operate');
  const kind: LinkKind = terminal ?? 'console';
  const run = vm.runtime?.started_at;
  // Another run of the machine is another terminal.
  // biome-ignore lint/correctness/useExhaustiveDependencies: see above.
  const open = useMemo(() => {
    const connect = kind === 'shell' ? openShell : openConsole;
    return (size: Size, sink: Sink) => connect(vm.id, size, sink);
  }, [kind, vm.id, run]);

  if (!may) return <Text>This session may only look: a terminal needs one that may operate machines.</Text>;
  if (!isLive(vm)) return <Text>The machine does not run. The log shows what its console printed last.</Text>;
  return (
    <Stack gap="xs">
      <Group>
        <SegmentedControl
          aria-label="Which terminal"
          size="xs"
          data={[
            { value: 'console', label: 'Console' },
            { value: 'shell', label: 'Shell' },
          ]}
          value={kind}
          onChange={(value) =>
            navigate({
              search: (search) => ({ ...search, terminal: value === 'shell' ? 'shell' : undefined }),
            })
          }
        />
        <Code>
          {kind === 'shell' ? command('exec', '--tty', vm.name, '--', 'sh') : command('console', vm.name)}
        </Code>
      </Group>
      <TerminalView open={open} label={`${kind === 'shell' ? 'Shell' : 'Console'} of ${vm.name}`} />
    </Stack>
  );
}
