/** Whether a machine is protected, or is a copy of one that is. */
import { Badge } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { operationsQuery } from '../api/queries';
import type { Protection, Vm } from '../api/types';
import { badgeWords, roleOf, STATES } from './words';

interface Props {
  vm: Vm;
  protection: Protection | undefined;
}

export function ProtectionBadge({ vm, protection }: Props) {
  const { data: operations = [] } = useQuery(operationsQuery);
  const role = roleOf(vm, protection, operations);
  if (!role) return null;
  return (
    <Badge variant="light" color={protection ? STATES[protection.state].colour : 'grape'} tt="none">
      {protection ? badgeWords(protection) : 'backup'}
    </Badge>
  );
}
