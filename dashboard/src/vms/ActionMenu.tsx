/** The actions of a machine as a menu, each with its command; what loses something asks first. */
import { ActionIcon, Button, Menu, Text } from '@mantine/core';
import { IconChevronDown, IconDots } from '@tabler/icons-react';
import { useState } from 'react';
import type { Protection, Vm } from '../api/types';
import { cloneCommand, command } from '../commands/command';
import { useTask } from '../operations/tasks';
import { ProtectDialog } from '../protection/ProtectDialog';
import { unprotecting } from '../protection/unprotect';
import { useMay } from '../session/SessionGate';
import { type Action, possible } from './actions';
import { CloneDialog } from './CloneDialog';
import { LossDialog } from './LossDialog';
import { MigrateDialog } from './MigrateDialog';
import { SnapshotDialog } from './SnapshotDialog';

type Dialog = 'clone' | 'snapshot' | 'migrate' | 'protect' | 'unprotect' | Action | undefined;

interface Props {
  vm: Vm;
  /** How it is protected, if it is. */
  protection: Protection | undefined;
  /** Small, for a row of a table. */
  compact?: boolean;
}

export function ActionMenu({ vm, protection, compact }: Props) {
  const [dialog, setDialog] = useState<Dialog>();
  const task = useTask();
  const may = { read: true, operate: useMay('operate'), admin: useMay('admin') };
  const close = () => setDialog(undefined);
  const choose = (action: Action) =>
    action.loses
      ? setDialog(action)
      : task.mutate({ command: action.command(vm), run: () => action.run(vm) });
  const canCopy = vm.state === 'running' || vm.state === 'paused';

  return (
    <>
      <Menu position="bottom-end" width={280} withinPortal>
        <Menu.Target>
          {compact ? (
            <ActionIcon variant="subtle" aria-label={`Actions of ${vm.name}`} loading={task.isPending}>
              <IconDots size={18} />
            </ActionIcon>
          ) : (
            <Button rightSection={<IconChevronDown size={16} />} loading={task.isPending}>
              Actions
            </Button>
          )}
        </Menu.Target>
        <Menu.Dropdown>
          {canCopy && may.operate && (
            <>
              <Item
                label="Snapshot…"
                command={command('snapshot', vm.name)}
                onClick={() => setDialog('snapshot')}
              />
              <Item
                label="Clone…"
                command={cloneCommand(vm.name, { count: 1 })}
                onClick={() => setDialog('clone')}
              />
              {may.admin && !protection && (
                <>
                  <Item
                    label="Move…"
                    command={command('migrate', vm.name, '--to', 'https://host:port')}
                    onClick={() => setDialog('migrate')}
                  />
                  <Item
                    label="Protect…"
                    command={command('protect', vm.name, '--to', 'https://host:port')}
                    onClick={() => setDialog('protect')}
                  />
                </>
              )}
              {may.admin && protection && (
                <Item
                  label="Unprotect…"
                  command={command('unprotect', vm.name)}
                  onClick={() => setDialog('unprotect')}
                />
              )}
              <Menu.Divider />
            </>
          )}
          {possible(vm)
            .filter((action) => may[action.scope])
            .map((action) => (
              <Item
                key={action.id}
                label={action.loses ? `${action.label}…` : action.label}
                command={action.command(vm)}
                onClick={() => choose(action)}
                danger={Boolean(action.loses)}
              />
            ))}
          {!may.operate && <Menu.Label>This session may only look.</Menu.Label>}
        </Menu.Dropdown>
      </Menu>
      {dialog === 'clone' && <CloneDialog vm={vm} onClose={close} />}
      {dialog === 'snapshot' && <SnapshotDialog vm={vm} onClose={close} />}
      {dialog === 'migrate' && <MigrateDialog vm={vm} onClose={close} />}
      {dialog === 'protect' && <ProtectDialog vm={vm} onClose={close} />}
      {dialog === 'unprotect' && protection && (
        <LossDialog {...unprotecting(vm, protection)} onClose={close} />
      )}
      {typeof dialog === 'object' && (
        <LossDialog
          title={`${dialog.label} ${vm.name}?`}
          loss={dialog.loses?.(vm) ?? ''}
          confirm={dialog.label}
          work={{ command: dialog.command(vm), run: () => dialog.run(vm) }}
          onClose={close}
        />
      )}
    </>
  );
}

interface ItemProps {
  label: string;
  command: string;
  onClick: () => void;
  danger?: boolean;
}

function Item({ label, command, onClick, danger }: ItemProps) {
  return (
    <Menu.Item onClick={onClick} color={danger ? 'red' : undefined} aria-label={label}>
      {label}
      <Text component="div" size="xs" c="dimmed" ff="monospace" truncate>
        {command}
      </Text>
    </Menu.Item>
  );
}
