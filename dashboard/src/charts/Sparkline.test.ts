import { expect, it } from 'vitest';
import { curve } from './Sparkline';

it('ends at the right edge and is as high as its highest value', () => {
  expect(curve([0, 10], 73, 1)).toBe('M71.0 19.0L72.0 1.0');
  expect(curve([0, 1], 73, 10)).toBe('M71.0 19.0L72.0 17.2');
  expect(curve([5], 60, 1)).toBe('');
});
