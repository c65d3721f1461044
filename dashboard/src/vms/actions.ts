/** What can be done with a machine: when, by whom, with which command, and what it costs. */
import { api, value } from '../api/client';
import type { Operation, Scope, Vm, VmState } from '../api/types';
import { command } from '../commands/command';

export interface Action {
  id: 'start' | 'stop' | 'pause' | 'resume' | 'reboot' | 'kill' | 'delete';
  label: string;
  scope: Scope;
  states: VmState[];
  command: (vm: Vm) => string;
  run: (vm: Vm) => Promise<Operation>;
  /** What is lost for good; without it nothing is asked. */
  loses?: (vm: Vm) => string | undefined;
}

const LIVE: VmState[] = ['running', 'paused', 'starting', 'stopping'];
const OFF: VmState[] = ['created', 'stopped', 'crashed'];

const of = (vm: Vm) => ({ params: { path: { vm: vm.id } } });

export const ACTIONS: Action[] = [
  {
    id: 'start',
    label: 'Start',
    scope: 'operate',
    states: OFF,
    command: (vm) => command('start', vm.name),
    run: (vm) => value(api.POST('/v1/vms/{vm}/start', of(vm))),
  },
  {
    id: 'stop',
    label: 'Stop',
    scope: 'operate',
    states: ['running'],
    command: (vm) => command('stop', vm.name),
    run: (vm) => value(api.POST('/v1/vms/{vm}/stop', of(vm))),
  },
  {
    id: 'pause',
    label: 'Pause',
    scope: 'operate',
    states: ['running'],
    command: (vm) => command('pause', vm.name),
    run: (vm) => value(api.POST('/v1/vms/{vm}/pause', of(vm))),
  },
  {
    id: 'resume',
    label: 'Resume',
    scope: 'operate',
    states: ['paused'],
    command: (vm) => command('resume', vm.name),
    run: (vm) => value(api.POST('/v1/vms/{vm}/resume', of(vm))),
  },
  {
    id: 'reboot',
    label: 'Reboot',
    scope: 'operate',
    states: ['running'],
    command: (vm) => command('reboot', vm.name),
    run: (vm) => value(api.POST('/v1/vms/{vm}/reboot', of(vm))),
  },
  {
    id: 'kill',
    label: 'Kill',
    scope: 'operate',
    states: LIVE,
    command: (vm) => command('kill', vm.name),
    run: (vm) => value(api.POST('/v1/vms/{vm}/kill', of(vm))),
    loses: (vm) =>
      `Whatever ${vm.name} has in memory and has not written to its disks is lost, as in a power cut.`,
  },
  {
    id: 'delete',
    label: 'Delete',
    scope: 'admin',
    states: [...OFF, ...LIVE],
    command: (vm) => command('delete', vm.name, isLive(vm) && '--force'),
    run: (vm) =>
      value(api.DELETE('/v1/vms/{vm}', { params: { path: { vm: vm.id }, query: { force: isLive(vm) } } })),
    loses: (vm) =>
      `${vm.name}, its snapshots and ${diskWords(vm)} are lost for good.${isLive(vm) ? ' It runs and is switched off first.' : ''}`,
  },
];

/** What can be done with a machine in its present state. */
export function possible(vm: Vm): Action[] {
  return ACTIONS.filter((action) => action.states.includes(vm.state));
}

export function isLive(vm: Vm): boolean {
  return LIVE.includes(vm.state);
}

/** Files of the host stay; overlays and empty disks belong to the machine. */
function diskWords(vm: Vm): string {
  const own = (vm.spec.disks ?? []).filter((disk) => !disk.path).length;
  return own === 0 ? 'its memory' : own === 1 ? 'its disk' : `its ${own} disks`;
}
