import { expect, test } from 'vitest';
import { runOf } from '../testing/samples';
import { colour, compare, figure, words } from './compare';

const boot = (median: number) =>
  ({ suite: 'boot', name: 'boot', unit: 'ms', more_is_better: false, median }) as const;
const reads = (median: number) =>
  ({ suite: 'disk', name: 'reads', unit: '1/s', more_is_better: true, median }) as const;

test('better is better, whichever way a figure counts', () => {
  const rows = compare(runOf('a', [boot(100), reads(1000)]), runOf('b', [boot(50), reads(500)]));
  expect(rows.map((row) => row.better)).toEqual([2, 0.5]);
});

test('what only one run has stands alone', () => {
  const rows = compare(runOf('a', [boot(100)]), runOf('b', [reads(500)]));
  expect(rows.map(({ before, after, better }) => [before, after, better])).toEqual([
    [100, undefined, undefined],
    [undefined, 500, undefined],
  ]);
  expect(compare(undefined, undefined)).toEqual([]);
});

test('a ratio with nothing is none', () => {
  expect(compare(runOf('a', [reads(0)]), runOf('b', [reads(500)]))[0]?.better).toBeUndefined();
});

test('ratios and figures are words', () => {
  expect([words(1.25), words(0.5), words(1.001), words(undefined)]).toEqual([
    '1.25 × better',
    '2.00 × worse',
    'same',
    '–',
  ]);
  expect([colour(1.05), colour(1.2), colour(0.5)]).toEqual(['dimmed', 'teal', 'red']);
  expect([figure(12.345, 'ms'), figure(123.4, 'ms'), figure(12345, '1/s')]).toEqual([
    '12.3 ms',
    '123 ms',
    '12,345 1/s',
  ]);
});
