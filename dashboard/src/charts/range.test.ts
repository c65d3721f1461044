import { expect, it } from 'vitest';
import { bounds, readRange } from './range';

it('is read from an address, and nonsense is not', () => {
  expect(readRange({ range: '6h' })).toEqual({ range: '6h' });
  expect(readRange({ from: '100', to: 200.5 })).toEqual({ from: 100, to: 201 });
  expect(readRange({ from: 300, to: 200 })).toEqual({});
  expect(readRange({ range: 'toString' })).toEqual({});
});

it('moves with the time unless it is fixed', () => {
  expect(bounds({}, 1_000_000_000)).toEqual([1_000_000 - 900, 1_000_000]);
  expect(bounds({ from: 5, to: 9 }, 1_000_000_000)).toEqual([5, 9]);
});
