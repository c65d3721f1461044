import { expect, it } from 'vitest';
import type { Operation } from '../api/types';
import { follow } from '../live/rates';
import { metricsOf, protectionOf, vmOf } from '../testing/samples';
import { around, daemons, ELSEWHERE, streams, wordsByMachine } from './streams';

const vms = [vmOf('web'), vmOf('db')];
const tracks = follow(new Map(), [
  metricsOf('web', {
    vm: 'id-of-web',
    protection: protectionOf({
      backups: [
        { to: 'https://b:1', epoch: 3, round_trip_ns: 1, behind_ns: 5e6 },
        { to: 'https://c:1', epoch: null, round_trip_ns: 0, behind_ns: 0, failed: 'refused' },
      ],
    }),
  }),
]);
const move = (kind: Operation['kind'], state: Operation['state'] = 'running'): Operation => ({
  id: kind,
  kind,
  state,
  target: 'id-of-db',
  created_at: '2026-01-01T00:00:00Z',
  cancellable: true,
  progress: { done: 1, total: 2, unit: 'bytes' },
});

it('flow from a protected machine to each of its copies, and from one that moves', () => {
  const all = streams(vms, tracks, [move('migrate')]);
  expect(all.map(({ name, kind, daemon, broken }) => [name, kind, daemon, broken])).toEqual([
    ['web', 'copy', 'b:1', false],
    ['web', 'copy', 'c:1', true],
    ['db', 'leaves', ELSEWHERE, false],
  ]);
  const words = wordsByMachine(all);
  expect(words.get('id-of-web')).toBe('b:1 has its copy, 5 ms behind; c:1 is out of reach');
  expect(words.get('id-of-db')).toBe('leaves, 50 %');
});

it('end with the work', () => {
  expect(streams(vms, new Map(), [move('migrate', 'succeeded')])).toEqual([]);
  expect(streams(vms, new Map(), [move('keep-copy')])[0]?.kind).toBe('kept');
});

it('lead to each daemon once, outside of the machines', () => {
  const found = daemons(streams(vms, tracks, []));
  expect(found.map(({ name }) => name)).toEqual(['b:1', 'c:1']);
  const [[x, z] = [0, 0]] = around(1, 1000);
  expect(Math.hypot(x, z)).toBeGreaterThan(50);
});
