/** Operations in words. */
import type { Operation } from '../api/types';
import { bytes, count } from '../units/format';

const VERBS: Record<Operation['kind'], string> = {
  create: 'Create',
  start: 'Start',
  stop: 'Stop',
  kill: 'Kill',
  pause: 'Pause',
  resume: 'Resume',
  reboot: 'Reboot',
  delete: 'Delete',
  snapshot: 'Snapshot',
  'delete-snapshot': 'Delete snapshot of',
  restore: 'Restore',
  clone: 'Clone',
  migrate: 'Move',
  receive: 'Receive',
  drain: 'Empty',
  protect: 'Protect',
  unprotect: 'Unprotect',
  'keep-copy': 'Keep a copy of',
  'import-image': 'Import image',
  'create-image': 'Create image',
  'check-image': 'Check image',
  'convert-image': 'Convert image',
  'resize-image': 'Resize image',
  benchmark: 'Benchmarks',
};

/** `Clone web-1`: machines are called by their names where they still have one. */
export function title(operation: Operation, names: ReadonlyMap<string, string>): string {
  const { kind, target } = operation;
  if (kind === 'benchmark') return VERBS[kind];
  return target ? `${VERBS[kind]} ${names.get(target) ?? target}` : VERBS[kind];
}

/** From 0 to 100, where it is known. */
export function done({ progress }: Operation): number | undefined {
  return progress && progress.total > 0 ? Math.min(100, (progress.done / progress.total) * 100) : undefined;
}

/** `3 of 10 machines`. */
export function progressWords({ progress }: Operation): string | undefined {
  if (!progress) return undefined;
  const show = progress.unit === 'bytes' ? bytes : count;
  const unit = progress.unit === 'bytes' ? '' : ` ${progress.unit}`;
  return `${show(progress.done)} of ${show(progress.total)}${unit}`;
}
