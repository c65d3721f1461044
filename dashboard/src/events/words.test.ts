import { expect, it } from 'vitest';
import type { Event } from '../api/types';
import { colour, matches } from './words';

const changed = (state: 'running' | 'crashed'): Event => ({
  sequence: 1,
  at: '2026-01-01T00:00:00Z',
  event: 'vm-changed',
  vm: 'id-1',
  name: 'web-1',
  state,
  message: 'the machine runs',
});

it('is found by all of its words', () => {
  expect(matches(changed('running'), 'WEB-1 runs')).toBe(true);
  expect(matches(changed('running'), 'web-1 snapshot')).toBe(false);
});

it('is red where something should not be', () => {
  expect(colour(changed('crashed'))).toBe('red');
  expect(colour(changed('running'))).toBe('gray');
});
