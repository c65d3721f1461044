import { describe, expect, it } from 'vitest';
import { follow } from '../live/rates';
import { metricsOf, vmOf } from '../testing/samples';
import { matches, rows } from './rows';

const vms = [vmOf('web-10'), vmOf('web-2'), vmOf('idle', 'stopped')];
const at = (n: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, n)).toISOString();
const counters = (n: number, of: Record<string, number>) =>
  Object.entries(of).map(([name, cpu]) => metricsOf(`id-of-${name}`, { at: at(n), cpu_ns: cpu * n * 1e9 }));
const tracks = follow(
  follow(new Map(), counters(1, { 'web-10': 0.2, 'web-2': 0.9 })),
  counters(2, { 'web-10': 0.2, 'web-2': 0.9 }),
);
const order = (find: string, column: 'name' | 'cpu', descending = false) =>
  rows(vms, tracks, find, { column, descending }).map((row) => row.vm.name);

describe('the table', () => {
  it('sorts names as people count', () => {
    expect(order('', 'name')).toEqual(['idle', 'web-2', 'web-10']);
  });

  it('answers which machine eats what', () => {
    expect(order('', 'cpu', true)).toEqual(['web-2', 'web-10', 'idle']);
  });

  it('finds machines by words of names, states and labels', () => {
    expect(order('web running', 'name')).toEqual(['web-2', 'web-10']);
    expect(
      matches(vmOf('a', 'paused', { spec: { ...vmOf('a').spec, labels: { tier: 'db' } } }), 'tier=DB'),
    ).toBe(true);
    expect(matches(vmOf('a'), 'b')).toBe(false);
  });
});
