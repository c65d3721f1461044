import { api, value } from '../api/client';
import type { Protection, Vm } from '../api/types';
import { command } from '../commands/command';
import { placeOf } from './words';

/** What is asked before a protection ends, and what ends it. */
export function unprotecting(vm: Vm, { backups }: Protection) {
  const places = backups.map(({ to }) => placeOf(to)).join(', ');
  const of = { params: { path: { vm: vm.id } } };
  return {
    title: `Unprotect ${vm.name}?`,
    loss: `The ${backups.length === 1 ? 'copy' : 'copies'} at ${places} will be dropped. ${vm.name} goes on, but what it has in memory is lost if this host fails.`,
    confirm: 'Unprotect',
    work: {
      command: command('unprotect', vm.name),
      run: () => value(api.DELETE('/v1/vms/{vm}/protection', of)),
    },
  };
}
