/** How the form of an action ends: the equivalent command, a way out, and the action itself. */
import { Button, Group } from '@mantine/core';
import { CommandLine } from './CommandLine';

interface FormEndProps {
  command: string;
  /** What the button of the action says. */
  action: string;
  pending: boolean;
  onCancel: () => void;
}

export function FormEnd({ command, action, pending, onCancel }: FormEndProps) {
  return (
    <>
      <CommandLine command={command} />
      <Group justify="flex-end">
        <Button variant="default" onClick={onCancel}>
          Cancel
        </Button>
        <Button type="submit" loading={pending}>
          {action}
        </Button>
      </Group>
    </>
  );
}
