/** Asks before something is lost, and names it. */
import { Button, Group, Modal, Stack, Text } from '@mantine/core';
import type { Operation } from '../api/types';
import { CommandLine } from '../commands/CommandLine';
import { useTask } from '../operations/tasks';

interface Props {
  title: string;
  loss: string;
  confirm: string;
  work: { command: string; run: () => Promise<Operation | undefined> };
  onClose: () => void;
}

export function LossDialog({ title, loss, confirm, work, onClose }: Props) {
  const task = useTask(onClose);
  return (
    <Modal opened onClose={onClose} title={title} closeButtonProps={{ 'aria-label': 'Close' }}>
      <Stack>
        <Text>{loss}</Text>
        <CommandLine command={work.command} />
        <Group justify="flex-end">
          <Button variant="default" onClick={onClose} data-autofocus>
            Keep it
          </Button>
          <Button color="red" loading={task.isPending} onClick={() => task.mutate(work)}>
            {confirm}
          </Button>
        </Group>
      </Stack>
    </Modal>
  );
}
