import { Badge } from '@mantine/core';
import type { VmState } from '../api/types';

export const STATE_COLOURS: Record<VmState, string> = {
  created: 'gray',
  starting: 'blue',
  running: 'teal',
  paused: 'yellow',
  stopping: 'blue',
  stopped: 'gray',
  crashed: 'red',
};

export function StateBadge({ state }: { state: VmState }) {
  return (
    <Badge variant="dot" color={STATE_COLOURS[state]} tt="none" fw={500}>
      {state}
    </Badge>
  );
}
