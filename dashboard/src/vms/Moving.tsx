/** Whether a machine is on its way from or to another daemon, and how far. */
import { Badge } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { operationsQuery } from '../api/queries';
import type { Operation, Vm } from '../api/types';
import { done } from '../operations/words';
import { percent } from '../units/format';

/** The operation that moves a machine, if one does. */
export function moving(operations: Operation[], vm: Pick<Vm, 'id'>): Operation | undefined {
  return operations.find(
    ({ kind, state, target }) =>
      state === 'running' && (kind === 'migrate' || kind === 'receive') && target === vm.id,
  );
}

export function Moving({ vm }: { vm: Vm }) {
  const { data: operations = [] } = useQuery(operationsQuery);
  const operation = moving(operations, vm);
  if (!operation) return null;
  const far = done(operation);
  const word = operation.kind === 'migrate' ? 'leaving' : 'arriving';
  return (
    <Badge variant="light" color="blue" tt="none">
      {far === undefined ? word : `${word}, ${percent(far)}`}
    </Badge>
  );
}
