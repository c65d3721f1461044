/** The table of machines: what each row shows, and in which order. */
import type { Protection, Vm } from '../api/types';
import type { Track, Tracks, Usage } from '../live/rates';

export interface Row {
  vm: Vm;
  usage: Usage | undefined;
  past: Usage[];
  protection: Protection | undefined;
}

export type Column = 'name' | 'state' | 'cpu' | 'memory' | 'disk' | 'iops' | 'network';
export interface Order {
  column: Column;
  descending: boolean;
}

const BY: Record<Column, (row: Row) => number | string> = {
  name: (row) => row.vm.name,
  state: (row) => row.vm.state,
  cpu: (row) => row.usage?.cpu ?? -1,
  memory: (row) => row.usage?.resident ?? -1,
  disk: (row) => diskRate(row.usage) ?? -1,
  iops: (row) => row.usage?.iops ?? -1,
  network: (row) => netRate(row.usage) ?? -1,
};

const names = new Intl.Collator(undefined, { numeric: true });

export function rows(vms: Vm[], tracks: Tracks, find: string, order: Order): Row[] {
  const shown = vms.filter((vm) => matches(vm, find)).map((vm) => rowOf(vm, tracks.get(vm.id)));
  return shown.sort((a, b) => compare(a, b, order));
}

function rowOf(vm: Vm, track: Track | undefined): Row {
  const protection = track?.last.protection ?? undefined;
  return { vm, usage: track?.usage, past: track?.past ?? [], protection };
}

/** Looks for each word in the name, the state and the labels. */
export function matches(vm: Vm, find: string): boolean {
  const labels = Object.entries(vm.spec.labels ?? {}).map(([key, text]) => `${key}=${text}`);
  const text = [vm.name, vm.id, vm.state, ...labels].join(' ').toLowerCase();
  return find
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

export function diskRate(usage: Usage | undefined): number | undefined {
  return usage && usage.diskRead + usage.diskWritten;
}

export function netRate(usage: Usage | undefined): number | undefined {
  return usage && usage.netReceived + usage.netSent;
}

function compare(a: Row, b: Row, { column, descending }: Order): number {
  const [left, right] = [BY[column](a), BY[column](b)];
  const difference =
    typeof left === 'number' && typeof right === 'number'
      ? left - right
      : names.compare(String(left), String(right));
  // Equal rows stay where they are: names decide.
  return (descending ? -difference : difference) || names.compare(a.vm.name, b.vm.name);
}
