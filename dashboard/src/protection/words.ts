/** Protection in words and colours. */
import type { Operation, Protection, Vm } from '../api/types';
import { seconds } from '../units/format';

/** On this daemon a machine is the one that runs, or a copy that waits. */
export type Role = 'primary' | 'backup';

export const STATES: Record<Protection['state'], { word: string; colour: string; means: string }> = {
  off: { word: 'not protected', colour: 'gray', means: 'There are no copies.' },
  seeking: {
    word: 'seeking copies',
    colour: 'orange',
    means: 'It goes on here after a failover, without protection until daemons are found that keep copies.',
  },
  copying: {
    word: 'copying',
    colour: 'blue',
    means: 'The first copies are being made; output leaves at once.',
  },
  protected: {
    word: 'protected',
    colour: 'teal',
    means: 'Output leaves when copies have what it came from.',
  },
  degraded: {
    word: 'degraded',
    colour: 'orange',
    means: 'Copies are out of reach; the machine goes on without.',
  },
  fenced: {
    word: 'fenced',
    colour: 'red',
    means: 'Another daemon has the machine; nothing of it leaves here any more.',
  },
};

/** What a machine is in its group; nothing if it has none. */
export function roleOf(
  vm: Pick<Vm, 'id'>,
  protection: Protection | undefined,
  operations: Operation[],
): Role | undefined {
  if (protection) return 'primary';
  const keeps = ({ kind, state, target }: Operation) =>
    kind === 'keep-copy' && state === 'running' && target === vm.id;
  return operations.some(keeps) ? 'backup' : undefined;
}

/** How far the copy that is furthest behind is, in seconds. */
export function behind({ backups }: Protection): number {
  return Math.max(0, ...backups.map(({ behind_ns }) => behind_ns / 1e9));
}

/** For how long there has been something that a copy lacks. */
export function behindWords(ns: number): string {
  return ns > 0 ? `${seconds(ns / 1e9)} behind` : 'up to date';
}

/** The last part of a way to a daemon, which tells it from others: `node-b:7443`. */
export function placeOf(to: string): string {
  const path = to.replace(/^unix:/, '').replace(/\/daemon\.sock$/, '');
  return to.startsWith('unix:') ? (path.split('/').at(-1) ?? to) : to.replace(/^https:\/\//, '');
}

/** `protected, 4.2 ms`: what a badge has room for. */
export function badgeWords(protection: Protection): string {
  const { word } = STATES[protection.state];
  if (protection.stalled) return `${word}, stands still`;
  return protection.state === 'protected' ? `${word}, ${seconds(protection.lag_ns / 1e9)}` : word;
}
