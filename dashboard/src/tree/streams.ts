/** What flows between daemons: copies of protected machines, and machines that move. */
import type { Operation, Vm } from '../api/types';
import type { Tracks } from '../live/rates';
import { done } from '../operations/words';
import { behindWords, placeOf } from '../protection/words';
import { percent } from '../units/format';

export interface Stream {
  vm: string;
  name: string;
  /** A copy goes out or comes in, or the machine itself does. */
  kind: 'copy' | 'kept' | 'leaves' | 'arrives';
  /** The other daemon. */
  daemon: string;
  /** Nothing flows: it is out of reach. */
  broken: boolean;
  words: string;
}

/** The API does not tell where a machine goes to, or comes from. */
export const ELSEWHERE = 'another daemon';

const MOVES = {
  migrate: ['leaves', 'leaves'],
  receive: ['arrives', 'arrives'],
  'keep-copy': ['kept', 'is kept as a copy'],
} as const;

export function streams(vms: Vm[], tracks: Tracks, operations: Operation[]): Stream[] {
  const running = new Map<string, Operation>();
  for (const operation of operations)
    if (operation.state === 'running' && operation.kind in MOVES && operation.target)
      running.set(operation.target, operation);
  return vms.flatMap((vm) => {
    const operation = running.get(vm.id);
    return [...copies(vm, tracks), ...(operation ? [moveOf(vm, operation)] : [])];
  });
}

function copies(vm: Vm, tracks: Tracks): Stream[] {
  const { backups = [], state } = tracks.get(vm.id)?.last.protection ?? {};
  return backups.map(({ to, failed, epoch, behind_ns }) => {
    const daemon = placeOf(to);
    const how = failed
      ? 'is out of reach'
      : epoch == null
        ? 'gets its first copy'
        : `has its copy, ${behindWords(behind_ns)}`;
    const broken = Boolean(failed) || state === 'fenced';
    return { vm: vm.id, name: vm.name, kind: 'copy', daemon, broken, words: `${daemon} ${how}` };
  });
}

function moveOf(vm: Vm, operation: Operation): Stream {
  const [kind, verb] = MOVES[operation.kind as keyof typeof MOVES];
  const far = done(operation);
  const words = far === undefined || kind === 'kept' ? verb : `${verb}, ${percent(far)}`;
  return { vm: vm.id, name: vm.name, kind, daemon: ELSEWHERE, broken: false, words };
}

/** The words of each machine's streams. */
export function wordsByMachine(all: Stream[]): ReadonlyMap<string, string> {
  const words = new Map<string, string>();
  for (const { vm, words: more } of all) {
    const known = words.get(vm);
    words.set(vm, known ? `${known}; ${more}` : more);
  }
  return words;
}

/** The other daemons, and the machines that have to do with each. */
export function daemons(all: Stream[]): { name: string; streams: Stream[] }[] {
  const found = new Map<string, Stream[]>();
  for (const stream of all) found.set(stream.daemon, [...(found.get(stream.daemon) ?? []), stream]);
  return [...found].map(([name, streams]) => ({ name, streams })).sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** Places for the other daemons: on a half circle behind so many machines, as one first looks at them. */
export function around(count: number, machines: number): [x: number, z: number][] {
  const radius = 5 + Math.sqrt(machines) * 1.7;
  return Array.from({ length: count }, (_, index) => {
    const angle = -Math.PI / 4 - (index / Math.max(1, count - 1)) * Math.PI;
    return [Math.cos(angle) * radius, Math.sin(angle) * radius];
  });
}
